"""The list of images to be reviewed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from codetr_cli.distributed.part_files import Part
from codetr_cli.prediction.inputs import find_images
from codetr_cli.prediction.labels.review import phrase
from codetr_cli.prediction.outputs import REVIEW, result_names, write_outputs
from codetr_cli.prediction.results import ImageResult, check_packed, merge_results, pack_results
from codetr_cli.prediction.sources.input_list import InputImage
from codetr_cli.result_files import ResultRecord
from tests.prediction.labels.random_labels import random_results, target, write_images


def reason(name: str, score: float) -> dict[str, object]:
    return {"class": name, "score": score, "bbox": [1.0, 2, 3, 4], "is_label": True}


def test_paths_and_reasons(tmp_path: Path) -> None:
    sizes = write_images(tmp_path / "source", 2, ("a.jpg", "ü b.jpg"))
    first, second = random_results(tmp_path / "source", sizes, 3)
    review = {"count": 7, "detections": [reason("cat", 0.4), reason("dog", 0.311)]}
    second.image["review"] = review  # type: ignore[index]
    (again,) = merge_results([Part([1], pack_results([second]))])
    name, number = second.image["file_name"], second.image["image_id"]  # type: ignore[index]
    check_packed(pack_results([second]), [1], [InputImage(Path(second.file), name, number)] * 2)
    results = [first, again, ImageResult(2, "gone.jpg", error="gone")]
    write_outputs(results, (REVIEW,), target(tmp_path / "out", review=(0.2, 0.5)))
    assert (tmp_path / "out" / "review.txt").read_text() == f"{tmp_path / 'source' / 'ü b.jpg'}\n"
    table = json.loads((tmp_path / "out" / "review.json").read_text())
    assert table == {"band": [0.2, 0.5], "images": [{"file": again.file, "file_name": "ü b.jpg", **review}]}
    record = ResultRecord(tmp_path / "out")
    assert all(record.is_own(tmp_path / "out" / name) for name in result_names((REVIEW,), 3))
    assert phrase(review) == "cat 0.40, dog 0.31 and 5 more"
    assert phrase(None) == ""


def test_the_list_is_one_of_images_for_predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it names images by paths relative to another folder."""
    monkeypatch.chdir(tmp_path)
    sizes = write_images(Path("source"), 2, ("a.jpg", "ü b.jpg"))
    results = random_results(Path("source"), sizes, 3)
    results.append(ImageResult(2, "https://example.org/c.jpg", {**(results[0].image or {})}))
    for result in results:
        result.image["review"] = {"count": 1, "detections": [reason("cat", 0.4)]}  # type: ignore[index]
    write_outputs(results, (REVIEW,), target(Path("out"), review=(0.2, 0.5)))
    lines = Path("out/review.txt").read_text().splitlines()
    assert lines == [str(tmp_path / "source/a.jpg"), str(tmp_path / "source/ü b.jpg"), "https://example.org/c.jpg"]
    Path("out/some.txt").write_text("\n".join(lines[:2]))
    assert [image.path.is_file() for image in find_images(["out/some.txt"])] == [True, True]
