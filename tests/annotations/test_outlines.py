from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as pycocotools_mask

from codetr_cli.annotations.masks import Masks
from codetr_cli.annotations.objects import read_annotations
from codetr_cli.annotations.outlines import check_outline, decode, encode
from codetr_cli.annotations.run_length_codes import OutlineError
from codetr_cli.errors import DatasetError

SIZE = (60, 80)


def drawn(outline: Any, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Our bitmap (h, w) of an outline."""
    return Masks([decode(outline, size)], size).array()[0]


def drawn_by_pycocotools(outline: Any, size: tuple[int, int] = SIZE) -> np.ndarray:
    rle = outline
    if isinstance(outline, list):
        rle = pycocotools_mask.merge(pycocotools_mask.frPyObjects(outline, *size))
    elif isinstance(outline["counts"], list):
        rle = pycocotools_mask.frPyObjects(outline, *size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its arrays do not know numpy 2's copy=
        return pycocotools_mask.decode(rle)


def polygon(generator: np.random.Generator, points: int, size: tuple[int, int] = SIZE) -> list[float]:
    """A wild polygon that reaches over the image's edges."""
    corners = generator.uniform(-0.2, 1.2, (points, 2)) * [size[1], size[0]]
    return np.round(corners, int(generator.integers(0, 4))).ravel().tolist()


def test_polygons_are_drawn_as_pycocotools_draws_them() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        size = (int(generator.integers(1, 90)), int(generator.integers(1, 90)))
        outline = [polygon(generator, int(generator.integers(3, 12)), size) for _ in range(generator.integers(1, 4))]
        np.testing.assert_array_equal(drawn(outline, size), drawn_by_pycocotools(outline, size))


def test_run_length_codes_are_drawn_as_pycocotools_draws_them() -> None:
    generator = np.random.default_rng(1)
    for density in (0.0, 0.02, 0.5, 0.98, 1.0):
        for _ in range(20):
            size = (int(generator.integers(1, 300)), int(generator.integers(1, 90)))
            mask = (generator.random(size) < density).astype(np.uint8)
            rle = pycocotools_mask.encode(np.asfortranarray(mask))
            compressed = {"size": list(size), "counts": rle["counts"].decode()}
            np.testing.assert_array_equal(drawn(compressed, size), mask)
            np.testing.assert_array_equal(drawn_by_pycocotools(compressed, size), mask)
            plain = encode(mask != 0)
            np.testing.assert_array_equal(drawn_by_pycocotools(plain, size), mask)
            np.testing.assert_array_equal(drawn(plain, size), mask)


def test_every_object_of_the_shared_set_is_drawn_as_pycocotools_draws_it(shared_dir: Path) -> None:
    path = shared_dir / "data" / "coco_mini" / "annotations" / "instances_train2017.json"
    annotations = read_annotations(path, with_outlines=True)
    content = json.loads(path.read_text())
    assert annotations.outlines is not None
    for row, entry in enumerate(content["annotations"]):
        size = tuple(annotations.sizes[annotations.image_rows[row]].tolist())
        expected = drawn_by_pycocotools(entry["segmentation"], size)
        np.testing.assert_array_equal(annotations.outlines.masks([row], size).array()[0], expected)


@pytest.mark.parametrize(
    ("outline", "words"),
    [
        (None, "no outline"),
        ([], "no outline"),
        ([[]], "one of 0 numbers"),
        ([[1, 2, 3, 4]], "one of 4 numbers"),
        ([[1, 2, 30, 4, 5, 60], [1, 2, 3, 4, 5, 6, 7]], "one of 7 numbers"),
        ([1, 2, 3, 4, 5, 6], "a broken polygon"),
        ([[1, 2, "3", 4, 5, 6]], "not coordinates"),
        ([[1, 2, float("nan"), 4, 5, 6]], "not coordinates"),
        ([[1, 2, 1e12, 4, 5, 6]], "not coordinates"),
        ([[1, 2, 300, 4, 5, 6]], "not coordinates"),
        ([[0, 0, 80, 60, 1, 1] * 2000], "an outline of more than 119,200 pixels"),
        ([[1, 2, 10**400, 4, 5, 6]], "not coordinates"),
        ({"size": [60, 80], "counts": [2**62, 2**62, 2**62, 2**62, 4800]}, "broken run-length code"),
        ({"size": [60, 80], "counts": [0, 2**64]}, "too large"),
        ({"size": [60, 80], "counts": [True]}, "neither a string nor a list"),
        ({"size": [60, 80], "counts": "\ud800"}, "not a compressed one"),
        ("abc", "the segmentation 'abc'"),
        ({"size": [60, 80]}, "the segmentation"),
        ({"size": [80, 60], "counts": [4800]}, r"size \[80, 60\], but its image is 60 high and 80 wide"),
        ({"size": 4, "counts": [4800]}, "of size 4"),
        ({"size": ["60", "80"], "counts": [4800]}, r"whose size \['60', '80'\] is not two integers"),
        ({"size": [60, 80], "counts": [-1, 4801]}, "with a run of -1 pixels"),
        ({"size": [60, 80], "counts": [4700]}, "4700 pixels instead of 4800"),
        ({"size": [60, 80], "counts": [4900, -100]}, "of 4800 pixels|broken run-length"),
        ({"size": [60, 80], "counts": [1.5]}, "neither a string nor a list"),
        ({"size": [60, 80], "counts": ""}, "not a compressed one"),
        ({"size": [60, 80], "counts": "zzzzz"}, "not a compressed one"),
        ({"size": [60, 80], "counts": "é!"}, "not a compressed one"),
        ({"size": [60, 80], "counts": "oooooooooooooooooooooo0"}, "too large"),
        ({"size": [60, 80], "counts": "45"}, "pixels instead of 4800"),
    ],
)
def test_broken_outlines_are_reported(outline: Any, words: str) -> None:
    with pytest.raises(OutlineError, match=words):
        decode(outline, SIZE)


def test_many_polygons_are_merged_as_pycocotools_merges_them() -> None:
    generator = np.random.default_rng(3)
    outline = [
        (generator.uniform(0, 50, 2)[None] + generator.uniform(0, 9, (4, 2))).ravel().tolist() for _ in range(300)
    ]
    np.testing.assert_array_equal(drawn(outline), drawn_by_pycocotools(outline))


def test_an_image_with_too_many_pixels_for_masks_is_refused() -> None:
    with pytest.raises(OutlineError, match="1,000,000 x 1,000,000 pixels"):
        check_outline({"size": [10**6, 10**6], "counts": [0, 10**12]}, (10**6, 10**6))


def write(path: Path, segmentations: list[Any], **options: Any) -> Path:
    entries = [
        {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 20, 20], "segmentation": outline}
        for i, outline in enumerate(segmentations)
    ]
    for entry in entries:
        if entry["segmentation"] == "missing":
            del entry["segmentation"]
    # An object of an image that the file does not list moves the rows of those that follow.
    entries.insert(0, entries[0] | {"image_id": 99, "id": 1000} if entries else {})
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 60, "width": 80}],
        "annotations": entries,
        "categories": [{"id": 1, "name": "a"}],
    }
    path.write_text(json.dumps(content, **options))
    return path


