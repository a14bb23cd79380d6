from __future__ import annotations

import io
import json
import struct

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load, save

from codetr_cli.data.bad_files import BadFile
from codetr_cli.evaluation.results import RankResults, check_packed, merge_results, pack_results, unpack_results
from codetr_cli.inference.detections import DetectionTable


def detections(*pairs, masks=False):
    box = np.array([[0, 0, 1, 1]])
    mask = [{"size": [2, 2], "counts": "04"}] if masks else None
    score_of_mask = np.array([0.25]) if masks else None
    return DetectionTable.join(
        DetectionTable.of_image(image, box, np.array([score]), [1], mask, score_of_mask) for image, score in pairs
    )


def test_repeated_images_count_once():
    first = RankResults([1, 2], detections((1, 0.1), (2, 0.2)))
    second = RankResults([3, 1], detections((3, 0.3), (1, 0.9)))
    merged = merge_results([first, second])
    assert merged.image_ids == [1, 2, 3]
    assert [record["score"] for record in merged.detections.to_records()] == [0.1, 0.2, 0.3]


def test_the_order_is_that_of_the_images_for_any_division():
    """Detections of an image keep their order, also where their scores are equal."""
    whole = [
        RankResults([image], detections((image, 0.5), (image, 0.1 * index))) for index, image in enumerate((5, 3, 9))
    ]
    orders = [merge_results([whole[i] for i in division], [5, 3, 9]) for division in ((0, 1, 2), (2, 0, 1), (1, 2, 0))]
    assert {merged.detections.to_json() for merged in orders} == {orders[0].detections.to_json()}
    assert orders[0].image_ids == [5, 3, 9]
    assert orders[0].detections.image_ids.tolist() == [5, 5, 3, 3, 9, 9]


@pytest.mark.parametrize("masks", [False, True])
def test_packed_results_are_the_same(masks: bool):
    results = [
        RankResults([1, 4], detections((1, 0.1), (4, 1 / 3), masks=masks)),
        RankResults([2], DetectionTable.empty()),
        RankResults([], DetectionTable.empty(), [BadFile("é.jpg", "it has no pixels")]),
    ]
    found = unpack_results(pack_results(results))
    assert found.image_ids == [1, 4, 2]
    assert found.skipped == [BadFile("é.jpg", "it has no pixels")]
    assert found.detections.to_json() == results[0].detections.to_json()


def test_packed_results_without_any_detection():
    found = unpack_results(pack_results([RankResults([2], DetectionTable.empty())]))
    assert (found.image_ids, len(found.detections), found.skipped) == ([2], 0, [])


def packed(**changes: object) -> bytes:
    """Results of images 1 and 4, with other arrays; None deletes one."""
    results = RankResults([1, 4], detections((1, 0.1), (4, 0.5), masks=True))
    arrays = load(pack_results([results])) | changes
    return save({name: array for name, array in arrays.items() if array is not None})


def text(value: object) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def test_results_of_these_images_are_accepted():
    check_packed(packed(), [1, 4], [1, 2])
    check_packed(packed(masks=text(None), mask_scores=None), [1, 4], [1])
    for ids in ([4, 1], [1], [1, 4, 5]):
        with pytest.raises(ValueError, match="of other images"):
            check_packed(packed(), ids, [1])
    with pytest.raises(ValueError, match="of other categories"):
        check_packed(packed(), [1, 4], [2])


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": None},
        {"scores": np.zeros(3)},
        {"scores": np.zeros(2, np.float32)},
        {"boxes_xywh": np.zeros((2, 5))},
        {"boxes_xywh": np.zeros(2)},
        {"image_ids": np.array([1, 9])},
        {"image_ids": np.array([1.0, 4.0])},
        {"mask_scores": np.zeros(1)},
        {"processed": np.array([[1, 4]])},
        {"processed": None},
        {"more": np.zeros(2)},
        {"masks": text([{"size": [2, 2], "counts": "04"}])},
        {"masks": text([{"size": [2, 2], "counts": "04"}, None])},
        {"masks": text([{"size": [2, 2], "counts": "0"}] * 2)},
        {"masks": np.frombuffer(b"[" * 100_000, np.uint8)},
        {"skipped": text([["a.jpg", "it is gone"]])},
        {"skipped": text([[1]])},
        {"skipped": text(7)},
    ],
)
def test_what_is_no_result_is_refused(changes: dict[str, object]):
    with pytest.raises((ValueError, TypeError, KeyError)):
        check_packed(packed(**changes), [1, 4], [1])


def test_arrays_that_are_larger_than_the_content_are_refused():
    """Neither by their declared shapes, nor by compression."""
    big = io.BytesIO()
    np.savez_compressed(big, processed=np.zeros(1_000_000, np.int64))
    declared = json.dumps({"scores": {"dtype": "F64", "shape": [1 << 40], "data_offsets": [0, 1 << 43]}}).encode()
    for content in (big.getvalue(), struct.pack("<Q", len(declared)) + declared, b"\xff" * 64, b""):
        with pytest.raises((SafetensorError, ValueError)):
            unpack_results(content)
    long = b" " * 100_000
    with pytest.raises(ValueError, match="header that is too long"):
        unpack_results(struct.pack("<Q", len(long)) + long)
