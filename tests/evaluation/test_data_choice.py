"""Which images an evaluation uses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from codetr_cli.annotations.objects import read_annotations
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.errors import DatasetError
from codetr_cli.evaluation import data_choice
from codetr_cli.evaluation.data_choice import choose_data, choose_reviewed
from codetr_cli.formats.resolve import DataPaths, without_images
from tests.data.fakes import mixed_content, write_split
from tests.formats.coco_exports import roboflow, write_set

NAMES = [f"{index}.jpg" for index in range(10)]
Trained = Callable[..., None]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    """Sets the data settings of the checkpoint's training."""

    def setting(**values: object) -> None:
        monkeypatch.setattr(data_choice, "_trained_on", lambda checkpoint: DataConfig.model_validate(values))

    return setting


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    folder = tmp_path / "data/set"  # deep enough that images are not looked for in the folders of other tests
    write_set(folder / "all.json", folder / "images", NAMES)
    return folder / "all.json"


def count(paths: DataPaths) -> int:
    return len(read_annotations(paths.annotations_path).image_ids)


def test_all_of_a_file_by_default(annotations: Path) -> None:
    paths, name = choose_data(DataConfig(annotations=str(annotations)), (), None, None)
    assert (count(paths), name) == (10, "all")
    assert paths.annotations_path == annotations


@pytest.mark.parametrize(("split", "images"), [("train", 8), ("val", 2)])
def test_a_part_that_the_user_chose(annotations: Path, split: str, images: int) -> None:
    paths, name = choose_data(DataConfig(root=str(annotations)), (), split, None)  # type: ignore[arg-type]
    assert (count(paths), name) == (images, f"all_{split}")


def test_no_split_of_that_name(annotations: Path) -> None:
    with pytest.raises(DatasetError, match="has no test images"):
        choose_data(DataConfig(annotations=str(annotations)), (), "test", None)


@pytest.mark.parametrize("key", ["annotations", "root"])
def test_the_reserved_part_of_the_file_that_was_trained_on(annotations: Path, trained: Trained, key: str) -> None:
    trained(**{key: str(annotations)}, val_fraction=0.4)
    paths, name = choose_data(DataConfig(annotations=str(annotations)), (), None, "run")
    assert (count(paths), name) == (4, "all_val")
    assert "only the images that were reserved" in paths.notes[-1]


def test_the_folder_that_was_trained_on(annotations: Path, trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(annotations.parent)
    trained(root=str(tmp_path / "link"))
    paths, _ = choose_data(DataConfig(annotations=str(annotations)), (), None, "run")
    assert count(paths) == 2


def test_all_of_a_file_that_was_trained_on_as_a_whole(annotations: Path, trained: Trained) -> None:
    trained(annotations=str(annotations), val_annotations="/elsewhere.json")
    paths, _ = choose_data(DataConfig(annotations=str(annotations)), (), None, "run")
    assert count(paths) == 10
    assert "not representative" in paths.warnings[-1]


@pytest.mark.parametrize("root", ["/", "/gone", "relative", None])
def test_other_training_data_play_no_part(annotations: Path, trained: Trained, root: str | None) -> None:
    trained(root=root)
    paths, _ = choose_data(DataConfig(annotations=str(annotations)), (), None, "run")
    assert count(paths) == 10
    assert not paths.warnings


def test_a_file_of_one_part_of_a_folder(trained: Trained, tmp_path: Path) -> None:
    root = roboflow(tmp_path / "set")
    trained(root=str(root))
    for folder, warnings in (("train", 1), ("valid", 0)):
        path = root / folder / "_annotations.coco.json"
        paths, _ = choose_data(DataConfig(annotations=str(path)), (), None, "run")
        assert (count(paths), len(paths.warnings)) == (4, warnings)


@pytest.mark.parametrize(("chosen", "images"), [((), 4), (("data.val_fraction",), 2)])
def test_the_share_is_that_of_the_training_unless_the_user_sets_it(
    annotations: Path, trained: Trained, chosen: tuple[str, ...], images: int
) -> None:
    trained(root="/gone", val_fraction=0.4)
    paths, name = choose_data(DataConfig(root=str(annotations.parent)), chosen, None, "run")
    assert (count(paths), name) == (images, "val")


# -------------------------------------------------------------------------------------------------------------- reviews


def test_a_review_of_a_file_is_of_all_images(annotations: Path) -> None:
    config = DataConfig(annotations=str(annotations))
    paths, name = choose_reviewed(config, (), None, default="train", needs_images=True)
    assert (count(paths), name, paths.images_dir) == (10, "all", annotations.parent / "images")
    paths, name = choose_reviewed(config, (), "val", default="train", needs_images=True)
    assert (count(paths), name) == (2, "all_val")


def test_a_review_of_a_file_without_images(annotations: Path) -> None:
    shutil.rmtree(annotations.parent / "images")
    config = DataConfig(annotations=str(annotations))
    with pytest.raises(DatasetError):
        choose_reviewed(config, (), None, default="train", needs_images=True)
    paths, name = choose_reviewed(config, (), None, default="val", needs_images=False)
    assert (count(paths), name) == (10, "all")
    assert choose_data(config, (), None, None)[0] == paths == without_images(config, annotations)


def test_the_images_of_a_file_are_found_for_its_report(annotations: Path) -> None:
    paths, _ = choose_data(DataConfig(annotations=str(annotations)), (), None, None)
    assert paths.images_dir == annotations.parent / "images"


def test_detections_are_scored_where_the_folder_of_the_images_is_absent(tmp_path: Path) -> None:
    write_split(tmp_path, "val", mixed_content())
    shutil.rmtree(tmp_path / "val2017")
    config = DataConfig(root=str(tmp_path))
    paths, _ = choose_data(config, (), None, None)
    assert choose_reviewed(config, (), None, default="val", needs_images=False)[0] == paths
    assert paths.annotations_path.is_file()
    with pytest.raises(DatasetError, match="val2017 not found"):
        choose_reviewed(config, (), None, default="val", needs_images=True)


def test_a_review_of_a_folder_is_of_one_part(tmp_path: Path) -> None:
    roboflow(tmp_path / "set")
    for default in ("train", "val"):
        _, name = choose_reviewed(
            DataConfig(root=str(tmp_path / "set")),
            (),
            None,
            default=default,
            needs_images=True,  # type: ignore[arg-type]
        )
        assert name == default
