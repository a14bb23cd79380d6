from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from codetr_cli.config import schema
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.data.transforms import (
    CropParams,
    DetrAugmentation,
    Flip,
    FlipParams,
    RandomCrop,
    ResizeParams,
    ResizeShortLong,
    ResizeToFit,
    Sample,
    build_transforms,
    resized_size,
)

BOXES = np.float32([[2, 3, 10, 12], [0, 0, 5, 5], [30, 20, 60, 40]])


def make_sample(height: int = 40, width: int = 60) -> Sample:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return replace(
        Sample.from_image(image),
        boxes=BOXES.copy(),
        labels=np.array([4, 5, 6]),
        iscrowd=np.array([0, 0, 1]),
        area=np.float32([1, 2, 3]),
    )


def make_augmentation() -> DetrAugmentation:
    return DetrAugmentation(
        flip_probability=0.5,
        short_sides=(32, 40, 48),
        long_side=80,
        crop_short_sides=(30, 50),
        crop_long_side=500,
        crop_size=(20, 35),
    )


def test_flip_mirrors_pixels_and_boxes_and_twice_is_nothing() -> None:
    sample = make_sample()
    flipped = Flip(probability=1).apply(sample, FlipParams(flip=True))
    np.testing.assert_array_equal(flipped.image, sample.image[:, ::-1])
    assert flipped.boxes.tolist() == [[50, 3, 58, 12], [55, 0, 60, 5], [0, 20, 30, 40]]
    back = Flip(probability=1).apply(flipped, FlipParams(flip=True))
    np.testing.assert_array_equal(back.boxes, sample.boxes)
    assert Flip(probability=1).apply(sample, FlipParams(flip=False)) is sample


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (1.0, 200), (0.5, 100)])
def test_flip_keeps_its_probability(probability: float, expected: int) -> None:
    rng = np.random.default_rng(0)
    drawn = sum(Flip(probability=probability).make_params(rng, (4, 4)).flip for _ in range(200))
    assert abs(drawn - expected) <= (15 if 0 < probability < 1 else 0)


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((480, 640), (800, 1333), (800, 1067)),
        ((640, 424), (800, 1333), (1208, 800)),
        ((169, 500), (800, 1333), (451, 1333)),
        ((480, 640), (1333, 800), (800, 1067)),
        ((4, 10_000), (800, 1333), (1, 1333)),
    ],
)
def test_resize_keeps_the_ratio_within_both_limits(
    size: tuple[int, int], limits: tuple[int, int], expected: tuple[int, int]
) -> None:
    resize = ResizeShortLong(short_sides=limits[:1], long_side=limits[1])
    assert resize.new_size(size, ResizeParams(0)) == expected


def test_resize_scales_boxes_by_each_axis_and_clips_them() -> None:
    sample = replace(make_sample(37, 60), boxes=np.float32([[1, 2, 70, 40]]))
    resized = ResizeShortLong(short_sides=(50,), long_side=200).apply(sample, ResizeParams(0))
    assert resized.size == (50, 81)
    assert resized.image.shape == (50, 81, 3)
    assert resized.scale_factor == (81 / 60, 50 / 37)
    np.testing.assert_array_equal(resized.boxes[0], np.float32([81 / 60, 2 * np.float32(50 / 37), 81, 50]))
    assert resized.boxes.dtype == np.float32


def test_crop_clips_boxes_and_drops_those_outside_with_all_their_columns() -> None:
    sample = make_sample()
    cropped = RandomCrop(low=1, high=100).apply(sample, CropParams(top=4, left=5, height=20, width=30))
    np.testing.assert_array_equal(cropped.image, sample.image[4:24, 5:35])
    # The second box only touches the window's corner column: no width is left of it.
    assert cropped.boxes.tolist() == [[0, 0, 5, 8], [25, 16, 30, 20]]
    assert cropped.labels.tolist() == [4, 6]
    assert cropped.iscrowd.tolist() == [0, 1]
    assert cropped.area.tolist() == [1, 3]
    empty = RandomCrop(low=1, high=100).apply(sample, CropParams(top=30, left=0, height=5, width=5))
    assert empty.boxes.shape == (0, 4)


