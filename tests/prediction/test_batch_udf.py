"""Batches of rows through a detector, without and with Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from codetr_cli.config.schema import Settings
from codetr_cli.errors import ArgumentError
from codetr_cli.images import large_images
from codetr_cli.inference.detector import Detector
from codetr_cli.prediction.batch_udf import SPARK_RESULT, DetectorUDF, map_in_pandas
from tests.inference.fakes import write_checkpoint

pytest.importorskip("pyarrow", reason="pyarrow is not installed")


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_settings: Settings) -> Path:
    return write_checkpoint(tmp_path / "model.safetensors", tiny_settings)


@pytest.fixture
def udf(checkpoint: Path) -> DetectorUDF:
    return DetectorUDF(checkpoint, score=0.0, max_dets=3, device="cpu")


@pytest.fixture
def photos(tiny_coco: Path) -> list[Path]:
    return sorted((tiny_coco / "val2017").glob("*.jpg"))


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_rows_have_the_detections_of_a_detector(udf: DetectorUDF, checkpoint: Path, photos: list[Path]):
    table = udf({"id": np.arange(2), "path": np.array([str(photo) for photo in photos], object)})
    assert table.column_names == ["id", "path", "height", "width", "detections", "error"]
    detector = Detector.load(checkpoint, "cpu")
    for row, photo in zip(table.to_pylist(), photos, strict=True):
        expected = detector.predict(photo, score=0.0, max_dets=3)
        assert (row["height"], row["width"], row["error"]) == (*expected.image_size, None)
        assert [found["category_name"] for found in row["detections"]] == expected.class_names
        records = expected.to_coco(0)
        assert [found["bbox"] for found in row["detections"]] == [record["bbox"] for record in records]
        assert [found["score"] for found in row["detections"]] == [record["score"] for record in records]


def test_large_images_in_tiles(checkpoint: Path, photos: list[Path]):
    udf = DetectorUDF(checkpoint, score=0.0, tiles="64x48", device="cpu")
    rows = udf({"path": [str(photo) for photo in photos]}).to_pylist()
    for row, photo in zip(rows, photos, strict=True):
        expected = udf.detector.predict(photo, score=0.0, tiles="64x48")
        assert [found["score"] for found in row["detections"]] == [each["score"] for each in expected.to_coco(0)]


def test_files_are_read_in_parts_with_tiles(checkpoint: Path, tmp_path: Path, monkeypatch):
    """An image that is too large to be decoded whole."""
    pytest.importorskip("rasterio")
    monkeypatch.setattr(large_images, "WHOLE_PIXELS", 1000)
    file = tmp_path / "a.tif"
    Image.new("RGB", (110, 90)).save(file)
    udf = DetectorUDF(checkpoint, tiles="64x48", device="cpu", overrides=["data.max_pixels=2000"])
    (row,) = udf({"path": [str(file)]}).to_pylist()
    assert (row["height"], row["width"], row["error"]) == (90, 110, None)


def test_images_of_all_kinds_in_batches_of_all_kinds(udf: DetectorUDF, photos: list[Path]):
    import pyarrow

    contents = [photo.read_bytes() for photo in photos]
    expected = udf({"path": [str(photo) for photo in photos]}).column("detections")
    found = [
        udf({"bytes": np.array(contents, object)}),
        udf(pyarrow.table({"bytes": contents, "label": ["a", "b"]})),
    ]
    assert [table.column("detections") for table in found] == [expected] * 2
    assert found[0].column_names == ["height", "width", "detections", "error"]
    arrays = [pixels_of(photo) for photo in photos]
    rows = udf({"image": arrays, "other": np.zeros((2, 2))})
    assert rows.column("other").to_pylist() == [[0.0, 0.0]] * 2
    assert [len(each) for each in rows.column("detections").to_pylist()] == [3, 3]


def test_images_that_cannot_be_read_have_an_error_and_the_same_types(udf: DetectorUDF, photos: list[Path]):
    good = udf({"path": [str(photo) for photo in photos]})
    bad = udf({"path": ["gone.jpg", None, "s4://a/b.jpg"]})
    assert bad.schema == good.schema
    gone, nothing, unknown = bad.to_pylist()
    assert (gone["detections"], gone["error"], gone["height"]) == ([], "no such file", None)
    assert nothing["error"]
    assert "is no address of images" in unknown["error"]
    assert udf({"bytes": [b"", b"text"]}).column("error").null_count == 0


def test_columns_of_images(udf: DetectorUDF, checkpoint: Path, photos: list[Path]):
    with pytest.raises(ArgumentError, match="no column of a batch has the images; there are: a, b"):
        udf({"a": [1], "b": [2]})
    named = DetectorUDF(checkpoint, column="mine", device="cpu", keep_images=True)
    table = named({"mine": [photos[0].read_bytes()], "path": ["x"]})
    assert table.column_names[:2] == ["mine", "path"]
    with pytest.raises(ArgumentError, match="column='mine'"):
        named({"path": ["x"]})


def test_spark(checkpoint: Path, photos: list[Path]):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    detect = map_in_pandas(checkpoint, column="path", score=0.0, max_dets=3, device="cpu")
    frames = [pandas.DataFrame({"path": [str(photo)]}) for photo in photos]
    found = list(detect(iter(frames)))
    assert [frame["path"][0] for frame in found] == [str(photo) for photo in photos]
    assert [len(frame["detections"][0]) for frame in found] == [3, 3]
    columns = [name.split()[0] for name in ("path string, " + SPARK_RESULT).split(", ") if ":" not in name]
    assert [name for name in found[0].columns if name != "detections"] == columns


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray
def test_ray(checkpoint: Path, photos: list[Path]):
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    pytest.importorskip("ray.data", reason="Ray Data is not installed")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        rows: list[dict[str, Any]] = [{"path": str(photo)} for photo in [*photos, Path("gone.jpg")]]
        options = {"checkpoint": str(checkpoint), "score": 0.0, "max_dets": 3, "device": "cpu"}
        found = (
            ray.data.from_items(rows)
            .map_batches(
                DetectorUDF,
                fn_constructor_kwargs=options,
                batch_size=2,
                compute=ray.data.ActorPoolStrategy(size=1),
            )
            .take_all()
        )
    finally:
        ray.shutdown()
    assert sorted(row["path"] for row in found) == sorted(row["path"] for row in rows)
    expected = DetectorUDF(**options)({"path": [str(photo) for photo in photos]}).to_pylist()
    by_path = {row["path"]: row for row in found}
    assert [by_path[row["path"]]["detections"] for row in expected] == [row["detections"] for row in expected]
    assert by_path["gone.jpg"]["error"] == "no such file"
