"""Large-scale jittering, canvases and copy-paste, from the settings to batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from codetr_cli.annotations.masks import Masks
from codetr_cli.config import schema
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.config.overrides import parse_settings
from codetr_cli.config.schema import Settings
from codetr_cli.data.batch import collate
from codetr_cli.data.coco import CocoDataset, build_dataset
from codetr_cli.data.loading.loader import build_train_loader
from codetr_cli.data.transforms import (
    GREY,
    CropParams,
    DroppedSampleError,
    FlipParams,
    LsjAugmentation,
    LsjParams,
    ResizeToCanvas,
    Sample,
    build_transforms,
)
from codetr_cli.errors import DatasetError


def settings_for(root: Path, *, mask_head: bool = False, **data: Any) -> Settings:
    table: dict[str, Any] = {
        "name": "x",
        "data": {"root": str(root), "augmentation": "lsj", "canvas": 64, "min_side": 16, **data},
        "model": {"mask": {"kind": "fcn"}} if mask_head else {},
    }
    return parse_settings(table, where="test")


def train_set(root: Path, **options: Any) -> CocoDataset:
    return build_dataset(settings_for(root, **options), split="train", training=True)


def sample(masks: bool = True) -> Sample:
    """A bright square of 20 pixels in a dark image of 40 x 80, whose mask fills only its left half."""
    image = np.zeros((40, 80, 3), np.uint8)
    image[10:30, 20:40] = 255
    bitmap = np.zeros((1, 40, 80), np.uint8)
    bitmap[0, 10:30, 20:30] = 1
    return Sample(
        image=image,
        boxes=np.float32([[20, 10, 40, 30]]),
        labels=np.array([3]),
        iscrowd=np.array([0]),
        area=np.float32([200]),
        masks=Masks.from_array(bitmap) if masks else None,
    )


def choices(ratio: float = 1.0, top: int = 0, left: int = 0, size: tuple[int, int] = (40, 80), flip: bool = False):
    crop = CropParams(top=top, left=left, height=size[0], width=size[1])
    return LsjParams(ratio=ratio, crop=crop, flip=FlipParams(flip))


def test_padding_is_grey_at_the_bottom_and_right_also_of_flipped_images() -> None:
    augmentation = LsjAugmentation(canvas=80, ratio=(0.1, 2.0), flip_probability=0.5)
    result = augmentation.apply(sample(), choices(flip=True))
    assert result.size == (80, 80)
    assert (result.image[40:] == GREY).all()
    assert result.boxes.tolist() == [[50, 10, 60, 30]]  # tight around the mask's half of the square
    target = result.to_target(image_id=1, orig_size=(40, 80), pad_divisor=1)
    assert target["size"] == target["norm_size"] == target["pad_size"] == (80, 80)
    assert target["masks"].dtype == torch.uint8
    assert target["masks"].shape == (1, 80, 80)
    assert int(target["masks"].sum()) == 200
    assert target["scale_factor"] == (1.0, 1.0)
    batch = collate([(result.image, target)])
    assert not batch.padding_mask.any()


def test_without_masks_boxes_are_clipped() -> None:
    augmentation = LsjAugmentation(canvas=80, ratio=(0.1, 2.0), flip_probability=0.5)
    result = augmentation.apply(sample(masks=False), choices(ratio=2.0, top=10, left=60, size=(70, 80)))
    assert result.boxes.tolist() == [[0, 10, 20, 50]]
    assert result.masks is None
    assert result.scale_factor == (2.0, 2.0)
    assert "masks" not in result.to_target(image_id=1, orig_size=(40, 80), pad_divisor=1)


def test_a_sample_is_dropped_only_when_a_box_survives_without_its_object() -> None:
    augmentation = LsjAugmentation(canvas=40, ratio=(0.1, 2.0), flip_probability=0.5)
    # The window has the right half of the box but nothing of the mask.
    with pytest.raises(DroppedSampleError):
        augmentation.apply(sample(), choices(ratio=2.0, left=32, size=(40, 40)))
    # Nothing of the box either: an image without objects.
    assert len(augmentation.apply(sample(), choices(ratio=2.0, left=40, size=(40, 40))).labels) == 0
    empty = sample().select(np.array([False]))
    assert augmentation.apply(empty, choices(ratio=2.0, left=32, size=(40, 40))).size == (40, 40)


def test_drawn_sizes_and_windows_are_within_the_image() -> None:
    augmentation = LsjAugmentation(canvas=100, ratio=(0.1, 2.0), flip_probability=0.5)
    rng = np.random.default_rng(0)
    drawn = [augmentation.make_params(rng, (40, 80)) for _ in range(200)]
    for chosen in drawn:
        height, width = augmentation.new_size((40, 80), chosen.ratio)
        assert max(height, width) == int(100 * chosen.ratio)
        assert (chosen.crop.height, chosen.crop.width) == (min(height, 100), min(width, 100))
        assert 0 <= chosen.crop.top <= height - chosen.crop.height
        assert 0 <= chosen.crop.left <= width - chosen.crop.width
        assert augmentation.apply(sample(masks=False), chosen).size == (100, 100)
    assert min(c.ratio for c in drawn) < 0.2
    assert max(c.ratio for c in drawn) > 1.9
    assert 60 < sum(c.flip.flip for c in drawn) < 140


def test_test_images_get_a_canvas_and_detections_come_back() -> None:
    transform = build_transforms(DataConfig(), schema.TestConfig(canvas=160), train=False)
    assert isinstance(transform, ResizeToCanvas)
    result = transform(sample(), np.random.default_rng(0))
    assert result.size == (160, 160)
    assert (result.image[80:] == GREY).all()
    np.testing.assert_array_equal(result.image[:80], cv2.resize(sample().image, (160, 80)))
    target = result.to_target(image_id=1, orig_size=(40, 80), pad_divisor=32)
    assert (result.boxes / np.float32(target["scale_factor"] * 2)).tolist() == [[20, 10, 40, 30]]
    # Without augmentation, training images are prepared as test images are.
    plain = DataConfig(augmentation="none")
    assert isinstance(build_transforms(plain, schema.TestConfig(canvas=160), train=True), ResizeToCanvas)


# ------------------------------------------------------------------------------------------------------- the data set


@pytest.mark.parametrize("copy_paste", ["none", "masks", "boxes"])
def test_random_choices_depend_on_seed_epoch_and_index_only(tiny_coco: Path, copy_paste: str) -> None:
    dataset = train_set(tiny_coco, copy_paste=copy_paste, mask_head=copy_paste == "masks")
    keys = [(epoch, index) for epoch in range(3) for index in range(len(dataset))]
    first = [dataset[key] for key in keys]
    again = [dataset[key] for key in reversed(keys)][::-1]
    for (image, target), (other, other_target) in zip(first, again, strict=True):
        np.testing.assert_array_equal(image, other)
        assert image.shape == (64, 64, 3)
        assert torch.equal(target["boxes"], other_target["boxes"])
        if copy_paste == "masks":
            assert torch.equal(target["masks"], other_target["masks"])
            assert target["masks"].shape == (len(target["boxes"]), 64, 64)
    assert len({image.tobytes() for image, _ in first}) > len(keys) - 3


@pytest.mark.parametrize("copy_paste", ["masks", "boxes"])
def test_workers_change_nothing(tiny_coco: Path, copy_paste: str) -> None:
    dataset = train_set(tiny_coco, copy_paste=copy_paste, mask_head=copy_paste == "masks")
    batches = {}
    for workers in (0, 2):
        loader = build_train_loader(
            dataset, micro_batch=2, workers=workers, seed=0, rank=0, world_size=1, aspect_grouping=True
        )
        loader.set_epoch(1)
        batches[workers] = list(loader)
    assert len(batches[0]) == len(batches[2]) == 3
    for ours, theirs in zip(batches[0], batches[2], strict=True):
        assert torch.equal(ours.images, theirs.images)
        for a, b in zip(ours.targets, theirs.targets, strict=True):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[k], b[k]) for k in a if isinstance(a[k], torch.Tensor))
            assert ("masks" in a) == (copy_paste == "masks")


def test_more_objects_with_copy_paste(tiny_coco: Path) -> None:
    counts = {}
    for kind in ("none", "masks", "boxes"):
        dataset = train_set(tiny_coco, copy_paste=kind, lsj_ratio=[0.9, 1.0])
        targets = [dataset[(epoch, i)][1] for epoch in range(10) for i in range(4)]
        counts[kind] = sum(len(target["labels"]) for target in targets)
        assert all("masks" not in target for target in targets)
    assert counts["masks"] > 1.2 * counts["none"]
    assert counts["boxes"] > 1.1 * counts["none"]


def test_pasted_objects_match_their_masks_and_boxes(tiny_coco: Path) -> None:
    """Objects of `tiny_coco` have one bright channel, which is their label's."""
    dataset = train_set(tiny_coco, copy_paste="masks", mask_head=True, lsj_ratio=[0.5, 1.5])
    colours = {name: i for i, name in enumerate(["ring", "disc", "bar"])}
    right = []
    for key in ((epoch, index) for epoch in range(10) for index in range(4)):
        image, target = dataset[key]
        for label, box, mask in zip(target["labels"], target["boxes"], target["masks"].numpy(), strict=True):
            ys, xs = np.nonzero(mask)
            if len(xs) < 30:
                continue
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            # cv2 wrote BGR, so that channel i of the file is channel 2 - i of the image.
            channel = 2 - colours[dataset.class_names[label]]
            right.append((image[ys, xs, channel] > 150).mean())
    # Objects overlap within their own image already, where only the one drawn last is seen.
    assert len(right) > 40
    assert np.median(right) > 0.85


