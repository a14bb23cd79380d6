"""Reads image files: the header decides whether a file is safe to decode, OpenCV decodes it.

OpenCV returns half-grey pictures for truncated files and lets a small file claim gigabytes of pixels, so
`codetr_cli.data.headers` checks them first. Every file becomes 8-bit RGB as OpenCV does it: an EXIF orientation is
applied, in any format; grey images get three equal channels; 16-bit values keep the upper 8 bits; CMYK and YCCK are
converted without a colour profile, which is always ignored; alpha is dropped, so that hidden pixels show, but in a TIFF
it darkens; of animations and pages the first is used.
"""

from __future__ import annotations

import errno
import shlex
from pathlib import Path

import cv2
import numpy as np

from codetr_cli.data.headers import ImageFileError, header_of
from codetr_cli.errors import DatasetError, ResourceError

MAX_PIXELS = 100_000_000
"""Default limit of height times width."""


class BrokenImageError(DatasetError):
    """An image file that cannot be read; `reason` is what was found, without the file's name."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


NOT_THE_FILE = frozenset(
    getattr(errno, name, -1) for name in ("EMFILE", "ENFILE", "ENOMEM", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EHOSTDOWN")
)
"""Read errors that are not the file's: a missing resource, or an unavailable network drive."""


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS, check: str | None = None) -> np.ndarray:
    """Reads an image file of any format that OpenCV reads.

    Args:
        path: the file.
        max_pixels: files with more are rejected before decoding.
        check: the command that lists all bad files, for messages; None: of the parent folder of the file's.

    Returns:
        (h, w, 3) uint8 RGB, upright.

    Raises:
        BrokenImageError: missing, empty, not an image, truncated or too large; names the file and what to do.
        ResourceError: the error is not the file's.
    """
    return decode_image(read_file(path, check=check), path, max_pixels=max_pixels, check=check)


def read_file(path: str | Path, *, check: str | None = None) -> bytes:
    """The bytes of an image file; arguments and errors as of `read_image`."""
    path = Path(path)
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise _broken(path, "no such file", check) from error
    except OSError as error:
        if error.errno in NOT_THE_FILE:
            raise ResourceError(
                f"cannot read image {path}: {error.strerror}. The file is not the cause: check free memory, the "
                "limit of open files (ulimit -n) and the drive, then run the same command again"
            ) from error
        raise _broken(path, error.strerror or str(error), check) from error


def decode_image(
    content: bytes, path: str | Path, *, max_pixels: int = MAX_PIXELS, check: str | None = None
) -> np.ndarray:
    """Decodes the bytes of `read_file`; the other arguments, the result and errors are those of `read_image`."""
    path = Path(path)
    try:
        header = header_of(content, path)
    except ImageFileError as error:
        raise _broken(path, str(error), check) from error
    _check_pixels(path, header.size, max_pixels)
    # A JPEG decoder returns RGB itself, bit for bit the same.
    is_jpeg = header.format == "jpeg"
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB if is_jpeg else cv2.IMREAD_COLOR)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise ResourceError(f"not enough memory to decode {path}: lower data.workers or free memory") from error
        image = None
    if image is None:
        raise _broken(path, "the file is damaged", check, "decode")
    _check_pixels(path, image.shape[:2], max_pixels)
    return image if is_jpeg else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _broken(path: Path, reason: str, check: str | None, verb: str = "read") -> BrokenImageError:
    command = check or f"`codetr prepare {shlex.quote(str(path.parent.parent))}`"
    return BrokenImageError(
        f"cannot {verb} image {path}: {reason}. Replace it or remove it from the annotations; {command} lists all such "
        "files",
        reason,
    )


def _check_pixels(path: Path, size: tuple[int, ...], max_pixels: int) -> None:
    height, width = size
    if height * width > max_pixels:
        found = f"{width} x {height} pixels, more than data.max_pixels = {max_pixels}"
        raise BrokenImageError(
            f"image {path} has {found}. Replace it with a smaller one, or allow it with "
            f"--set data.max_pixels={height * width}",
            found,
        )
