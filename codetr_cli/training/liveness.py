"""What processes of one training check of each other: that all see the run folder, and that all go on."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from datetime import timedelta

from codetr_cli.config.schema import Settings
from codetr_cli.distributed import process_group
from codetr_cli.distributed.watchdog import SLOW_FACTOR, Board, Pulse, Watchdog
from codetr_cli.distributed.worker_errors import end_process
from codetr_cli.errors import ResourceError
from codetr_cli.runs.folder import RunFolder
from codetr_cli.training.reporter import Report

SAME_DISK_PATIENCE_S = 60.0  # network file systems show new files late


def group_timeout(settings: Settings) -> timedelta:
    """When a process gives up waiting for others by itself: later than the watchdog, which can say for whom."""
    return timedelta(minutes=settings.train.timeout_minutes * SLOW_FACTOR + 1)


def watchdog(board: Board, pulse: Pulse, settings: Settings, folder: RunFolder, report: Report) -> Watchdog:
    """Ends this process, and with it the training, when one of the processes stops answering.

    Args:
        board: shared by all processes.
        pulse: of this process.
        settings: of the run.
        folder: whose events.log tells of it.
        report: told of it where no launcher of ours reads why the process ended.
    """

    def alarm(text: str) -> None:
        with suppress(OSError, ResourceError):  # the disk may be what the training waits for
            folder.event(text)
        end_process(ResourceError(text), report.failed)

    return Watchdog(
        board=board,
        pulse=pulse,
        rank=process_group.rank(),
        world_size=process_group.world_size(),
        timeout_s=settings.train.timeout_minutes * 60,
        alarm=alarm,
        meet=process_group.barrier,
    )


def check_same_disk(folder: RunFolder) -> None:
    """Every process reads the checkpoints that the one of rank 0 writes.

    Raises:
        ResourceError: this machine does not see the run folder.
    """
    deadline = time.monotonic() + SAME_DISK_PATIENCE_S
    while not folder.settings_path.is_file():
        if time.monotonic() > deadline:
            raise ResourceError(
                f"{socket.gethostname()} does not see the run folder {folder.path.absolute()} that another machine has "
                "made: give a folder on a disk that all machines share with --run"
            )
        time.sleep(0.5)
