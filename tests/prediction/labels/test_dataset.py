"""Data sets of images and labels, read back by codetr's own readers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from codetr_cli.data.writers.folder import RECEIPT
from codetr_cli.distributed.part_files import FOLDER, REQUEST_NAME
from codetr_cli.errors import ConfigError, DatasetError
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.layout_names import LAYOUTS
from codetr_cli.formats.open import open_dataset
from codetr_cli.formats.reserved import Candidate
from codetr_cli.prediction.labels.dataset import choose_splits, dataset_folder
from codetr_cli.prediction.labels.options import DatasetOptions
from codetr_cli.prediction.outputs import DATASET, write_outputs
from codetr_cli.prediction.results import ImageResult
from codetr_cli.prediction.targets import OutputTarget
from codetr_cli.result_files import ResultRecord
from tests.prediction.labels.random_labels import (
    NAMES,
    close,
    random_results,
    read_labels,
    target,
    write_images,
)

ROUNDING_PX = 2e-3


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))


def labelled(out: Path, source: Path, results: list[ImageResult], layout: str, **more: Any) -> OutputTarget:
    """Writes the data set of some results."""
    options = {name: more.pop(name) for name in ("images", "val_fraction", "keep_empty") if name in more}
    plain = target(out, **more)
    where = OutputTarget(
        **{name: getattr(plain, name) for name in ("request", "force", "class_names", "category_ids", "labels")},
        folder=out,
        scratch=out / FOLDER,
        dataset=DatasetOptions(layout=layout, source=str(source), **options),
        facts={"checkpoint": "m.safetensors", "preset": "tiny", "date": "2026-11-29", "review": plain.labels.review},
    )
    (out / ".scratch").rmdir()
    where.scratch.mkdir(exist_ok=True)
    write_outputs(results, (DATASET,), where)
    return where


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_back_as_the_detections(tmp_path: Path, layout: str) -> None:
    sizes = write_images(tmp_path / "source", 11)
    results = random_results(tmp_path / "source", sizes, 11)
    labelled(tmp_path / "out", tmp_path / "source", results, layout)
    assert close(read_labels(tmp_path / "out"), results, ROUNDING_PX)
    found = open_dataset(tmp_path / "out", ReadOptions())
    assert found is not None
    assert found.notes == []  # nothing is reserved any more: the parts are in the layout
    assert {finding.kind for finding in found.findings} <= {"image_without_labels"}
    receipt = json.loads((tmp_path / "out" / RECEIPT).read_text())
    contents = receipt["contents"]
    assert list(contents["splits"]) == ["train", "val"]
    assert sum(split["images"] for split in contents["splits"].values()) == len(results)
    assert sum(contents["classes"].values()) == sum(contents["scores"]) == sum(len(one.records) for one in results)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "m.safetensors" in card
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"README.md", RECEIPT}


def test_folders_that_mean_parts_divide(tmp_path: Path) -> None:
    names = ("train/a.jpg", "valid/a.jpg", "test/b.jpg", "c.jpg")
    sizes = write_images(tmp_path / "source", 3, names)
    results = random_results(tmp_path / "source", sizes, 4)
    labelled(tmp_path / "out", tmp_path / "source", results, "yolo")
    images = {path.relative_to(tmp_path / "out" / "images").as_posix() for path in (tmp_path / "out").rglob("*.jpg")}
    assert images == {"train/a.jpg", "train/c.jpg", "val/a.jpg", "test/b.jpg"}
    candidates = [Candidate(name, tmp_path / "source" / name, frozenset()) for name in ("train/a.jpg", "c.jpg")]
    assert sorted(choose_splits(candidates, 0.5)[0]) == ["train", "val"]
    assert choose_splits(candidates, 0.0) == (["train", "train"], "")


@pytest.mark.parametrize("how", ["copy", "link", "symlink"])
def test_images_are_copied_or_linked(tmp_path: Path, how: str) -> None:
    sizes = write_images(tmp_path / "source", 3, NAMES[:3])
    results = random_results(tmp_path / "source", sizes, 4)
    labelled(tmp_path / "out", tmp_path / "source", results, "coco", images=how)
    (path,) = [path for path in (tmp_path / "out").rglob("*.jpg") if path.name == "plain.jpg"]
    original = tmp_path / "source" / "plain.jpg"
    assert path.read_bytes() == original.read_bytes()
    assert (path.is_symlink(), path.samefile(original)) == (how == "symlink", how != "copy")
    assert dataset_folder(tmp_path / "out", "other", force=True) == tmp_path / "out"  # links are our own, too


def test_coco_keeps_scores_and_ids_of_classes(tmp_path: Path) -> None:
    sizes = write_images(tmp_path / "source", 3, ("a.jpg",))
    results = random_results(tmp_path / "source", sizes, 3)
    labelled(tmp_path / "out", tmp_path / "source", results, "coco")
    table = json.loads((tmp_path / "out" / "instances_train.json").read_text())
    assert [each["score"] for each in table["annotations"]] == [each["score"] for each in results[0].records]
    assert [each["category_id"] for each in table["annotations"]] == [one["category_id"] for one in results[0].records]
    assert [each["id"] for each in table["categories"]] == [3, 7, 8, 90]
    assert set(table["annotations"][0]) == {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "score"}


def test_empty_images_and_thin_boxes(tmp_path: Path) -> None:
    sizes = write_images(tmp_path / "source", 3, ("a.jpg", "b.jpg"))
    first, second = random_results(tmp_path / "source", sizes, 3)
    thin = {**first.records[0], "bbox": [3.0, 3.0, 0.5, 9.0]}
    results = [first, ImageResult(1, second.file, second.image, [thin])]
    kept = labelled(tmp_path / "kept", tmp_path / "source", results, "yolo", val_fraction=0.0)
    assert kept.notes["yolo"] == ["1 box narrower than one pixel is skipped"]
    assert (tmp_path / "kept" / "labels" / "train" / "b.txt").read_text() == ""
    labelled(tmp_path / "some", tmp_path / "source", results, "yolo", keep_empty=False)
    assert [path.name for path in (tmp_path / "some").rglob("*.jpg")] == ["a.jpg"]
    with pytest.raises(ConfigError, match="no image to label"):
        labelled(tmp_path / "none", tmp_path / "source", results[1:], "yolo", keep_empty=False)


def test_formats_that_trainers_skip_are_counted(tmp_path: Path) -> None:
    sizes = write_images(tmp_path / "source", 3, ("a.jpg", "b.jpg", "c.JPG"))
    results = random_results(tmp_path / "source", sizes, 3)
    (tmp_path / "source" / "b.jpg").rename(tmp_path / "source" / "b.gif")
    facts = {**(results[1].image or {}), "file_name": "b.gif"}
    results[1] = ImageResult(1, str(tmp_path / "source" / "b.gif"), facts, results[1].records)
    notes = labelled(tmp_path / "out", tmp_path / "source", results, "yolo", val_fraction=0.0).notes["yolo"]
    assert [note for note in notes if note.startswith("1 image has a suffix that some trainers skip")]
    assert "some trainers skip" in (tmp_path / "out" / "README.md").read_text()


def test_the_review_list_is_of_the_data_set(tmp_path: Path) -> None:
    sizes = write_images(tmp_path / "source", 3, ("a.jpg", "b.jpg"))
    results = random_results(tmp_path / "source", sizes, 3)
    reason = {"class": "cat", "score": 0.4, "bbox": [0, 0, 1, 1], "is_label": True}
    results[1].image["review"] = {"count": 1, "detections": [reason]}  # type: ignore[index]
    labelled(tmp_path / "out", tmp_path / "source", results, "yolo", val_fraction=0.0, review=(0.2, 0.5))
    assert (tmp_path / "out" / "review.txt").read_text() == "images/train/b.jpg\n"
    assert "`images/train/b.jpg`: cat 0.40" in (tmp_path / "out" / "README.md").read_text()
    assert close(read_labels(tmp_path / "out", val_fraction=0), results, ROUNDING_PX)


def test_a_killed_command_leaves_what_it_can_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each rename: what is there by then is our own, and the same command writes the data set again."""
    sizes = write_images(tmp_path / "source", 3, ("a.jpg", "b.jpg"))
    results = random_results(tmp_path / "source", sizes, 3)
    labelled(tmp_path / "whole", tmp_path / "source", results, "yolo")
    expected = sorted(path.relative_to(tmp_path / "whole").as_posix() for path in (tmp_path / "whole").rglob("*"))
    real = Path.rename
    for kill_at in range(5):
        out = tmp_path / f"out{kill_at}"
        seen = []

        def rename(path: Path, place: Path, out: Path = out, seen: list = seen, kill_at: int = kill_at) -> Path:
            if place.parent == out:
                seen.append(place)
                if len(seen) > kill_at:
                    raise KeyboardInterrupt
            return real(path, place)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", rename)
            with pytest.raises(KeyboardInterrupt):
                labelled(out, tmp_path / "source", results, "yolo")
        assert not (out / "README.md").exists()
        (out / FOLDER).mkdir(exist_ok=True)
        (out / FOLDER / REQUEST_NAME).write_text('{"request": "r"}')
        assert dataset_folder(out, "r", force=False) == out
        labelled(out, tmp_path / "source", results, "yolo")
        (out / FOLDER / REQUEST_NAME).unlink()
        assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*")) == expected


