from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from codetr_cli.annotations.file_names import NameRule
from codetr_cli.errors import DatasetError
from codetr_cli.formats.resolve import DataPaths
from codetr_cli.report.compared_inputs import pictured_paths, read_sides, recorded_annotations
from codetr_cli.report.result_sources import ResultSource
from tests.analysis.run_samples import annotations, detections
from tests.report.evaluations import write_annotations, write_images

TRUTH = annotations(8)
TABLE = detections(TRUTH, seed=1)
IDS = TRUTH.image_ids.tolist()


@pytest.fixture
def val(tmp_path: Path) -> Path:
    return write_annotations(tmp_path / "data/val.json", TRUTH)


def source(folder: Path, **more: object) -> ResultSource:
    path = folder / "found.json"
    if not path.exists():
        path.write_text(TABLE.to_json())
    return replace(ResultSource(given=str(path), kind="detections", detections=path), **more)


def paths_of(path: Path) -> DataPaths:
    return DataPaths(path.parent, path, NameRule.of(path.parent))


def test_sides_with_the_same_annotations_share_them(tmp_path, val):
    done: list[int] = []
    (tmp_path / "link.json").symlink_to(val)
    sources = [
        source(tmp_path),
        source(tmp_path, annotations=val),
        source(tmp_path, annotations=tmp_path / "link.json"),
    ]
    read = read_sides(sources, ["A", "B", "C"], paths_of(val), chosen=False, done=lambda: done.append(1))
    first, *others = read.sides
    assert all(side.ground_truth is first.ground_truth for side in others)
    assert (read.masks, read.warnings, len(done)) == (False, [], 3)
    assert first.image_ids.tolist() == IDS
    assert len(first.detections) == len(TABLE)


def test_each_has_the_annotations_that_it_was_evaluated_on_unless_others_are_chosen(tmp_path, val):
    other = write_annotations(tmp_path / "other.json", annotations(8, seed=5))
    sources = [source(tmp_path), source(tmp_path, annotations=other)]
    places = [
        side.paths.annotations_path for side in read_sides(sources, ["A", "B"], paths_of(val), chosen=False).sides
    ]
    assert places == [val, other]
    places = [side.paths.annotations_path for side in read_sides(sources, ["A", "B"], paths_of(val), chosen=True).sides]
    assert places == [val, val]


def test_evaluated_images_are_the_first_without_unreadable_ones(tmp_path, val):
    def images(**more: object) -> list[int]:
        (side,) = read_sides([source(tmp_path, annotations=val, **more)], ["A"], paths_of(val), chosen=False).sides
        return side.image_ids.tolist()

    assert images(images=8) == IDS
    assert images(images=5) == IDS[:5]
    assert images(images=7, skipped=("/anywhere/val/0002.jpg",)) == [*IDS[:2], *IDS[3:]]
    assert images(images=4, skipped=("C:\\data\\0000.jpg",)) == IDS[1:5]
    assert images(images=800) == IDS
    assert images(images=0) == []


def test_images_of_other_annotations_are_not_known(tmp_path, val):
    other = write_annotations(tmp_path / "other.json", TRUTH)
    read = read_sides([source(tmp_path, annotations=other, images=5)], ["A"], paths_of(val), chosen=True)
    assert read.sides[0].image_ids.tolist() == IDS
    assert read.warnings[0].startswith(f"A: it was evaluated on 5 images of {other}, and which of the 8 of {val} these")
    read = read_sides([source(tmp_path, annotations=other, images=8)], ["A"], paths_of(val), chosen=True)
    assert read.warnings == []


def test_annotations_that_are_gone_are_named(tmp_path, val):
    gone = source(tmp_path, annotations=tmp_path / "gone.json")
    with pytest.raises(DatasetError, match=r"gone\.json, which is not there: give the data with --data or --ann"):
        recorded_annotations([source(tmp_path), gone])
    with pytest.raises(DatasetError, match="which is not there"):
        read_sides([source(tmp_path, annotations=val), gone], ["A", "B"], paths_of(val), chosen=False)
    assert recorded_annotations([source(tmp_path)]) is None
    assert recorded_annotations([source(tmp_path), source(tmp_path, annotations=val)]) == val


def test_notes_and_hints_on_detections_are_kept(tmp_path, val):
    records = TABLE.to_records()
    names = dict(zip(IDS, TRUTH.file_names, strict=True))
    path = tmp_path / "named.json"
    path.write_text(json.dumps([{**each, "image_id": 1, "file_name": names[each["image_id"]]} for each in records]))
    empty = tmp_path / "empty.json"
    empty.write_text("[]")
    sources = [source(tmp_path, detections=path), source(tmp_path, detections=empty)]
    read = read_sides(sources, ["A", "B"], paths_of(val), chosen=False)
    assert "have another image_id" in read.notes[0]
    assert "no detections" in read.warnings[0]
    assert np.array_equal(np.sort(read.sides[0].detections.image_ids), np.sort(TABLE.image_ids))


def test_detections_of_unknown_images_are_an_error(tmp_path, val):
    path = tmp_path / "unknown.json"
    path.write_text(json.dumps([{"image_id": 999, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]))
    with pytest.raises(DatasetError, match=r"unknown\.json"):
        read_sides([source(tmp_path, detections=path)], ["A"], paths_of(val), chosen=False)


def test_masks_are_compared_if_all_have_them(tmp_path, val):
    table = json.loads(val.read_text())
    with_masks = tmp_path / "masks.json"
    with_masks.write_text(json.dumps([{**each, "segmentation": [[1, 1, 9, 1, 9, 9]]} for each in TABLE.to_records()]))
    sources = [source(tmp_path, detections=with_masks), source(tmp_path, detections=with_masks)]
    read = read_sides(sources, ["A", "B"], paths_of(val), chosen=False)
    assert not read.masks
    assert read.notes[-1] == f"Masks are not compared: not all objects of {val} have an outline."
    for each in table["annotations"]:
        x, y, w, h = each["bbox"]
        each["segmentation"] = [[x, y, x + w, y, x + w, y + h]]
    val.write_text(json.dumps(table))
    assert read_sides(sources, ["A", "B"], paths_of(val), chosen=False).masks
    assert not read_sides(sources, ["A", "B"], paths_of(val), chosen=False, masks=False).masks
    assert not read_sides([*sources, source(tmp_path)], ["A", "B", "C"], paths_of(val), chosen=False).masks


def test_images_are_found_near_the_annotations(tmp_path, val):
    assert not pictured_paths(val).images_dir.joinpath("0000.jpg").exists()
    write_images(tmp_path / "data/images", TRUTH)
    found = pictured_paths(val)
    assert (found.annotations_path, found.images_dir) == (val, tmp_path / "data/images")
