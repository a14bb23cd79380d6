"""Measures exported files beside PyTorch: the same images through the same code, in turn.

    python -m benchmarks.export_speed --work /tmp/export_speed

Networks have random weights, which take as long as others. Each way to run a network is a process of its own that loads
it and waits; then they run one after the other, round by round, so that a change of the machine's speed concerns all.
A figure is the time from normalised images in memory to detections, with NMS. Peak memory is that of the process.
`--work` keeps the files: a second run measures only. Formats whose packages are not installed are named with a reason.
Writes benchmarks/results/export_speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

NETWORKS = {"tiny": ("co_dino_tiny", (320, 320)), "r50": ("co_dino_r50", (800, 1333))}
"""Preset and size of the image, by name."""

VARIANTS: dict[str, tuple[str, str | None, str]] = {
    "pytorch": ("safetensors", None, "PyTorch, with codetr's kernel"),
    "onnx": ("onnx", None, "ONNX Runtime"),
    "openvino": ("openvino", None, "OpenVINO"),
    "torch": ("torch", "gridsample", ".pt2, plain PyTorch operators"),
    "torch-plugin": ("torch", "plugin", ".pt2, with codetr's kernel"),
}
"""Format, attention and title of each way to run a network."""

SUFFIXES = {"safetensors": ".safetensors", "onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}


def main() -> None:
    """Exports what is not there, measures all, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the files, kept")
    parser.add_argument("--networks", default="tiny,r50")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="of a large network; a tiny one takes four times as many")
    parser.add_argument("--note", default="nothing else ran on the machine")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "export_speed.json")
    parser.add_argument("--job", help="for the processes that this script starts")
    options = parser.parse_args()
    if options.job:
        name, _, variant = options.job.partition(":")
        path = file_of(options.work, name, variant)
        if path.exists():
            serve(path, NETWORKS[name][1], options.threads)
        else:
            make(options.work, name, variant)
        return
    options.work.mkdir(parents=True, exist_ok=True)
    report = {
        "command": f"python -m benchmarks.export_speed {' '.join(shown(sys.argv[1:]))}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": options.threads},
        "versions": versions(),
        "note": options.note,
        "networks": [measure(name, options) for name in options.networks.split(",")],
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for network in report["networks"]:
        sys.stdout.write(table(network) + "\n")


# ---------------------------------------------------------------------------------------------------------------- files


def file_of(work: Path, name: str, variant: str) -> Path:
    """The file that a variant runs."""
    return work / f"{name}_{variant}{SUFFIXES[VARIANTS[variant][0]]}"


def make(work: Path, name: str, variant: str) -> None:
    """Writes the file of a variant; the checkpoint of random weights is that of "pytorch"."""
    import torch

    from codetr_cli.export.job import export
    from codetr_cli.export.options import ExportOptions
    from codetr_cli.inference.loading import load_detector
    from codetr_cli.weights.checkpoint import save_checkpoint

    target, (format, attention, _) = file_of(work, name, variant), VARIANTS[variant]
    preset, size = NETWORKS[name]
    if format == "safetensors":
        torch.manual_seed(0)
        loaded = load_detector(preset, torch.device("cpu"), (), random_weights=True, optimize=False)
        save_checkpoint(target, loaded.model.state_dict(), settings=loaded.settings, class_names=loaded.class_names,
                        category_ids=loaded.category_ids)  # fmt: skip
        return
    options = ExportOptions(format=format, size=size, batch=1, attention=attention)  # type: ignore[arg-type]
    export(file_of(work, name, "pytorch"), options, target)


# ------------------------------------------------------------------------------------------------------------ measuring


def serve(path: Path, size: tuple[int, int], threads: int) -> None:
    """Loads a file, then runs it once for each line of the input, and prints the seconds."""
    import torch

    torch.set_num_threads(threads)
    from codetr_cli.data.batch import normalize
    from codetr_cli.inference.loading import load_detector
    from codetr_cli.runtime.synthetic import synthetic_batch

    started = time.perf_counter()
    loaded = load_detector(path, torch.device("cpu"), (), optimize=True)
    batch = synthetic_batch(size, 1, objects=0)
    images = normalize(batch.images, batch.padding_mask, loaded.settings.data.mean, loaded.settings.data.std)

    def run() -> tuple[float, list[float]]:
        before = time.perf_counter()
        with torch.inference_mode():
            (found,) = loaded.model.detect(images, batch.padding_mask, batch.targets, loaded.postprocess)
        return time.perf_counter() - before, sorted(found.scores.tolist(), reverse=True)

    first = time.perf_counter()
    run()
    answer({"load_seconds": round(first - started, 2), "first_seconds": round(time.perf_counter() - first, 3)})
    for _ in sys.stdin:
        seconds, scores = run()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        info = getattr(getattr(loaded.model, "engine", None), "info", None)
        answer({"seconds": seconds, "peak_mb": peak, "scores": scores[:20], "runs_in": str(info) if info else None})


