from __future__ import annotations

import pytest

from codetr_cli.annotations.row_finders import NONE, class_finder, image_finder, number_rows, unique_rows


def test_names_that_occur_twice_mean_none():
    assert unique_rows(["a", "b", "a"]) == {"a": NONE, "b": 1}


@pytest.mark.parametrize(
    ("text", "row"),
    [
        *(("a/1.jpg", 0), ("1.jpg", 0), ("a\\1.JPG", 0), ("/home/me/a/1.jpg", 0), ("1", 0), ("1.txt", 0)),
        *(("b/2.png", 1), ("3.jpg", NONE), ("", NONE), ("x" * 10_000, NONE), ("a/" * 100 + "1.jpg", NONE)),
    ],
)
def test_images_are_found_by_any_spelling(text, row):
    assert image_finder({"a/1.jpg": 0, "b/2.png": 1})(text) == row


def test_classes_are_found_by_any_spelling():
    find = class_finder(unique_rows(["Traffic light", "car", "Car"]))
    assert [find(name) for name in ("traffic_light", "car", "Car", "CAR", "dog")] == [0, 1, 2, NONE, NONE]


def test_numbers_in_file_names():
    assert number_rows(["a/0012.jpg", "7.png", "x.png", "07.jpg"]) == {12: 0}
