"""`codetr predict` as a whole: images per second and peak memory, beside another source tree, in turn.

    git worktree add /tmp/before REVISION && cp codetr_cli/ops/*.so /tmp/before/codetr_cli/ops/
    python -m benchmarks.predict_end_to_end --before /tmp/before --work /tmp/work
    python -m benchmarks.predict_end_to_end --work /tmp/work --memory     # of this tree, by the number of images

Images are synthetic JPEG files; the network is `co_dino_tiny` with random weights, and its ten best detections are
drawn. A run with one image measures what loading takes; rates are with and without it. `codetr bench infer
--end-to-end` measures the same stage by stage, also on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from codetr_cli.config.presets import load_preset
from codetr_cli.models.build import build_model
from codetr_cli.runtime.environment import benchmark_conditions
from codetr_cli.runtime.synthetic import write_photograph
from codetr_cli.weights.checkpoint import save_checkpoint
from codetr_cli.weights.classes import COCO_CATEGORIES

OUT = Path(__file__).parent / "results" / "predict_end_to_end.json"
HERE = Path(__file__).resolve().parent.parent
SMALL = (240, 320)


def main(argv: list[str] | None = None) -> int:
    """Writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another source tree")
    parser.add_argument("--work", type=Path, required=True, help="a folder for images and results")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--size", default="1280x1920", help="HEIGHTxWIDTH")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="only peak memory, by the number of images")
    parser.add_argument("--small", type=int, default=3000, help="small images in the measurement of memory")
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    checkpoint = _checkpoint(args.work / "tiny.safetensors")
    height, width = map(int, args.size.split("x"))
    images = _images(args.work / "images", args.images, (height, width))
    table: dict[str, Any] = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    run = _Runner(checkpoint, args.work)
    if args.memory:
        small = _images(args.work / "small", args.small, SMALL)
        rows = [
            {"images": count, "size": list(size), **run(HERE, _first(files, count, args.work))}
            for files, size, counts in (
                (images, (height, width), (args.images // 5, args.images)),
                (small, SMALL, (args.small // 10, args.small)),
            )
            for count in counts
        ]
        table["memory"] = {"rows": rows, **_conditions(argv, args.note)}
    else:
        trees = {"after": HERE, **({"before": args.before.resolve()} if args.before else {})}
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
        loading: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
        for _ in range(args.rounds):
            for name, tree in trees.items():
                loading[name].append(run(tree, _first(images, 1, args.work)))
                runs[name].append(run(tree, images))
                sys.stdout.write(f"{name} {json.dumps([loading[name][-1], runs[name][-1]])}\n")
                sys.stdout.flush()
        table["speed"] = {
            "images": args.images,
            "size": [height, width],
            **{name: _summary(runs[name], loading[name], args.images) for name in trees},
            **({"ratios": _ratios(runs, loading)} if args.before else {}),
            "revisions": {name: _revision(tree) for name, tree in trees.items()},
            **_conditions(argv, args.note),
        }
    args.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return 0


def _checkpoint(path: Path) -> Path:
    if not path.exists():
        settings = load_preset("co_dino_tiny", [])
        torch.manual_seed(0)
        names, ids = list(COCO_CATEGORIES.values()), list(COCO_CATEGORIES)
        state = build_model(settings.model).state_dict()
        save_checkpoint(path, state, settings=settings, class_names=names, category_ids=ids)
    return path


def _images(folder: Path, count: int, size: tuple[int, int]) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        path = folder / f"{number + 1:06d}.jpg"
        if not path.exists():
            write_photograph(path, size, seed=number)
    return folder


def _first(folder: Path, count: int, work: Path) -> Path:
    """A folder with links to the first images of another."""
    part = work / f"{folder.name}_{count}"
    if not part.exists():
        part.mkdir()
        for path in sorted(folder.iterdir())[:count]:
            os.link(path, part / path.name)
    return part


class _Runner:
    def __init__(self, checkpoint: Path, work: Path) -> None:
        self.checkpoint, self.work = checkpoint, work

    def __call__(self, tree: Path, images: Path) -> dict[str, Any]:
        """Seconds, processor seconds and peak memory of a whole `codetr predict`."""
        out = self.work / "out"
        shutil.rmtree(out, ignore_errors=True)
        words = ["predict", images, "--checkpoint", self.checkpoint, "--out", out, "--device", "cpu", "--quiet"]
        command = [sys.executable, "-m", "codetr_cli", *map(str, words), "--score", "0", "--max-dets", "10"]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        started = time.perf_counter()
        with subprocess.Popen(command, env=environment, cwd=self.work, stdout=subprocess.DEVNULL) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{command} ended with {process.returncode}")
        return _facts(time.perf_counter() - started, usage)


def _facts(seconds: float, usage: resource.struct_rusage) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mib": round(usage.ru_maxrss / 1024),
        "load_average": round(os.getloadavg()[0], 1),
    }


def _summary(runs: list[dict[str, Any]], loading: list[dict[str, Any]], images: int) -> dict[str, Any]:
    whole, start = (statistics.median(run["seconds"] for run in which) for which in (runs, loading))
    busy, idle = (statistics.median(run["cpu_seconds"] for run in which) for which in (runs, loading))
    return {
        "images_per_second": round(images / whole, 2),
        "images_per_second_after_loading": round((images - 1) / max(whole - start, 1e-9), 2),
        "cpu_ms_per_image": round(1000 * (busy - idle) / max(images - 1, 1), 1),
        "peak_mib": statistics.median(run["peak_mib"] for run in runs),
        "runs": runs,
        "loading": loading,
    }


def _ratios(runs: dict[str, list[dict[str, Any]]], loading: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Before over after of the seconds, pair by pair."""

    def pairs(seconds: dict[str, list[float]]) -> list[float]:
        return [round(old / new, 2) for old, new in zip(seconds["before"], seconds["after"], strict=True)]

    whole = pairs({name: [run["seconds"] for run in found] for name, found in runs.items()})
    both = {name: zip(runs[name], loading[name], strict=True) for name in runs}
    after = pairs({name: [run["seconds"] - start["seconds"] for run, start in found] for name, found in both.items()})
    return {
        "whole_command": whole,
        "whole_command_median": statistics.median(whole),
        "after_loading": after,
        "after_loading_median": statistics.median(after),
    }


def _revision(tree: Path) -> str:
    command = ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _conditions(argv: list[str] | None, note: str) -> dict[str, Any]:
    given = [word for word in (sys.argv[1:] if argv is None else argv) if word != note and word != "--note"]
    folders = ("--before", "--work", "--out")  # of this machine: shown as their names
    words = [before[2:].upper() if before in folders else word for before, word in pairwise(["", *given])]
    return {
        "command": " ".join(["python -m benchmarks.predict_end_to_end", *words]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": {
            name: value
            for name, value in benchmark_conditions(torch.device("cpu")).items()
            if name in ("device", "cores", "threads", "versions", "platform")
        },
        "note": note,
    }


if __name__ == "__main__":
    sys.exit(main())
