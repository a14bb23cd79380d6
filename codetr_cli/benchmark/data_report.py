"""What was measured of reading training images, and what it means: which stage holds them up, and what to type."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

WORKER_STAGES = {
    "read": "reading files",
    "decode": "decoding",
    "objects": "boxes and masks",
    "augment": "augmentation",
    "paste": "pasting objects",
    "batch": "putting batches together",
    "hand-over": "handing batches over",
}
"""What happens in a worker, in this order, and how it is called."""

MAIN_STAGES = {"copy": "copying to the device"}
"""What happens beside the training step in the main process."""

MARGIN = 1.1
"""Workers are enough when they bring this many times what a step needs: images differ."""

MANY_PIXELS = 4.0
"""Files with this many times the pixels that the network sees are worth storing smaller."""


@dataclass(frozen=True)
class DataTiming:
    """What was measured.

    Attributes:
        images: timed stage by stage.
        micro_batch: images a batch.
        stages_ms: mean time of each stage an image; those of MAIN_STAGES are the main process's.
        cold_read_ms: mean time of reading a file that the system was asked to forget; None where it cannot be asked.
        file_bytes: mean size.
        file_pixels: mean height times width.
        network_pixels: the same of what the network gets.
        loader_images_per_s: by number of workers.
        needed_images_per_s: as in the plan.
        cores: that this process may use.
        enough_workers: smallest measured number that brings what is needed, None if none does or nothing is known.
        bottleneck: a stage, or "cores" where workers take each other's time.
        sentence: what that means and what to type.
        notes: what else was noticed.
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
    notes: list[str] = field(default_factory=list)

    @property
    def worker_ms(self) -> float:
        """Time of a worker for an image."""
        return sum(self.stages_ms[name] for name in WORKER_STAGES)


def judged(timing: DataTiming, *, images_in_all: int) -> DataTiming:
    """The timing with its bottleneck named.

    Args:
        timing: as measured.
        images_in_all: of the data set, for the size of a cache.
    """
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
    text = f"{name[0].upper()}{name[1:]} takes {share:.0%} of a worker's time. "
    crowded = best > timing.cores or (best > 1 and rates[best] < 0.5 * best * rates.get(1, 0.0))
    bottleneck = stage
    if needed is None:
        text += (
            f"{_count(best)} {_bring(best)} most, {rates[best]:.1f} images/s; "
            "--step-images-per-s X tells how many are needed for a step of X images/s. "
        )
    elif enough is not None:
        text += f"{_count(enough)} {'feeds' if enough == 1 else 'feed'} the {needed:.1f} images/s of a training step: "
        text += f"--set data.workers={enough}. "
    else:
        if crowded:
            bottleneck = "cores"
        text += (
            f"{_count(best)} {_bring(best)} {rates[best]:.1f} images/s at most, and a training step takes "
            f"{needed:.1f}: "
            f"it will wait {1 - rates[best] / needed:.0%} of the time, least with --set data.workers={best}. "
            + (f"The {timing.cores} processor cores here are the limit. " if crowded else "")
            + _advice(timing, stage, images_in_all, best)
        )
    text += _cold_advice(timing, images_in_all, enough or best)
    return replace(timing, enough_workers=enough, bottleneck=bottleneck, sentence=text.strip())


def _count(workers: int) -> str:
    return f"{workers} worker{'' if workers == 1 else 's'}" if workers else "The training process without workers"


def _bring(workers: int) -> str:
    return "bring" if workers > 1 else "brings"


def _advice(timing: DataTiming, stage: str, images_in_all: int, workers: int) -> str:
    """What makes a stage cheaper."""
    if stage == "read":
        return "Put the images on a faster disk, or free memory for the page cache. "
    if stage == "decode" and timing.file_pixels > MANY_PIXELS * timing.network_pixels:
        share = max(0.1, 1.5 * (timing.network_pixels / timing.file_pixels) ** 0.5)
        return (
            f"The files are larger than the network ever sees: store them with {share:.0%} of their height and width. "
        )
    if stage == "hand-over":
        return "Look whether /dev/shm is large enough (docker run --shm-size=8g). "
    return "More or faster processor cores help, or fewer training processes on this machine. "


def _cold_advice(timing: DataTiming, images_in_all: int, workers: int) -> str:
    """Whether reading from the disk itself would be the bottleneck."""
    cold = timing.cold_read_ms
    if cold is None or cold < timing.worker_ms - timing.stages_ms["read"]:
        return ""
    return (
        f"Files that the system does not have in its cache take {cold:.1f} ms each to read, more than all else: where "
        f"memory for that cache is short, a faster disk helps. "
    )
