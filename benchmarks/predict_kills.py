"""Kills predictions at random and compares their files with those of an undisturbed run, byte for byte.

    python benchmarks/predict_kills.py --work /tmp/kills

`codetr predict` runs on 400 small images with a tiny network on the CPU, in one process and in two, and draws them.
Victims are the whole job (all processes at once, as in a power failure: the same command starts it again), its
launcher, and one process that predicts (the elastic agent starts all again). Moments are random: while the processes
start, at work, and while the result files are written. One of the images is damaged.

At the end every image must be in each result once, and every file must have the bytes of the undisturbed run, drawn
images included, except `summary.json`, which has rates. Writes benchmarks/results/predict_kills.json. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.killed_job import descendants  # noqa: E402 - needs the path

IMAGES, SIDES = 400, (200, 240, 320)
CLASSES = ["disc", "bar", "ring"]
TIMEOUT_S = 240.0
START_S = 6.0  # in which processes start
POLL_S = 0.02
RATES = ("summary.json", ".codetr_results")
SETTINGS = (
    "model.embed_dim=32",
    "model.num_heads=4",
    "model.num_levels=4",
    "model.ffn_dim=32",
    "model.decoder_layers=2",
    "model.num_queries=20",
    "model.backbone.base_channels=8",
    "model.rpn.proposals_pre_nms_test=40",
    "model.rpn.num_proposals=20",
    "model.roi.fc_dim=32",
    "test.short_side=160",
    "test.long_side=240",
    "test.max_detections=20",
)
Victim = Literal["job", "launcher", "process"]
Moment = Literal["start", "work", "end"]


class Program(Protocol):
    """The parts of `subprocess.Popen` that are needed."""

    @property
    def pid(self) -> int:
        """Of the process."""

    def poll(self) -> int | None:
        """The exit code; None while it runs."""


Start = Callable[[Sequence[str]], Program]
"""Starts `codetr` with words."""


@dataclass(frozen=True)
class Kill:
    """A kill and its effect.

    Attributes:
        victim: the whole job, its launcher, or a process that predicts.
        moment: while processes start, at work, or while files are written.
        seconds: after the start of the processes.
        kept: images whose results were on the disk.
    """

    victim: Victim
    moment: Moment
    seconds: float
    kept: int


class BrokenRunError(Exception):
    """The prediction did not survive a kill, or gave other files."""


def main() -> None:
    """Runs the whole test and writes its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for images and results")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=None, help="of victims and moments; random and printed by default")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "predict_kills.json")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    print_line(f"seed {seed}")
    started = time.monotonic()
    prepare(arguments.work, IMAGES)
    alone = arguments.work / "alone"
    undisturbed = finish(start_program, words_of(arguments.work, alone))
    runs: dict[str, list[Kill]] = {}
    for processes in (1, 2):
        out = arguments.work / f"killed-{processes}"
        words = [*words_of(arguments.work, out), *(["--procs", "2", "--max-restarts", "100"] if processes > 1 else [])]
        runs[str(processes)] = kill_and_finish(
            start_program, words, out, arguments.kills, random.Random(seed + processes), processes
        )
        compare(alone, out)
        print_line(f"{processes} processes: {arguments.kills} kills, all files equal")
    result = summarize(runs, alone, seed, undisturbed, time.monotonic() - started)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print_line(str(arguments.out))


def print_line(text: str) -> None:
    """Prints a line immediately."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def start_program(words: Sequence[str]) -> Program:
    """Starts a new interpreter."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with Path(os.devnull).open("wb") as nowhere:
        return subprocess.Popen(
            [sys.executable, "-m", "codetr_cli", *words], env=environment, stdout=nowhere, stderr=nowhere
        )


def words_of(work: Path, out: Path) -> list[str]:
    """The command, without the number of processes."""
    places = [str(work / "images"), "--checkpoint", str(work / "model.safetensors"), "--out", str(out)]
    formats = ["--format", "coco,jsonl,parquet", "--shard-size", "150"]
    return ["predict", *places, *formats, "--score", "0", "--max-dets", "5", "--device", "cpu", "--quiet"]


