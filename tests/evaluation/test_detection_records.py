from __future__ import annotations

import json

import numpy as np
import pytest

from codetr_cli.annotations.objects import Annotations, read_annotations
from codetr_cli.errors import DatasetError
from codetr_cli.evaluation.detection_files import read_detection_file
from codetr_cli.evaluation.detection_records import has_masks, match_detections
from codetr_cli.evaluation.scoring import score_detections
from codetr_cli.inference.rle import encode_crop
from tests.data.fakes import mixed_content
from tests.data.hostile_json import variants
from tests.evaluation.annotation_samples import without_objects
from tests.evaluation.detection_makers import ground_truth

RECORD = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}
MASK = '{"image_id": 1, "category_id": 1, "score": 1, "segmentation": {"size": [2, 2], "counts": "04"}}'


def load(path, ground_truth: Annotations | None = None, *, boxes_only: bool = False):
    file = read_detection_file(path)
    truth = ground_truth or without_objects(lvis=False)
    return match_detections(file, truth, "a.json", with_masks=has_masks(file) and not boxes_only).table


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"image_id": 1', "not valid JSON"),
        ('{"annotation": []}', "without a list"),
        ("[7]", "number 0 is a number, not an object"),
        ('[{"image_id": "x", "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]', "image_id"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1], "score": 1}]', "bbox"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [0, 0, NaN, 1], "score": 1}]', "bbox"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [0, 0, -1, 1], "score": 1}]', "bbox"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}]', "score"),
    ],
)
def test_broken_detection_files_are_named(tmp_path, text, expected):
    path = tmp_path / "detections.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=expected) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"image_id": 10**30}, "image_id"),
        ({"image_id": 1.5}, "image_id"),
        ({"category_id": True}, "category_id"),
        ({"category_id": [1]}, "category_id"),
        ({"image_id": None}, "image_id"),
        ({"score": "NaN"}, "score"),
        ({"score": float("nan")}, "score"),
        ({"score": 10**400}, "score"),
        ({"bbox": [0, 0, 10**400, 1]}, "bbox"),
        ({"bbox": [0, 0, 1e300, 1]}, "bbox"),
        ({"segmentation": {"size": [2**40, 2**40], "counts": "04"}}, "its image is 10 high"),
        ({"segmentation": {"size": [10**6, 10**6], "counts": "04"}}, "too many for a mask"),
        ({"segmentation": {"size": [2, 2], "counts": "0oooooooooo0"}}, "too large"),
        ({"segmentation": {"size": [2, 2], "counts": "05"}}, "of 5 pixels instead of 4"),
        ({"segmentation": {"size": [2, 2], "counts": "5O"}}, "broken run-length code"),
        ({"segmentation": {"size": [2, 2], "counts": "\ud800"}}, "not a compressed one"),
    ],
)
def test_values_out_of_range_are_named(tmp_path, changes, expected):
    path = tmp_path / "detections.json"
    good = json.loads(MASK) if "segmentation" in changes else RECORD
    path.write_text(json.dumps([good, good | changes]))
    with pytest.raises(DatasetError, match=rf"detection number 1 .*{expected}"):
        load(path)


def test_whole_floats_are_ids(tmp_path):
    path = tmp_path / "detections.json"
    path.write_text(json.dumps([RECORD | {"image_id": 1.0}]))
    assert load(path).image_ids.tolist() == [1]


@pytest.mark.parametrize("masks", [False, True])
def test_broken_variants_are_refused_or_scored(tmp_path, masks):
    ground_truth = read_annotations(write_ground_truth(tmp_path / "gt.json"), with_outlines=True)
    mask = {"size": [48, 64], "counts": encode_crop(np.ones((5, 9), bool), 3, 4, (48, 64))["counts"]}
    record = {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4.5], "score": 0.5}
    record |= {"segmentation": mask, "mask_score": 0.3} if masks else {}
    path = tmp_path / "detections.json"
    read = 0
    for variant in variants([record, record | {"category_id": 90}], seed=3, count=200):
        path.write_bytes(variant)
        try:
            table = load(path, ground_truth)
            read += 1
            for scorer in ("hotcoco", "pycocotools"):
                score_detections(ground_truth, table, where="annotations", scorer=scorer)
        except DatasetError:
            pass
    assert 10 < read < 100


def write_ground_truth(path):
    content = mixed_content()
    for entry in content["annotations"]:
        is_crowd = isinstance(entry["segmentation"], dict)
        entry["segmentation"] = {"size": [48, 64], "counts": [1000, 2072]} if is_crowd else [[1, 1, 9, 1, 9, 9]]
    path.write_text(json.dumps(content))
    return path


