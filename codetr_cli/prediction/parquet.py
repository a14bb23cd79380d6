"""The package that reads and writes Parquet, which is optional."""

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
