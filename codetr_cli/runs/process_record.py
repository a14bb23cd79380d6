"""Which process trains in a run folder: process.json, written at each start, for those who look from elsewhere."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from codetr_cli import __version__
from codetr_cli.files import write_text
from codetr_cli.reading import parse_json, read_bytes

PROCESS_NAME = "process.json"
MAX_RECORD_BYTES = 1 << 16
MAX_SHOWN = 120


@dataclass(frozen=True, kw_only=True)
class ProcessRecord:
    """The process of rank 0 that trains, or trained last.

    Attributes:
        host: name of its machine.
        pid: its number there.
        started: seconds since 1970 by its clock.
        processes: of the training, on all machines.
        device: what it trains on, e.g. "NVIDIA H200" or "cpu".
        version: of codetr.
    """

    host: str
    pid: int
    started: float
    processes: int = 1
    device: str = ""
    version: str = ""

    @property
    def is_of_this_machine(self) -> bool:
        """Whether it runs, or ran, on the machine of this process."""
        return self.host == socket.gethostname()

    @property
    def is_alive(self) -> bool | None:
        """Whether there is a process of this number; None: it is one of another machine, or the system does not say."""
        if not self.is_of_this_machine or os.name == "nt":  # os.kill ends processes there
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except (OSError, OverflowError):
            return None if self.pid <= 0 else True  # it is somebody else's
        return True


def write_process(run: Path, *, processes: int, device: str) -> None:
    """Records this process in a run folder.

    Raises:
        OSError: the folder cannot be written.
    """
    record = ProcessRecord(
        host=socket.gethostname(),
        pid=os.getpid(),
        started=round(time.time(), 1),
        processes=processes,
        device=device,
        version=__version__,
    )
    write_text(run / PROCESS_NAME, json.dumps(asdict(record), indent=2) + "\n")


def read_process(run: Path) -> ProcessRecord | None:
    """The process of a run folder; None: none is recorded, as in runs of earlier versions, or it cannot be read."""
    with suppress(OSError, ValueError, TypeError):
        table = parse_json(read_bytes(run / PROCESS_NAME, MAX_RECORD_BYTES))
        record = ProcessRecord(**table)
        texts = (record.host, record.device, record.version)
        numbers = (record.pid, record.processes)
        if all(isinstance(text, str) and len(text) <= MAX_SHOWN for text in texts) and all(
            type(number) is int and 0 < number < 1 << 31 for number in numbers
        ):
            return record if isinstance(record.started, int | float) and 0 <= record.started < 1 << 40 else None
    return None
