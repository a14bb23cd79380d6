"""Detects a hung training process, and reports which one it is and what it was doing.

Each process records what it is doing (`Heartbeat`, at negligible cost), and a thread of it publishes that every few
seconds. Rank 0 watches all others, and the highest rank watches rank 0. Only durations measured by one clock are
compared: clocks that differ between nodes, clocks that are set, and suspended machines raise no alarm.
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
from typing import Protocol

# The activities of a process, with their names in a report. Within a step they come in this order, if at all.
ACTIVITIES = {
    "starting": "starting",
    "data": "waiting for data",
    "forward": "in the forward pass",
    "backward": "in the backward pass",
    "optimizer": "in the optimizer's step",
    "checkpoint": "writing a checkpoint",
    "evaluation": "evaluating",
    "scoring": "scoring an evaluation",
}
# Stages of progress; the activities within a step share one.
STAGES = {"starting": 0, "checkpoint": 2, "evaluation": 3, "scoring": 4}
STEP_STAGE = 1
# Activities that may take long without a heartbeat: compiling, writing to a slow disk, scoring in one process.
SLOW = frozenset(("starting", "checkpoint", "scoring"))
SLOW_FACTOR = 6.0
FRAMES = 3  # shown of a hung thread


class Heartbeat:
    """What this process is doing: the training calls it, the watchdog reads it.

    Attributes:
        activity: a key of ACTIVITIES.
        step: number of the current optimizer step, or of the last one during a checkpoint or an evaluation.
        count: calls so far within this step and stage.
        beats: calls so far.
        first_step: the first step of this process, slow where parts are compiled; None before it.
    """

    def __init__(self) -> None:
        self.activity = "starting"
        self.step = -1
        self.count = 0
        self.beats = 0
        self.first_step: int | None = None

    def __call__(self, activity: str, step: int | None = None) -> None:
        """Records the start of an activity.

        Args:
            activity: a key of ACTIVITIES.
            step: the number of the optimizer step, when a new one starts.
        """
        is_new = _stage(activity) != _stage(self.activity) or (step is not None and step != self.step)
        self.count = 0 if is_new else self.count + 1
        if step is not None:
            self.step = step
        if self.first_step is None and _stage(activity) == STEP_STAGE:
            self.first_step = self.step
        self.activity = activity
        self.beats += 1

    @property
    def is_slow(self) -> bool:
        """Whether the current activity may take long."""
        return self.activity in SLOW or self.first_step in (None, self.step)


@dataclass(frozen=True)
class HeartbeatMessage:
    """The newest message of a process.

    Attributes:
        number: of the message; a reader sees by it whether the message is new.
        activity: a key of ACTIVITIES.
        slow: whether that may take long.
        progress: step, stage, and calls within both; the others wait for the process with the lowest.
        idle_s: seconds since the last heartbeat.
        host: name of the node.
        where: innermost calls of the main thread; empty unless it has been idle for long.
    """

    number: int
    activity: str
    slow: bool
    progress: tuple[int, int, int]
    idle_s: float
    host: str
    where: str = ""


class KeyValueStore(Protocol):
    """Storage shared by all processes, e.g. one of torch's stores."""

    def set(self, key: str, value: str) -> object:
        """Publishes a text."""

    def multi_get(self, keys: list[str]) -> list[bytes]:
        """Reads the texts of keys that have all been set."""


