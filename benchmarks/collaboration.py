"""Trains the tiny preset with and without collaboration on the synthetic set: several seeds, equal steps.

    python benchmarks/collaboration.py --work /tmp/collaboration

"With" is the published objective; "without" has no auxiliary heads and no positive queries: only the decoder is trained
(matching and denoising). Every run is an ordinary `codetr train`; complete runs in the work folder are not repeated.
Writes the curves to benchmarks/results/collaboration.json and the README's figure.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WITHOUT = ["train.loss.aux_heads=false", "train.loss.positive_queries=false"]
VARIANTS: dict[str, list[str]] = {"with collaboration": [], "decoder alone": WITHOUT}


def main() -> None:
    """Trains all runs, then writes numbers and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the data set and the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="parallel runs, one thread each")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "collaboration.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "images" / "collaboration.png")
    arguments = parser.parse_args()
    data = arguments.work / "data"
    if not (data / "annotations").is_dir():
        subprocess.run([*codetr(), "prepare", "--demo", str(data), "--no-link"], check=True)
    jobs = [(name, seed) for seed in range(arguments.seeds) for name in VARIANTS]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        runs = list(pool.map(lambda job: train(*job, data, arguments), jobs))
    result = summarize(runs, arguments)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(result, arguments.picture)
    for name, final in result["final"].items():
        sys.stdout.write(f"{name}: AP {final['AP']}, AP50 {final['AP50']}\n")


def codetr() -> list[str]:
    """The command of this environment."""
    return [sys.executable, "-m", "codetr_cli"]


def train(variant: str, seed: int, data: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains one run on one thread and reads its evaluations."""
    run = arguments.work / "runs" / f"{variant.replace(' ', '-')}-{seed}"
    overrides = [*arguments.overrides, *VARIANTS[variant], f"train.seed={seed}"]
    overrides += ["data.workers=0", "train.auto_recipe=false"]
    metrics = run / "metrics.jsonl"
    if not (metrics.is_file() and '"kind": "end"' in metrics.read_text(encoding="utf-8")):
        command = [*codetr(), "train", "--preset", "co_dino_tiny", "--data", str(data), "--run", str(run), "--quiet"]
        command += ["--device", "cpu", *(part for text in overrides for part in ("--set", text))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        started = time.monotonic()
        subprocess.run(command, check=True, env=environment)
        (run / "seconds").write_text(f"{time.monotonic() - started:.0f}\n", encoding="utf-8")
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    curve = [
        {"step": line["step"], "AP": line["metrics"]["AP"], "AP50": line["metrics"]["AP50"]}
        for line in lines
        if line["kind"] == "eval"
    ]
    return {"variant": variant, "seed": seed, "seconds": int((run / "seconds").read_text()), "curve": curve}


def summarize(runs: list[dict[str, Any]], arguments: argparse.Namespace) -> dict[str, Any]:
    """All curves with command, machine and versions, and the final metrics per variant."""
    import torch

    final = {
        name: {
            metric: [round(run["curve"][-1][metric], 4) for run in runs if run["variant"] == name]
            for metric in ("AP", "AP50")
        }
        for name in VARIANTS
    }
    return {
        "command": "python benchmarks/collaboration.py " + " ".join(f"--set {text}" for text in arguments.overrides),
        "preset": "co_dino_tiny",
        "data": "codetr prepare --demo (400 training, 60 validation images, 4 classes)",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "threads_per_run": 1, "jobs": arguments.jobs},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "note": "AP at equal steps is compared; `seconds` are of a machine that may have had other work",
        "final": final,
        "median_final_AP": {name: statistics.median(values["AP"]) for name, values in final.items()},
        "runs": runs,
    }


def draw(result: dict[str, Any], path: Path) -> None:
    """AP over steps: a thin line per run, a thick one for the mean of a variant."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, color in zip(VARIANTS, ("tab:blue", "tab:orange"), strict=True):
        curves = [run["curve"] for run in result["runs"] if run["variant"] == name]
        steps = [point["step"] for point in curves[0]]
        for curve in curves:
            axes.plot(steps, [point["AP"] for point in curve], color=color, alpha=0.3, linewidth=1)
        mean = [statistics.fmean(curve[i]["AP"] for curve in curves) for i in range(len(steps))]
        axes.plot(steps, mean, color=color, linewidth=2.5, label=f"{name}: mean of {len(curves)} seeds")
    axes.set(xlabel="optimizer steps", ylabel="AP on held-out images", ylim=(0, None))
    axes.set_title("Tiny Co-DINO from random weights on the synthetic set")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
