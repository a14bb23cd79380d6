from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from codetr_cli.annotations.objects import Annotations
from codetr_cli.errors import DatasetError
from codetr_cli.evaluation.detection_files import DetectionFile
from codetr_cli.evaluation.matching import MAX_MISSES, match_categories, match_images, several, several_classes


def annotations(names: dict[int, str], classes: dict[int, str] | None = None) -> Annotations:
    none = np.zeros(0, np.int64)
    classes = classes or {1: "cat", 2: "dog"}
    return Annotations(
        class_names=list(classes.values()),
        category_ids=list(classes),
        image_ids=np.array(list(names), np.int64),
        file_names=list(names.values()),
        sizes=np.full((len(names), 2), 100),
        image_rows=none,
        labels=none,
        boxes_xywh=np.zeros((0, 4)),
        area=np.zeros(0),
        iscrowd=none,
        ignore=none != 0,
    )


SHUFFLED = annotations({3: "000001.jpg", 1: "000002.jpg", 2: "000003.jpg"})
TWO_FOLDERS = annotations({1: "a/1.jpg", 2: "b/1.jpg", 3: "b/2.jpg"})
STEMS = annotations({1: "000007.jpg", 2: "000009.jpg", 3: "img_b.png"})


def of(records: list[dict]) -> DetectionFile:
    return DetectionFile(Path("x.json"), records, keys=frozenset(key for record in records for key in record))


def images(truth: Annotations, *records: dict) -> tuple[list[int | None], str]:
    matched = match_images(of(list(records)), truth, "a.json")
    return [None if row < 0 else int(truth.image_ids[row]) for row in matched.rows.tolist()], matched.note


def categories(truth: Annotations, *records: dict) -> tuple[list[int | None], str]:
    matched = match_categories(of(list(records)), truth, "a.json")
    return [None if row < 0 else truth.category_ids[row] for row in matched.rows.tolist()], matched.note


def test_names_decide_where_numbers_disagree():
    ids, note = images(SHUFFLED, {"image_id": 1, "file_name": "000001.jpg"}, {"image_id": 1, "file_name": "000002.jpg"})
    assert ids == [3, 1]
    assert "1 of 2" in note
    assert "file_name" in note


def test_numbers_that_agree_need_no_note():
    assert images(SHUFFLED, {"image_id": 3, "file_name": "000001.jpg"}) == ([3], "")
    assert images(SHUFFLED, {"image_id": 3}, {"image_id": 1}) == ([3, 1], "")


def test_numbers_decide_where_no_name_is_known():
    ids, note = images(SHUFFLED, {"image_id": 3, "file_name": "x/y.jpg"}, {"image_id": 1, "file_name": "z.jpg"})
    assert ids == [3, 1]
    assert "x/y.jpg" in note


def test_numbers_decide_between_images_of_one_name():
    records = [{"image_id": 2, "file_name": "1.jpg"}, {"image_id": 3, "file_name": "2.jpg"}]
    assert images(TWO_FOLDERS, *records) == ([2, 3], "")


@pytest.mark.parametrize(
    "records",
    [
        [{"image_id": 1, "file_name": "000001.jpg"}, {"image_id": 2}],
        [{"image_id": 1, "file_name": "000001.jpg"}, {"image_id": 2, "file_name": "x.jpg"}],
        [{"image_id": 8, "file_name": "x.jpg"}],
    ],
)
def test_contradictions_are_refused(records):
    with pytest.raises(DatasetError, match="file_name and image_id cannot be matched"):
        images(SHUFFLED, *records)


def test_numbers_may_be_those_of_file_names():
    ids, note = images(STEMS, {"image_id": 7}, {"image_id": 9})
    assert ids == [1, 2]
    assert "file name" in note
    assert images(STEMS, {"image_id": 7}, {"image_id": 8}) == ([None, None], "")
    assert images(STEMS, {"image_id": 7}, {"image_id": "img_b"}) == ([1, 3], "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("000007", 1), ("7", None), ("3", 3), ("img_b", 3), ("x/IMG_B.PNG", 3), ("img_b.txt", 3), ("img", None)],
)
def test_texts_are_numbers_or_names(text, expected):
    assert images(STEMS, {"image_id": text})[0] == [expected]


