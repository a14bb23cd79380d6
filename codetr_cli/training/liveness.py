"""What the processes of one training check of each other: that all see the run folder, and that all make progress."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from datetime import timedelta

from codetr_cli.config.schema import Settings
from codetr_cli.distributed import process_group
from codetr_cli.distributed.watchdog import SLOW_FACTOR, Heartbeat, KeyValueStore, Watchdog
from codetr_cli.distributed.worker_errors import end_process
from codetr_cli.errors import ResourceError
from codetr_cli.runs.folder import RunFolder

SHARED_DISK_DELAY_S = 60.0  # network file systems show new files late


def group_timeout(settings: Settings) -> timedelta:
    """Timeout of collectives: later than the watchdog's, whose report names the process that hangs."""
    return timedelta(minutes=settings.train.timeout_minutes * SLOW_FACTOR + 1)


def watchdog(store: KeyValueStore, heartbeat: Heartbeat, settings: Settings, folder: RunFolder) -> Watchdog:
    """Ends this process, and with it the training, when one of the processes hangs; events.log gets the report."""

    def alarm(text: str) -> None:
        with suppress(OSError, ResourceError):  # the disk may be what the training waits for
            folder.event(text)  # without logging: the process that notices may have any rank
        end_process(ResourceError(text))

    return Watchdog(
        store=store,
        heartbeat=heartbeat,
        rank=process_group.rank(),
        world_size=process_group.world_size(),
        timeout_s=settings.train.timeout_minutes * 60,
        alarm=alarm,
        barrier=process_group.barrier,
    )


def check_same_disk(folder: RunFolder) -> None:
    """Checks that this process sees the run folder that rank 0 created: every process reads its checkpoints.

    Raises:
        ResourceError: this node does not see the run folder.
    """
    deadline = time.monotonic() + SHARED_DISK_DELAY_S
    while not folder.settings_path.is_file():
        if time.monotonic() > deadline:
            raise ResourceError(
                f"{socket.gethostname()} does not see the run folder {folder.path.absolute()} that another node "
                "created: give a folder on a file system that all nodes share with --run"
            )
        time.sleep(0.5)
