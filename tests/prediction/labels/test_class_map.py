"""Class maps: renamed, merged and dropped classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from codetr_cli.errors import ConfigError
from codetr_cli.inference.prediction import Prediction
from codetr_cli.prediction.labels.class_map import ClassMap, box_iou, read_class_map
from tests.prediction.labels.predictions import prediction_of

NAMES, IDS = ["car", "bus", "dog", "person"], [3, 6, 18, 1]


def prediction(*rows: tuple[int, float, tuple[float, float, float, float]]) -> Prediction:
    """Of labels, scores and corners."""
    return prediction_of(rows, NAMES, IDS, (100, 100))


def test_options_and_files_say_the_same(tmp_path: Path):
    expected = {"car": "vehicle", "red panda": "", "bus": "vehicle"}
    (tmp_path / "map.txt").write_text("# ours\ncar = vehicle\n\nred panda=\nbus=vehicle\n")
    (tmp_path / "map.json").write_text('{"car": "vehicle", "red panda": "", "bus": "vehicle"}')
    assert read_class_map("car=vehicle, red panda= ,bus=vehicle") == expected
    assert read_class_map(str(tmp_path / "map.txt")) == expected
    assert read_class_map(str(tmp_path / "map.json")) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nowhere.txt", "no such file"),
        ("car=a,car=b", "twice"),
        ("car=a,bus", "no entry old=new"),
        ("car=a=b", "JSON table"),
        ("=a", "no entry"),
        (",=", "no entry"),
    ],
)
def test_what_is_no_map_is_refused(text: str, words: str):
    with pytest.raises(ConfigError, match=words):
        read_class_map(text)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 1}', b"{", b"{}", b"\xff=\xff"])
def test_broken_files_are_refused(tmp_path: Path, content: bytes):
    for name in ("map.json", "map.txt"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=name):
            read_class_map(str(tmp_path / name))


def test_classes_are_renamed_merged_and_dropped():
    classes = ClassMap.of(NAMES, IDS, {"bus": "vehicle", "car": "vehicle", "dog": ""})
    assert (classes.names, classes.ids, classes.labels.tolist()) == (["vehicle", "person"], [3, 1], [0, 0, -1, 1])
    into = ClassMap.of(NAMES, IDS, {"car": "bus"})
    assert (into.names, into.ids) == (["bus", "dog", "person"], [6, 18, 1])  # the id of the class of this name
    only = ClassMap.of(NAMES, IDS, {"dog": "dog", "*": ""})
    assert (only.names, only.ids) == (["dog"], [18])
    assert ClassMap.of(NAMES, IDS, {}).labels.tolist() == [0, 1, 2, 3]
    found = classes.apply(
        prediction((3, 0.9, (0, 0, 9, 9)), (2, 0.8, (0, 0, 9, 9)), (0, 0.7, (9, 9, 20, 20)), (1, 0.6, (30, 9, 50, 20)))
    )
    assert found.class_names == ["person", "vehicle", "vehicle"]
    assert found.classes == ["vehicle", "person"], "colours are chosen among them"
    assert (found.labels.tolist(), found.category_ids.tolist()) == ([1, 0, 0], [1, 3, 3])
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.6])


def test_one_object_of_two_classes_that_become_one_is_one_label():
    classes = ClassMap.of(NAMES, IDS, {"bus": "vehicle", "car": "vehicle"})
    box, near, beside = (10, 10, 50, 30), (11, 10, 50, 31), (30, 10, 70, 30)
    rows = ((0, 0.9, box), (1, 0.8, near), (0, 0.7, near), (1, 0.6, beside), (3, 0.5, box))
    found = classes.apply(prediction(*rows))
    # Those of one class of the model are two objects, as the model's own suppression says.
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.6, 0.5])
    assert len(classes.apply(prediction())) == 0


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"Car": "a"}, "did you mean 'car'"),
        (dict.fromkeys(NAMES, ""), "drops every class"),
        ({"car": "a" * 2000}, "becomes"),
    ],
)
def test_maps_that_do_not_fit_the_model_are_refused(mapping: dict[str, str], words: str):
    with pytest.raises(ConfigError, match=words):
        ClassMap.of(NAMES, IDS, mapping)


def test_overlaps():
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 20, 20]], np.float32)
    assert box_iou(boxes, boxes)[0].tolist() == pytest.approx([1, 1 / 3, 0])
    assert box_iou(boxes[:0], boxes).shape == (0, 3)
    assert box_iou(boxes, boxes)[2].tolist() == [0, 0, 0]


def test_classes_of_one_name_or_none_stay_what_they_are():
    names, ids = ["cat", "", "cat", "dog"], [5, 6, 7, 8]
    whole = ClassMap.of(names, ids, {})
    assert (whole.names, whole.ids, whole.labels.tolist()) == (names, ids, [0, 1, 2, 3])
    mapped = ClassMap.of(names, ids, {"dog": "wolf"})  # named by their names from here on: cat is one class
    assert (mapped.names, mapped.ids, mapped.labels.tolist()) == (["cat", "", "wolf"], [5, 6, 8], [0, 1, 0, 2])
    assert ClassMap.of(names, ids, {"*": "", "cat": "cat"}).labels.tolist() == [0, -1, 0, -1]
    assert ClassMap.of(names, ids, {"": "nameless"}).names == ["cat", "nameless", "dog"]


def test_a_table_can_name_a_blank_class(tmp_path: Path):
    (tmp_path / "map.json").write_text('{"": "nameless", " x": " y "}')
    assert read_class_map(str(tmp_path / "map.json")) == {"": "nameless", " x": "y"}
