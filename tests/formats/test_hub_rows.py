"""Objects in rows of Hugging Face's data sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetr_cli.annotations.survey import Survey
from codetr_cli.errors import DatasetError
from codetr_cli.formats.assembly import AnnotatedImage, Content
from codetr_cli.formats.hub_rows import HubImage, add_objects, place_boxes


def content() -> Content:
    return Content("x", Survey(Path("/nowhere"), []), [], "the rows")


def image(*boxes: list[float]) -> HubImage:
    made = HubImage("a.jpg", "row 1", "")
    add_objects(made, {"bbox": list(boxes), "label": ["cat"] * len(boxes)}, None, content())
    return made


@pytest.mark.parametrize(
    "row",
    [
        {"objects": {"bbox": [[1, 2, 3, 4]], "category": [1], "is_crowd": [1]}},
        {"objects": [{"bbox": [1, 2, 3, 4], "category_id": 1, "iscrowd": True}]},
        {"annotations": {"boxes": [[1, 2, 3, 4]], "labels": ["dog"], "iscrowd": [1]}},
        {"bboxes": [[1, 2, 3, 4]], "classes": ["dog"], "iscrowd": [1], "objects": None},
    ],
)
def test_forms_of_rows(row):
    made = HubImage("a.jpg", "row 1", "")
    add_objects(made, row, ["cat", "dog"], content())
    assert (made.labels, list(made.boxes()), list(made.crowds)) == (["dog"], [(1, 2, 3, 4)], [1])


def test_a_row_without_objects():
    for row in ({}, {"objects": None}, {"objects": {"bbox": [], "category": []}}, {"objects": []}):
        made = HubImage("a.jpg", "row 1", "")
        add_objects(made, row, None, content())
        assert list(made.boxes()) == []


@pytest.mark.parametrize(
    ("stated", "corners", "relative"),
    [
        ("xywh", (10, 20, 40, 60), False),
        ("xyxy", (10, 20, 30, 40), False),
        ("cxcywh", (-5, 0, 25, 40), False),
        ("relative-xyxy", (10, 20, 30, 40), True),
    ],
)
def test_the_setting_decides(stated, corners, relative):
    target = AnnotatedImage("a.jpg", "row 1", [], (100, 200))
    assert place_boxes([image([10, 20, 30, 40])], [target], stated, "the rows") == ""
    assert ([box.corners for box in target.boxes], target.relative) == ([corners], relative)


def test_a_few_boxes_beyond_the_edge_are_no_contradiction():
    sound = [[10.0, 10.0, 30.0, 40.0]] * 150
    target = AnnotatedImage("a.jpg", "row 1", [], (100, 200))
    assert "x, y, width and height" in place_boxes([image(*sound, [150, 50, 160, 60])], [target], None, "the rows")
    with pytest.raises(DatasetError, match="150 of 151 boxes end outside"):
        place_boxes([image(*[[150.0, 50.0, 160.0, 60.0]] * 150, sound[0])], [target], None, "the rows")
    # As corners they do not fit either: they are drawn over the edge.
    wide = place_boxes([image(*[[150.0, 50.0, 100.0, 20.0]] * 150)], [target], None, "the rows")
    assert "x, y, width and height" in wide


def test_images_of_unknown_size_contradict_nothing():
    target = AnnotatedImage("a.jpg", "row 1", [])
    assert place_boxes([image([150, 50, 160, 60])], [target], None, "the rows") != ""
