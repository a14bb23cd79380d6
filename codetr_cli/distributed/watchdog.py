"""Notices a training process that no longer answers and says which one and what it was doing.

Processes that train together wait for each other in every step: when one stops, all stand still without a word. Each
process therefore notes what it is doing (`Pulse`, which costs next to nothing), and a thread of it publishes that
every few seconds. The process of rank 0 watches all others, and the one of the highest rank watches rank 0.

Only durations are compared, each measured by one clock: neither clocks that differ between machines nor a clock that is
set anew can raise an alarm, and neither can a machine, or all processes together, that slept for a while.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

# What a process may be doing, and how an alarm words it. They come in this order, if at all, within a step.
WORDS = {
    "starting": "starting",
    "data": "waiting for data",
    "forward": "in the forward pass",
    "backward": "in the backward pass",
    "optimizer": "in the optimizer's step",
    "checkpoint": "writing a checkpoint",
    "evaluation": "evaluating",
    "scoring": "scoring an evaluation",
}
# Of these a later one is further on; those of a step count together.
STAGES = {"starting": 0, "checkpoint": 2, "evaluation": 3, "scoring": 4}
STEP_STAGE = 1
# What may take long without a sign: building and compiling, writing to a slow disk, scoring in one process.
SLOW = frozenset(("starting", "checkpoint", "scoring"))
SLOW_FACTOR = 6.0
FRAMES = 3  # shown of where a process hangs


class Pulse:
    """What this process is doing; the training calls it, the watchdog reads it.

    Attributes:
        doing: a key of WORDS.
        step: being trained, or the last one trained when a checkpoint or an evaluation follows it.
        count: calls so far within this step and stage.
        beats: calls so far.
        first_step: trained by this process; compilation makes it slow. None before the first.
    """

    def __init__(self) -> None:
        self.doing = "starting"
        self.step = -1
        self.count = 0
        self.beats = 0
        self.first_step: int | None = None

    def __call__(self, doing: str, step: int | None = None) -> None:
        """Notes that something begins.

        Args:
            doing: a key of WORDS.
            step: the number of the optimizer step, where it is a new one.
        """
        anew = _stage(doing) != _stage(self.doing) or (step is not None and step != self.step)
        self.count = 0 if anew else self.count + 1
        if step is not None:
            self.step = step
        if self.first_step is None and _stage(doing) == STEP_STAGE:
            self.first_step = self.step
        self.doing = doing
        self.beats += 1

    @property
    def is_slow(self) -> bool:
        """Whether what is done now may take long."""
        return self.doing in SLOW or self.first_step in (None, self.step)


@dataclass(frozen=True)
class Sign:
    """What a process published last.

    Attributes:
        number: of the message, so that a reader sees whether there was a new one.
        doing: a key of WORDS.
        slow: whether that may take long.
        progress: step, stage of it, and calls within; the process with the lowest is the one others wait for.
        idle_s: seconds since the process noted something.
        host: name of its machine.
        where: innermost calls of its main thread, empty while it is not idle for long.
    """

    number: int
    doing: str
    slow: bool
    progress: tuple[int, int, int]
    idle_s: float
    host: str
    where: str = ""


class Board(Protocol):
    """Where processes put their signs for each other; torch's stores are such."""

    def set(self, key: str, value: str) -> object:
        """Publishes a text."""

    def multi_get(self, keys: list[str]) -> list[bytes]:
        """Reads what was published; every key must have been set once."""


