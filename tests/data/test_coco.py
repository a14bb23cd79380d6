from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from codetr_cli.config.schema import Settings
from codetr_cli.data.bad_files import BAD_FILES_KEY
from codetr_cli.data.coco import CocoDataset, build_dataset
from codetr_cli.data.transforms import ResizeShortLong
from codetr_cli.errors import DatasetError
from tests.data.fakes import SIZES, annotation, mixed_content

Rewrite = Callable[[dict[str, Any]], Path]


def make_dataset(root: Path, *, training: bool, **options: Any) -> CocoDataset:
    return CocoDataset(
        images_dir=root / "train2017",
        annotations_path=root / "annotations" / "instances_train2017.json",
        transform=ResizeShortLong(short_sides=(96,), long_side=200),
        training=training,
        **options,
    )


def test_classes_come_from_the_file_in_the_order_of_their_ids(mixed_coco: Path) -> None:
    dataset = make_dataset(mixed_coco, training=True)
    assert dataset.category_ids == [0, 3, 90]
    assert dataset.class_names == ["first", "middle", "last"]


@pytest.mark.parametrize("ids", [[0], [1], [5], [0, 1, 2], [1, 2, 3], [2, 7, 90]])
def test_any_category_ids_give_labels_from_zero(rewrite: Rewrite, ids: list[int]) -> None:
    content = mixed_content()
    content["categories"] = [{"id": i, "name": f"class {i}"} for i in ids]
    content["annotations"] = [annotation(i, 7, ids[i], [1, 1, 20, 20]) for i in range(len(ids))]
    path = rewrite(content)
    dataset = make_dataset(path.parent.parent, training=True)
    labels = dataset[0][1]["labels"].tolist()
    assert labels == list(range(len(ids)))
    assert [dataset.category_ids[label] for label in labels] == ids


def test_training_excludes_what_the_published_code_excludes(mixed_coco: Path) -> None:
    dataset = make_dataset(mixed_coco, training=True)
    # Image 3 is 31 pixels high; images 2 and 4 have no objects and stay.
    assert dataset.image_ids == [7, 17, 27, 47]
    assert dataset.aspect_flags.tolist() == [1, 0, 0, 1]
    samples = [dataset.load_sample(i) for i in range(len(dataset))]
    assert [sample.labels.tolist() for sample in samples] == [[1, 0], [2], [], []]
    np.testing.assert_array_equal(samples[0].boxes, np.float32([[10, 10, 40, 30], [-5, -5, 5, 5]]))
    np.testing.assert_array_equal(samples[1].boxes, np.float32([[1.5, 2.5, 21.75, 32.5]]))
    assert [sample.size for sample in samples] == [SIZES[i] for i in (0, 1, 2, 4)]


@pytest.mark.parametrize("listed", [(48, 50), (64, 48), (50, 64)])
def test_an_image_of_another_size_than_listed_is_refused(rewrite: Rewrite, listed: tuple[int, int]) -> None:
    content = mixed_content()
    content["images"][0].update(height=listed[0], width=listed[1])
    root = rewrite(content).parent.parent
    for training in (True, False):
        dataset = make_dataset(root, training=training)
        with pytest.raises(DatasetError, match=rf"64 x 48 pixels, but .* lists {listed[1]} x {listed[0]}.*prepare"):
            dataset[0]
        target = make_dataset(root, training=training, skip_bad=True)[0][1]
        assert "it has 64 x 48 pixels, not the" in target[BAD_FILES_KEY][0][1]


def test_the_size_before_an_exif_rotation_is_accepted(rewrite: Rewrite) -> None:
    content = mixed_content()
    root = rewrite(content).parent.parent
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.new("RGB", (64, 48)).save(root / "train2017" / content["images"][0]["file_name"], exif=tags)
    assert make_dataset(root, training=False).load_sample(0).size == (64, 48)


