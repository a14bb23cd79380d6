"""Results in files of a fixed number of images."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from codetr_cli.errors import ConfigError, ResourceError
from codetr_cli.prediction.inputs import InputImage
from codetr_cli.prediction.outputs import check_formats, result_names, write_outputs
from codetr_cli.prediction.results import ImageResult
from codetr_cli.prediction.targets import OutputTarget
from codetr_cli.result_files import RECORD_NAME
from tests.prediction.image_results import result


@pytest.fixture
def target(tmp_path: Path):
    """Makes a target for so many images."""
    (tmp_path / "scratch").mkdir()

    def make(images: int, **more: Any) -> OutputTarget:
        named: dict[str, Any] = {"request": "a", "force": False, "shard_size": 2, **more}
        return OutputTarget(
            folder=tmp_path,
            scratch=tmp_path / "scratch",
            class_names=["disc", "bar"],
            category_ids=[1, 5],
            images=[InputImage(Path("a", f"{number}.jpg"), f"{number}.jpg", number) for number in range(images)],
            **named,
        )

    return make


RESULTS = [result(0, "disc", "bar"), result(1), result(2, error="it is empty")]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != RECORD_NAME)


def test_an_image_is_a_line_of_a_shard_also_without_detections_or_pixels(target, tmp_path: Path):
    write_outputs(RESULTS, ["jsonl"], target(3))
    assert names(tmp_path) == ["failed.jsonl", *sorted(result_names(["jsonl"], 3, 2))]
    lines = [json.loads(line) for name in names(tmp_path)[1:3] for line in (tmp_path / name).read_text().splitlines()]
    box = {"bbox": [0, 0, 1, 1], "score": 0.5, "category_id": 1}
    size = {"height": 8, "width": 8, "error": None}
    assert lines == [
        {"file": "a/0.jpg", "file_name": "0.jpg", "image_id": 0, **size,
         "detections": [{**box, "category_name": "disc"}, {**box, "category_name": "bar"}]},
        {"file": "a/1.jpg", "file_name": "1.jpg", "image_id": 1, **size, "detections": []},
        {"file": "a/2.jpg", "file_name": "2.jpg", "image_id": 2, "height": None, "width": None,
         "detections": [], "error": "it is empty"},
    ]  # fmt: skip
    assert json.loads((tmp_path / "predictions-jsonl.json").read_text()) == {
        **{"images": 3, "detections": 2, "failed": 1, "shard_size": 2},
        "shards": [
            {"file": "predictions-00000.jsonl", "images": 2, "detections": 2, "failed": 0},
            {"file": "predictions-00001.jsonl", "images": 1, "detections": 0, "failed": 1},
        ],
        "categories": [{"id": 1, "name": "disc"}, {"id": 5, "name": "bar"}],
    }


def test_images_that_cannot_be_read_are_listed_with_reasons_where_there_are_any(target, tmp_path: Path):
    write_outputs(RESULTS, ["coco"], target(3))
    line = {"file": "a/2.jpg", "file_name": "2.jpg", "image_id": 2, "error": "it is empty"}
    assert json.loads((tmp_path / "failed.jsonl").read_text()) == line
    write_outputs(RESULTS, ["coco"], target(3), complete=False)
    assert (tmp_path / "failed.jsonl").exists()
    write_outputs(RESULTS[:2], ["coco"], target(2))
    assert names(tmp_path) == ["predictions.json"]
    (tmp_path / "failed.jsonl").write_text("mine")
    with pytest.raises(ConfigError, match=r"failed\.jsonl"):
        write_outputs(RESULTS, ["coco"], target(3))


def test_parquet_has_the_same_rows(target, tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    masked = result(3, "bar")
    masked.records[0].update(segmentation={"size": [8, 8], "counts": "0"}, mask_score=0.25)
    odd = ImageResult(4, "a/\udce9.jpg", error="no such file")
    write_outputs([*RESULTS, masked, odd], ["jsonl", "parquet"], target(5, shard_size=3))
    lines = [
        json.loads(line)
        for path in sorted(tmp_path.glob("predictions-*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    rows = [row for path in sorted(tmp_path.glob("*.parquet")) for row in parquet.read_table(path).to_pylist()]
    for row in rows:
        for detection in row["detections"]:
            for key in ("segmentation", "mask_score"):
                if detection[key] is None:
                    del detection[key]
    assert rows[:4] == lines[:4]
    assert rows[4]["file"] == "a/\\udce9.jpg"
    assert json.loads((tmp_path / "predictions-parquet.json").read_text())["images"] == 5


def test_a_shard_that_is_not_whole_has_no_name_and_without_all_there_is_no_index(target, tmp_path: Path):
    write_outputs(RESULTS, ["jsonl"], target(3))

    def stopped():
        yield from RESULTS
        raise ResourceError("stopped")

    with pytest.raises(ResourceError):
        write_outputs(stopped(), ["jsonl"], target(3))
    assert "predictions-jsonl.json" not in names(tmp_path)
    assert not any((tmp_path / "scratch").iterdir())
    write_outputs(RESULTS, ["jsonl"], target(3))
    assert "predictions-jsonl.json" in names(tmp_path)


def test_shards_of_a_larger_result_before_are_removed_but_no_file_of_the_user(target, tmp_path: Path):
    write_outputs([result(number) for number in range(8)], ["jsonl"], target(8))
    (tmp_path / "predictions-00003.jsonl").write_text("mine\n")
    (tmp_path / "predictions-00004.jsonl").write_text("mine\n")
    write_outputs(RESULTS[:2], ["jsonl"], target(2, request="b", force=True))
    assert names(tmp_path) == [*(f"predictions-0000{n}.jsonl" for n in (0, 3, 4)), "predictions-jsonl.json"]
    with pytest.raises(ConfigError, match="predictions-00000"):
        write_outputs(RESULTS[:2], ["jsonl"], target(2, request="c"))


def test_formats_have_names(monkeypatch: pytest.MonkeyPatch):
    assert check_formats(["jsonl", "coco", "jsonl"]) == ("jsonl", "coco")
    with pytest.raises(ConfigError, match="did you mean 'jsonl'"):
        check_formats(["jsnl"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ResourceError, match=r"codetr-cli\[parquet\]"):
        check_formats(["parquet"])
