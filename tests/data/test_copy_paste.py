from __future__ import annotations

import numpy as np
import pytest

from codetr_cli.annotations.masks import Masks
from codetr_cli.data.copy_paste import CopyPaste, CopyPasteParams
from codetr_cli.data.sample import Sample

SIDE = 100


def sample(boxes: list[list[float]], colour: int, *, masks: bool = True, first_label: int = 0) -> Sample:
    """A canvas of one colour whose objects fill their boxes."""
    array = np.zeros((len(boxes), SIDE, SIDE), np.uint8)
    for bitmap, (x1, y1, x2, y2) in zip(array, boxes, strict=True):
        bitmap[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = 1
    return Sample(
        image=np.full((SIDE, SIDE, 3), colour, np.uint8),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.arange(first_label, first_label + len(boxes)),
        iscrowd=np.zeros(len(boxes), np.int64),
        area=np.full(len(boxes), 7, np.float32),
        masks=Masks.from_array(array) if masks else None,
    )


def test_pasted_pixels_cover_and_what_is_left_of_the_others_counts() -> None:
    # Hidden wholly; one side moved by 10; some pixels lost but none of a side; much moved, 390 pixels left; untouched.
    destination = sample(
        [[10, 10, 20, 20], [30, 10, 50, 30], [0, 30, 60, 90], [60, 60, 99, 90], [0, 95, 3, 98]], colour=10
    )
    source = sample([[5, 5, 40, 40], [60, 60, 99, 80]], colour=200, first_label=10)
    pasted = CopyPaste(cut="masks").apply(destination, source, CopyPasteParams((1, 0)))
    assert pasted.labels.tolist() == [1, 2, 3, 4, 11, 10]
    np.testing.assert_array_equal(pasted.image[70, 70], [200] * 3)
    np.testing.assert_array_equal(pasted.image[85, 70], [10] * 3)
    assert pasted.boxes.tolist() == [
        [40, 10, 50, 30],
        [0, 30, 60, 90],
        [60, 80, 99, 90],
        [0, 95, 3, 98],
        [60, 60, 99, 80],
        [5, 5, 40, 40],
    ]
    assert pasted.masks is not None
    bitmaps = pasted.masks.array()
    assert not (bitmaps[:4].any(axis=0) & bitmaps[4:].any(axis=0)).any()
    assert bitmaps[2].sum() == 390
    assert destination.image.max() == 10


def test_small_remains_that_moved_are_gone() -> None:
    destination = sample([[10, 10, 40, 40]], colour=10)
    source = sample([[10, 10, 40, 31]], colour=200, first_label=5)
    assert CopyPaste(cut="masks").apply(destination, source, CopyPasteParams((0,))).labels.tolist() == [5]
    wider = sample([[10, 10, 40, 29]], colour=200, first_label=5)
    assert CopyPaste(cut="masks").apply(destination, wider, CopyPasteParams((0,))).labels.tolist() == [0, 5]


def test_nothing_to_paste_leaves_the_destination() -> None:
    destination = sample([[10.5, 10, 40, 40]], colour=10)
    empty = sample([], colour=200)
    for cut in ("masks", "boxes"):
        paste = CopyPaste(cut=cut)
        rng = np.random.default_rng(0)
        assert paste(destination, empty, rng) is destination
        assert paste.apply(destination, sample([[1, 1, 9, 9]], 3), CopyPasteParams(())) is destination
    filled = CopyPaste(cut="masks").apply(empty, destination, CopyPasteParams((0,)))
    assert filled.boxes.tolist() == destination.boxes.tolist()


def test_numbers_are_drawn_from_none_to_all_below_the_limit() -> None:
    source = sample([[i, i, i + 5, i + 5] for i in range(6)], colour=1)
    rng = np.random.default_rng(0)
    drawn = [CopyPaste(cut="masks").make_params(rng, source).selected for _ in range(300)]
    assert {len(selected) for selected in drawn} == set(range(7))
    assert all(len(set(selected)) == len(selected) and set(selected) <= set(range(6)) for selected in drawn)
    assert any(list(selected) != sorted(selected) for selected in drawn)
    few = [CopyPaste(cut="masks", max_pasted=3).make_params(rng, source).selected for _ in range(100)]
    assert {len(selected) for selected in few} == {0, 1, 2}


def test_masks_are_needed_to_paste_by_masks() -> None:
    bare = sample([[1, 1, 9, 9]], 3, masks=False)
    with pytest.raises(ValueError, match="needs samples with masks"):
        CopyPaste(cut="masks").apply(bare, bare, CopyPasteParams((0,)))


@pytest.mark.parametrize("masks", [False, True])
def test_boxes_are_pasted_whole(masks: bool) -> None:
    # Wholly hidden; three quarters hidden; a quarter hidden; untouched with a box between pixels.
    destination = sample(
        [[12, 12, 18, 18], [10, 10, 40, 15], [10, 0, 20, 40], [70.25, 70, 80, 80.5]], colour=10, masks=masks
    )
    # The second one is not selected but inside the first; the third one mostly outside; the last one is far away.
    source = sample(
        [[10, 10, 35, 20], [15, 12, 20, 22], [30, 10, 60, 20], [0, 90, 5, 95]], colour=200, first_label=10, masks=masks
    )
    pasted = CopyPaste(cut="boxes").apply(destination, source, CopyPasteParams((0,)))
    assert pasted.labels.tolist() == [2, 3, 10, 11]
    expected = [[10, 0, 20, 40], [70.25, 70, 80, 80.5], [10, 10, 35, 20], [15, 12, 20, 20]]
    assert pasted.boxes.tolist() == expected
    assert (pasted.image == 200).all(axis=2).sum() == 25 * 10
    if masks:
        assert pasted.masks is not None
        areas = pasted.masks.areas().tolist()
        assert areas[0] == 10 * 40 - 10 * 10
        assert areas[3] == 5 * 8


def test_boxes_that_fill_much_of_the_canvas_are_not_chosen() -> None:
    source = sample([[0, 0, 60, 60], [0, 0, 50, 50], [5, 5, 5, 9]], colour=1, masks=False)
    rng = np.random.default_rng(0)
    drawn = {CopyPaste(cut="boxes").make_params(rng, source).selected for _ in range(50)}
    assert drawn == {(), (1,)}