def test_evaluation_keeps_every_image_and_crowd(mixed_coco: Path) -> None:
    dataset = make_dataset(mixed_coco, training=False)
    assert dataset.image_ids == [7, 17, 27, 37, 47]
    _, target = dataset[0]
    assert target["iscrowd"].tolist() == [0, 1, 0]
    assert target["area"].tolist() == [600, 2400, 100]


def test_targets_have_the_documented_types(mixed_coco: Path) -> None:
    image, target = make_dataset(mixed_coco, training=True, pad_divisor=32)[1]
    assert image.dtype == np.uint8
    assert image.shape == (128, 96, 3)
    assert target["orig_size"] == (64, 48)
    assert target["size"] == target["norm_size"] == (128, 96)
    assert target["pad_size"] == (128, 96)
    assert target["scale_factor"] == (2.0, 2.0)
    assert target["image_id"] == 17
    assert target["boxes"].tolist() == [[3.0, 5.0, 43.5, 65.0]]
    dtypes = {key: target[key].dtype for key in ("boxes", "labels", "iscrowd", "area")}
    assert dtypes == {"boxes": torch.float32, "labels": torch.int64, "iscrowd": torch.int64, "area": torch.float32}
    empty = make_dataset(mixed_coco, training=True, pad_divisor=32)[2][1]
    assert empty["boxes"].shape == (0, 4)
    assert empty["labels"].shape == (0,)
    assert make_dataset(mixed_coco, training=True, pad_divisor=100)[1][1]["pad_size"] == (200, 100)


def test_random_choices_depend_on_seed_epoch_and_index_only(mixed_coco: Path) -> None:
    settings = Settings.model_validate({"name": "x", "data": {"root": str(mixed_coco), "crop_size": (20, 50)}})
    dataset = build_dataset(settings, split="train", training=True)
    first = [dataset[(epoch, 0)][0] for epoch in range(8)]
    again = [dataset[(epoch, 0)][0] for epoch in reversed(range(8))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({image.shape for image in first}) > 3
    other = Settings.model_validate({**settings.model_dump(), "train": {"seed": 1}})
    changed = [build_dataset(other, split="train", training=True)[(epoch, 0)][0].shape for epoch in range(8)]
    assert changed != [image.shape for image in first]


def test_max_images_takes_the_first_of_the_training_split(mixed_coco: Path) -> None:
    settings = Settings.model_validate({"name": "x", "data": {"root": str(mixed_coco), "max_images": 2}})
    assert build_dataset(settings, split="train", training=True).image_ids == [7, 17]
    assert build_dataset(settings, split="train", training=False).image_ids == [7, 17]
    assert len(build_dataset(settings, split="val", training=False)) == 5


def test_an_unannotated_class_is_kept_and_no_object_at_all_is_refused(rewrite: Rewrite) -> None:
    content = mixed_content()
    content["annotations"] = [annotation(1, 7, 3, [1, 1, 20, 20])]
    root = rewrite(content).parent.parent
    assert make_dataset(root, training=True).class_names == ["first", "middle", "last"]
    content["annotations"] = [annotation(1, 7, 3, [1, 1, 20, 20], iscrowd=1)]
    rewrite(content)
    with pytest.raises(DatasetError, match="no object to train on"):
        make_dataset(root, training=True)
    assert len(make_dataset(root, training=False)) == 5


def test_area_iscrowd_and_ignore_may_be_missing(rewrite: Rewrite) -> None:
    content = mixed_content()
    content["annotations"] = [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 1, 20, 20]}]
    _, target = make_dataset(rewrite(content).parent.parent, training=True)[0]
    assert target["area"].tolist() == [400]
    assert target["iscrowd"].tolist() == [0]


def test_a_file_without_images_is_refused_as_by_prepare(rewrite: Rewrite) -> None:
    path = rewrite({"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]})
    with pytest.raises(DatasetError, match="'images' is empty"):
        make_dataset(path.parent.parent, training=False)