@dataclass
class Watchdog:
    """Publishes a process's signs and watches those of others; a context manager around the training.

    Args:
        board: shared by all processes, and used by this thread alone.
        pulse: of this process; called by the thread that enters.
        rank: of this process.
        world_size: number of processes.
        timeout_s: without a sign before an alarm; what may take long has SLOW_FACTOR times as much.
        alarm: called once with a sentence, from another thread.
        meet: waits for all processes; called when this one's first sign is out.
    """

    board: Board
    pulse: Pulse
    rank: int
    world_size: int
    timeout_s: float
    alarm: Callable[[str], None]
    meet: Callable[[], None]
    _done: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        self._main_thread = threading.get_ident()
        self._number, self._beats, self._idle_s = 0, self.pulse.beats, 0.0
        self._period_s = min(5.0, self.timeout_s / 5)
        self._publish()
        self.meet()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._thread is not None:
            # It may be waiting for a store that is gone; as a daemon it does not keep the process alive.
            self._thread.join(timeout=self._period_s)

    def _watch(self) -> None:
        seen: dict[int, tuple[int, float]] = {}  # rank -> number of its newest sign, seconds without a newer one
        before = time.monotonic()
        while not self._done.wait(self._period_s):
            now = time.monotonic()
            # This process was stopped or its machine slept: the others may have been too, so that time does not count.
            passed = min(now - before, 2 * self._period_s)
            before = now
            try:
                self._note_idleness(passed)
                self._publish()
                signs = self._read()
            except (RuntimeError, OSError, ValueError):
                return  # the store is gone, and with it whoever started the processes: they are told in another way
            for rank, sign in signs.items():
                number, silent_s = seen.get(rank, (-1, 0.0))
                seen[rank] = (sign.number, 0.0 if number != sign.number else silent_s + passed)
            text = find_frozen(signs, {rank: s for rank, (_, s) in seen.items()}, self.timeout_s, self.world_size)
            if text and not self._done.is_set():
                self.alarm(text)
                return

    def _note_idleness(self, passed: float) -> None:
        beats = self.pulse.beats
        self._idle_s = self._idle_s + passed if beats == self._beats else 0.0
        self._beats = beats

    def _publish(self) -> None:
        self._number += 1
        pulse = self.pulse
        sign = Sign(
            number=self._number,
            doing=pulse.doing,
            slow=pulse.is_slow,
            progress=(pulse.step, _stage(pulse.doing), pulse.count),
            idle_s=self._idle_s,
            host=socket.gethostname(),
            where=_innermost_calls(self._main_thread) if self._idle_s > self.timeout_s / 2 else "",
        )
        self.board.set(f"sign/{self.rank}", json.dumps(asdict(sign)))

    def _read(self) -> dict[int, Sign]:
        """The newest signs of the processes that this one watches."""
        if self.rank == 0:
            ranks: Sequence[int] = range(self.world_size)
        else:
            ranks = (0,) if self.rank == self.world_size - 1 else ()
        if not ranks:
            return {}
        texts = self.board.multi_get([f"sign/{rank}" for rank in ranks])
        return {rank: _sign_of(json.loads(text)) for rank, text in zip(ranks, texts, strict=True)}


def find_frozen(
    signs: Mapping[int, Sign], silent_s: Mapping[int, float], timeout_s: float, world_size: int
) -> str | None:
    """Which processes have stopped, in a sentence; None while all is well.

    A process that publishes nothing has stopped as a whole. One that publishes but does nothing new either waits for
    another one or is what the others wait for: that is the one that is furthest behind. A reader that sees only one
    process leaves that judgement to the others.

    Args:
        signs: newest of each watched process, by rank.
        silent_s: seconds without a new sign, by rank.
        timeout_s: see `Watchdog`.
        world_size: number of processes.
    """
    stopped = {rank: silent_s[rank] + sign.idle_s for rank, sign in signs.items() if silent_s[rank] >= timeout_s}
    if not stopped and len(signs) == world_size:
        behind = min(sign.progress for sign in signs.values())
        last = {rank: sign for rank, sign in signs.items() if sign.progress == behind}
        if all(sign.idle_s >= timeout_s * (SLOW_FACTOR if sign.slow else 1.0) for sign in last.values()):
            stopped = {rank: sign.idle_s for rank, sign in last.items()}
    if not stopped:
        return None
    rank = min(stopped)
    sign = signs[rank]
    step = f" of step {sign.progress[0]}" if sign.progress[0] >= 0 else ""
    where = f" ({sign.where})" if sign.where else ""
    if len(stopped) == 1:
        who = f"training process {rank} on {sign.host}"
    elif len(stopped) == world_size:
        who = f"all {world_size} training processes"
    else:
        who = f"training processes {', '.join(map(str, sorted(stopped)))} (the first of them on {sign.host})"
    return (
        f"{who} stopped answering: nothing new for {stopped[rank]:.0f} seconds, last seen {WORDS[sign.doing]}{step}"
        f"{where}. All processes were ended, since they would wait forever. Look at that machine, its disk and its "
        "network; if the work is only slow, raise --set train.timeout_minutes. The same command continues from the "
        "newest checkpoint."
    )


def _stage(doing: str) -> int:
    return STAGES.get(doing, STEP_STAGE)


def _sign_of(fields: Mapping[str, Any]) -> Sign:
    step, stage, count = fields["progress"]
    return Sign(**{**fields, "progress": (step, stage, count)})


def _innermost_calls(thread: int) -> str:
    """Where a thread is, innermost call first: `images.py:41 read_image, coco.py:88 __getitem__, ...`."""
    frame = sys._current_frames().get(thread)
    calls: list[str] = []
    while frame is not None and len(calls) < FRAMES:
        code = frame.f_code
        calls.append(f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_name}")
        frame = frame.f_back
    return ", ".join(calls)
