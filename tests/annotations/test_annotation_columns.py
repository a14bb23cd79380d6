"""What entries of an annotation file may have: exact ids, text, null, and which problems are reported once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codetr_cli.annotations.annotation_columns import Problem, read_columns
from codetr_cli.annotations.annotation_json import read_tables
from codetr_cli.annotations.objects import read_annotations, unmatched_classes
from codetr_cli.errors import DatasetError
from tests.data.fakes import mixed_content


class Collected:
    """Problems by kind: their number and phrases."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {}

    def add(self, kind: str, problems: Sequence[Any], describe: Callable[[Any], Problem]) -> None:
        self.found.setdefault(kind, []).extend(describe(problem).sentence for problem in problems)


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content))
    return path


def problems(path: Path, content: dict[str, Any]) -> dict[str, list[str]]:
    collected = Collected()
    read_columns(read_tables(write(path / "a.json", content), with_outlines=False), collected)
    return collected.found


def test_ids_of_64_bits_are_exact(tmp_path: Path) -> None:
    content = mixed_content()
    big = 2**63 - 1
    for offset, image in enumerate(content["images"][:2]):
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"]:
                annotation["image_id"] = big - offset
        image["id"] = big - offset
    content["categories"][1]["id"] = 2**53 + 1
    for annotation in content["annotations"]:
        if annotation["category_id"] == 0:
            annotation["category_id"] = 2**53 + 1
    annotations = read_annotations(write(tmp_path / "a.json", content))
    assert annotations.image_ids[:2].tolist() == [big, big - 1]
    assert annotations.category_ids == [3, 90, 2**53 + 1]
    assert annotations.image_rows.tolist()[:3] == [1, 0, 0]


def test_numbers_as_text_are_numbers(tmp_path: Path) -> None:
    content = mixed_content()
    expected = read_annotations(write(tmp_path / "a.json", content))
    for image in content["images"]:
        image |= {key: str(image[key]) for key in ("id", "width", "height")}
    for annotation in content["annotations"]:
        annotation |= {key: str(annotation[key]) for key in ("image_id", "category_id", "area", "iscrowd")}
        annotation["bbox"] = [str(value) for value in annotation["bbox"]]
    for category in content["categories"]:
        category["id"] = float(category["id"])
    found = read_annotations(write(tmp_path / "a.json", content))
    for name in ("image_ids", "sizes", "image_rows", "labels", "boxes_xywh", "area", "iscrowd", "ignore"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), strict=True)
    assert found.category_ids == expected.category_ids
    assert set(problems(tmp_path, content)) == {"number_as_text"}


def test_null_is_absent(tmp_path: Path) -> None:
    content = mixed_content()
    content["annotations"][0] |= {"ignore": None, "iscrowd": None, "area": None, "segmentation": None}
    annotations = read_annotations(write(tmp_path / "a.json", content), with_outlines=True)
    assert annotations.area[0] == 20.25 * 30
    assert (annotations.ignore[0], annotations.iscrowd[0]) == (False, 0)
    assert annotations.outlines is not None
    assert not annotations.outlines.present[0]


def test_names_that_are_numbers(tmp_path: Path) -> None:
    content = mixed_content()
    for category, name in zip(content["categories"], (5, 5.5, 7.0), strict=True):
        category["name"] = name
    assert read_annotations(write(tmp_path / "a.json", content)).class_names == ["5.5", "7", "5"]
    assert len(problems(tmp_path, content)["name_is_number"]) == 3


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        (lambda table: [image.pop("width") for image in table["images"]], {"no_image_size"}),
        (lambda table: [image.update(width=None, height=None) for image in table["images"]], {"no_image_size"}),
        (lambda table: table["categories"].clear(), {"no_categories"}),
        (lambda table: [category.pop("id") for category in table["categories"]], {"wrong_schema"}),
        (lambda table: table["images"].clear(), {"no_images"}),
        (lambda table: table["annotations"][3].update(bbox=[1, 1, -5, 5], area=None), {"box_negative"}),
        (lambda table: [each.update(bbox=[0.1, 0.2, 0.3, 0.4]) for each in table["annotations"]], {"box_normalised"}),
        (lambda table: table["images"][1].update(id=7), {"duplicate_image_id"}),
    ],
)
def test_one_cause_is_one_problem(tmp_path: Path, change: Any, kinds: set[str]) -> None:
    content = mixed_content()
    change(content)
    assert set(problems(tmp_path, content)) == kinds
    with pytest.raises(DatasetError):
        read_annotations(tmp_path / "a.json")


def test_a_table_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(mixed_content())[:-1] + ', "annotations": []}')
    with pytest.raises(DatasetError, match="key 'annotations' is given twice"):
        read_annotations(path)
    content = mixed_content()
    content["categories"][0]["name"] = "annotations"
    assert read_annotations(write(path, content)).class_names[2] == "annotations"


def test_classes_are_matched_by_name() -> None:
    assert unmatched_classes((["a", "b"], [1, 2]), (["b", "a"], [1, 2])) == ([], [])
    assert unmatched_classes((["a", "b"], [1, 2]), (["a", "c"], [1, 2])) == (["c"], ["b"])
    assert unmatched_classes((["a", "a"], [1, 2]), (["a", "a"], [1, 2])) == ([], [])
    assert unmatched_classes((["a", "a"], [1, 2]), (["a", "a"], [2, 3])) == (["a"], [])
