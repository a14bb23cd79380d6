"""Image files into arrays: the header decides whether a file is safe to decode, OpenCV decodes it.

OpenCV returns half-grey pictures for truncated files and lets a small file claim gigabytes of pixels, so
`codetr_cli.data.headers` looks first. An EXIF orientation is applied and grey images become three channels.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from codetr_cli.data.headers import ImageFileError, read_header
from codetr_cli.errors import DatasetError

MAX_PIXELS = 100_000_000
"""Default limit of height times width."""


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads an image file of any format that OpenCV reads.

    Args:
        path: the file.
        max_pixels: files that claim more are refused before decoding.

    Returns:
        (h, w, 3) uint8 RGB, upright.

    Raises:
        DatasetError: missing, empty, not an image, truncated or too large; names the file and what to do.
    """
    path = Path(path)
    try:
        header = read_header(path)
        content = path.read_bytes()
    except ImageFileError as error:
        raise DatasetError(f"cannot read image {path}: {error}. {_cure(path)}") from error
    except OSError as error:
        raise DatasetError(f"cannot read image {path}: {error.strerror}. {_cure(path)}") from error
    if header.size is not None:
        _check_pixels(path, header.size, max_pixels)
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    if image is None:
        raise DatasetError(f"cannot decode image {path}: the file is damaged. {_cure(path)}")
    _check_pixels(path, image.shape[:2], max_pixels)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _check_pixels(path: Path, size: tuple[int, ...], max_pixels: int) -> None:
    height, width = size
    if height * width > max_pixels:
        raise DatasetError(
            f"image {path} has {width} x {height} pixels, more than data.max_pixels = {max_pixels}. "
            f"Replace it by a smaller one, or allow it with --set data.max_pixels={height * width}"
        )


def _cure(path: Path) -> str:
    return f"Replace it or remove it from the annotations; `codetr prepare {path.parent.parent}` lists all such files"
