"""What annotated boxes and boxes of background have near them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from codetr_cli.analysis import background
from codetr_cli.analysis.background import Background, Ratio, surest_near
from codetr_cli.analysis.label_evidence import gather_evidence
from tests.analysis.label_scenes import Scene


def test_ratio_of_shares_by_sureness() -> None:
    annotated, empty = np.array([0.0] + 9 * [0.9]), np.array(8 * [0.0] + 2 * [0.9])
    ratio = Ratio.of(annotated, empty)
    # One box more on each step: 2 of 11 against 9 of 11, and 10 of 11 against 3 of 11.
    assert ratio(0.0) == ratio(0.89) == pytest.approx((2 / 11) / (9 / 11))
    assert ratio(0.9) == ratio(1.0) == pytest.approx(10 / 3)


def test_ratio_does_not_fall_where_more_is_detected() -> None:
    annotated, empty = np.array([0.0, 0.2, 0.2, 0.5, 0.9]), np.array([0.0, 0.2, 0.5, 0.5, 0.5])
    ratio = Ratio.of(annotated, empty)
    values = [ratio(sureness) for sureness in (0.0, 0.2, 0.5, 0.9)]
    assert values == sorted(values)
    assert values[1] == values[2]  # 0.2 and 0.5 are one step: 2 of 3 would be more than 1 of 4


@pytest.mark.parametrize("count", [0, 3])
def test_ratio_of_few_boxes_proves_nothing(count: int) -> None:
    assert Ratio.of(np.zeros(0), np.zeros(count))(0.0) >= 1
    assert Ratio.of(np.full(count, 0.9), np.zeros(count))(0.0) >= 1 / (count + 1)


def test_only_detections_near_a_box_count(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.annotate((200, 100, 50, 60))
    scene.detect((230, 130, 50, 60), 7, 0.9)  # an IoU of 0.11
    evidence = gather_evidence(scene.inputs())
    last = evidence.images[-1]
    boxes = np.array([[200.0, 100, 50, 60], [228, 128, 50, 60]])
    assert surest_near(last, boxes).tolist() == [0.0, last.sureness[0]]


def test_background_is_where_other_images_have_no_object(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.annotate((200, 100, 50, 60))
    inputs = scene.inputs()
    ratios = Background.of(inputs, gather_evidence(inputs).images)
    # The places of all objects but one are those of objects in the next images too: 4 places are free.
    assert len(ratios.by_size) == 1
    assert ratios.by_size[0](0.0) == pytest.approx((2 / 42) / (5 / 5))


def test_sizes_are_told_apart_where_there_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of small objects half are missed: a large box without a detection is suspicious, a small one is not."""
    scene = Scene(tmp_path)
    for image_id in range(1, 41):
        x = 200 + 5 * image_id  # in other places than in the next images
        scene.annotate((x - 150 * (image_id % 2), 150, 20, 20), image_id=image_id)
        if image_id % 4 < 2:
            scene.detect((x - 150 * (image_id % 2), 150, 20, 20), 3, 0.9, image_id=image_id)
    scene.annotate((250, 50, 100, 80))
    inputs = scene.inputs()
    images = gather_evidence(inputs).images
    monkeypatch.setattr(background, "BOXES_OF_A_SIZE", 40)
    small, large = Background.of(inputs, images).by_size
    # Of 40 small boxes 20 are without detection, of 41 large ones 1; all places of both in other images are.
    assert small(0.0) == pytest.approx(21 / 41)
    assert large(0.0) == pytest.approx(2 / 42)
