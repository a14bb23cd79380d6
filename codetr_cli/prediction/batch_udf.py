"""A detector as a function of batches of rows, for Ray Data and Spark: they divide the work, this detects.

Rows have an image each: its pixels, the bytes of its file, a path or an address. Each row comes back with the columns
`height`, `width`, `detections` (as in the Parquet files of `codetr predict`) and `error`, which says why an image
cannot be read; such an image does not end the job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codetr_cli.errors import ArgumentError, CodetrError, listed
from codetr_cli.images.decoder import BrokenImageError, decode_image, read_image
from codetr_cli.images.large_images import open_regions
from codetr_cli.inference.arguments import check_tiles
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.given_pixels import to_pixels
from codetr_cli.inference.options import NO_TILES, DetectOptions, Nms, TileOptions
from codetr_cli.inference.prediction import Prediction
from codetr_cli.inference.stream import detect_stream
from codetr_cli.prediction.parquet import detections_type, import_pyarrow
from codetr_cli.prediction.shards import DETECTION_KEYS
from codetr_cli.prediction.sources.content import read_pixels
from codetr_cli.prediction.sources.input_list import InputImage
from codetr_cli.weights.urls import is_url

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow

IMAGE_COLUMNS = ("image", "bytes", "content", "path", "file", "file_name", "url", "uri", "item")
"""Usual names of the column of the images; the first one that a batch has counts."""
SPARK_RESULT = (
    "height int, width int, detections array<struct<bbox: array<double>, score: double, category_id: bigint, "
    "category_name: string, segmentation: struct<size: array<int>, counts: string>, mask_score: double>>, error string"
)
"""The columns that are added, in the notation of Spark's schemas."""


