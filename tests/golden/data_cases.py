"""Recorded cases of the data room: training augmentation, test preprocessing, the aspect-grouped sampler.

Each runner needs the case's folder; the images are found in CODETR_SHARED, else in `shared` beside the checkout.
Augmentation covers the pipelines with the DETR policies; runs of other pipelines and masks are left out.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from codetr_cli.data.batch import collate, normalize
from codetr_cli.data.coco import CocoDataset
from codetr_cli.data.images import read_image
from codetr_cli.data.loader import AspectGroupedSampler
from codetr_cli.data.transforms import (
    CropChoices,
    DetrAugmentation,
    DetrChoices,
    FlipChoices,
    ResizeChoices,
    ResizeShortLong,
    Sample,
)
from tests.golden.case import Case

FLOAT32_STEP = 1.2e-7
"""Relative distance of two neighbouring float32 values."""

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class Report(Protocol):
    """Compares one value with the recorded one."""

    def __call__(self, key: str, ours: Any, recorded: Any, tolerance: float, exact: bool = False) -> None: ...


def shared_dir() -> Path:
    """The folder that `data/` and `golden/` of the recorded cases lie in."""
    return Path(os.environ.get("CODETR_SHARED") or Path(__file__).resolve().parents[3] / "shared")


# --------------------------------------------------------------------------------------------------------- augmentation


def run_augment(case_dir: Path, report: Report) -> None:
    """Feeds the recorded choices to our transforms and compares image, boxes and labels after every step."""
    case = Case.load(case_dir)
    dataset = _dataset_of(case.facts["dataset"])
    for run in case.facts["runs"]:
        pipeline = case.facts["pipelines"].get(run["pipeline"], {}).get("pipeline", [])
        steps = {step["type"]: step for step in pipeline}
        if "AutoAugment" not in steps or run.get("dropped"):
            continue
        augmentation = _augmentation_of(steps)
        loaded = dataset.load_sample(dataset.file_names.index(run["file"]))
        choices = _choices_of([draw["value"] for draw in run["draws"]])
        samples = [loaded, loaded, *augmentation.stages(loaded, choices)]
        key = run["run"].replace(".", "/")
        for i, (sample, stage) in enumerate(zip(samples, run["stages"], strict=False)):
            _compare_stage(f"{key}/stages/{i}/{stage['after']}", sample, stage, report)
        _compare_final(key, samples[-1], steps["Pad"]["size_divisor"], run["final"], case, report)


def _dataset_of(text: str) -> CocoDataset:
    """The data set that a case names as '<images> with annotations/<file> (...)'."""
    match = re.match(r"(\S+) with (\S+)", text) or re.match(r"(\S+) of (\S+?),", text)
    if match is None:
        raise ValueError(f"cannot tell which data set {text!r} is")
    first, second = match.groups()
    if " of " in text.split(",")[0]:
        images_dir = shared_dir() / second / first
        annotations_path = shared_dir() / second / "annotations" / f"instances_{first}.json"
    else:
        images_dir = shared_dir() / first
        annotations_path = images_dir.parent / second
    return CocoDataset(
        images_dir=images_dir,
        annotations_path=annotations_path,
        transform=ResizeShortLong(short_sides=(800,), long_side=1333),
        training=True,
    )


def _augmentation_of(steps: dict[str, Any]) -> DetrAugmentation:
    (resize,), (first_resize, crop, last_resize) = steps["AutoAugment"]["policies"]
    if last_resize["img_scale"] != resize["img_scale"]:
        raise ValueError("the two policies end with different sizes")
    short_sides, (long_side, *_) = zip(*resize["img_scale"], strict=True)
    crop_short_sides, (crop_long_side, *_) = zip(*first_resize["img_scale"], strict=True)
    low, high = crop["crop_size"]
    return DetrAugmentation(
        flip_probability=steps["RandomFlip"]["flip_ratio"],
        short_sides=short_sides,
        long_side=long_side,
        crop_short_sides=crop_short_sides,
        crop_long_side=crop_long_side,
        crop_size=(low, high),
    )


def _choices_of(values: list[Any]) -> DetrChoices:
    """Recorded draws: flip, policy, then a scale, or a scale, crop height, width, y, x and a scale."""
    flip, policy, *rest = values
    crop = None
    if policy == 1:
        scale, height, width, top, left, *rest = rest
        crop = (ResizeChoices(scale), CropChoices(top=top, left=left, height=height, width=width))
    (scale,) = rest
    return DetrChoices(flip=FlipChoices(flip == "horizontal"), crop=crop, resize=ResizeChoices(scale))


def _compare_stage(key: str, sample: Sample, stage: dict[str, Any], report: Report) -> None:
    report(f"{key}/shape", sample.image.shape, stage["img_shape"], 0.0, exact=True)
    sums = sample.image.sum(axis=(0, 1), dtype=np.int64)[::-1]
    report(f"{key}/channel_sums_bgr", sums, stage["channel_sums_bgr"], 0.0, exact=True)
    if "boxes" in stage:
        report(f"{key}/boxes", sample.boxes, np.float32(stage["boxes"]).reshape(-1, 4), 0.0, exact=True)
        report(f"{key}/labels", sample.labels, np.array(stage["labels"], np.int64), 0.0, exact=True)


def _compare_final(
    key: str, sample: Sample, pad_divisor: int, final: dict[str, Any], case: Case, report: Report
) -> None:
    orig_size = (final["ori_shape"][0], final["ori_shape"][1])
    target = sample.to_target(image_id=0, orig_size=orig_size, pad_divisor=pad_divisor)
    report(f"{key}/size", target["size"], final["img_shape"][:2], 0.0, exact=True)
    report(f"{key}/pad_size", target["pad_size"], final["pad_shape"][:2], 0.0, exact=True)
    report(f"{key}/scale_factor", np.float32(target["scale_factor"] * 2), np.float32(final["scale_factor"]), 0.0, True)
    batch = collate([(np.ascontiguousarray(sample.image), target)])
    normalised = normalize(batch.images, batch.padding_mask, MEAN, STD)[0].permute(1, 2, 0).numpy()
    mean = normalised.mean(axis=(0, 1), dtype=np.float64)
    report(f"{key}/normalised_mean_rgb", mean, final["normalised_mean_rgb"], 1e-9)
    _compare_stored(f"{key}/pixels", _grid(sample.image[..., ::-1]), case, report)
    _compare_stored(f"{key}/boxes", sample.boxes, case, report)
    _compare_stored(f"{key}/labels", sample.labels, case, report)
    _compare_stored(f"{key}/normalised", _grid(normalised), case, report, tolerance=FLOAT32_STEP)


def _compare_stored(key: str, ours: np.ndarray, case: Case, report: Report, *, tolerance: float = 0.0) -> None:
    """Compares with a stored tensor, of which every n-th value may have been kept; exactly when tolerance is 0."""
    every = case.tensors[key]["every"]
    shaped = ours.reshape(-1)[::every] if list(ours.shape) == case.tensors[key]["shape"] else ours
    report(key, shaped, case.recorded[key].reshape(-1), tolerance, exact=tolerance == 0)


def _grid(image: np.ndarray) -> np.ndarray:
    """16 x 16 pixels (16, 16, 3) spread over an image, as the case samples them."""
    rows, columns = (np.floor(np.linspace(0, side - 1, 16)).astype(int) for side in image.shape[:2])
    return image[rows][:, columns]


# -------------------------------------------------------------------------------------------------------- preprocessing


def run_preprocess(case_dir: Path, report: Report) -> None:
    """Compares the resized pixels, the sizes and the normalised values of the keep-ratio test pipelines."""
    case = Case.load(case_dir)
    mean, std = case.facts["mean"], case.facts["std"]
    prepared: dict[str, list[tuple[np.ndarray, dict[str, Any]]]] = {}
    for entry in case.facts["images"]:
        limits = re.search(r"_(\d+)x(\d+)$", entry["pipeline"])
        if limits is None:
            continue
        sides = sorted(int(side) for side in limits.groups())
        path = shared_dir() / entry["file"]
        original = read_image(path)
        resize = ResizeShortLong(short_sides=(sides[0],), long_side=sides[1])
        sample = resize.apply(Sample.from_image(original), ResizeChoices(0))
        target = sample.to_target(image_id=0, orig_size=original.shape[:2], pad_divisor=1)
        prepared.setdefault(entry["pipeline"], []).append((sample.image, target))
        key = f"{entry['pipeline']}/{path.stem}"
        _compare_facts(key, original, sample, target, entry, report)
        batch = collate([(sample.image, target)])
        values = normalize(batch.images, batch.padding_mask, mean, std)[0].numpy()
        report(f"{key}/channel_mean", values.mean(axis=(1, 2), dtype=np.float64), entry["channel_mean"], 1e-9)
        report(f"{key}/channel_std", values.std(axis=(1, 2), dtype=np.float64, ddof=1), entry["channel_std"], 1e-9)
        pixels = _slice(sample.image[..., ::-1].transpose(2, 0, 1))
        _compare_stored(f"{key}/resized_uint8_bgr", pixels, case, report)
        _compare_stored(f"{key}/values", _slice(values), case, report, tolerance=FLOAT32_STEP)
    if "batch_of_first_two" in case.facts:
        first = next(iter(prepared.values()))
        _compare_batch(first[:2], case.facts["batch_of_first_two"], mean, std, report)


def _compare_facts(
    key: str, original: np.ndarray, sample: Sample, target: dict[str, Any], entry: dict[str, Any], report: Report
) -> None:
    report(f"{key}/raw_bgr_mean", original.mean(axis=(0, 1))[::-1], entry["raw_bgr_mean"], 1e-12)
    for name, recorded in (("orig_size", "ori_shape"), ("size", "img_shape"), ("pad_size", "pad_shape")):
        report(f"{key}/{name}", target[name], entry[recorded], 0.0, exact=True)
    report(f"{key}/scale_factor", target["scale_factor"], entry["scale_factor"], 0.0, exact=True)
    sums = sample.image.sum(axis=(0, 1), dtype=np.int64)[::-1]
    report(f"{key}/channel_sum_bgr", sums, entry["resized_uint8_channel_sum_bgr"], 0.0, exact=True)


def _compare_batch(
    samples: list[tuple[np.ndarray, dict[str, Any]]],
    facts: dict[str, Any],
    mean: list[float],
    std: list[float],
    report: Report,
) -> None:
    batch = collate(samples)
    report("batch/inputs_shape", batch.images.shape, facts["inputs_shape"], 0.0, exact=True)
    values = normalize(batch.images, batch.padding_mask, mean, std)
    for i, (target, meta) in enumerate(zip(batch.targets, facts["metas"], strict=True)):
        report(f"batch/{i}/size", target["size"], meta["img_shape"], 0.0, exact=True)
        report(f"batch/{i}/pad_size", target["pad_size"], meta["pad_shape"], 0.0, exact=True)
        height, width = target["size"]
        padding = np.concatenate([values[i, :, height:].numpy().ravel(), values[i, :, :, width:].numpy().ravel()])
        expected = np.full_like(padding, facts["padding_value_after_normalisation"])
        report(f"batch/{i}/padding", padding, expected, 0.0, exact=True)


def _slice(image: np.ndarray) -> np.ndarray:
    """Up to 64 x 64 pixels (3, 64, 64) of an image (3, H, W), as the case samples them."""
    _, height, width = image.shape
    return image[:, :: height // 64, :: width // 64][:, :64, :64]


# -------------------------------------------------------------------------------------------------------------- sampler


def run_sampler(case_dir: Path, report: Report) -> None:
    """Compares the order of images of every rank and epoch; with the data set at hand, the orientation flags too."""
    facts = Case.load(case_dir).facts
    if shared_dir().is_dir():
        flags = _dataset_of(facts["dataset"]).aspect_flags
        report("flags", flags, np.array(facts["flags"], np.int64), 0.0, exact=True)
    for run in facts["runs"]:
        sampler = AspectGroupedSampler(
            np.array(facts["flags"]),
            micro_batch=run["samples_per_gpu"],
            rank=run["rank"],
            world_size=run["num_replicas"],
            seed=run["seed"],
        )
        indices = sampler.batches(run["epoch"]).ravel()
        key = "x".join(str(run[name]) for name in ("samples_per_gpu", "num_replicas"))
        key = f"{key}/seed{run['seed']}/epoch{run['epoch']}/rank{run['rank']}"
        report(f"{key}/num_samples", len(indices), run["num_samples"], 0.0, exact=True)
        report(f"{key}/indices", indices, np.array(run["indices"], np.int64), 0.0, exact=True)