def test_the_folder_must_be_free_or_our_own(tmp_path: Path) -> None:
    sizes = write_images(tmp_path / "source", 3, ("a.jpg", "b.jpg"))
    results = random_results(tmp_path / "source", sizes, 3)
    out = tmp_path / "out"
    labelled(out, tmp_path / "source", results, "yolo")
    with pytest.raises(ConfigError, match="already exists"):
        dataset_folder(out, "r", force=False)
    assert dataset_folder(out, "r", force=True) == out
    assert all(ResultRecord(out).is_own(out / name, quick=True) for name in ("README.md", "data.yaml", RECEIPT))
    (out / "labels" / "train" / "mine.txt").touch()
    with pytest.raises(ConfigError, match="not as codetr has written them"):
        dataset_folder(out, "r", force=True)
    (tmp_path / "mine").mkdir()
    assert dataset_folder(tmp_path / "mine", "r", force=False).is_dir()
    (tmp_path / "mine" / "a.txt").touch()
    with pytest.raises(ConfigError, match="other files"):
        dataset_folder(tmp_path / "mine", "r", force=True)
    parts = tmp_path / "stopped" / FOLDER
    parts.mkdir(parents=True)
    (parts / REQUEST_NAME).write_text('{"request": "other"}')
    (parts / "1.part").touch()
    with pytest.raises(ConfigError, match="stopped command"):
        dataset_folder(tmp_path / "stopped", "r", force=False)
    assert dataset_folder(tmp_path / "stopped", "other", force=False).is_dir()