def prepare(work: Path, count: int) -> None:
    """Writes images, of which one is damaged, and a network with random weights."""
    import numpy as np
    import torch
    from PIL import Image

    from codetr_cli.config.overrides import apply_overrides
    from codetr_cli.config.presets import load_preset
    from codetr_cli.models.build import build_model
    from codetr_cli.weights.checkpoint import save_checkpoint

    shutil.rmtree(work, ignore_errors=True)
    (work / "images").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        height, width = generator.choice(SIDES, 2)
        small = generator.integers(0, 255, (height // 20, width // 20, 3), dtype=np.uint8)
        path = work / "images" / f"{number + 1:06}.jpg"
        Image.fromarray(small).resize((int(width), int(height))).save(path, quality=90)
    (work / "images" / f"{count // 2:06}.jpg").write_bytes(b"no image")
    torch.manual_seed(0)
    settings = apply_overrides(load_preset("co_dino_tiny"), [*SETTINGS, f"model.num_classes={len(CLASSES)}"])
    weights = build_model(settings.model).state_dict()
    save_checkpoint(work / "model.safetensors", weights, settings=settings, class_names=CLASSES, category_ids=[1, 2, 3])


def kept_images(out: Path) -> int:
    """Images whose results are in part files."""
    from codetr_cli.distributed.part_files import PartFiles

    with suppress(OSError):
        return len({unit for units in PartFiles(out, lambda unit: []).units() for unit in units})
    return 0


def finish(start: Start, words: Sequence[str], program: Program | None = None) -> float:
    """Runs the command to its end; the seconds that it took."""
    started = time.monotonic()
    program = start(words) if program is None else program
    while program.poll() is None:
        if time.monotonic() - started > TIMEOUT_S:
            raise BrokenRunError(f"it has not ended after {TIMEOUT_S:.0f} s: codetr {' '.join(words)}")
        time.sleep(POLL_S)
    if program.poll() != 3:  # one image cannot be read
        raise BrokenRunError(f"it ended with exit code {program.poll()}: codetr {' '.join(words)}")
    return time.monotonic() - started


def kill_and_finish(
    start: Start,
    words: Sequence[str],
    out: Path,
    kills: int,
    chance: random.Random,
    processes: int,
    start_s: float = START_S,
) -> list[Kill]:
    """Kills a command at random moments, starts it again, and lets it finish.

    Args:
        start: starts a command.
        words: of the command.
        out: its output folder.
        kills: how many.
        chance: chooses victims and moments.
        processes: that predict.
        start_s: in which they start.

    Raises:
        BrokenRunError: it does not continue.
    """
    images, done = len(list(Path(words[1]).iterdir())), []
    program: Program | None = None
    for number in range(kills):
        last = number == kills - 1
        moment: Moment = "end" if last else chance.choices(("start", "work"), (1, 4))[0]
        victims: tuple[Victim, ...] = ("job",) if processes == 1 else ("job", "launcher", "process")
        victim = chance.choice(victims)
        program = start(words) if program is None or program.poll() is not None else program
        started = time.monotonic()
        if moment == "start":
            time.sleep(chance.random() * start_s)
        else:
            wanted = images if moment == "end" else (number + 1) * images // (kills + 1)
            _wait_for(program, out, wanted)
            time.sleep(chance.random() * (0.1 if moment == "end" else 0.6))
        victim = _kill(program, victim, chance)
        done.append(Kill(victim, moment, round(time.monotonic() - started, 2), kept_images(out)))
        program = None if victim != "process" else program
    finish(start, words, program if program is not None and program.poll() is None else None)
    return done


def _wait_for(program: Program, out: Path, kept: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while program.poll() is None and kept_images(out) < kept:
        if time.monotonic() > deadline:
            raise BrokenRunError(f"it does not reach {kept} images")
        time.sleep(POLL_S)
    if program.poll() is not None and program.poll() not in (0, 3):
        raise BrokenRunError(f"it ended with exit code {program.poll()}")


def _kill(program: Program, victim: Victim, chance: random.Random) -> Victim:
    """Kills and waits until the victims have ended; who was killed, as a process may not have started yet."""
    children = descendants(program.pid)
    workers = [pid for pid in children if b"resource_tracker" not in _command(pid)]
    if victim == "process" and not workers:
        victim = "job"
    dying = {"job": [program.pid, *children], "launcher": [program.pid], "process": [chance.choice(workers or [0])]}
    for pid in dying[victim]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    ending = dying[victim] if victim == "process" else [program.pid, *workers]
    deadline = time.monotonic() + TIMEOUT_S
    while any(_runs(pid) for pid in ending) and time.monotonic() < deadline:
        program.poll()
        time.sleep(POLL_S)
    return victim


def _command(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _runs(pid: int) -> bool:
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder, except those with rates or times."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in RATES)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def compare(alone: Path, killed: Path) -> None:
    """Ensures that two folders have the same files, and each image once.

    Raises:
        BrokenRunError: they differ.
    """
    expected, found = files_of(alone), files_of(killed)
    if found != expected:
        names = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        raise BrokenRunError(f"{len(names)} files of {killed} differ: {', '.join(names[:5])}")
    texts = [path.read_text(encoding="utf-8") for path in sorted(killed.glob("predictions-*.jsonl"))]
    lines = [json.loads(line) for text in texts for line in text.splitlines()]
    counts = Counter(line["file_name"] for line in lines)
    if set(counts.values()) != {1}:
        raise BrokenRunError(f"images more than once: {counts.most_common(3)}")
    drawn = [name for name in found if name.endswith(".jpg")]
    if len(drawn) != sum(line["error"] is None for line in lines):
        raise BrokenRunError(f"{len(drawn)} images are drawn")
    if any(b'"seconds"' in content for content in found.values()):
        raise BrokenRunError("a result file has times")


def summarize(
    runs: dict[str, list[Kill]], alone: Path, seed: int, undisturbed: float, seconds: float
) -> dict[str, Any]:
    """The result that is written."""
    import torch

    files = files_of(alone)
    return {
        "command": f"python benchmarks/predict_kills.py --work DIR --seed {seed}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "threads_per_process": 1},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "settings": ["--preset co_dino_tiny", *SETTINGS],
        "words": ["codetr", *words_of(Path("DIR"), Path("DIR/out"))],
        "images": IMAGES,
        "images_that_cannot_be_read": 1,
        "seconds": round(seconds),
        "seconds_undisturbed": round(undisturbed, 1),
        "kills": {processes: len(kills) for processes, kills in runs.items()},
        "victims": {processes: dict(Counter(kill.victim for kill in kills)) for processes, kills in runs.items()},
        "files_compared": len(files),
        "bytes_compared": sum(map(len, files.values())),
        "equal": True,
        "each_image_once": True,
        "each": {processes: [asdict(kill) for kill in kills] for processes, kills in runs.items()},
    }


if __name__ == "__main__":
    main()