def test_a_text_that_is_both_is_refused():
    truth = annotations({1: "2.jpg", 2: "1.jpg", 3: "3.jpg"})
    with pytest.raises(DatasetError, match="number 1 has image_id '1'"):
        images(truth, {"image_id": "3"}, {"image_id": "1"})
    assert images(truth, {"image_id": "3"})[0] == [3]


def test_names_of_classes_decide_like_those_of_images():
    truth = annotations({1: "a.jpg"}, {4: "traffic light", 9: "cat"})
    assert categories(truth, {"category_id": 9, "category_name": "cat"}) == ([9], "")
    ids, note = categories(truth, {"category_id": 0, "category_name": "Traffic_Light"}, {"category_name": "cat"})
    assert ids == [4, 9]
    assert "1 of 2" in note
    assert categories(truth, {"category_id": "Traffic-light"})[0] == [4]
    assert categories(truth, {"category_id": "4"})[0] == [4]
    with pytest.raises(DatasetError, match="cannot be matched"):
        categories(
            truth, {"category_id": 9, "category_name": "traffic light"}, {"category_id": 9, "category_name": "x"}
        )


def test_digits_that_are_classes_are_ambiguous():
    digits = annotations({1: "a.jpg"}, {number + 1: str(number) for number in range(10)})
    assert categories(digits, {"category_id": 3})[0] == [3]
    assert categories(digits, {"category_name": "3"})[0] == [4]
    with pytest.raises(DatasetError, match="category_id '3'"):
        categories(digits, {"category_id": "3"})


def test_classes_of_one_name_are_found_by_their_number():
    twins = annotations({1: "a.jpg"}, {1: "cat", 2: "cat"})
    assert categories(twins, {"category_id": 2, "category_name": "cat"}) == (
        [2],
        "no category_name of the detections is in a.json (the first is 'cat'): they are matched by category_id",
    )


def test_many_unknown_names_are_searched_as_written():
    names = {number: f"{number}.jpg" for number in range(MAX_MISSES * 2)}
    records = [{"image_id": number, "file_name": f"x{number}.jpg"} for number in range(MAX_MISSES + 9)]
    ids, _ = images(annotations(names), *records)
    assert ids == [record["image_id"] for record in records]
    with pytest.raises(DatasetError):
        images(annotations(names), *records, {"image_id": 4, "file_name": "5.jpg"})


def test_names_decide_whatever_a_text_in_place_of_the_number_is():
    truth = annotations({1: "2.jpg", 2: "1.jpg"})
    records = [{"image_id": "1", "file_name": "2.jpg"}, {"image_id": "2", "file_name": "1.jpg"}]
    matched = match_images(of(records), truth, "a.json")
    assert matched.rows.tolist() == [0, 1]
    assert matched.by_name
    assert not match_images(of([{"image_id": 1}]), truth, "a.json").by_name


def test_ids_among_names():
    truth = annotations({1: "a.jpg", 2: "b.jpg", 8: "0003.jpg", 3: "c.jpg"})
    assert images(truth, {"image_id": "a.jpg"}, {"image_id": 2}) == ([1, 2], "")
    assert images(truth, {"image_id": "a.jpg"}, {"image_id": 3}) == ([1, 8], "")  # the number of a file name
    with pytest.raises(DatasetError, match="number 1 has 2"):
        images(truth, {"image_id": "a.jpg"}, {"image_id": 2}, {"image_id": 3})
    assert categories(truth, {"category_id": "cat"}, {"category_id": 2}) == ([1, 2], "")


def test_whole_numbers_with_a_decimal_point_as_text_are_ids():
    assert images(STEMS, {"image_id": "1.0"}, {"image_id": "3.0"}) == ([1, 3], "")


def test_names_that_may_mean_several():
    assert several("1.png", TWO_FOLDERS)
    assert not several("c/2.jpg", TWO_FOLDERS)
    assert several_classes("CAT", annotations({1: "a.jpg"}, {1: "Cat", 2: "cat"}))
    assert not several_classes("dog", annotations({1: "a.jpg"}))
