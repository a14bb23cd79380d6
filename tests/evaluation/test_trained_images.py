"""Which images a checkpoint was trained on."""

from __future__ import annotations

import shutil
from pathlib import Path

from codetr_cli.annotations.objects import read_annotations
from codetr_cli.config.overrides import replace_settings
from codetr_cli.config.schema import Settings
from codetr_cli.evaluation.trained_images import count_trained
from codetr_cli.formats.resolve import DataPaths, find_data
from tests.inference.fakes import write_checkpoint


def paths_of(settings: Settings, data: Path, split: str) -> tuple[DataPaths, list[str]]:
    paths = find_data(settings.data, str(data), split)
    return paths, read_annotations(paths.annotations_path).file_names


def test_images_of_the_training_are_counted(tmp_path: Path, tiny_settings: Settings, tiny_coco: Path) -> None:
    settings = replace_settings(tiny_settings, {"data.root": str(tiny_coco)})
    checkpoint = write_checkpoint(tmp_path / "a.safetensors", settings)
    assert count_trained(checkpoint, *paths_of(settings, tiny_coco, "train")) == 4
    assert count_trained(checkpoint, *paths_of(settings, tiny_coco, "val")) == 0


def test_images_are_the_same_through_a_link(tmp_path: Path, tiny_settings: Settings, tiny_coco: Path) -> None:
    (tmp_path / "link").symlink_to(tiny_coco)
    settings = replace_settings(tiny_settings, {"data.root": str(tmp_path / "link")})
    checkpoint = write_checkpoint(tmp_path / "a.safetensors", settings)
    assert count_trained(checkpoint, *paths_of(settings, tiny_coco, "train")) == 4


def test_unknown_where_the_data_is_not_named_or_gone(tmp_path: Path, tiny_settings: Settings, tiny_coco: Path) -> None:
    found = paths_of(tiny_settings, tiny_coco, "train")
    unnamed = write_checkpoint(tmp_path / "unnamed.safetensors", replace_settings(tiny_settings, {"data.root": None}))
    assert count_trained(unnamed, *found) is None
    copy = tmp_path / "copy"
    shutil.copytree(tiny_coco, copy)
    gone = write_checkpoint(tmp_path / "gone.safetensors", replace_settings(tiny_settings, {"data.root": str(copy)}))
    shutil.rmtree(copy)
    assert count_trained(gone, *found) is None
