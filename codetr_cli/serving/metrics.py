"""What a server counts, for Prometheus. Several processes of one port share files, so that each can answer for all."""

from __future__ import annotations

import os
import re
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from codetr_cli import __version__
from codetr_cli.runtime.devices import proc_bytes
from codetr_cli.serving.options import METRICS_FOLDER

disable_created_metrics()  # type: ignore[no-untyped-call] # a time beside each number

CONTENT_TYPE = CONTENT_TYPE_LATEST
STAGES = ("read", "queue", "prepare", "batch", "network", "finish", "total")
"""A request is read; an image waits, is decoded and resized, waits for its batch, is detected, and becomes JSON."""
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0)
IMAGES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


class Metrics:
    """The numbers of this process.

    Args:
        version: of the package, for a label.
    """

    def __init__(self, version: str = __version__) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "codetr_requests",
            "Requests by route, status and the code of an error.",
            ("route", "status", "code"),
            registry=registry,
        )
        self.stages = Histogram(
            "codetr_stage_seconds",
            "Time of a request or image in a stage.",
            ("stage",),
            buckets=SECONDS,
            registry=registry,
        )
        self.batches = Histogram(
            "codetr_batch_images", "Images that the network saw at once.", buckets=IMAGES, registry=registry
        )
        self.images = Counter("codetr_images", "Images that were detected.", registry=registry)
        self.detections = Counter("codetr_detections", "Detections that were returned.", registry=registry)
        self.queue = self._sum("codetr_queue_images", "Images that were accepted and are not done yet.")
        self.in_flight = self._sum("codetr_requests_in_flight", "Requests that are being read or answered.")
        self.ready = self._sum("codetr_ready_processes", "Processes that accept requests for detections.")
        self.memory = self._sum("codetr_resident_memory_bytes", "Main memory of all processes.")
        self.info = Gauge(
            "codetr_build_info",
            "Always 1; the label is the version.",
            ("version",),
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.info.labels(version).set(1)
        for stage in STAGES:
            self.stages.labels(stage)

    def _sum(self, name: str, text: str) -> Gauge:
        """A current value, of which several processes have a sum."""
        return Gauge(name, text, multiprocess_mode="livesum", registry=self._registry)

    def update_memory(self) -> None:
        """Takes note of the memory of this process; 0 where the system does not report it."""
        self.memory.set(proc_bytes("/proc/self/status", "VmRSS") or 0)

    def text(self) -> bytes:
        """All numbers, of all processes of the port, in the format of Prometheus."""
        self.update_memory()
        if METRICS_FOLDER not in os.environ:
            return generate_latest(self._registry)
        shared = CollectorRegistry()
        MultiProcessCollector(shared)  # type: ignore[no-untyped-call]
        return generate_latest(shared)


def forget_dead_processes() -> None:
    """Removes the current values of processes that have ended; what they counted stays counted."""
    folder = os.environ.get(METRICS_FOLDER)
    for path in Path(folder).glob("gauge_live*.db") if folder else ():
        found = re.search(r"_(\d+)\.db$", path.name)
        if found and not Path("/proc", found[1]).exists():
            mark_process_dead(int(found[1]), folder)  # type: ignore[no-untyped-call]
