"""Kills a training at random and compares the result with an undisturbed run, bit for bit.

    python benchmarks/kill_test.py --work /tmp/kills

A tiny network is trained by `codetr train` in two processes on the CPU, with loader workers, an average of the weights,
a checkpoint every other step and evaluations. Victims are the whole job (launcher and all processes at once, as in a
power failure: the same command starts it again), one training process (the elastic agent restarts all of them), and one
process that loads data (another replaces it). Moments are random: during steps, while a checkpoint's files are written
and exchanged, in evaluations, at the start.

After each kill the newest checkpoint must load, with its hash right, and be no older than the newest complete one. At
the end weights, their average, optimizer, random states, and every logged loss and AP must equal those of the
undisturbed run. Writes benchmarks/results/kill_test.json. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.compare_runs import compare  # noqa: E402 - needs the path
from benchmarks.killed_job import Kill, KilledJob, Moment, PlannedKill, Process, Victim, start_python  # noqa: E402

IMAGES, VAL_IMAGES, IMAGE_SIDE = 24, 4, 96
STEPS_PER_EPOCH = 12
STEPS_PER_KILL = 5
LAST_STEPS = 12  # of the run, without kills
SETTINGS = (
    "model.embed_dim=32",
    "model.num_heads=4",
    "model.num_levels=4",
    "model.ffn_dim=32",
    "model.decoder_layers=2",
    "model.num_queries=20",
    "model.backbone.base_channels=8",
    "model.rpn.proposals_pre_nms_train=40",
    "model.rpn.proposals_pre_nms_test=40",
    "model.rpn.num_proposals=20",
    "model.roi.fc_dim=32",
    "data.short_sides=[64]",
    "data.long_side=96",
    "data.crop_short_sides=[64]",
    "data.crop_size=[48,64]",
    "data.min_side=16",
    "data.workers=1",
    "train.loss.denoising_queries=10",
    "train.loss.rpn_samples=16",
    "train.loss.roi_samples=16",
    "train.loss.max_positive_queries=20",
    "train.precision=fp32",
    "train.batch_size=2",
    "train.micro_batch=1",
    "train.log_every=1",
    "train.checkpoint_every=2",
    "train.eval_every=1",
    "train.deterministic=true",
    "train.ema_momentum=0.01",
    "train.warmup_steps=0",
    "train.memory_check=false",
    "test.short_side=64",
    "test.long_side=96",
    "test.max_detections=20",
)


def main() -> None:
    """Runs the whole test and writes its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the data set and the runs")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None, help="of victims and moments; random and printed by default")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "kill_test.json")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    print_line(f"seed {seed}")
    started = time.monotonic()
    steps = STEPS_PER_KILL * arguments.kills + LAST_STEPS
    kills, compared = run(arguments.work, plan_kills(arguments.kills, steps, seed), steps)
    result = summarize(kills, compared, seed, steps, time.monotonic() - started)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print_line(f"{len(kills)} kills, everything equal, {result['seconds']} s: {arguments.out}")


def print_line(text: str) -> None:
    """Prints a line immediately."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def plan_kills(count: int, steps: int, seed: int) -> list[PlannedKill]:
    """Random victims and moments, in the order of the steps.

    Args:
        count: number of kills.
        steps: of the training.
        seed: of the random choices.
    """
    generator = random.Random(seed)
    planned = []
    for step in sorted(generator.randrange(1, steps - LAST_STEPS) for _ in range(count)):
        victim: Victim = generator.choices(("job", "process", "loader"), (5, 4, 1))[0]
        moments: tuple[Moment, ...] = ("step", "writing", "evaluation", "start")
        moment = generator.choices(moments, (8, 8, 2, 2 if victim != "loader" else 0))[0]
        if moment == "evaluation":
            step = min(-(-step // STEPS_PER_EPOCH) * STEPS_PER_EPOCH, steps - LAST_STEPS)
        planned.append(PlannedKill(victim, moment, step, generator.random(), generator.random()))
    return planned


def run(
    work: Path,
    planned: Sequence[PlannedKill],
    steps: int,
    start: Callable[[list[str], Path], Process] = start_python,
) -> tuple[list[Kill], int]:
    """Trains twice, once killed as planned, and compares.

    Args:
        work: folder for everything; files of an earlier test there are deleted.
        planned: kills in the order of their steps.
        steps: of the training.
        start: starts Python with the given words; its streams are appended to the file.

    Returns:
        the effect of each kill, and the number of compared values.

    Raises:
        BrokenRunError: a checkpoint is lost or cannot be read, or the training does not continue.
        DifferenceError: the runs differ.
    """
    for name in ("undisturbed", "killed", "copy"):
        shutil.rmtree(work / name, ignore_errors=True)
    prepare(work)
    undisturbed, killed = (KilledJob(work, name, steps, start) for name in ("undisturbed", "killed"))
    kills = []
    try:
        undisturbed.start()
        for one in planned:
            kills.append(killed.kill(one))
            print_line(describe(kills[-1]))
        killed.wait_until_done()
        undisturbed.wait_until_done()
    finally:
        undisturbed.kill_all()
        killed.kill_all()
    return kills, compare(killed.run, undisturbed.run)


def prepare(work: Path) -> None:
    """Writes the data set and the settings."""
    from codetr_cli.config.overrides import apply_overrides, to_toml
    from codetr_cli.config.presets import load_preset
    from codetr_cli.data.demo import write_demo

    write_demo(work / "data", train=IMAGES, val=VAL_IMAGES, size=IMAGE_SIDE)
    # In a file all settings count as chosen by the user: `codetr train` does not adapt them to so little data.
    settings = apply_overrides(load_preset("co_dino_tiny"), SETTINGS)
    (work / "tiny.toml").write_text(to_toml(settings), encoding="utf-8")


def describe(kill: Kill) -> str:
    """One line about a kill."""
    return (
        f"{kill.planned.victim} killed at {kill.planned.moment}, {kill.seconds:.1f} s after the start: step "
        f"{kill.logged} logged, {kill.complete} complete, {'-' if kill.loaded is None else kill.loaded} loaded; "
        f"{kill.left}"
    )


def summarize(kills: Sequence[Kill], compared: int, seed: int, steps: int, seconds: float) -> dict[str, Any]:
    """The result that is written."""
    import torch

    again = [kill.logged - kill.loaded for kill in kills if kill.loaded is not None]
    return {
        "command": f"python benchmarks/kill_test.py --work DIR --kills {len(kills)} --seed {seed}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "threads_per_process": 1, "processes": 2},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "settings": ["--preset co_dino_tiny", *SETTINGS, f"train.max_steps={steps}"],
        "seconds": round(seconds),
        "kills": len(kills),
        "victims": dict(Counter(kill.planned.victim for kill in kills)),
        "moments": dict(Counter(kill.planned.moment for kill in kills)),
        "left": dict(Counter(kill.left for kill in kills)),
        "checkpoints_lost": 0,
        "steps_trained_again_at_most": max(again),
        "steps_trained_again_on_average": round(statistics.fmean(again), 2),
        "values_compared": compared,
        "equal": True,
        "note": "a checkpoint every other step; checkpoints_lost counts loads of an older one than the newest complete",
        "each": [
            {
                "victim": kill.planned.victim,
                "moment": kill.planned.moment,
                "seconds_after_start": round(kill.seconds, 2),
                "logged": kill.logged,
                "complete": kill.complete,
                "loaded": kill.loaded,
                "left": kill.left,
            }
            for kill in kills
        ],
    }


if __name__ == "__main__":
    main()