def test_a_dropped_sample_is_replaced_by_one_of_its_orientation(
    tiny_coco: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = train_set(tiny_coco)
    apply = LsjAugmentation.apply
    dropped: list[int] = []

    def drop_the_first(self: LsjAugmentation, sample: Sample, choices: LsjParams) -> Sample:
        if len(dropped) % 2 == 0:
            dropped.append(1)
            raise DroppedSampleError
        dropped.append(0)
        return apply(self, sample, choices)

    monkeypatch.setattr(LsjAugmentation, "apply", drop_the_first)
    flags = dict(zip(dataset.image_ids, dataset.aspect_flags.tolist(), strict=True))
    chosen = [dataset[(epoch, index)][1]["image_id"] for epoch in range(8) for index in range(4)]
    assert [flags[image_id] for image_id in chosen] == dataset.aspect_flags.tolist() * 8
    assert chosen != dataset.image_ids * 8
    dropped.clear()
    assert chosen == [dataset[(epoch, index)][1]["image_id"] for epoch in range(8) for index in range(4)]


def test_a_set_of_which_nothing_survives_is_reported(tiny_coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = train_set(tiny_coco)

    def drop(self: LsjAugmentation, sample: Sample, choices: LsjParams) -> Sample:
        raise DroppedSampleError

    monkeypatch.setattr(LsjAugmentation, "apply", drop)
    with pytest.raises(DatasetError, match=r"100 images of .* in a row lost all their objects"):
        dataset[0]


# -------------------------------------------------------------------------------------------------------------- masks


def rewrite(root: Path, change: Any) -> Path:
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def without_masks(content: dict[str, Any]) -> None:
    for entry in content["annotations"]:
        entry.pop("segmentation")


def without_the_second_mask(content: dict[str, Any]) -> None:
    content["annotations"][1]["segmentation"] = []


@pytest.mark.parametrize("options", [{"copy_paste": "masks"}, {"mask_head": True}])
@pytest.mark.parametrize(
    ("change", "words"), [(without_masks, "none of its 6 usable"), (without_the_second_mask, "5 of its 6 usable")]
)
def test_masks_that_are_needed_must_be_there(tiny_coco: Path, options: Any, change: Any, words: str) -> None:
    path = rewrite(tiny_coco, change)
    with pytest.raises(DatasetError, match=words) as caught:
        train_set(tiny_coco, **options)
    assert str(path) in str(caught.value)
    assert "data.copy_paste" in str(caught.value)
    train_set(tiny_coco, copy_paste="boxes")[0]
    # An evaluation does not train, so it needs no masks.
    build_dataset(settings_for(tiny_coco, **options), split="train", training=False)[0]


def test_a_broken_mask_is_named(tiny_coco: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]
        content["annotations"][1]["segmentation"] = {"size": [7, 8], "counts": [56]}

    path = rewrite(tiny_coco, change)
    dataset = train_set(tiny_coco, mask_head=True)
    for index, words in ((0, r"annotations\[0\] has a broken polygon"), (1, r"annotations\[1\] has .* size \[7, 8\]")):
        with pytest.raises(DatasetError, match=words) as caught:
            dataset.load_sample(index)
        assert str(path) in str(caught.value)
        assert dataset.file_names[index] in str(caught.value)
        assert "codetr prepare" in str(caught.value)


def test_masks_of_crowds_and_of_unused_objects_are_not_looked_at(tiny_coco: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["annotations"][-1]["segmentation"] = "a crowd with no mask at all"
        content["annotations"][0] |= {"segmentation": [], "ignore": 1}

    rewrite(tiny_coco, change)
    dataset = train_set(tiny_coco, mask_head=True)
    assert sum(len(dataset.load_sample(i).labels) for i in range(4)) == 5


def test_the_detr_policy_takes_masks_along(tiny_coco: Path) -> None:
    table = {
        "short_sides": (64,),
        "long_side": 128,
        "crop_short_sides": (64, 80),
        "crop_size": (30, 60),
        "canvas": None,
    }
    dataset = train_set(tiny_coco, augmentation="detr", mask_head=True, pad_divisor=32, **table)
    for key in ((epoch, index) for epoch in range(6) for index in range(4)):
        image, target = dataset[key]
        assert tuple(target["masks"].shape[1:]) == target["pad_size"]
        assert len(target["masks"]) == len(target["boxes"])
        assert not target["masks"][:, image.shape[0] :].any()
        for box, mask in zip(target["boxes"].numpy(), target["masks"].numpy(), strict=True):
            ys, xs = np.nonzero(mask)
            if len(xs):
                ends = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
                np.testing.assert_allclose(ends, box, atol=5)
