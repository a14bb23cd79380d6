"""Kills a training again and again, and compares what becomes of it with an undisturbed one, bit for bit.

    python benchmarks/kill_test.py --work /tmp/kills

A tiny network is trained by `codetr train` in two processes on the CPU, with loader workers, an average of the weights,
a checkpoint every other step and evaluations. Victims are the whole job (launcher and all processes at once, as when a
machine loses power: the same command starts it again), a single training process (the elastic agent starts all again),
and a process that loads data (another takes its place). Instants are random: amid steps, while a checkpoint's files are
written and exchanged, in evaluations, while the program starts.

After each kill the newest checkpoint must load, with its hash right, and be no older than the newest that was complete.
In the end weights, their average, optimizer, random states, and every logged loss and AP must equal the undisturbed
run's. Writes benchmarks/results/kill_test.json. Linux only: processes are found in /proc.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

Victim = Literal["job", "process", "loader"]
Moment = Literal["step", "writing", "evaluation", "start"]

PATIENCE_S = 240.0  # for anything to happen; a machine with other work is slow
IMAGES, VAL_IMAGES, IMAGE_SIDE = 24, 4, 96
STEPS_AN_EPOCH = 12
STEPS_A_KILL = 5
LAST_STEPS = 12  # of the run, in which nothing is killed
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
UNREPEATABLE = ("images_per_s", "data_wait", "memory_bytes", "eta_s", "seconds")  # of a line of metrics.jsonl


@dataclass(frozen=True)
class Plan:
    """A kill to come.

    Attributes:
        victim: job: launcher and all; process: one that trains; loader: one that loads data.
        moment: step: any instant of steps; writing: while the checkpoints' folder is changed; evaluation: after the
            last step of an epoch; start: while processes start.
        step: that must have been logged before; nothing for a start.
        share: where in the moment, from 0 to 1.
        which: of several victims, from 0 to 1.
    """

    victim: Victim
    moment: Moment
    step: int
    share: float
    which: float


@dataclass(frozen=True)
class Kill:
    """What a kill did.

    Attributes:
        plan: what was planned.
        logged: the newest step that was logged.
        complete: the newest step whose checkpoint was complete.
        loaded: step of the checkpoint that was loaded after it, 0 for none; None where nobody had to load one.
        left: what lay half done in the checkpoints' folder.
        seconds: from the start of the processes to the kill.
    """

    plan: Plan
    logged: int
    complete: int
    loaded: int | None
    left: str
    seconds: float


class BrokenError(Exception):
    """The training did not stand a kill."""


def main() -> None:
    """Runs the whole test and writes its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the data set and the runs")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None, help="of victims and instants; drawn and told by default")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "kill_test.json")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    tell(f"seed {seed}")
    started = time.monotonic()
    steps = STEPS_A_KILL * arguments.kills + LAST_STEPS
    kills, told = stand(arguments.work, draw_plans(arguments.kills, steps, seed), steps)
    result = summarise(kills, told, seed, steps, time.monotonic() - started)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    tell(f"{len(kills)} kills, everything equal, {result['seconds']} s: {arguments.out}")


