"""The confusion matrix as hotcoco has it, its examples, and what is not counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from codetr_cli.analysis.confusion import Confusion, Example, confusion_matrix
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.jsonable import jsonable
from codetr_cli.analysis.matches import match_detections
from codetr_cli.evaluation.backends import hotcoco_evaluation
from codetr_cli.evaluation.scoring import scoring_inputs
from tests.analysis.input_samples import material
from tests.analysis.scene import Scene
from tests.analysis.tide_samples import SAMPLES, inputs_of_sample

BOX = (100, 100, 50, 50)
CUP, PLATE, BACKGROUND = range(3)


def confusion_of(inputs: AnalysisInputs, threshold: float = 0.0) -> Confusion:
    return confusion_matrix(inputs, match_detections(inputs), threshold)


@pytest.mark.parametrize("threshold", [0.0, 0.5])
@pytest.mark.parametrize("name", [name for name, sample in SAMPLES.items() if not sample.crowds])
def test_hotcoco_has_the_same_matrix(tmp_path: Path, name: str, threshold: float) -> None:
    inputs = inputs_of_sample(tmp_path, name)
    scored = scoring_inputs(inputs.ground_truth, inputs.image_ids, inputs.object_rows, inputs.detections, [100])
    theirs = hotcoco_evaluation(scored).confusion_matrix(0.5, 10_000, threshold)
    confusion = confusion_of(inputs, threshold)
    assert np.array_equal(confusion.matrix, theirs["matrix"])
    assert (confusion.matrix[:-1, -1] > 0).any()


def test_rows_are_annotated_and_columns_detected(tmp_path: Path) -> None:
    scene = Scene(tmp_path, images=3)
    scene.annotate(BOX, 3)
    scene.detect(BOX, 7, 0.6)  # a cup taken for a plate
    scene.annotate(BOX, 7, image=2)
    scene.detect((300, 200, 20, 20), 7, 0.5, image=2)  # a plate is missed, and one is seen where there is none
    scene.annotate(BOX, 3, image=3)
    scene.detect(BOX, 3, 0.4, image=3)
    confusion = confusion_of(scene.inputs())
    assert confusion.matrix.tolist() == [[1, 1, 0], [0, 0, 1], [0, 1, 0]]
    stored = jsonable(confusion)
    assert (stored["true"], stored["found"], stored["counts"]) == ([0, 0, 1, 2], [0, 1, 2, 1], [1, 1, 1, 1])
    assert confusion.examples == {
        (CUP, PLATE): [Example(0, 0, 0)],
        (PLATE, BACKGROUND): [Example(1, 1, None)],
        (BACKGROUND, PLATE): [Example(1, None, 1)],
    }


def test_the_best_detection_takes_the_object_and_scores_choose_examples(tmp_path: Path) -> None:
    scene = Scene(tmp_path, images=5)
    for image in range(1, 6):
        scene.annotate(BOX, 3, image=image)
        scene.detect((101, 100, 50, 50), 7, image / 10, image=image)
    scene.detect(BOX, 3, 0.45, image=5)  # overlaps it more, but is less sure
    confusion = confusion_of(scene.inputs())
    assert confusion.matrix.tolist() == [[0, 5, 0], [0, 0, 0], [1, 0, 0]]
    assert [example.image for example in confusion.examples[CUP, PLATE]] == [4, 3, 2]
    assert confusion.examples[BACKGROUND, CUP] == [Example(4, 4, 5)]  # the object that it is on, which is taken
    assert confusion.repeated == 1


def test_the_largest_missed_objects_are_examples(tmp_path: Path) -> None:
    scene = Scene(tmp_path, images=5)
    for image, side in enumerate((20, 60, 10, 50, 40), start=1):
        scene.annotate((100, 100, side, side), image=image)
    assert [example.object_row for example in confusion_of(scene.inputs()).examples[CUP, BACKGROUND]] == [1, 3, 4]


def test_detections_in_crowds_are_not_counted(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.annotate((0, 0, 200, 200), 3, crowd=1)
    scene.detect(BOX, 3)
    scene.detect(BOX, 7)
    assert confusion_of(scene.inputs()).matrix.tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_detections_that_lvis_ignores_are_not_counted(tmp_path: Path) -> None:
    inputs = material(tmp_path, lvis=True)
    matches = match_detections(inputs)
    assert matches.ignored[0].any()
    confusion = confusion_matrix(inputs, matches, 0.0)
    assert confusion.matrix[:, :-1].sum() == (~matches.ignored[0]).sum()


@pytest.mark.parametrize("which", ["nothing", "objects", "detections"])
def test_with_one_side_alone(tmp_path: Path, which: str) -> None:
    scene = Scene(tmp_path)
    if which == "objects":
        scene.annotate(BOX)
    if which == "detections":
        scene.detect(BOX)
    matrix = confusion_of(scene.inputs()).matrix
    assert matrix[CUP, BACKGROUND] == (which == "objects")
    assert matrix[BACKGROUND, CUP] == (which == "detections")
    assert matrix.sum() == (which != "nothing")