class DetectorUDF:
    """Detects the objects in batches of rows; the network is loaded once, when an object is made.

    Example:
        import ray
        from codetr_cli.prediction.batch_udf import DetectorUDF

        images = ray.data.read_parquet("s3://bucket/images/")  # with a column `url`
        detected = images.map_batches(
            DetectorUDF,
            fn_constructor_kwargs={"checkpoint": "model.safetensors", "column": "url", "score": 0.5},
            batch_size=64,
            num_gpus=1,
            compute=ray.data.ActorPoolStrategy(size=8),
        )
        detected.write_parquet("s3://bucket/detections/")

    Args:
        checkpoint: as of `Detector.load`.
        column: of the images: arrays (H, W, 3) uint8 RGB, bytes of image files, paths or addresses; None: a usual one.
        score: minimum score.
        max_dets: most detections per image; None: as in the settings.
        nms: another NMS than the settings'.
        tiles: as of `Detector.predict`.
        keep_images: whether pixels and bytes of images come back, too; paths and addresses always do.
        device: as of `Detector.load`.
        precision: as of `Detector.load`.
        overrides: settings as `key=value`.

    Raises:
        CodetrError: as of `Detector.load`.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        *,
        column: str | None = None,
        score: float = 0.3,
        max_dets: int | None = None,
        nms: Nms | None = None,
        tiles: TileOptions | str | None = None,
        keep_images: bool = False,
        device: str = "auto",
        precision: str = "auto",
        overrides: Sequence[str] = (),
    ) -> None:
        self.detector = Detector.load(checkpoint, device, precision, overrides=overrides)
        self._options = DetectOptions(
            score=score, max_dets=max_dets, nms=nms, tiles=check_tiles(tiles), whole_images=tiles == NO_TILES
        )
        self._column, self._keep_images = column, keep_images

    def __call__(self, batch: Mapping[str, Any] | pd.DataFrame | pyarrow.Table) -> pyarrow.Table:
        """The rows of a batch with their detections.

        Args:
            batch: columns of equal lengths, as Ray gives them in any `batch_format`.

        Returns:
            an Arrow table, whose types do not depend on what was detected.

        Raises:
            ArgumentError: there is no column of images.
            ResourceError: pyarrow is not installed.
        """
        arrow = import_pyarrow()
        columns = _columns(batch)
        column = self._image_column(columns)
        rows = list(self.detect(columns[column]))
        kept = {name: values for name, values in columns.items() if name != column or self._keeps(values)}
        table = {name: _listed(values) for name, values in kept.items()}
        found = {name: [row[name] for row in rows] for name in ("height", "width", "detections", "error")}
        types = {"height": arrow.int32(), "width": arrow.int32(), "detections": detections_type(arrow)}
        arrays = {name: arrow.array(values) for name, values in table.items()}
        arrays |= {name: arrow.array(values, types.get(name, arrow.string())) for name, values in found.items()}
        return arrow.table(arrays)

    def detect(self, images: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """What is added to the row of each image.

        Args:
            images: pixels, bytes, paths or addresses.
        """
        return detect_stream(
            self.detector, images, self._options, read=self._read, finish=self._finish, failed=self._failed
        )

    def _image_column(self, columns: Mapping[str, Any]) -> str:
        wanted = IMAGE_COLUMNS if self._column is None else (self._column,)
        for name in wanted:
            if name in columns:
                return name
        names = listed(list(columns), 12)
        raise ArgumentError(f"column={self._column!r}: no column of a batch has the images; there are: {names}")

    def _keeps(self, values: Sequence[Any]) -> bool:
        return self._keep_images or all(value is None or isinstance(value, str) for value in values)

    def _read(self, image: Any) -> Any:
        """The pixels of an image; with tiles the regions of a file, which need not be in memory."""
        max_pixels = self.detector.loaded.settings.data.max_pixels
        if isinstance(image, bytes | bytearray | memoryview):
            return decode_image(bytes(image), "bytes", max_pixels=max_pixels, check="")
        if isinstance(image, str) and is_url(image):
            return read_pixels(InputImage(Path("image"), "image", 1, url=image), max_pixels=max_pixels)
        if isinstance(image, str):
            read = read_image if self.detector.tiles_of(self._options) is None else open_regions
            return read(image, max_pixels=max_pixels)
        try:
            return to_pixels(image, max_pixels=max_pixels)
        except CodetrError as error:
            raise BrokenImageError(str(error), reason=str(error)) from error

    def _failed(self, image: Any, error: BrokenImageError) -> dict[str, Any]:
        return {"height": None, "width": None, "detections": [], "error": error.reason}

    def _finish(self, image: Any, pixels: Any, prediction: Prediction, seconds: float) -> dict[str, Any]:
        names = dict(zip(prediction.category_ids.tolist(), prediction.class_names, strict=True))
        detections = [
            {key: value for key, value in ({**record, "category_name": names[record["category_id"]]}).items()
             if key in DETECTION_KEYS}
            for record in prediction.to_coco(0)
        ]  # fmt: skip
        height, width = prediction.image_size
        return {"height": height, "width": width, "detections": detections, "error": None}


def map_in_pandas(checkpoint: str | Path, **options: Any) -> Callable[[Iterator[pd.DataFrame]], Iterator[pd.DataFrame]]:
    """A function for Spark's `mapInPandas`, which loads the network in each task.

    Example:
        from codetr_cli.prediction.batch_udf import SPARK_RESULT, map_in_pandas

        detect = map_in_pandas("/dbfs/model.safetensors", column="url", score=0.5)
        detected = images.select("url").mapInPandas(detect, schema=f"url string, {SPARK_RESULT}")

    Args:
        checkpoint: as of `DetectorUDF`; a path that all workers see.
        options: as of `DetectorUDF`.
    """

    def detect(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        udf = DetectorUDF(checkpoint, **options)
        for batch in batches:
            yield udf(batch).to_pandas()

    return detect


def _columns(batch: Any) -> dict[str, Sequence[Any]]:
    """The columns of a batch of any kind."""
    if isinstance(batch, Mapping):
        return dict(batch)
    if hasattr(batch, "column_names"):  # Arrow
        return {name: batch.column(name).to_pylist() for name in batch.column_names}
    return {str(name): batch[name].tolist() for name in batch.columns}


def _listed(values: Sequence[Any]) -> list[Any]:
    """The values of a column as Arrow takes them."""
    return [value.tolist() if isinstance(value, np.ndarray | np.generic) else value for value in values]
