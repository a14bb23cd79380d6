"""Labels of a prediction in the layouts of tools, read back by codetr's own readers."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from codetr_cli.data.writers.folder import RECEIPT
from codetr_cli.errors import ConfigError, DatasetError
from codetr_cli.formats.csv_columns import find_columns
from codetr_cli.formats.csv_rows import TableReader
from codetr_cli.formats.found import ReadOptions
from codetr_cli.inference.rle import encode_crop
from codetr_cli.prediction.labels.layouts import FOLDERS, check_class_names, taken_folder
from codetr_cli.prediction.outputs import write_outputs
from codetr_cli.prediction.results import ImageResult
from codetr_cli.result_files import ResultRecord
from tests.prediction.labels.random_labels import (
    close,
    labels_of,
    place_images,
    random_results,
    read_labels,
    target,
    write_images,
)

ROUNDING_PX = 2e-3
"""Readers round to 1e-3, and results have four decimals."""
IMAGES = {"yolo": "images/", "voc": "JPEGImages/", "cvat": "images/", "labelme": "", "label-studio": ""}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))


def placed(results: list[ImageResult], layout: str, folder: Path, source: Path) -> Path:
    """The folder of a layout, with the images where it has them."""
    renamed = json.loads((folder / layout / RECEIPT).read_text())["renamed"]
    names = [result.image["file_name"] for result in results if result.image]
    kept = {name: name for name in names if name not in renamed.values()}
    place_images(source, folder / layout, {IMAGES[layout] + given: name for given, name in {**kept, **renamed}.items()})
    return folder / layout


@pytest.mark.parametrize("seed", range(3))
def test_labels_are_read_back_as_the_detections(tmp_path: Path, seed: int) -> None:
    """All layouts in one go: odd names, names that differ in the suffix or in case only, images without detections."""
    sizes = write_images(tmp_path / "source", seed)
    results = random_results(tmp_path / "source", sizes, seed)
    failed = ImageResult(len(results), "gone.jpg", error="gone.jpg is gone")
    where = target(tmp_path / "out")
    write_outputs([*results, failed], (*FOLDERS, "csv"), where)
    for layout in FOLDERS:
        found = read_labels(placed(results, layout, tmp_path / "out", tmp_path / "source"), val_fraction=0)
        assert close(found, results, ROUNDING_PX), layout
    notes = {layout: " ".join(sentences) for layout, sentences in where.notes.items()}
    assert all("written under another name" in notes[layout] for layout in ("yolo", "voc", "labelme"))
    assert not any("clipped" in note for note in notes.values())


@pytest.mark.parametrize("layout", ["yolo", "voc", "labelme"])
def test_dots_in_names_without_suffix_divide_nothing(tmp_path: Path, layout: str) -> None:
    """Each frame has a file of labels, also where the numbers of frames look like suffixes."""
    names = ("frame.0001", "frame.0002", "frame.jpg", "frame", "dot.", "a.b.png")
    results = random_results(tmp_path, dict.fromkeys(names, (40, 30)), 3)
    write_outputs(results, (layout,), target(tmp_path / "out"))
    suffix = {"yolo": "txt", "voc": "xml", "labelme": "json"}[layout]
    found = {path.name for path in (tmp_path / "out" / layout).rglob(f"*.{suffix}") if path.parent.name != "Main"}
    labels = found - {RECEIPT, "labelmap.txt"}
    assert labels == {f"{stem}.{suffix}" for stem in ("frame.0001", "frame.0002", "frame", "frame_2", "dot.", "a.b")}
    if layout == "voc":
        listed = (tmp_path / "out/voc/ImageSets/Main/train.txt").read_text().splitlines()
        assert listed == ["frame.0001", "frame.0002", "frame", "frame_2", "dot.", "a.b"]


@pytest.mark.parametrize("layout", [*FOLDERS, "csv"])
def test_blank_names_of_classes_are_refused_where_readers_do(layout: str) -> None:
    for name in ("", "\x85"):
        with pytest.raises(DatasetError, match=f"blank name.*{layout}"):
            check_class_names(("coco", layout), ["cat", name])
        check_class_names(("coco", "jsonl"), ["cat", name])


def test_the_table_has_scores_and_all_images(tmp_path: Path) -> None:
    sizes = write_images(tmp_path / "source", 5)
    results = random_results(tmp_path / "source", sizes, 5)
    write_outputs(results, ("csv",), target(tmp_path / "out"))
    path = tmp_path / "out" / "predictions.csv"
    columns = find_columns(path.read_text())
    assert columns is not None
    rows = list(TableReader(path, path.name, columns, ReadOptions()).rows())
    read: dict[str, list] = {result.image["file_name"].strip(): [] for result in results if result.image}
    for row in rows:
        read[row.image] += [] if row.label is None else [(row.label, row.corners)]
    for result in results:
        assert result.image is not None
        found = read[result.image["file_name"].strip()]
        assert [name for name, _ in found] == [name for name, _ in labels_of(result)]
        for (_, corners), (_, expected) in zip(found, labels_of(result), strict=True):
            assert corners == pytest.approx(expected, abs=1e-5)
    with path.open(newline="") as file:
        scores = [float(row["score"]) for row in csv.DictReader(file) if row["score"]]
    assert scores == [record["score"] for result in results for record in result.records]


def test_line_ends_in_names_end_no_row(tmp_path: Path) -> None:
    names = ("a\rb.jpg", "a\nb.jpg", 'a"b,c.jpg', "a.jpg")
    results = random_results(tmp_path, dict.fromkeys(names, (40, 30)), 5)
    write_outputs(results, ("csv",), target(tmp_path / "out"))
    content = (tmp_path / "out" / "predictions.csv").read_bytes()
    assert b"\r\n" not in content
    with (tmp_path / "out" / "predictions.csv").open(newline="", encoding="utf-8") as file:
        assert list(dict.fromkeys(row["filename"] for row in csv.DictReader(file))) == list(names)


def masked(tmp_path: Path) -> list[ImageResult]:
    """An image with an object with a mask of one part, one of two parts, and one whose mask is empty."""
    width, height = write_images(tmp_path / "source", 1, ("a.png",))["a.png"]
    masks = [np.zeros((height, width), bool) for _ in range(3)]
    masks[0][2:7, 1:6] = True
    masks[1][1:3, 1:3] = masks[1][5:7, 5:7] = True
    (result,) = random_results(tmp_path / "source", {"a.png": (width, height)}, 1)
    records = [
        {
            **{"image_id": 0, "category_id": 3, "category_name": "cat", "score": 0.9, "file_name": "a.png"},
            **{"bbox": [1, 2, 5, 5], "segmentation": encode_crop(mask, 0, 0, (height, width))},
        }
        for mask in masks
    ]
    return [ImageResult(0, result.file, result.image, records)]


def test_masks_become_polygons_on_request(tmp_path: Path) -> None:
    results = masked(tmp_path)
    where = target(tmp_path / "out", outlines=True)
    write_outputs(results, FOLDERS, where)
    assert all("1 outline of several parts" in " ".join(where.notes[layout]) for layout in FOLDERS if layout != "voc")
    (task,) = json.loads((tmp_path / "out" / "label-studio" / "tasks.json").read_text())
    kinds = [region["type"] for region in task["predictions"][0]["result"]]
    assert kinds == ["polygonlabels", "rectanglelabels", "rectanglelabels"]
    rows = (tmp_path / "out" / "yolo" / "labels" / "a.txt").read_text().splitlines()
    assert [len(row.split()) for row in rows] == [9, 9, 9]
    shapes = json.loads((tmp_path / "out" / "labelme" / "a.json").read_text())["shapes"]
    assert shapes[0]["shape_type"] == "polygon"
    xs, ys = zip(*shapes[0]["points"], strict=True)
    assert (min(xs), min(ys), max(xs), max(ys)) == pytest.approx((1, 2, 6, 7), abs=0.5)
    write_outputs(results, ("yolo",), plain := target(tmp_path / "plain"))
    assert plain.notes["yolo"] == ["3 outlines are not written, only the boxes"]


def test_scores_are_kept_where_a_layout_has_a_place(tmp_path: Path) -> None:
    sizes = write_images(tmp_path / "source", 2, ("a.jpg",))
    results = random_results(tmp_path / "source", sizes, 3)
    scores = [record["score"] for record in results[0].records]
    assert scores
    where = target(tmp_path / "out")
    write_outputs(results, FOLDERS, where)
    (task,) = json.loads((tmp_path / "out" / "label-studio" / "tasks.json").read_text())
    assert task["annotations"] == []
    (prediction,) = task["predictions"]
    assert [region["score"] for region in prediction["result"]] == scores
    assert (prediction["score"], prediction["model_version"]) == (min(scores), "codetr")
    shapes = json.loads((tmp_path / "out" / "labelme" / "a.json").read_text())["shapes"]
    assert [shape["score"] for shape in shapes] == scores
    assert 'source="auto"' in (tmp_path / "out" / "cvat" / "annotations.xml").read_text()


def test_images_to_be_reviewed_are_predictions_and_the_others_annotations(tmp_path: Path) -> None:
    sizes = write_images(tmp_path / "source", 2, ("a.jpg", "b.jpg"))
    first, second = random_results(tmp_path / "source", sizes, 3)
    reason = {"class": "cat", "score": 0.4, "bbox": [0, 0, 1, 1], "is_label": True}
    first.image["review"] = {"count": 1, "detections": [reason]}  # type: ignore[index]
    write_outputs([first, second], ("label-studio",), target(tmp_path / "out", review=(0.2, 0.5)))
    tasks = json.loads((tmp_path / "out" / "label-studio" / "tasks.json").read_text())
    assert [bool(task["annotations"]) for task in tasks] == [False, True]
    assert [task["data"].get("review") for task in tasks] == ["cat 0.40", None]


def test_only_own_folders_are_replaced(tmp_path: Path) -> None:
    sizes = write_images(tmp_path / "source", 2, ("a.jpg",))
    results = random_results(tmp_path / "source", sizes, 3)
    out = tmp_path / "out"
    write_outputs(results, ("yolo",), target(out))
    assert ResultRecord(out).is_own(out / "yolo" / RECEIPT)
    write_outputs(results, ("yolo",), target(out))  # the same request completes its work
    with pytest.raises(ConfigError, match="already exists"):
        write_outputs(results, ("yolo",), target(out, request="other"))
    write_outputs(results, ("yolo",), target(out, request="other", force=True))
    (out / "yolo" / "labels" / "a.txt").write_text("0 0.5 0.5 0.1 0.1 \n")
    with pytest.raises(ConfigError, match="not as codetr has written them"):
        write_outputs(results, ("yolo",), target(out, request="other", force=True))
    shutil.rmtree(out / "yolo")
    (out / "yolo").mkdir()
    assert taken_folder(out, ("yolo", "csv"), request="r", force=False) is None
    (out / "yolo" / "mine.txt").touch()
    assert "other files" in str(taken_folder(out, ("yolo",), request="r", force=True))


def test_a_failure_leaves_no_folder(tmp_path: Path) -> None:
    sizes = write_images(tmp_path / "source", 2, ("a.jpg",))
    (result,) = random_results(tmp_path / "source", sizes, 3)
    result.records[0]["category_id"] = 12345
    with pytest.raises(KeyError):
        write_outputs([result], FOLDERS, target(tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name != ".scratch"] == []