def tell(text: str) -> None:
    """Writes a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def draw_plans(kills: int, steps: int, seed: int) -> list[Plan]:
    """Victims and instants, in the order of the steps.

    Args:
        kills: how many.
        steps: of the training.
        seed: of the draws.
    """
    draw = random.Random(seed)
    plans = []
    for step in sorted(draw.randrange(1, steps - LAST_STEPS) for _ in range(kills)):
        victim: Victim = draw.choices(("job", "process", "loader"), (5, 4, 1))[0]
        moments: tuple[Moment, ...] = ("step", "writing", "evaluation", "start")
        moment = draw.choices(moments, (8, 8, 2, 2 if victim != "loader" else 0))[0]
        if moment == "evaluation":
            step = min(-(-step // STEPS_AN_EPOCH) * STEPS_AN_EPOCH, steps - LAST_STEPS)
        plans.append(Plan(victim, moment, step, draw.random(), draw.random()))
    return plans


def stand(work: Path, plans: Sequence[Plan], steps: int) -> tuple[list[Kill], int]:
    """Trains twice, once killed as planned, and compares.

    Args:
        work: folder for everything; what a test before left there is deleted.
        plans: in the order of their steps.
        steps: of the training.

    Returns:
        what each kill did, and how many lines, tensors and numbers were compared.

    Raises:
        BrokenError: a checkpoint is lost or cannot be read, the training does not go on, or something is not equal.
    """
    for name in ("undisturbed", "killed", "copy"):
        shutil.rmtree(work / name, ignore_errors=True)
    prepare(work)
    undisturbed, killed = Job(work, "undisturbed", steps), Job(work, "killed", steps)
    try:
        undisturbed.start()
        kills = [killed.kill(plan) for plan in plans]
        killed.wait_for_the_end()
        undisturbed.wait_for_the_end()
    finally:
        undisturbed.end_all()
        killed.end_all()
    return kills, compare(killed.run, undisturbed.run)


def prepare(work: Path) -> None:
    """Writes the data set and the settings."""
    from codetr_cli.config.overrides import apply_overrides, to_toml
    from codetr_cli.config.presets import load_preset
    from codetr_cli.data.demo import write_demo

    write_demo(work / "data", train=IMAGES, val=VAL_IMAGES, size=IMAGE_SIDE)
    # As a file all of them count as chosen, whatever `codetr train` makes of a preset on so little data.
    settings = apply_overrides(load_preset("co_dino_tiny"), SETTINGS)
    (work / "tiny.toml").write_text(to_toml(settings), encoding="utf-8")


# ----------------------------------------------------------------------------------------------- the job that is killed


class Job:
    """A training as a person or a cluster starts it, again and again.

    Args:
        work: folder of the data set and the settings.
        name: of the run folder.
        steps: of the training.
    """

    def __init__(self, work: Path, name: str, steps: int) -> None:
        self.run = work / name
        self.output = work / f"{name}.txt"
        self.output.write_bytes(b"")
        self.command = [sys.executable, "-m", "codetr_cli", "train", "--preset", str(work / "tiny.toml"),
                        "--data", str(work / "data"), "--run", str(self.run), "--device", "cpu", "--procs", "2",
                        "--max-restarts", "1000", "--set", f"train.max_steps={steps}"]  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None
        self.since = 0.0
        self.starts = 0  # that had reached the training when processes were killed last
        self.start_seconds = [6.0]
        self.went_on = False  # after the newest kill, without a start anew

    def start(self) -> None:
        """Runs the command."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(self.command, env=environment, stdout=output, stderr=output)
        self.since = time.monotonic()

    def wait_for_the_end(self) -> None:
        """Waits until the training is done."""
        if self.process is None:
            self.start()
        process = self._living(None)
        self._wait(lambda: process.poll() is not None, None)
        if process.returncode != 0:
            raise self._broken(f"it ended with exit code {process.returncode}")

    def kill(self, plan: Plan) -> Kill:
        """Waits for the moment, kills the victim, and looks at what is left."""
        if self.process is None:
            self.start()
        self._wait_for_moment(plan)
        victims = self._victims(plan)
        processes = self._training_processes()
        for victim in victims:
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        seconds = time.monotonic() - self.since
        gone = self._wait_until_gone(plan, victims, processes)
        logged, complete = newest_step(self.run), newest_complete(self.run)
        left = half_done(self.run / "checkpoints")
        loaded = self._load_copy(plan) if gone else None
        if loaded is not None and loaded < complete:
            raise self._broken(f"{plan}: step {loaded} was loaded, but the checkpoint of step {complete} was complete")
        kill = Kill(plan, logged, complete, loaded, left, seconds)
        tell(
            f"{plan.victim} killed at {plan.moment}, {seconds:.1f} s after the start: step {logged} logged, "
            f"{complete} complete, {'-' if loaded is None else loaded} loaded; {left}"
        )
        self.went_on = not gone
        self.starts = len(resumed_steps(self.run)) - self.went_on
        if plan.victim == "job":
            self.process = None
        self.since = time.monotonic()
        return kill

    def end_all(self) -> None:
        """Leaves no process behind."""
        if self.process is not None and self.process.poll() is None:
            for pid in (self.process.pid, *descendants(self.process.pid)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()

    def _wait_for_moment(self, plan: Plan) -> None:
        if plan.moment == "start":
            if plan.victim != "job":
                self._wait(lambda: len(self._training_processes()) == 2, plan)
            time.sleep(plan.share * statistics.median(self.start_seconds))
            self._living(plan)
            return
        self._wait(lambda: len(resumed_steps(self.run)) > self.starts, plan)
        first = resumed_steps(self.run)[-1] + 1
        self._wait(lambda: newest_step(self.run) >= first, plan)
        if not self.went_on:
            self.start_seconds.append(time.monotonic() - self.since)
        self._wait(lambda: newest_step(self.run) >= plan.step, plan)
        if plan.moment == "writing":
            self._wait(lambda: half_done(self.run / "checkpoints") != NOTHING, plan, pause=0.0)
            time.sleep(0.03 * plan.share**2)
        else:
            time.sleep(0.3 * plan.share)

    def _victims(self, plan: Plan) -> list[int]:
        process = self._living(plan)
        if plan.victim == "job":
            return [process.pid, *descendants(process.pid)]
        training = self._training_processes()
        pids = training if plan.victim == "process" else [pid for parent in training for pid in descendants(parent)]
        if not pids:
            raise self._broken(f"{plan}: there is no such process")
        return [pids[int(plan.which * len(pids))]]

    def _wait_until_gone(self, plan: Plan, victims: list[int], processes: list[int]) -> bool:
        """Whether all that trained are gone, so that nobody writes; False where they found a way to go on."""
        if plan.victim == "job":
            assert self.process is not None
            self.process.wait()
            self._wait(lambda: not any(map(is_alive, victims)), None)
            return True
        enough = newest_step(self.run) + 4
        self._wait(lambda: not any(map(is_alive, processes)) or newest_step(self.run) >= enough, plan, pause=0.005)
        return not any(map(is_alive, processes))

    def _training_processes(self) -> list[int]:
        process = self._living(None)
        return [pid for pid in children(process.pid) if b"spawn_main" in _read(f"/proc/{pid}/cmdline")]

    def _load_copy(self, plan: Plan) -> int:
        """The step that a start would go on from; a copy is opened, so that the next start does all by itself."""
        from codetr_cli.errors import CodetrError
        from codetr_cli.runs.folder import RunFolder

        copy = self.run.with_name("copy")
        shutil.rmtree(copy, ignore_errors=True)
        if not (self.run / "checkpoints").is_dir():
            return 0
        shutil.copytree(self.run, copy)
        folder = RunFolder(copy)
        try:
            folder.recover()
            saved = folder.load()
        except CodetrError as error:
            raise self._broken(f"{plan}: {error}") from error
        if "cannot be used" in _read(copy / "events.log").decode():
            raise self._broken(f"{plan}: a checkpoint is damaged")
        return int(saved.state["step"]) if saved else 0

    def _living(self, plan: Plan | None) -> subprocess.Popen[bytes]:
        assert self.process is not None
        if plan is not None and self.process.poll() is not None:
            raise self._broken(f"{plan}: it had ended before, with exit code {self.process.returncode}")
        return self.process

    def _wait(self, condition: Callable[[], bool], plan: Plan | None, pause: float = 0.002) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            self._living(plan)
            if time.monotonic() > deadline:
                raise self._broken(f"{plan or 'the end'}: nothing happened for {PATIENCE_S:.0f} seconds")
            time.sleep(pause)

    def _broken(self, text: str) -> BrokenError:
        said = self.output.read_text(encoding="utf-8", errors="replace")
        return BrokenError(f"{text}. It said last: {said[-2000:]}")


def children(pid: int) -> list[int]:
    """Processes that a process started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        fields = _read(path / "stat").rpartition(b")")[2].split()
        if fields and int(fields[1]) == pid:
            found.append(int(path.name))
    return sorted(found)


def descendants(pid: int) -> list[int]:
    """These, and what they started in turn."""
    own = children(pid)
    return own + [below for child in own for below in descendants(child)]


def is_alive(pid: int) -> bool:
    """Whether a process still does something."""
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return bool(fields) and fields[0] not in (b"Z", b"X")


def _read(path: Path | str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


# ---------------------------------------------------------------------------------------------- what is in a run folder

NOTHING = "nothing half done"


def lines_of(run: Path) -> list[dict[str, Any]]:
    """Whole lines of metrics.jsonl."""
    return [json.loads(line) for line in _read(run / "metrics.jsonl").splitlines(keepends=True) if line[-1:] == b"\n"]


def newest_step(run: Path) -> int:
    """The last step that was logged."""
    return max((line["step"] for line in lines_of(run)), default=0)


def newest_complete(run: Path) -> int:
    """The newest step whose checkpoint the training called complete."""
    steps = re.findall(rb"checkpoint of step (\d+): [\d.]+ s copied", _read(run / "events.log"))
    return max(map(int, steps), default=0)


def resumed_steps(run: Path) -> list[int]:
    """The step that each start went on from."""
    return [int(step) for step in re.findall(rb"training from step (\d+) to .*\n", _read(run / "events.log"))]


def half_done(checkpoints: Path) -> str:
    """What a kill may leave in the folder of the checkpoints."""
    names = {path.name for path in checkpoints.glob("*")} if checkpoints.is_dir() else set()
    hidden = sorted(name for name in names if name.startswith("."))
    if not hidden:
        return NOTHING
    if "last" not in names and len(names) > 1:
        return f"amid an exchange: {', '.join(hidden)} and no last"
    return f"amid writing or clearing: {', '.join(hidden)}"


def compare(ours: Path, theirs: Path) -> int:
    """Compares two finished runs in everything that can be repeated.

    Returns:
        how many values were compared.

    Raises:
        BrokenError: something is not equal.
    """
    pairs = list(zip(_content(ours), _content(theirs), strict=True))
    different = [name for (name, a), (other, b) in pairs if name != other or not _equal(a, b)]
    if different:
        raise BrokenError(f"{len(different)} of {len(pairs)} values differ: {', '.join(different[:8])}")
    return len(pairs)


def _content(run: Path) -> Iterator[tuple[str, Any]]:
    """All values of a run by name: weights and states of its newest and its best checkpoint, and what was logged."""
    from safetensors.torch import load_file

    from codetr_cli.runs.folder import STATE, WEIGHTS, read_state

    for name in ("last", "best"):
        folder = run / "checkpoints" / name
        yield from _leaves(f"{name} weights", load_file(folder / WEIGHTS))
        yield from _leaves(f"{name} state", read_state(folder / STATE))
    for number, line in enumerate(lines_of(run)):
        repeatable = {key: value for key, value in line.items() if key not in UNREPEATABLE}
        yield from _leaves(f"line {number + 1} of metrics.jsonl, {line['kind']}", repeatable)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(f"{name}.{key}", item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(f"{name}.{index}", item)
    else:
        yield name, value


def _equal(a: Any, b: Any) -> bool:
    import torch

    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    return bool(a == b)


# ----------------------------------------------------------------------------------------------------------- the result


def summarise(kills: Sequence[Kill], compared: int, seed: int, steps: int, seconds: float) -> dict[str, Any]:
    """The result as it is kept."""
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
        "victims": dict(Counter(kill.plan.victim for kill in kills)),
        "moments": dict(Counter(kill.plan.moment for kill in kills)),
        "left": dict(Counter(kill.left for kill in kills)),
        "checkpoints_lost": 0,
        "steps_trained_again_at_most": max(again),
        "steps_trained_again_on_average": round(statistics.fmean(again), 2),
        "values_compared": compared,
        "equal": True,
        "note": "a checkpoint every other step; checkpoints_lost counts loads of an older one than the newest complete",
        "each": [
            {
                "victim": kill.plan.victim,
                "moment": kill.plan.moment,
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
