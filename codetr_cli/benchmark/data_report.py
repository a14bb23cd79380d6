"""Results of the data benchmark, the bottleneck that they show, and the advice to the user."""

from __future__ import annotations

from dataclasses import dataclass, replace

WORKER_STAGES = {
    "read": "reading files",
    "decode": "decoding",
    "objects": "boxes and masks",
    "augment": "augmentation",
    "paste": "copy-paste",
    "batch": "collating batches",
    "transfer": "transferring batches",
}
"""Stages of a worker in order, with their descriptions."""

MAIN_STAGES = {"copy": "copying to the device"}
"""Stages of the main process, in parallel with the training step."""

MARGIN = 1.1
"""Workers are enough when they deliver this many times what a step needs: images differ."""

MANY_PIXELS = 4.0
"""Files with this many times the pixels of the network's input are worth storing smaller."""


@dataclass(frozen=True)
class DataTiming:
    """Results of a measurement.

    Attributes:
        images: number of images that were timed stage by stage.
        micro_batch: images per batch.
        stages_ms: mean time of each stage per image; those of MAIN_STAGES are the main process's.
        cold_read_ms: mean time of reading a file that is not in the system's cache; None where it cannot be measured.
        file_bytes: mean size of a file.
        file_pixels: mean height times width of a file.
        network_pixels: mean height times width of the network's input.
        loader_images_per_s: by number of workers.
        needed_images_per_s: of a training step; None where unknown.
        cores: processor cores that this process may use.
        enough_workers: smallest measured number that delivers what is needed; None if none does or nothing is known.
        bottleneck: a stage, or "cores" where workers compete for them.
        sentence: what the results mean and what to do.
    """

    images: int
    micro_batch: int
    stages_ms: dict[str, float]
    cold_read_ms: float | None
    file_bytes: float
    file_pixels: float
    network_pixels: float
    loader_images_per_s: dict[int, float]
    needed_images_per_s: float | None
    cores: int
    enough_workers: int | None = None
    bottleneck: str = ""
    sentence: str = ""

    @property
    def worker_ms(self) -> float:
        """Time of a worker per image."""
        return sum(self.stages_ms[name] for name in WORKER_STAGES)


def diagnose(timing: DataTiming) -> DataTiming:
    """The results with the bottleneck and advice."""
    rates, needed = timing.loader_images_per_s, timing.needed_images_per_s
    enough = (
        None
        if needed is None
        else next((n for n, rate in sorted(rates.items()) if n and rate >= MARGIN * needed), None)
    )
    stage = max(WORKER_STAGES, key=lambda name: timing.stages_ms[name])
    share = timing.stages_ms[stage] / max(timing.worker_ms, 1e-9)
    best = max(rates, key=lambda n: rates[n])
    name = WORKER_STAGES[stage]
    text = f"Bottleneck: {name}, {share:.0%} of a worker's time. "
    crowded = best > timing.cores or (best > 1 and rates[best] < 0.5 * best * rates.get(1, 0.0))
    bottleneck = stage
    if needed is None:
        text += (
            f"{_workers(best, 'delivers', 'deliver')} the most, {rates[best]:.1f} images/s; "
            "--step-images-per-s X reports how many workers a step of X images/s needs. "
        )
    elif enough is not None:
        text += (
            f"{_workers(enough, 'supplies', 'supply')} the {needed:.1f} images/s of a training step: "
            f"--set data.workers={enough}. "
        )
    else:
        if crowded:
            bottleneck = "cores"
        text += (
            f"{_workers(best, 'delivers', 'deliver')} {rates[best]:.1f} images/s at most, but a training step needs "
            f"{needed:.1f}: it will wait {1 - rates[best] / needed:.0%} of the time, least with "
            f"--set data.workers={best}. "
            + (f"The {timing.cores} processor cores here are the limit. " if crowded else "")
            + _advice(timing, stage)
        )
    text += _cold_advice(timing)
    return replace(timing, enough_workers=enough, bottleneck=bottleneck, sentence=text.strip())


def _workers(count: int, singular: str, plural: str) -> str:
    """A number of workers and its verb."""
    if not count:
        return f"The training process without workers {singular}"
    return f"1 worker {singular}" if count == 1 else f"{count} workers {plural}"


def _advice(timing: DataTiming, stage: str) -> str:
    """How to make a stage faster."""
    if stage == "read":
        return "Put the images on a faster disk. "
    if stage == "decode" and timing.file_pixels > MANY_PIXELS * timing.network_pixels:
        share = max(0.1, 1.5 * (timing.network_pixels / timing.file_pixels) ** 0.5)
        return f"The files are larger than the network's input: store them at {share:.0%} of their height and width. "
    if stage == "transfer":
        return "Check that /dev/shm is large enough (docker run --shm-size=8g). "
    return "Use more or faster processor cores, or fewer training processes on this machine. "


def _cold_advice(timing: DataTiming) -> str:
    """Whether reading from the disk would be the bottleneck."""
    cold = timing.cold_read_ms
    if cold is None or cold < timing.worker_ms - timing.stages_ms["read"]:
        return ""
    return (
        f"Files that are not in the system's cache take {cold:.1f} ms each to read, longer than everything else: where "
        "the cache cannot hold the data set, add RAM or use a faster disk. "
    )
