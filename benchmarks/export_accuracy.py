"""Measures AP and latency of a checkpoint and of its exported files on the same annotated images.

    python -m benchmarks.export_accuracy --checkpoint RUN --data bccd --split test --work /tmp/export_accuracy

Every network sees the images by the size rule of the files, so that differences come from the runtimes alone. The int8
file is written whatever it loses: the figures show it. Latency is from an image at the network's size to detections,
with NMS, one image at once, all networks in turn. `--work` keeps the files: a second run measures only.
Writes benchmarks/results/export_accuracy.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch

from benchmarks.export_speed import cpu_name, versions
from codetr_cli.export.accuracy import VerifyData, average_precision, find_images
from codetr_cli.export.int8 import Int8Options, Int8Writer
from codetr_cli.export.job import export, export_settings
from codetr_cli.export.openvino_model import read_onnx, save_openvino
from codetr_cli.export.options import SUFFIXES, ExportOptions
from codetr_cli.export.request import Writer, WriteRequest
from codetr_cli.export.seen import detect_timed, prepare
from codetr_cli.export.verify_images import VerifyImage
from codetr_cli.images.decoder import read_image
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.loading import LoadedModel, load_detector
from codetr_cli.models.build import build_postprocess
from codetr_cli.runtime.timing import in_turn
from codetr_cli.weights.checkpoint import file_sha256

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
CHECKPOINT = "pytorch"

FILES: dict[str, tuple[str, ExportOptions]] = {
    "onnx": ("ONNX Runtime, fp32", ExportOptions(format="onnx")),
    "openvino": ("OpenVINO, fp32", ExportOptions(format="openvino")),
    "int8": ("OpenVINO, int8", ExportOptions(format="openvino", precision="int8")),
    "torch": (".pt2, fp32", ExportOptions(format="torch", attention="gridsample")),
}
"""Title and options of each exported file."""


def main() -> None:
    """Exports what is not there, measures all, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="a file or a run folder")
    parser.add_argument("--data", required=True, help="folder of the data set")
    parser.add_argument("--split", default="test", choices=("val", "test"))
    parser.add_argument("--work", type=Path, required=True, help="folder for the files, kept")
    parser.add_argument("--files", default=",".join(FILES))
    parser.add_argument("--calibration", type=int, default=300, help="images for int8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=24, help="to measure latency with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--note", default="nothing else ran on the machine")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "export_accuracy.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = find_images(options.data, options.split)
    networks = {CHECKPOINT: checkpoint_of(options.checkpoint)}
    for name in options.files.split(","):
        networks[name] = load_detector(make(name, options), CPU)
    before = os.getloadavg()
    rows = {name: {"title": title_of(name), "runs_in": runs_in(loaded)} for name, loaded in networks.items()}
    for name, found in latencies(networks, data, options.images, options.rounds).items():
        rows[name] |= found
    for name, loaded in networks.items():
        rows[name] |= accuracy(loaded, data)
        rows[name]["AP_difference"] = round(rows[name]["AP"] - rows[CHECKPOINT]["AP"], 3)
    path = networks[CHECKPOINT].path
    settings = networks[CHECKPOINT].settings
    report = {
        "command": command(options),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": options.threads},
        "versions": {**versions(), "nncf": version("nncf")},
        "note": options.note,
        "load_average_of_a_minute": [round(before[0], 1), round(os.getloadavg()[0], 1)],
        "network": {
            "name": settings.name,
            "classes": networks[CHECKPOINT].class_names,
            "input": settings.test.fixed_size,
            "sha256": file_sha256(path) if path else None,
        },
        "data": {"name": Path(options.data).name, "split": options.split, "calibration_at_most": options.calibration},
        "rows": rows,
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(table(rows) + "\n")


def checkpoint_of(source: str) -> LoadedModel:
    """The checkpoint with the size rule of the files."""
    loaded = load_detector(source, CPU)
    settings = export_settings(loaded.settings, ExportOptions())
    return replace(loaded, settings=settings, postprocess=build_postprocess(settings.test))


def make(name: str, options: argparse.Namespace) -> Path:
    """The exported file of this name, which is written if it is not there."""
    wanted = FILES[name][1]
    target: Path = options.work / f"{name}{SUFFIXES[wanted.format]}"
    if target.exists():
        return target
    options.work.mkdir(parents=True, exist_ok=True)
    writer: Writer | None = None
    if wanted.precision == "int8":
        quantised = Int8Options(data=options.data, split=options.split, images=options.calibration, max_drop=100)
        writer = Int8Writer(quantised)
    elif wanted.format == "openvino":
        writer = partial(write_from_onnx, make("onnx", options))
    export(options.checkpoint, wanted, target, writer=writer, step=partial(show, name))
    return target


def write_from_onnx(file: Path, request: WriteRequest) -> None:
    """Writes an OpenVINO file as `codetr export` does, from a graph that is traced already: it is the same one."""
    proto = onnx.load(file)
    del proto.metadata_props[:]
    save_openvino(read_onnx(proto), request.metadata, request.path)


def show(name: str, step: str) -> None:
    """Prints what an export does."""
    sys.stderr.write(f"{name}: {step}\n")


def title_of(name: str) -> str:
    """Of a row."""
    return FILES[name][0] if name in FILES else "PyTorch, fp32"


def runs_in(loaded: LoadedModel) -> str:
    """What runs a network, and where."""
    info = getattr(getattr(loaded.model, "engine", None), "info", None)
    return str(info) if info else f"PyTorch {torch.__version__}"


def latencies(
    networks: dict[str, LoadedModel], data: VerifyData, images: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Milliseconds of an image, measured in turn: each image by every network, then the next one."""
    detectors = {name: Detector(loaded, device=CPU) for name, loaded in networks.items()}
    max_pixels = networks[CHECKPOINT].settings.data.max_pixels
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for number, file_name in enumerate(data.ground_truth.file_names[:images]):
        image = VerifyImage(file_name, read_image(data.paths.images_dir / file_name, max_pixels=max_pixels))
        calls = {
            name: partial(detect_timed, detector, [prepare(detector, image)]) for name, detector in detectors.items()
        }
        if not number:
            in_turn(calls, rounds=2)  # first calls prepare
        for name, found in in_turn(calls, rounds=rounds).items():
            seconds[name] += [one for _, one in found]
    return {
        name: {"median_ms": round(1000 * statistics.median(values), 1), "least_ms": round(1000 * min(values), 1)}
        for name, values in seconds.items()
    }


def accuracy(loaded: LoadedModel, data: VerifyData) -> dict[str, Any]:
    """AP in points (100 is perfect), as `codetr eval` measures it."""
    found = average_precision(loaded, data, CPU)
    values = {name: round(100 * found.metrics[name], 3) for name in ("AP", "AP50", "AP75")}
    return {**values, "images": found.images}


def command(options: argparse.Namespace) -> str:
    """The command line, without the folders of one machine."""
    return (
        f"python -m benchmarks.export_accuracy --checkpoint RUN --data {Path(options.data).name} "
        f"--split {options.split} --work WORK --files {options.files} --calibration {options.calibration} "
        f"--threads {options.threads} --images {options.images} --rounds {options.rounds}"
    )


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The figures as a table of Markdown."""
    lines = ["| file | AP | difference | AP50 | median | least |", "|---|--:|--:|--:|--:|--:|"]
    lines += [
        f"| {row['title']} | {row['AP']:.2f} | {row['AP_difference']:+.2f} | {row['AP50']:.2f} | "
        f"{row['median_ms']:.1f} ms | {row['least_ms']:.1f} ms |"
        for row in rows.values()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