def test_crop_windows_stay_inside_and_reach_both_limits() -> None:
    rng = np.random.default_rng(0)
    windows = [RandomCrop(low=20, high=35).make_params(rng, (30, 60)) for _ in range(500)]
    assert {window.height for window in windows} == set(range(20, 31))
    assert {window.width for window in windows} == set(range(20, 36))
    assert all(window.top + window.height <= 30 and window.left + window.width <= 60 for window in windows)
    assert any(window.top + window.height == 30 for window in windows)
    small = RandomCrop(low=20, high=35).make_params(rng, (10, 12))
    assert small == CropParams(top=0, left=0, height=10, width=12)


def test_transforms_never_change_their_input() -> None:
    sample = make_sample()
    image, boxes = sample.image.copy(), sample.boxes.copy()
    for seed in range(20):
        make_augmentation()(sample, np.random.default_rng(seed))
    np.testing.assert_array_equal(sample.image, image)
    np.testing.assert_array_equal(sample.boxes, boxes)


def test_augmentation_is_its_choices_and_both_policies_occur() -> None:
    augmentation, sample = make_augmentation(), make_sample()
    crops = 0
    for seed in range(40):
        choices = augmentation.make_params(np.random.default_rng(seed), sample.size)
        crops += choices.crop is not None
        result = augmentation(sample, np.random.default_rng(seed))
        np.testing.assert_array_equal(result.image, augmentation.apply(sample, choices).image)
        stages = list(augmentation.stages(sample, choices))
        assert len(stages) == (4 if choices.crop else 2)
        np.testing.assert_array_equal(stages[-1].boxes, result.boxes)
        assert min(result.size) in (32, 40, 48) or max(result.size) == 80
    assert 10 < crops < 30


def test_build_transforms_reads_the_settings() -> None:
    data, test = (
        DataConfig(short_sides=(64,), crop_size=(10, 20)),
        schema.TestConfig(short_side=96, long_side=160),
    )
    train = build_transforms(data, test, train=True)
    assert isinstance(train, DetrAugmentation)
    assert train.resize.short_sides == (64,)
    assert (train.crop.low, train.crop.high) == (10, 20)
    for transform in (
        build_transforms(data, test, train=False),
        build_transforms(data.model_copy(update={"augmentation": "none"}), test, train=True),
    ):
        assert isinstance(transform, ResizeShortLong)
        assert transform(make_sample(), np.random.default_rng(0)).size == (96, 144)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((40, 60), (80, 120)),  # as without a frame
        ((40, 200), (32, 160)),  # the long side decides
        ((60, 40), (96, 64)),  # upright: its height would be 120
        ((50, 50), (80, 80)),
        ((1000, 1), (96, 1)),
    ],
)
def test_fitting_reduces_only_what_does_not_fit(size: tuple[int, int], expected: tuple[int, int]):
    test = schema.TestConfig(short_side=80, long_side=160, fixed_size=(96, 160))
    transform = build_transforms(DataConfig(), test, train=False)
    assert isinstance(transform, ResizeToFit)
    assert transform.new_size(size) == resized_size(size, test) == expected
    sample = transform(make_sample(*size), np.random.default_rng(0))
    assert sample.size == expected
    assert sample.scale_factor == pytest.approx((expected[1] / size[1], expected[0] / size[0]))
    target = sample.to_target(image_id=1, orig_size=size, pad_divisor=1)
    assert (target["size"], target["norm_size"], target["pad_size"]) == (expected, expected, (96, 160))


def test_without_a_frame_images_count_as_padded_to_multiples():
    sample = build_transforms(DataConfig(), schema.TestConfig(short_side=80, long_side=160), train=False)(
        make_sample(40, 60), np.random.default_rng(0)
    )
    assert sample.to_target(image_id=1, orig_size=(40, 60), pad_divisor=32)["pad_size"] == (96, 128)
