"""Benchmarks a prediction from files to results: what each stage takes, and which of them limits the whole."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from codetr_cli.inference.cores import cores_shared
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.loading import load_detector
from codetr_cli.inference.options import DetectOptions
from codetr_cli.inference.stage_seconds import StageSeconds
from codetr_cli.inference.stream import default_workers
from codetr_cli.prediction.pictures import PictureOptions, Pictures
from codetr_cli.prediction.predictor import Predictor
from codetr_cli.prediction.results import pack_results
from codetr_cli.prediction.sources.input_list import InputImage
from codetr_cli.runtime.devices import cpu_count
from codetr_cli.runtime.synthetic import randomize_weights, write_photograph
from codetr_cli.runtime.timing import Tick, peak_memory, reset_peak_memory

PHOTOGRAPHS = 16
"""Different synthetic files; more images are these again under other names."""
PHOTOGRAPH_SIZE = (1280, 1920)
DRAWN_DETECTIONS = 10
"""Best detections of each image that are drawn, whatever their scores are: a photograph of COCO has 7 objects."""
WARMUP_IMAGES = 8
_MAIN_MEMORY = torch.device("cpu")
BUSY = 0.85
"""A stage, or all cores, that works for this share of the time is the limit."""


@dataclass(frozen=True, kw_only=True)
class EndToEndTiming:
    """Results of a measurement.

    Attributes:
        images: that were measured.
        unreadable: of them.
        images_per_second: from the first file to the last result.
        stages_ms: per image; the stages overlap, so that their sum is more than the time of an image. `wait`: the
            network had no image.
        busy: share of the time in which the threads of reading (with preparing), of the network and of finishing (with
            writing) worked.
        images_per_batch: that the network saw at once, on average.
        workers: threads that read, and as many that finish.
        cores: processor cores that this process may use.
        drawn: whether images were drawn.
        device: where the network ran.
        peak_memory_bytes: of the whole process, or None where unknown.
        bottleneck: "network", "reading", "finishing" or "cores".
        sentence: what the results mean and what to do.
    """

    images: int
    unreadable: int
    images_per_second: float
    stages_ms: dict[str, float]
    busy: dict[str, float]
    images_per_batch: float
    workers: int
    cores: int
    drawn: bool
    device: str
    peak_memory_bytes: int | None
    bottleneck: str = ""
    sentence: str = ""


@dataclass(frozen=True)
class _Place:
    """Where pictures go, see `pictures.OutputPlace`."""

    folder: Path
    path: Path


def synthetic_images(folder: Path, count: int) -> list[InputImage]:
    """Some images for a measurement, files of 2.5 megapixels in a folder."""
    files = []
    for number in range(min(count, PHOTOGRAPHS)):
        files.append(folder / f"{number}.jpg")
        write_photograph(files[-1], PHOTOGRAPH_SIZE, seed=number)
    return [InputImage(files[number % PHOTOGRAPHS], f"{number}.jpg", number + 1) for number in range(count)]


def load_measured(
    target: str, overrides: Sequence[str], device: torch.device, *, precision: str, random_weights: bool
) -> Detector:
    """The detector of a checkpoint or preset; arguments as of `inference.loading.load_detector`."""
    torch.manual_seed(0)
    loaded = load_detector(target, device, overrides, random_weights=random_weights)
    if loaded.path is None:
        randomize_weights(loaded.model)
    return Detector(loaded, device=device, precision=precision)


def measure_end_to_end(
    detector: Detector, images: Sequence[InputImage], options: DetectOptions, *, draw: bool, tick: Tick = lambda: None
) -> EndToEndTiming:
    """Predicts images as `codetr predict` does, into a folder that is removed afterwards.

    Args:
        detector: the network.
        images: at least one; their names are different.
        options: batches and workers; what is detected does not depend on `score`.
        draw: whether images are drawn.
        tick: called after each image.
    """
    options = replace(options, score=0.0, max_dets=DRAWN_DETECTIONS)
    with tempfile.TemporaryDirectory(prefix="codetr-") as name:
        folder = Path(name)
        place = _Place(folder, folder / "scratch")
        place.path.mkdir()

        make = partial(Pictures, options=PictureOptions(), place=place, class_names=detector.class_names)

        def names(request: str, count: int) -> list[Path]:
            return [Path(request, f"{number}.jpg") for number in range(count)]

        def run(images: Sequence[InputImage], request: str, tick: Tick) -> tuple[float, StageSeconds, int]:
            stages, unreadable = StageSeconds(), 0
            predictor = Predictor(
                detector=detector,
                options=options,
                folder=folder,
                pictures=make(request=request, names=names(request, len(images))) if draw else None,
                scratch=place.path,
                request=request,
                stages=stages,
            )
            started = time.perf_counter()
            for result in predictor.predict(enumerate(images)):
                pack_results([result])
                unreadable += result.error is not None
                tick()
            return time.perf_counter() - started, stages, unreadable

        run(images[:WARMUP_IMAGES], "warm-up", lambda: None)
        reset_peak_memory(_MAIN_MEMORY)
        seconds, stages, unreadable = run(images, "measured", tick)
        peak = peak_memory(_MAIN_MEMORY)
    with cores_shared(detector.loaded, detector.device):
        workers = options.workers or default_workers(detector.device)
    of_workers = {"reading": stages["read"] + stages["prepare"], "finishing": stages["finish"]}
    stages_ms = {
        "wait": stages["wait"],
        "read": stages["read"],
        "prepare": stages["prepare"],
        "network": stages["detect"],
        "finish": stages["finish"] - stages["write"],
        "write": stages["write"],
    }
    timing = EndToEndTiming(
        images=len(images),
        unreadable=unreadable,
        images_per_second=len(images) / seconds,
        stages_ms={name: value * 1000 / len(images) for name, value in stages_ms.items()},
        busy={
            "network": stages["detect"] / seconds,
            **{name: value / (workers * seconds) for name, value in of_workers.items()},
        },
        images_per_batch=stages.images / max(stages.batches, 1),
        workers=workers,
        cores=cpu_count(),
        drawn=draw,
        device=detector.device.type,
        peak_memory_bytes=peak,
    )
    return diagnose(timing)


def diagnose(timing: EndToEndTiming) -> EndToEndTiming:
    """The results with the bottleneck and advice."""
    busy, cores = timing.busy, timing.cores
    of_network = busy["network"] if timing.device == "cpu" else 0.0  # the least that it takes of the cores
    used = timing.workers * (busy["reading"] + busy["finishing"]) + of_network
    slower = max(("reading", "finishing"), key=lambda name: busy[name])
    if busy["network"] >= BUSY:
        name, text = "network", f"the network, which works {busy['network']:.0%} of the time. {_network_advice(timing)}"
    elif used >= BUSY * cores:
        share = timing.workers * busy[slower] / used
        name = "cores"
        text = (
            f"the {cores} processor cores: the network works {busy['network']:.0%} of the time and waits for them; "
            f"{slower} takes {share:.0%} of what they do. {_worker_advice(timing, slower)}"
        )
    else:
        name = slower
        text = (
            f"{slower}: its {timing.workers} threads work {busy[slower]:.0%} of the time, the network "
            f"{busy['network']:.0%}. Use more with --workers {2 * timing.workers}. {_worker_advice(timing, slower)}"
        )
    return replace(timing, bottleneck=name, sentence=f"Bottleneck: {text}".strip())


def _network_advice(timing: EndToEndTiming) -> str:
    if timing.device == "cpu":
        return "Use a GPU, a smaller network or smaller inputs (--set test.short_side=N)."
    faster = "" if timing.images_per_batch > 1.5 else "larger batches (--batch N), "
    return f"Use {faster}--precision bf16, or more GPUs (codetr predict --gpus N)."


def _worker_advice(timing: EndToEndTiming, slower: str) -> str:
    if slower == "finishing" and timing.drawn:
        return "With --no-draw no images are drawn and written."
    if slower == "finishing":
        return "Masks take most of it, where there are any."
    return "Smaller image files are read faster."
