"""Detections as Parquet and Arrow have them; the package for it is optional."""

from __future__ import annotations

import importlib
from typing import Any

from codetr_cli.errors import ResourceError


def import_pyarrow() -> Any:
    """The package pyarrow.

    Raises:
        ResourceError: it is not installed.
    """
    try:
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise ResourceError(
            f"Parquet needs the package pyarrow ({error}): pip install 'codetr-cli[parquet]' (or pip install pyarrow)"
        ) from error


def detections_type(arrow: Any) -> Any:
    """The type of a column of detections: a list of structures for each image, with boxes as x, y, width, height."""
    mask = arrow.struct([("size", arrow.list_(arrow.int32())), ("counts", arrow.string())])
    return arrow.list_(
        arrow.struct(
            [
                ("bbox", arrow.list_(arrow.float64())),
                ("score", arrow.float64()),
                ("category_id", arrow.int64()),
                ("category_name", arrow.string()),
                ("segmentation", mask),
                ("mask_score", arrow.float64()),
            ]
        )
    )
