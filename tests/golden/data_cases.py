"""Recorded cases of the data room: training augmentation, test preprocessing, the aspect-grouped sampler.

Each runner needs the case's folder; the images are found in CODETR_SHARED, else in `shared` beside the checkout.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from codetr_cli.config.data_settings import DataConfig
from codetr_cli.config.schema import TestConfig
from codetr_cli.data.batch import collate, normalize
from codetr_cli.data.coco import CocoDataset
from codetr_cli.data.copy_paste import CopyPaste, CopyPasteParams
from codetr_cli.data.loading.loader import AspectGroupedSampler
from codetr_cli.data.sample import Sample
from codetr_cli.data.transforms import (
    CropParams,
    DetrAugmentation,
    DetrParams,
    DroppedSampleError,
    FlipParams,
    LsjAugmentation,
    LsjParams,
    ResizeParams,
    ResizeShortLong,
    build_transforms,
)
from codetr_cli.images.decoder import read_image
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
    """Feeds the recorded choices to our transforms and compares image, boxes, labels and masks after every step."""
    case = Case.load(case_dir)
    dataset = _dataset_of(case.facts["dataset"])
    for run in case.facts["runs"]:
        name = next(word for word in case.facts["pipelines"] if word == run["pipeline"].split(" ")[0])
        pipeline = case.facts["pipelines"][name]
        steps = {step["type"]: step for steps in pipeline.values() if isinstance(steps, list) for step in steps}
        augmentation = _augmentation_of(steps)
        key = run["run"].replace(".", "/")
        if isinstance(augmentation, LsjAugmentation):
            samples = _run_lsj(key, run, dataset, augmentation, steps, report)
        else:
            values = [draw["value"] for draw in run["draws"]]
            samples = [*augmentation.stages(_loaded(dataset, run["file"], steps), _choices_of(values))]
            _compare_stages(f"{key}/stages", run["stages"], dataset, run["file"], steps, samples, report)
        if "final" in run:
            _compare_final(key, samples, steps, run["final"], case, report)


def _run_lsj(
    key: str,
    run: dict[str, Any],
    dataset: CocoDataset,
    augmentation: LsjAugmentation,
    steps: dict[str, Any],
    report: Report,
) -> list[Sample]:
    """Both images of a run through large-scale jittering, and the second one's objects over the first."""
    values = [draw["value"] for draw in run["draws"]]
    split = run.get("draw_split", {"destination": [0, len(values)]})
    samples: dict[str, list[Sample]] = {}
    for name, start, file, stages in (
        ("destination", "draws", run["file"], run["stages"]),
        ("source", "source_draws", run.get("source_file"), run.get("source_stages")),
    ):
        if name not in split:
            continue
        first, last = split[name]
        samples[name] = []
        try:
            for sample in augmentation.stages(
                _loaded(dataset, file, steps), _lsj_choices_of(values[first:last], augmentation)
            ):
                samples[name].append(sample)
            dropped = False
        except DroppedSampleError:
            dropped = True
        report(f"{key}/{start}/dropped", dropped, name == "destination" and bool(run.get("dropped")), 0.0, exact=True)
        if name == "source":
            _compare_stages(f"{key}/source_stages", stages, dataset, file, steps, samples[name], report)
    if "copypaste" in split:
        first, last = split["copypaste"]
        selected = values[first:last][1] if last - first > 1 else []
        paste = CopyPaste(cut="masks", max_pasted=steps["CopyPaste"]["max_num_pasted"])
        choices = CopyPasteParams(selected=tuple(selected))
        samples["destination"].append(paste.apply(samples["destination"][-1], samples["source"][-1], choices))
    _compare_stages(f"{key}/stages", run["stages"], dataset, run["file"], steps, samples["destination"], report)
    return samples["destination"]


def _loaded(dataset: CocoDataset, file: str, steps: dict[str, Any]) -> Sample:
    sample = dataset.load_sample(dataset.file_names.index(file))
    return sample if steps["LoadAnnotations"].get("with_mask") else replace(sample, masks=None)


def _compare_stages(
    key: str,
    stages: list[dict[str, Any]],
    dataset: CocoDataset,
    file: str,
    steps: dict[str, Any],
    samples: list[Sample],
    report: Report,
) -> None:
    """Compares what was loaded and what each step made of it; as many steps as were recorded."""
    loaded = _loaded(dataset, file, steps)
    ours = [loaded, loaded, *samples]
    # Normalisation, and the padding that follows it in some pipelines, are compared at the end.
    for i, (sample, stage) in enumerate(zip(ours, stages, strict=False)):
        _compare_stage(f"{key}/{i}/{stage['after']}", sample, stage, report)


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
        masks=True,
    )


def _augmentation_of(steps: dict[str, Any]) -> DetrAugmentation | LsjAugmentation:
    if "AutoAugment" not in steps:
        (canvas, _), ratio = steps["Resize"]["img_scale"], steps["Resize"]["ratio_range"]
        return LsjAugmentation(canvas=canvas, ratio=tuple(ratio), flip_probability=steps["RandomFlip"]["flip_ratio"])
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


