"""Folds of a review: how images are divided, and what their trainings start from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.objects import Annotations, read_annotations
from codetr_cli.config.overrides import replace_settings, to_toml
from codetr_cli.config.schema import Settings
from codetr_cli.errors import ConfigError, DatasetError
from codetr_cli.formats.resolve import DataPaths, find_data
from codetr_cli.training.fold_reviews import (
    choose_start,
    divide_into_folds,
    fold_job,
    write_folds,
)
from tests.inference.fakes import write_checkpoint


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Annotations, DataPaths]:
    """Twelve different pictures, of which the first four have a copy each."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    names = [f"p{number}.png" for number in range(12)]
    for number, name in enumerate(names):
        generator = np.random.default_rng(number)
        small = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / name), cv2.resize(small, (96, 96), interpolation=cv2.INTER_CUBIC))
    for number in range(4):
        names.append(f"copy_of_{number}.png")
        shutil.copy(folder / f"p{number}.png", folder / names[-1])
    content = {
        "images": [
            {"id": 100 + number, "file_name": name, "width": 96, "height": 96} for number, name in enumerate(names)
        ],
        "annotations": [
            {"id": n, "image_id": 100 + n, "category_id": 1, "bbox": [5, 5, 50, 50], "area": 2500, "iscrowd": 0}
            for n in range(len(names))
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    return read_annotations(path), DataPaths(folder, path, NameRule.of(folder))


def test_copies_are_in_one_fold_and_folds_are_equal(pictures: tuple[Annotations, DataPaths]) -> None:
    truth, paths = pictures
    folds = divide_into_folds(truth, paths, 4)
    assert np.bincount(folds).tolist() == [4, 4, 4, 4]
    assert folds[:4].tolist() == folds[12:].tolist()
    assert divide_into_folds(truth, paths, 4).tolist() == folds.tolist()


def test_more_folds_than_different_images(pictures: tuple[Annotations, DataPaths]) -> None:
    with pytest.raises(DatasetError, match="there are 16 images, 12 of them different"):
        divide_into_folds(*pictures, 13)


def test_every_image_is_held_out_once(pictures: tuple[Annotations, DataPaths], tmp_path: Path) -> None:
    truth, paths = pictures
    folds = write_folds(tmp_path / "folds", truth, paths, 3, request="r")
    seen: list[int] = []
    for fold in folds:
        parts = [json.loads((fold.folder / name).read_text()) for name in ("train.json", "held_out.json")]
        train, held_out = ({image["id"] for image in part["images"]} for part in parts)
        assert train | held_out == set(truth.image_ids.tolist())
        assert not train & held_out
        assert {record["image_id"] for record in parts[0]["annotations"]} == train
        assert parts[0]["categories"] == parts[1]["categories"]
        seen += held_out
    assert sorted(seen) == sorted(truth.image_ids.tolist())


def test_folds_are_written_once(pictures: tuple[Annotations, DataPaths], tmp_path: Path) -> None:
    truth, paths = pictures
    first = write_folds(tmp_path / "folds", truth, paths, 2, request="r")
    times = [path.stat().st_mtime_ns for path in sorted((tmp_path / "folds").rglob("*.json"))]
    assert write_folds(tmp_path / "folds", truth, paths, 2, request="r") == first
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "folds").rglob("*.json"))] == times
    (tmp_path / "folds/1/held_out.json").write_text("mine")
    with pytest.raises(ConfigError, match="never replaced"):
        write_folds(tmp_path / "folds", truth, paths, 2, request="r")


def test_names_that_lead_outside_are_refused(pictures: tuple[Annotations, DataPaths], tmp_path: Path) -> None:
    truth, paths = pictures
    truth.file_names[0] = "../../secret.png"
    with pytest.raises(DatasetError, match="leads out of"):
        write_folds(tmp_path / "folds", truth, paths, 2, request="r")


def test_a_checkpoint_that_has_seen_the_images_is_not_fine_tuned(
    tmp_path: Path, tiny_settings: Settings, tiny_coco: Path
) -> None:
    settings = replace_settings(
        tiny_settings, {"data.root": str(tiny_coco), "train.epochs": 7, "data.allow_outside": True}
    )
    checkpoint = str(write_checkpoint(tmp_path / "a.safetensors", settings))
    start = choose_start(checkpoint, None, 4, [], dataset="coco")
    assert start.weights is None
    assert "has seen the images" in start.note
    for trained in (0, None):
        assert choose_start(checkpoint, None, trained, [], dataset="coco").weights == checkpoint
    named = choose_start(checkpoint, "other.safetensors", 4, ["train.epochs=2"], dataset="coco")
    assert named.weights == "other.safetensors"
    # Its recipe is taken over, and not where its data was or what may be read.
    assert start.settings.train.epochs == 7
    assert named.settings.train.epochs == 2
    assert start.settings.data.root is None
    assert start.settings.data.allow_outside is False


def test_a_preset_starts_as_it_does(tmp_path: Path, tiny_settings: Settings) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(to_toml(tiny_settings))
    start = choose_start(str(path), None, None, [], dataset="coco")
    assert start.weights is None
    assert start.settings.model == tiny_settings.model


def test_job_of_a_fold_trains_on_the_others(tmp_path: Path, tiny_settings: Settings, tiny_coco: Path) -> None:
    paths = find_data(tiny_settings.data, str(tiny_coco), "train")
    truth = read_annotations(paths.annotations_path)
    preset = tmp_path / "tiny.toml"
    preset.write_text(to_toml(tiny_settings))
    fold, other = write_folds(tmp_path / "folds", truth, paths, 2, request="r")
    job = fold_job(fold, choose_start(str(preset), None, None, [], dataset="coco"), truth)
    assert job.run == fold.run
    assert job.inputs.val_annotations is None
    assert job.inputs.train_annotations == str(fold.folder / "train.json")
    assert job.settings.data.allow_outside is False
    assert not fold.is_trained()
    assert fold.detections() is None
    assert other.eval_job(batch=None, precision="auto").paths.annotations_path == other.folder / "held_out.json"