def test_images_that_have_gone_are_an_error_and_nothing_is_left(tmp_path: Path) -> None:
    sizes = write_images(tmp_path / "source", 3, ("a.jpg", "b.jpg"))
    results = random_results(tmp_path / "source", sizes, 3)
    (tmp_path / "source" / "a.jpg").unlink()
    with pytest.raises(DatasetError, match="has changed since"):
        labelled(tmp_path / "out", tmp_path / "source", results, "voc")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [FOLDER]
    assert list((tmp_path / "out" / FOLDER).iterdir()) == []


def test_images_of_another_size_than_was_labelled_are_an_error(tmp_path: Path) -> None:
    sizes = write_images(tmp_path / "source", 3, ("a.jpg", "b.jpg"))
    results = random_results(tmp_path / "source", sizes, 3)
    width, height = sizes["a.jpg"]
    Image.new("RGB", (width + 1, height)).save(tmp_path / "source" / "a.jpg")
    with pytest.raises(DatasetError, match=rf"{width + 1} x {height} pixels now, {width} x {height} then"):
        labelled(tmp_path / "out", tmp_path / "source", results, "yolo")


def test_other_tools_read_it(tmp_path: Path) -> None:
    """Boxes of Pascal VOC in whole pixels, as the tool reads them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        supervision = pytest.importorskip("supervision", reason="supervision is not installed")
        sizes = write_images(tmp_path / "source", 7, tuple(f"i{number}.jpg" for number in range(8)))
        results = random_results(tmp_path / "source", sizes, 7)
        for layout in ("coco", "yolo", "voc"):
            labelled(tmp_path / layout, tmp_path / "source", results, layout, val_fraction=0.0)
        coco, yolo, voc = tmp_path / "coco", tmp_path / "yolo", tmp_path / "voc"
        dataset_class = supervision.DetectionDataset
        read = {
            "coco": dataset_class.from_coco(str(coco), str(coco / "instances_train.json")),
            "yolo": dataset_class.from_yolo(
                str(yolo / "images" / "train"), str(yolo / "labels" / "train"), str(yolo / "data.yaml")
            ),
            "voc": dataset_class.from_pascal_voc(str(voc / "JPEGImages"), str(voc / "Annotations")),
        }
        for layout, found in read.items():
            labels = {
                Path(path).read_bytes(): [
                    (found.classes[label], tuple(box))
                    for label, box in zip(detections.class_id, detections.xyxy.tolist(), strict=True)
                ]
                for path, _, detections in found
            }
            assert close(labels, results, 1.01 if layout == "voc" else 0.01), layout
