"""AP of parts of the data as pycocotools has it, by the same use of its areas."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from codetr_cli.analysis import slices
from codetr_cli.analysis.bootstrap import average_precision, image_weights
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.matches import inside_area, match_detections, match_pairs
from codetr_cli.analysis.pairs import pair_detections
from codetr_cli.analysis.slices import ImageGroups, SliceGroup, image_slices, object_slices, object_values, sliced_by
from codetr_cli.evaluation.backends import ScoringInputs
from codetr_cli.evaluation.scoring import score_detections, scoring_inputs
from tests.analysis import run_samples
from tests.analysis.input_samples import material
from tests.analysis.run_samples import copied_images
from tests.analysis.scene import Scene
from tests.analysis.tide_samples import inputs_of_sample

TOLERANCE = 1e-9


def groups_of(inputs: AnalysisInputs) -> list[SliceGroup]:
    return object_slices(pair_detections(inputs))


def of_images(inputs: AnalysisInputs, properties: list[ImageGroups]) -> list[SliceGroup]:
    return image_slices(match_detections(inputs), properties)


def pycocotools_of(scored: ScoringInputs, objects: np.ndarray, detections: np.ndarray, limits: Any) -> COCOeval:
    """pycocotools' tables with other areas and ranges of areas."""

    def coco(records: list[dict[str, Any]]) -> COCO:
        data = COCO()
        data.dataset = {
            "images": [{"id": image, "height": h, "width": w} for image, h, w in scored.images],
            "categories": [{"id": number, "name": str(number)} for number in scored.category_ids],
            "annotations": [{"id": number, **record} for number, record in enumerate(records, start=1)],
        }
        data.createIndex()
        return data

    def records(side: Any, areas: np.ndarray) -> list[dict[str, Any]]:
        columns = (side.image_ids, side.category_ids, side.boxes_xywh, areas, side.iscrowd)
        scores = np.zeros(len(areas)) if side.scores is None else side.scores
        names = ("image_id", "category_id", "bbox", "area", "iscrowd", "score")
        return [
            dict(zip(names, row, strict=True)) for row in zip(*(c.tolist() for c in (*columns, scores)), strict=True)
        ]

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            coco(records(scored.objects, objects)), coco(records(scored.detections, detections)), "bbox"
        )
        evaluation.params.maxDets = [100]
        evaluation.params.areaRng = [[-1e12, 1e12], *[list(pair) for pair in limits]]
        evaluation.params.areaRngLbl = [str(number) for number in range(len(limits) + 1)]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


@pytest.mark.parametrize("sample", ["crowds", "material"])
@pytest.mark.parametrize("number", range(5))
def test_pycocotools_has_the_same_scores(tmp_path: Path, sample: str, number: int) -> None:
    inputs = material(tmp_path) if sample == "material" else inputs_of_sample(tmp_path, sample)
    group = groups_of(inputs)[number]
    ranges = slices.RANGES[number]
    assert (group.key, group.title) == (ranges.key, ranges.title)
    scored = scoring_inputs(inputs.ground_truth, inputs.image_ids, inputs.object_rows, inputs.detections, [100])
    values = object_values(pair_detections(inputs))[ranges.key]
    limits = np.clip(list(ranges.limits().values()), -1e12, 1e12).tolist()
    theirs = pycocotools_of(scored, *values, limits).eval
    for index, part in enumerate(group.slices, start=1):
        for ours, table in (
            (part.ap, theirs["precision"][:, :, :, index, 0]),
            (part.ap50, theirs["precision"][0, :, :, index, 0]),
            (part.recall, theirs["recall"][:, :, index, 0]),
        ):
            known = table[table > -1]
            assert (ours is None) == (not known.size)
            assert ours is None or ours == pytest.approx(known.mean(), abs=TOLERANCE)
    assert sum(part.ap is not None for part in group.slices) > 1
    assert sum(part.objects for part in group.slices) >= (scored.objects.iscrowd == 0).sum()


def group_of(groups: list[SliceGroup], key: str) -> dict[str, int]:
    return {part.label: part.objects for group in groups if group.key == key for part in group.slices if part.objects}


def test_objects_are_in_their_groups(tmp_path: Path) -> None:
    scene = Scene(tmp_path)  # 400 x 300
    scene.annotate((180, 130, 40, 40))  # in the centre
    scene.annotate((190, 140, 100, 20))  # wide, overlaps the first one
    scene.annotate((0, 0, 10, 40))  # tall, in a corner
    scene.annotate((100, 100, 300, 200), crowd=1)
    groups = groups_of(scene.inputs())
    assert group_of(groups, "size") == {"32 to 96 px": 2, "16 to 32 px": 1}
    assert group_of(groups, "aspect") == {"tall, over 1:3": 1, "about square": 1, "wide, over 3:1": 1}
    assert group_of(groups, "crowding") == {"none": 1, "1 or 2": 2}
    assert group_of(groups, "position") == {"up to 0.25": 2, "over 0.75": 1}
    assert group_of(groups, "border") == {"inside the image": 2, "at the border": 1}
    assert all(part.ap == 0 for group in groups for part in group.slices if part.objects)  # nothing was detected