def answer(value: dict[str, Any]) -> None:
    """Writes a line for the parent process."""
    sys.stdout.write(f"{json.dumps(value)}\n")
    sys.stdout.flush()


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of a network."""
    rows: dict[str, dict[str, Any]] = {}
    ready: dict[str, subprocess.Popen[str]] = {}
    variants = options.variants.split(",")
    try:
        for variant in dict.fromkeys(["pytorch", *variants]):
            reason = export_seconds = None
            if not file_of(options.work, name, variant).exists():
                before = time.perf_counter()
                reason = finished(start(options, name, variant))
                export_seconds = round(time.perf_counter() - before, 1)
            rows[variant] = {"title": VARIANTS[variant][2], "export_seconds": export_seconds}
            if reason is None:
                process = start(options, name, variant)
                reply = process.stdout.readline() if process.stdout else ""
                reason = None if reply else finished(process)
                if reply:
                    ready[variant] = process
                    rows[variant] |= json.loads(reply)
            if reason is not None:
                rows[variant]["skipped"] = reason
        rounds = options.rounds * (4 if name == "tiny" else 1)
        replies: dict[str, list[dict[str, Any]]] = {variant: [] for variant in ready}
        for _ in range(rounds):
            for variant, process in ready.items():
                replies[variant].append(ask(process))
    finally:
        for process in ready.values():
            process.communicate()
    expected = replies["pytorch"][-1]["scores"]
    for variant, found in replies.items():
        rows[variant] |= summary(found, expected)
    preset, size = NETWORKS[name]
    return {"network": preset, "size": list(size), "batch": 1, "rounds": rounds, "rows": rows}


def start(options: argparse.Namespace, name: str, variant: str) -> subprocess.Popen[str]:
    """A process that makes the file of a variant, or runs it if it is there."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.export_speed", "--work", str(options.work.resolve())]
    threads = str(options.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, "--threads", threads, "--job", f"{name}:{variant}"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT,
    )  # fmt: skip


def finished(process: subprocess.Popen[str]) -> str | None:
    """Waits for a process; the last line of its errors if it failed."""
    _, errors = process.communicate()
    return (
        ([*errors.strip().splitlines(), "failed"][-2 if errors.strip() else -1])[:300] if process.returncode else None
    )


def ask(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Has a process run its file once."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("run\n")
    process.stdin.flush()
    reply: dict[str, Any] = json.loads(process.stdout.readline())
    return reply


def summary(found: list[dict[str, Any]], expected: list[float]) -> dict[str, Any]:
    """The figures of a variant; `expected` are the best scores of PyTorch."""
    seconds = [reply["seconds"] for reply in found]
    scores = found[-1]["scores"]
    return {
        "median_ms": round(1000 * statistics.median(seconds), 1),
        "least_ms": round(1000 * min(seconds), 1),
        "most_ms": round(1000 * max(seconds), 1),
        "peak_mb": found[-1]["peak_mb"],
        "runs_in": found[-1]["runs_in"],
        "largest_difference_of_best_scores": max(
            (abs(a - b) for a, b in zip(scores, expected, strict=False)), default=None
        ),
    }


# --------------------------------------------------------------------------------------------------------------- report


def table(network: dict[str, Any]) -> str:
    """The figures as lines of text."""
    lines = [f"{network['network']}, {network['size'][0]}x{network['size'][1]}"]
    for row in network["rows"].values():
        if "median_ms" in row:
            figures = f"{row['median_ms']:9.1f} ms (least {row['least_ms']:.1f}), {row['peak_mb']} MB"
        else:
            figures = f"skipped: {row['skipped']}"
        lines.append(f"  {row['title']:32} {figures}")
    return "\n".join(lines)


def shown(words: list[str]) -> list[str]:
    """The arguments without the folders of one machine."""
    return [word for index, word in enumerate(words) if "--work" not in words[max(index - 1, 0) : index + 1]]


def cpu_name() -> str:
    """The processor's name, where the system gives it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions() -> dict[str, str]:
    """Of Python and the packages that run networks."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("torch", "onnxruntime", "onnx", "openvino"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


if __name__ == "__main__":
    main()
