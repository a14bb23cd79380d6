"""How far the sides of detections usually are from those of annotated boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from codetr_cli.analysis.box_spread import BoxSpread, deviations
from codetr_cli.analysis.label_evidence import gather_evidence
from tests.analysis.label_scenes import Scene


def test_deviations_are_parts_of_the_annotated_size() -> None:
    found = deviations(np.array([[12.0, 10, 10, 40]]), np.array([[10.0, 10, 10, 20]]))
    assert found.tolist() == [[0.2, 0.0, 0.2, 1.0]]


def test_usual_deviation_is_that_of_most_detections(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.annotate((200, 100, 50, 60))
    scene.detect((210, 100, 50, 60))  # one that is far off does not change it
    spread = BoxSpread.of(gather_evidence(scene.inputs()).images)
    # Boxes (50, 50, 100, 80) are detected as (51, 49, 100, 81).
    assert spread.sides.tolist() == pytest.approx([1.4826 / 100, 1.4826 / 80, 1.4826 / 100, 0.005])
    assert spread.of_pair(np.array([60.0, 50, 100, 80]), np.array([50.0, 50, 100, 80])) == pytest.approx(10 / 1.4826)


def test_usual_deviation_without_detections() -> None:
    assert BoxSpread.of([]).sides.tolist() == pytest.approx(4 * [0.14826])
