"""What the columns of YOLO's label files mean: stated, shown by all rows together, or refused."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from codetr_cli.errors import DatasetError
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.open import open_dataset
from codetr_cli.formats.yolo_labels import LongRows, RowRule, parse_rows
from tests.formats import yolo_exports as exports
from tests.formats.yolo_exports import XYWH, box_row, outline_row, points_row, pose_row, turned_row

SHAPES = [(1, 2), (1, 3), (2, 2), (2, 3), (3, 2), (4, 2), (4, 3), (17, 3), (17, 2), (5, 3)]


def boxes(root: Path, options: ReadOptions | None = None) -> list[list[list[int]]]:
    tables = exports.tables(root, options or ReadOptions())
    return [each for table in tables.values() for each in table.values()]


@pytest.mark.parametrize(("count", "numbers"), SHAPES)
def test_keypoints_with_kpt_shape(tmp_path: Path, count: int, numbers: int) -> None:
    root = exports.ultralytics(tmp_path / "pose", pose_row(count, numbers), f"kpt_shape: [{count}, {numbers}]\n")
    assert boxes(root) == [XYWH] * 4
    found = open_dataset(root)
    assert found is not None
    assert found.notes == [f"the keypoints of 8 objects (kpt_shape [{count}, {numbers}]) are not used"]


@pytest.mark.parametrize(("count", "numbers"), SHAPES)
def test_keypoints_without_kpt_shape_are_refused(tmp_path: Path, count: int, numbers: int) -> None:
    root = exports.ultralytics(tmp_path / "pose", pose_row(count, numbers))
    with pytest.raises(DatasetError, match=r"000009.txt.*kpt_shape: .*data.yolo_labels=boxes") as caught:
        open_dataset(root)
    assert f"[{count}, {numbers}]" in str(caught.value)
    assert boxes(root, ReadOptions(yolo_labels="boxes")) == [XYWH] * 4


def test_one_wrong_row_does_not_make_keypoints_outlines(tmp_path: Path) -> None:
    root = exports.ultralytics(tmp_path / "pose", pose_row(4, 2))
    path = root / "labels/train/000000000009.txt"
    path.write_text(path.read_text() + "\n0 .1 .1 .2 .2 .1 .3 .2 .1")
    with pytest.raises(DatasetError, match="8 of 9 rows of more than 5 columns have 13 columns"):
        open_dataset(root)


def test_other_columns_than_kpt_shape(tmp_path: Path) -> None:
    root = exports.ultralytics(tmp_path / "pose", pose_row(4, 2), "kpt_shape: [4, 3]\n")
    with pytest.raises(DatasetError, match=r"has 13 columns, but kpt_shape \[4, 3\] in coco8.yaml means 5 or 17"):
        open_dataset(root)
    path = root / "labels/train/000000000009.txt"
    root = exports.ultralytics(tmp_path / "pose", pose_row(4, 2), "kpt_shape: [4, 2]\n")
    path.write_text(box_row(*exports.BOXES[0]) + "\n" + pose_row(4, 2)(*exports.BOXES[1]))
    assert boxes(root) == [XYWH] * 4


@pytest.mark.parametrize("value", ["4", "[4]", "[0, 2]", "[4, 4]", "[a, 2]", "{0: 4, 1: 2}", "[4, 2, 1]", "[-4, 2]"])
def test_wrong_kpt_shapes(tmp_path: Path, value: str) -> None:
    root = exports.ultralytics(tmp_path / "pose", pose_row(4, 2), f"kpt_shape: {value}\n")
    with pytest.raises(DatasetError, match=r"coco8.yaml: kpt_shape must be"):
        open_dataset(root)


def test_outlines_of_different_lengths(tmp_path: Path) -> None:
    root = exports.ultralytics(tmp_path / "segments", outline_row)
    assert boxes(root) == [XYWH] * 4
    content = exports.contents(root)["train"]
    assert [len(each["segmentation"][0]) for each in content["annotations"]] == [8, 10, 8, 10]
    found = open_dataset(root)
    assert found is not None
    assert found.notes == ["8 of 8 objects are outlines, whose bounding boxes are used"]


def test_turned_boxes(tmp_path: Path) -> None:
    """The bounding box of four corners is right for turned boxes and for outlines of four points."""
    root = exports.ultralytics(tmp_path / "obb", turned_row)
    assert boxes(root) == [[[10, 15, 30, 30], [15, 55, 30, 30]]] * 4


def test_boxes_drawn_as_outlines(tmp_path: Path) -> None:
    def closed(x: int, y: int, w: int, h: int, label: int) -> str:
        return points_row([(x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y)], label)

    def drawn(x: int, y: int, w: int, h: int, label: int) -> str:
        return points_row([(x, y), (x + w, y), (x + w, y + h), (x, y + h)], label)

    for number, row in enumerate((closed, drawn)):
        assert boxes(exports.ultralytics(tmp_path / str(number), row)) == [XYWH] * 4


def test_one_long_length_that_cannot_have_boxes(tmp_path: Path) -> None:
    def low(x: int, y: int, w: int, h: int, label: int) -> str:  # the keypoint would be above its box
        return points_row([(x + 100, y + 30), (x + 100 + w / 2, y + 8), (x + 105, y - 15)], label)

    assert boxes(exports.ultralytics(tmp_path / "triangles", low)) == [[[110, 0, 20, 45], [115, 40, 20, 45]]] * 4


@pytest.mark.parametrize("way", ["task: segment\n", "task: obb\n", ""])
def test_ambiguous_outlines_by_choice(tmp_path: Path, way: str) -> None:
    def quad(x: int, y: int, w: int, h: int, label: int) -> str:
        x, y = x + 50, y + 35
        return points_row([(x, y), (x + w, y + 2), (x + w * 0.6, y + h), (x + 3, y + h / 2)], label)

    root = exports.ultralytics(tmp_path / "quads", quad, way)
    if not way:
        with pytest.raises(DatasetError, match=r"8 of 8 rows .* 9 columns.*outline of 4 points.*yolo_labels=outlines"):
            open_dataset(root)
    found = boxes(root, ReadOptions(yolo_labels=None if way else "outlines"))
    assert found == [[[60, 50, 40, 30], [65, 90, 40, 30]]] * 4


@pytest.mark.parametrize("seed", range(5))
def test_real_outlines_with_one_number_of_points_are_hardly_ever_refused(seed: int) -> None:
    """Quadrilaterals anywhere in an image, as of number plates."""
    generator = random.Random(seed)
    rows = LongRows()
    for _ in range(60):
        x, y, w, h = (generator.uniform(0, 0.8), generator.uniform(0, 0.8), *(generator.uniform(0.02, 0.2),) * 2)
        points = [x, y + 0.1 * h, x + w, y, x + 0.9 * w, y + h, x + 0.2 * w, y + 0.8 * h]
        rows.count(points, is_rectangle=False, where="a")
    rows.check(RowRule(1, Path("data.yaml")), [])


def _judged(rows: list[list[float]]) -> LongRows:
    """What is known of rows, by their numbers after the class; a DatasetError if they are not proven to be outlines."""
    lines = [(1, "0 " + " ".join(f"{value:.6f}" for value in row)) for row in rows]
    rule, total = RowRule(1, Path("data.yaml")), LongRows()
    outlines: list[tuple[float, ...]] = []
    for line in lines:
        parsed, long_rows = parse_rows([line], (480, 640), rule, Path("a.txt"))
        outlines += [box.outline for box in parsed if box.outline]
        total.add(long_rows or LongRows())
    total.check(rule, outlines)
    return total


def _with_keypoints(count: int, rows: int, padding: float = 0.0, seed: int = 0) -> list[list[float]]:
    """Boxes around so many points and a padding, which may extend beyond the image as the points do not."""
    generator = random.Random(seed)
    result = []
    for _ in range(rows):
        size, x, y = generator.uniform(0.4, 0.9), generator.uniform(0, 1), generator.uniform(0, 1)
        x, y = x * (1 - size), y * (1 - size)
        xs, ys = ([start + size * generator.random() for _ in range(count)] for start in (x, y))
        center = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
        sides = [(1 + 2 * padding) * (max(each) - min(each)) for each in (xs, ys)]
        result.append([*center, *sides, *(value for point in zip(xs, ys, strict=True) for value in point)])
    return result


@pytest.mark.parametrize("padding", [0.0, 0.1, 0.2, 0.3])
@pytest.mark.parametrize("count", [5, 17, 21])
def test_boxes_beyond_the_image_do_not_make_keypoints_outlines(count: int, padding: float) -> None:
    with pytest.raises(DatasetError, match="kpt_shape"):
        _judged(_with_keypoints(count, 60, padding))


@pytest.mark.parametrize("share", [0.1, 0.25, 0.4, 0.5])
def test_two_numbers_of_keypoints_in_one_set(share: float) -> None:
    hands = round(60 * share)
    with pytest.raises(DatasetError, match=r"of 60 rows .* 11 columns|of 60 rows .* 47 columns"):
        _judged(_with_keypoints(3, 60 - hands) + _with_keypoints(21, hands))


def test_boxes_that_grow_towards_a_corner_are_no_outlines() -> None:
    """As of a camera above a road that leads away from it."""
    generator = random.Random(1)
    rows = []
    for _ in range(60):
        near = generator.random()
        x, y, size = 0.2 + 0.55 * near, 0.2 + 0.55 * near, 0.03 + 0.35 * near
        rows.append([x, y, size, size, *(each + size * generator.uniform(-0.4, 0.4) for each in (x, y) * 4)])
    with pytest.raises(DatasetError, match="kpt_shape"):
        _judged(rows)


@pytest.mark.parametrize("corners", [(3, 3), (4, 4), (6, 6), (5, 12), (4, 30)])
@pytest.mark.parametrize("size", [0.03, 0.1, 0.4])
def test_outlines_of_small_and_large_objects(corners: tuple[int, int], size: float) -> None:
    generator = random.Random(2)
    rows = []
    for _ in range(60):
        count, turn = generator.randint(*corners), generator.uniform(0, 1)
        x, y, radius = (*(size / 2 + (1 - size) * generator.random() for _ in "xy"), size / 2)
        angles = [math.tau * (turn + number / count) for number in range(count)]
        rows.append([value for a in angles for value in (x + radius * math.cos(a), y + radius * math.sin(a))])
    assert _judged(rows).all.total() == 60


@pytest.mark.parametrize("count", [5, 8, 60])
def test_outlines_with_one_number_of_points_in_order(tmp_path: Path, count: int) -> None:
    """Ellipses of so many points, as converters make them, of 12 x 12 pixels."""

    def ellipse(x: int, y: int, w: int, h: int, label: int) -> str:
        angles = [math.tau * number / count for number in range(count)]
        return points_row([(x + w + 6 + 6 * math.cos(a), y + 6 + 6 * math.sin(a)) for a in angles], label)

    found = boxes(exports.ultralytics(tmp_path / "ellipses", ellipse))
    assert len(found) == 4
    assert all(
        abs(one - other) <= 2
        for image in found
        for box, true in zip(image, [[50, 15, 12, 12], [55, 55, 12, 12]], strict=True)
        for one, other in zip(box, true, strict=True)
    )


def test_a_keypoint_in_the_middle_of_its_box_does_not_close_an_outline(tmp_path: Path) -> None:
    def row(x: int, y: int, w: int, h: int, label: int) -> str:
        middle = (x + w / 2, y + h / 2)
        return box_row(x, y, w, h, label) + points_row([(x + 5, y + 5), (x + w - 4, y + 7), middle], label)[1:]

    with pytest.raises(DatasetError, match="kpt_shape"):
        open_dataset(exports.ultralytics(tmp_path / "pose", row))


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 2, 1), (2, 3, 0, 1), (2, 1, 0, 3)])
@pytest.mark.parametrize(("left", "top"), [(40, 30), (30, 20), (10, 15), (60, 50)])
def test_corners_as_keypoints_are_refused(tmp_path: Path, order: tuple[int, ...], left: int, top: int) -> None:
    """Cards in the middle of images, whose keypoints could be drawn as an outline."""

    def card(x: int, y: int, w: int, h: int, label: int) -> str:
        x, y, w, h = left + label, top - label, 160 - 2 * left, 120 - 2 * top
        corners = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
        return box_row(x, y, w, h, label) + points_row([corners[index] for index in order], label)[1:]

    root = exports.ultralytics(tmp_path / "cards", card)
    with pytest.raises(DatasetError, match="kpt_shape"):
        open_dataset(root)


def test_boxes_beside_outlines(tmp_path: Path) -> None:
    root = exports.ultralytics(tmp_path / "mixed", lambda *box: (outline_row if box[4] else box_row)(*box))
    path = root / "labels/train/000000000009.txt"
    path.write_text(path.read_text() + "\n" + points_row([(100, 50), (140, 60), (110, 80)], 0))
    tables = exports.tables(root)
    assert tables["train"]["images/train/000000000009.jpg"] == [*XYWH, [100, 50, 40, 30]]
    assert tables["val"]["images/val/000000000036.jpg"] == XYWH


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (" 0.87", "has 6 columns: `class cx cy w h` and probably a score"),
        (" 17", "has 6 columns"),
        (" 0.87 12", "has 7 columns, of which only the first are relative"),
        (" 0.1 0.2 0.3", r"8 columns.*can be a box and keypoints \(kpt_shape: \[1, 3\]\)"),
    ],
)
def test_saved_predictions_are_refused_or_their_boxes_chosen(tmp_path: Path, more: str, words: str) -> None:
    root = exports.ultralytics(tmp_path / "predictions", lambda *box: box_row(*box) + more)
    with pytest.raises(DatasetError, match=words):
        open_dataset(root)
    assert boxes(root, ReadOptions(yolo_labels="boxes")) == [XYWH] * 4


def test_numbers_as_people_write_them() -> None:
    rule = RowRule(3, Path("data.yaml"))
    lines = ["0.0 5e-1 .5 0.25 +0.5", "  2\t0.5\t0.5  0.25 0.5 ", "1 0.5 0.5 0 0"]
    parsed, long_rows = parse_rows(enumerate(lines, 1), (40, 80), rule, Path("a.txt"))
    assert long_rows is None
    assert [(box.label, box.corners) for box in parsed] == [
        (0, (30, 10, 50, 30)),
        (2, (30, 10, 50, 30)),
        (1, (40, 20, 40, 20)),
    ]


def test_numbers_that_start_at_1() -> None:
    with pytest.raises(
        DatasetError, match=r"class 3, but data.yaml names 3 classes, 0 to 2.*if the numbers start at 1"
    ):
        parse_rows([(1, "3 .5 .5 .1 .1")], (40, 80), RowRule(3, Path("data.yaml")), Path("a.txt"))
    with pytest.raises(DatasetError, match="class 4, but") as caught:
        parse_rows([(1, "4 .5 .5 .1 .1")], (40, 80), RowRule(3, Path("data.yaml")), Path("a.txt"))
    assert "start at 1" not in str(caught.value)