def test_missing_detection_file(tmp_path):
    with pytest.raises(DatasetError, match="No such file"):
        load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f'[{MASK}, {{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}}]', "number 1 .*which others"),
        (MASK.replace('"04"', "7").replace("2, 2", "10, 10"), "counts"),
        (MASK.replace('"04"', '"0x"'), "not a compressed one"),
        (MASK.replace('"04"', '"0o"'), "not a compressed one"),
        (MASK.replace('"04"', '""'), "not a compressed one"),
        (MASK.replace("[2, 2]", "[2, 0]"), "size"),
        (MASK.replace('"score": 1', '"score": 1, "mask_score": "x"'), "mask_score"),
        (MASK.replace('"score": 1', '"score": 1, "bbox": [1]'), "bbox"),
    ],
)
def test_broken_masks_are_named(tmp_path, text, expected):
    path = tmp_path / "detections.json"
    path.write_text(text if text.startswith("[") else f"[{text}]")
    with pytest.raises(DatasetError, match=expected):
        load(path)


def test_a_box_that_is_not_given_is_that_of_the_mask(tmp_path):
    path = tmp_path / "detections.json"
    path.write_text(f"[{MASK}]")
    assert load(path).boxes_xywh.tolist() == [[0, 0, 2, 2]]


def outlined(outline, **changes):
    return RECORD | {"bbox": [2, 3, 4, 5]} | changes | {"segmentation": outline}


def box_outline(x, y, w, h):
    return [[x, y, x, y + h, x + w, y + h, x + w, y]]


@pytest.mark.parametrize("masks", [False, True])
def test_outlines_that_loadres_makes_of_boxes_are_no_masks(tmp_path, masks):
    path = tmp_path / "detections.json"
    boxes = [[2, 3, 4, 5], [0.5, 0.25, 3.125, 2]]
    records = [
        outlined(box_outline(*box), bbox=box, area=20, id=number, iscrowd=0) for number, box in enumerate(boxes, 1)
    ]
    real = [[2, 3, 2, 8, 6, 8]]
    path.write_text(json.dumps([*records, outlined(real)] if masks else records))
    table = load(path)
    assert table.boxes_xywh.tolist()[:2] == boxes
    assert (table.masks is not None) == masks


def test_polygons_and_lists_of_runs_are_masks(tmp_path):
    path = tmp_path / "detections.json"
    path.write_text(json.dumps([outlined([[2, 3, 2, 8, 6, 8]]), outlined({"size": [10, 10], "counts": [0, 10, 90]})]))
    first, second = load(path).masks
    assert encode_crop(np.ones((10, 1), bool), 0, 0, (10, 10)) == second
    assert first["size"] == [10, 10]
    assert load(path, boxes_only=True).masks is None


@pytest.mark.parametrize("outline", [7, [[1, 2]], {"size": [9, 9], "counts": "x"}, [None], {"counts": 3}])
def test_broken_outlines_matter_only_for_masks(tmp_path, outline):
    path = tmp_path / "detections.json"
    path.write_text(json.dumps([outlined([[2, 3, 2, 8, 6, 8]]), outlined(outline)]))
    assert len(load(path, boxes_only=True)) == 2
    with pytest.raises(DatasetError, match=r"number 1 .*--boxes-only"):
        load(path)


def test_a_file_of_annotations_is_named(tmp_path):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": [], "annotations": [{**RECORD, "score": None}], "categories": []}))
    with pytest.raises(DatasetError, match="file of annotations"):
        load(path)


def test_images_and_categories_that_are_unknown_are_named(tmp_path):
    path = tmp_path / "detections.json"
    for changes, expected in (
        ({"image_id": 0}, "numbered from 0 instead of 1"),
        ({"image_id": 2}, "numbered from 1 instead of 0"),
        ({"image_id": 40}, "image_id that are not in a.json .40."),
        ({"category_id": 0}, "numbered from 0 instead of 1"),
        ({"category_id": "zebra"}, "'zebra'.*1 a"),
    ):
        path.write_text(json.dumps([RECORD | changes]))
        with pytest.raises(DatasetError, match=expected):
            load(path)


def test_only_values_that_match_nothing_are_named(tmp_path):
    path = tmp_path / "detections.json"
    truth = ground_truth(tmp_path / "a.json")
    path.write_text(json.dumps([RECORD | {"image_id": name} for name in ("000007.jpg", "x.jpg")]))
    with pytest.raises(DatasetError, match=r"1 values of image_id that are not in a.json \('x.jpg'\)"):
        load(path, truth)
    path.write_text(json.dumps([RECORD | {"image_id": 11, "category_id": name} for name in ("cat", "unicorn")]))
    with pytest.raises(DatasetError, match=r"1 values of category_id that are not in a.json \('unicorn'\)"):
        load(path, truth)


def test_a_name_that_means_several_images_says_so(tmp_path):
    images = [
        {"id": number, "file_name": f"{name}/1.jpg", "width": 9, "height": 9} for number, name in ((1, "a"), (2, "b"))
    ]
    truth = tmp_path / "a.json"
    truth.write_text(json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}))
    path = tmp_path / "detections.json"
    path.write_text(json.dumps([RECORD | {"image_id": "1.jpg"}]))
    with pytest.raises(DatasetError, match=r"'1\.jpg' may mean several"):
        load(path, read_annotations(truth))


def test_a_side_below_zero_by_rounding_is_zero(tmp_path):
    path = tmp_path / "detections.json"
    path.write_text(json.dumps([RECORD | {"bbox": [1, 2, -1e-7, 3]}]))
    assert load(path).boxes_xywh.tolist() == [[1, 2, 0, 3]]