def _choices_of(values: list[Any]) -> DetrParams:
    """Recorded draws: flip, policy, then a scale, or a scale, crop height, width, y, x and a scale."""
    flip, policy, *rest = values
    crop = None
    if policy == 1:
        scale, height, width, top, left, *rest = rest
        crop = (ResizeParams(scale), CropParams(top=top, left=left, height=height, width=width))
    (scale,) = rest
    return DetrParams(flip=FlipParams(flip == "horizontal"), crop=crop, resize=ResizeParams(scale))


def _lsj_choices_of(values: list[Any], augmentation: LsjAugmentation) -> LsjParams:
    """Recorded draws: share of the range of factors, crop height, width, y, x and, unless dropped before, flip."""
    share, height, width, top, left, *flip = values
    low, high = augmentation.ratio
    crop = CropParams(top=top, left=left, height=height, width=width)
    return LsjParams(
        ratio=share * (high - low) + low, crop=crop, flip=FlipParams(bool(flip) and flip[0] == "horizontal")
    )


def _channel_sums(image: np.ndarray) -> np.ndarray:
    """Of the pixels (H, W, 3), uint8: int64 (3,). OpenCV adds up doubles, which are exact here and take a tenth."""
    return np.array(cv2.sumElems(np.ascontiguousarray(image))[:3], np.int64)


def _compare_stage(key: str, sample: Sample, stage: dict[str, Any], report: Report) -> None:
    report(f"{key}/shape", sample.image.shape, stage["img_shape"], 0.0, exact=True)
    sums = _channel_sums(sample.image)[::-1]
    report(f"{key}/channel_sums_bgr", sums, stage["channel_sums_bgr"], 0.0, exact=True)
    if "boxes" in stage:
        report(f"{key}/boxes", sample.boxes, np.float32(stage["boxes"]).reshape(-1, 4), 0.0, exact=True)
        report(f"{key}/labels", sample.labels, np.array(stage["labels"], np.int64), 0.0, exact=True)
    if "mask_shape" in stage and sample.masks is not None:
        shape = (len(sample.masks), *sample.masks.size)
        report(f"{key}/mask_shape", shape, stage["mask_shape"], 0.0, exact=True)
        report(f"{key}/mask_areas", sample.masks.areas(), np.array(stage["mask_areas"], np.int64), 0.0, exact=True)


def _compare_final(
    key: str, samples: list[Sample], steps: dict[str, Any], final: dict[str, Any], case: Case, report: Report
) -> None:
    sample = samples[-1]
    orig_size = (final["ori_shape"][0], final["ori_shape"][1])
    target = sample.to_target(image_id=0, orig_size=orig_size, pad_divisor=steps["Pad"].get("size_divisor", 1))
    on_canvas = "size" in steps["Pad"]
    # A canvas counts as the image as soon as the network gets it; the recorded size is that of the step before.
    size = samples[3].size if on_canvas else target["size"]
    report(f"{key}/size", size, final["img_shape"][:2], 0.0, exact=True)
    if on_canvas:
        for name in ("size", "norm_size", "pad_size"):
            report(f"{key}/canvas_{name}", target[name], steps["Pad"]["size"], 0.0, exact=True)
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
    if sample.masks is not None:
        bitmaps = target["masks"].numpy()
        _compare_stored(f"{key}/mask_areas", bitmaps.sum(axis=(1, 2), dtype=np.int64), case, report)
        if len(bitmaps):
            _compare_stored(f"{key}/mask_extent", np.array([_extent(bitmap) for bitmap in bitmaps]), case, report)


def _extent(bitmap: np.ndarray) -> list[int]:
    """First and last column and first and last row with pixels of a bitmap (h, w); -1 without any."""
    ends = []
    for axis in (0, 1):
        occupied = np.flatnonzero(bitmap.any(axis=axis))
        ends += [int(occupied[0]), int(occupied[-1])] if len(occupied) else [-1, -1]
    return ends


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
    """Compares the resized pixels, the sizes and the normalised values of the test pipelines."""
    case = Case.load(case_dir)
    mean, std = case.facts["mean"], case.facts["std"]
    prepared: dict[str, list[tuple[np.ndarray, dict[str, Any]]]] = {}
    for entry in case.facts["images"]:
        sides = sorted(int(side) for side in entry["pipeline"].rpartition("_")[2].split("x"))
        test = TestConfig(canvas=sides[0]) if len(sides) == 1 else TestConfig(short_side=sides[0], long_side=sides[1])
        transform = build_transforms(DataConfig(), test, train=False)
        path = shared_dir() / entry["file"]
        original = read_image(path)
        sample = transform(Sample.from_image(original), np.random.default_rng(0))
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
    sums = _channel_sums(sample.image)[::-1]
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