@dataclass
class Watchdog:
    """Publishes the heartbeats of a process and watches those of others; a context manager around the training.

    Args:
        store: shared by all processes, and used only by the thread of this object.
        heartbeat: of this process; called by the thread that enters the context.
        rank: of this process.
        world_size: number of processes.
        timeout_s: seconds without a heartbeat before an alarm; slow activities have SLOW_FACTOR times as long.
        alarm: called once with the report, from another thread.
        barrier: waits for all processes; called after the first message.
    """

    store: KeyValueStore
    heartbeat: Heartbeat
    rank: int
    world_size: int
    timeout_s: float
    alarm: Callable[[str], None]
    barrier: Callable[[], None]
    _done: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        self._main_thread = threading.get_ident()
        self._number, self._beats, self._idle_s = 0, self.heartbeat.beats, 0.0
        self._period_s = min(5.0, self.timeout_s / 5)
        self._publish()
        self.barrier()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        if self._thread is not None:
            # It may be waiting for a store that is gone; as a daemon it does not keep the process alive.
            self._thread.join(timeout=self._period_s)

    def _watch(self) -> None:
        seen: dict[int, tuple[int, float]] = {}  # rank -> number of its newest message, seconds since
        before = time.monotonic()
        while not self._done.wait(self._period_s):
            now = time.monotonic()
            # Where this process or its machine was suspended, the others may have been too: that time does not count.
            passed = min(now - before, 2 * self._period_s)
            before = now
            try:
                before_beats, self._beats = self._beats, self.heartbeat.beats
                self._idle_s = self._idle_s + passed if self._beats == before_beats else 0.0
                self._publish()
                messages = self._read()
            except (RuntimeError, OSError, ValueError):
                return  # the store is gone, and with it the launcher, which reports that itself
            for rank, message in messages.items():
                number, silent_s = seen.get(rank, (-1, 0.0))
                seen[rank] = (message.number, 0.0 if number != message.number else silent_s + passed)
            text = find_frozen(messages, {rank: s for rank, (_, s) in seen.items()}, self.timeout_s, self.world_size)
            if text and not self._done.is_set():
                self.alarm(text)
                return

    def _publish(self) -> None:
        self._number += 1
        heartbeat = self.heartbeat
        message = HeartbeatMessage(
            number=self._number,
            activity=heartbeat.activity,
            slow=heartbeat.is_slow,
            progress=(heartbeat.step, _stage(heartbeat.activity), heartbeat.count),
            idle_s=self._idle_s,
            host=socket.gethostname(),
            where=_innermost_calls(self._main_thread) if self._idle_s > self.timeout_s / 2 else "",
        )
        self.store.set(f"heartbeat/{self.rank}", json.dumps(asdict(message)))

    def _read(self) -> dict[int, HeartbeatMessage]:
        """The newest messages of the processes that this one watches."""
        if self.rank == 0:
            ranks: Sequence[int] = range(self.world_size)
        else:
            ranks = (0,) if self.rank == self.world_size - 1 else ()
        if not ranks:
            return {}
        texts = self.store.multi_get([f"heartbeat/{rank}" for rank in ranks])
        messages = {rank: json.loads(text) for rank, text in zip(ranks, texts, strict=True)}
        return {
            rank: HeartbeatMessage(**{**fields, "progress": tuple(fields["progress"])})
            for rank, fields in messages.items()
        }


def find_frozen(
    messages: Mapping[int, HeartbeatMessage], silent_s: Mapping[int, float], timeout_s: float, world_size: int
) -> str | None:
    """A report of the hung processes; None while there are none.

    A process that publishes nothing is frozen. One that publishes without progress either waits for another process or
    is the one that the others wait for: the one with the least progress. A reader that sees only one process cannot
    decide that and leaves it to the others.

    Args:
        messages: newest of each watched process, by rank.
        silent_s: seconds without a new message, by rank.
        timeout_s: see `Watchdog`.
        world_size: number of processes.
    """
    stopped = {
        rank: silent_s[rank] + message.idle_s for rank, message in messages.items() if silent_s[rank] >= timeout_s
    }
    if not stopped and len(messages) == world_size:
        behind = min(message.progress for message in messages.values())
        last = {rank: message for rank, message in messages.items() if message.progress == behind}
        if all(message.idle_s >= timeout_s * (SLOW_FACTOR if message.slow else 1.0) for message in last.values()):
            stopped = {rank: message.idle_s for rank, message in last.items()}
    if not stopped:
        return None
    rank = min(stopped)
    message = messages[rank]
    step = f" of step {message.progress[0]}" if message.progress[0] >= 0 else ""
    where = f" ({message.where})" if message.where else ""
    if len(stopped) == 1:
        who = f"training process {rank} on {message.host}"
    elif len(stopped) == world_size:
        who = f"all {world_size} training processes"
    else:
        who = f"training processes {', '.join(map(str, sorted(stopped)))} (the first of them on {message.host})"
    return (
        f"{who} stopped responding: no progress for {stopped[rank]:.0f} seconds, last seen "
        f"{ACTIVITIES[message.activity]}{step}{where}. All processes were ended, since they would wait "
        "forever. Check that machine, its disk and its network; if it is only slow, raise --set train.timeout_minutes. "
        "The same command continues from the newest checkpoint."
    )


def _stage(activity: str) -> int:
    return STAGES.get(activity, STEP_STAGE)


def _innermost_calls(thread: int) -> str:
    """The current calls of a thread, innermost first: `images.py:41 read_image, coco.py:88 __getitem__, ...`."""
    frame = sys._current_frames().get(thread)
    calls: list[str] = []
    while frame is not None and len(calls) < FRAMES:
        code = frame.f_code
        calls.append(f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_name}")
        frame = frame.f_back
    return ", ".join(calls)