def test_a_false_alarm_counts_where_it_is(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.annotate((100, 100, 50, 50))
    scene.annotate((110, 110, 300, 20))
    scene.detect((100, 100, 50, 50), score=0.5)
    scene.detect((110, 110, 300, 20), score=0.5)
    scene.detect((300, 200, 60, 60), score=0.9)  # square
    parts = {part.label: part.ap for part in groups_of(scene.inputs())[1].slices}
    assert parts["about square"] == pytest.approx(0.5)
    assert parts["wide, over 3:1"] == pytest.approx(1)


def test_without_sizes_of_images_there_is_no_position(tmp_path: Path) -> None:
    inputs = inputs_of_sample(tmp_path, "noisy")
    inputs.ground_truth.sizes[3] = 0
    assert [group.key for group in groups_of(inputs)] == ["size", "aspect", "crowding"]


def test_boxes_without_a_side_have_a_group(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.annotate((100, 100, 0, 50))
    scene.detect((100, 100, 0, 0))
    groups = groups_of(scene.inputs())
    assert group_of(groups, "aspect") == {"tall, over 1:3": 1}
    assert group_of(groups, "crowding") == {"none": 1}


@pytest.mark.parametrize("lvis", [False, True])
def test_images_are_scored_as_if_they_were_alone(tmp_path: Path, lvis: bool) -> None:
    inputs = material(tmp_path, lvis=lvis)
    half = len(inputs.image_ids) // 2
    images = {"first": np.arange(half), "second": np.arange(half, len(inputs.image_ids))}
    groups = ImageGroups("half", "Half", "of the images", {name: (rows, 0.0, 1.0) for name, rows in images.items()})
    (group,) = of_images(inputs, [groups])
    assert group.of_images
    for part in group.slices:
        ids = inputs.image_ids[images[part.label]]
        alone = score_detections(inputs.ground_truth, inputs.detections.of_images(ids), ids, where="a.json").metrics
        assert part.images == len(ids)
        assert part.ap == pytest.approx(alone["AP"], abs=TOLERANCE)
        assert part.recall == pytest.approx(alone["AR300" if lvis else "AR100"], abs=TOLERANCE)


def test_no_groups_of_images(tmp_path: Path) -> None:
    assert of_images(inputs_of_sample(tmp_path, "noisy"), []) == []


def test_a_value_on_an_edge_is_in_both_ranges(tmp_path: Path) -> None:
    """As COCO has it."""
    scene = Scene(tmp_path)
    scene.annotate((10, 10, 32, 32))
    paired = pair_detections(scene.inputs())
    group = sliced_by(paired, slices.SIZE, *object_values(paired)[slices.SIZE.key])
    assert [part.objects for part in group.slices] == [0, 1, 1, 0, 0]
    assert [part.high for part in group.slices] == [256, 1024, 9216, 82944, None]
    assert [part.low for part in group.slices] == [None, 256, 1024, 9216, 82944]


def test_an_interval_is_that_of_the_ap_of_copies_of_the_images() -> None:
    truth = run_samples.annotations(25, crowds=2)
    table = run_samples.detections(truth, seed=1)
    paired = pair_detections(run_samples.inputs(truth, table))
    part = sliced_by(paired, slices.SIZE, *object_values(paired)[slices.SIZE.key]).slices[2]
    groups = ImageGroups("half", "Half", "of the images", {"first": (np.arange(12), 0.0, 1.0)})
    (half,) = image_slices(match_detections(run_samples.inputs(truth, table)), [groups])
    of_size, of_half = [], []
    for drawn in image_weights(25, slices.SAMPLES, 0).astype(int):
        copies = run_samples.inputs(*copied_images(truth, table, np.repeat(np.arange(25), drawn)))
        of_size.append(average_precision(match_pairs(pair_detections(copies), *inside_area(copies, (32**2, 96**2)))))
        copies = run_samples.inputs(*copied_images(truth, table, np.repeat(np.arange(12), drawn[:12])))
        of_half.append(average_precision(match_detections(copies)))
    for found, copied in ((part, of_size), (half.slices[0], of_half)):
        assert found.ap is not None
        assert found.ap_interval is not None
        margin = 1.959964 * np.std(copied, ddof=1)
        assert margin > 0.01
        assert found.ap_interval == pytest.approx((max(found.ap - margin, 0), min(found.ap + margin, 1)), abs=1e-9)


def test_parts_of_fewer_than_five_images_have_no_interval(tmp_path: Path) -> None:
    truth = run_samples.annotations(30)
    matches = match_detections(run_samples.inputs(truth, run_samples.detections(truth, seed=1)))
    images = {str(count): (np.arange(count), 0.0, 1.0) for count in (4, 5)}
    (group,) = image_slices(matches, [ImageGroups("few", "Few", "images", images)])
    assert [part.ap_interval is None for part in group.slices] == [True, False]
    assert all(part.ap is not None for part in group.slices)