OUTLINES = [
    [[1.5, 2, 30, 4, 5e0, 60]],
    {"size": [60, 80], "counts": [4800]},
    {"counts": "0P\\l4", "size": [60, 80]},
    [],
    "missing",
    None,
    7,
    [[1, 2, 3, 4, 50, 6], [3, 3, 40, 40, 3, 40]],
]


@pytest.mark.parametrize("options", [{}, {"indent": 1}])
def test_outlines_are_kept_as_text_and_found_again(tmp_path: Path, options: dict[str, Any]) -> None:
    outlines = read_annotations(write(tmp_path / "a.json", OUTLINES, **options), with_outlines=True).outlines
    assert outlines is not None
    expected = [outline if isinstance(outline, list | dict) and outline else None for outline in OUTLINES]
    assert [outlines.parse(row) for row in range(len(OUTLINES))] == expected
    assert outlines.present.tolist() == [outline is not None for outline in expected]
    assert outlines.entries.tolist() == list(range(1, len(OUTLINES) + 1))
    assert read_annotations(tmp_path / "a.json").outlines is None


def test_outlines_that_only_a_json_parser_finds_are_kept_too(tmp_path: Path) -> None:
    strange = [{"counts": "0P\\l4", "size": [60, 80], "more": {"a": []}}, [[1, 2, 3, 4, 50, 6]]]
    outlines = read_annotations(write(tmp_path / "a.json", strange), with_outlines=True).outlines
    assert outlines is not None
    assert [outlines.parse(row) for row in range(2)] == strange


def test_a_broken_outline_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [[[1, 2, 30, 4, 5, 60]], [[1, 2, 3, 4]]])
    outlines = read_annotations(path, with_outlines=True).outlines
    assert outlines is not None
    assert len(outlines.masks([0], SIZE)) == 1
    with pytest.raises(DatasetError, match=r"annotations\[2\] has a broken polygon"):
        outlines.masks([0, 1], SIZE)


def test_drawing_raises_no_warning_of_numpy() -> None:
    script = "from codetr_cli.annotations.outlines import decode; decode([[1, 2, 30, 4, 5, 60]], (60, 80))"
    ran = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr.decode()
