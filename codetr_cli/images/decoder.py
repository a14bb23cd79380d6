"""Reads image files: the header decides whether a file is safe to decode, OpenCV decodes it.

OpenCV returns half-grey pictures for truncated files, lets a small file claim gigabytes of pixels and can read EXIF
tags or progressive scans for hours, so `headers` and `decoder_input` check them first.
Every file becomes 8-bit RGB by the rule of `codetr_cli.images.pixels`. An EXIF orientation is applied, in any format;
CMYK and YCCK are converted without a colour profile, which is always ignored; of animations and pages the first is
used.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shlex
import struct
import threading
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from codetr_cli.errors import DatasetError, ResourceError
from codetr_cli.images.decoder_input import decoder_input
from codetr_cli.images.headers import ImageFileError, ImageHeader, header_of, read_header
from codetr_cli.images.image_header import MAX_EXTRA_BYTES
from codetr_cli.images.pixels import PixelError, to_rgb
from codetr_cli.images.tiff_header import plane
from codetr_cli.reading import open_file

OPENCV = tuple(int(part) for part in cv2.__version__.split(".")[:2])

BETTER_BY_PILLOW = ("gif", "webp")
"""OpenCV before 4.13 reads no GIF, and some WebP differently; it rounds the inks of a JPEG differently."""

_FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}
"""What follows the transposition of EXIF orientations from 5 on, or is all for those before: axes as of `cv2.flip`."""

MAX_PIXELS = 100_000_000
"""Default limit of height times width."""


class BrokenImageError(DatasetError):
    """An image file that cannot be read.

    Attributes:
        path: of the file.
        reason: what was found, without the file's name.
        limit_needed: the `data.max_pixels` that would allow it; None where this is not the cause.
        in_parts: tiles would need no such limit.
    """

    def __init__(
        self,
        message: str,
        path: Path = Path(),
        reason: str = "",
        limit_needed: int | None = None,
        in_parts: bool = False,
    ) -> None:
        super().__init__(message)
        self.path, self.reason, self.limit_needed, self.in_parts = path, reason, limit_needed, in_parts

    def advise(self, setting: str, name: str | None = None) -> str:
        """The message for an image that is in no data set.

        Args:
            setting: how the caller changes the limit, `{}` in place of its value.
            name: of the image; None: its path.
        """
        name = str(self.path) if name is None else name
        if self.limit_needed is None:
            return f"cannot read image {name}: {self.reason}"
        tiles = ", predict it with tiles, which are read one by one" if self.in_parts else ""
        return (
            f"cannot read image {name}: it has {self.reason}. Use a smaller one{tiles}, or allow it with "
            f"{setting.format(self.limit_needed)}"
        )


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
    return decode_image(read_file(path, max_pixels=max_pixels, check=check), path, max_pixels=max_pixels, check=check)


def read_file(path: str | Path, *, max_pixels: int = MAX_PIXELS, check: str | None = None) -> bytes:
    """The bytes of an image file; arguments and errors as of `read_image`."""
    path = Path(path)
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_EXTRA_BYTES:  # only its header can allow so much
                _check_pixels(path, read_header(path), max_pixels)
            return file.read(size)
    except ImageFileError as error:
        raise broken_image(path, str(error), check) from error
    except FileNotFoundError as error:
        hint = " (it was written on Windows: use / instead of \\)" if "\\" in path.name and os.sep == "/" else ""
        raise missing_file(path, hint, check) from error
    except OSError as error:
        if error.errno in NOT_THE_FILE:
            raise ResourceError(
                f"cannot read image {path}: {error.strerror}. The file is not the cause: check free memory, the "
                "limit of open files (ulimit -n) and the drive, then run the same command again"
            ) from error
        raise broken_image(path, error.strerror or str(error), check) from error


def decode_image(
    content: bytes, path: str | Path, *, max_pixels: int = MAX_PIXELS, check: str | None = None
) -> np.ndarray:
    """Decodes the bytes of `read_file`; the other arguments, the result and errors are those of `read_image`."""
    path = Path(path)
    try:
        header = header_of(content)
    except ImageFileError as error:
        raise broken_image(path, str(error), check) from error
    _check_pixels(path, header, max_pixels)
    try:
        image = _decode(decoder_input(content, header), header, path)
    except ImageFileError as error:
        raise broken_image(path, str(error), check, "decode") from error
    if image is None:
        raise broken_image(path, "the file is damaged", check, "decode")
    height, width = header.size
    if image.shape != (height, width, 3):
        found = f"{width} x {height} pixels in its header, {image.shape[1]} x {image.shape[0]} decoded"
        raise broken_image(path, found, check, "decode")
    return image


def _decode(content: bytes, header: ImageHeader, path: Path) -> np.ndarray | None:
    """The upright image; None if the file is damaged.

    Raises:
        ImageFileError: its floating-point values are not in [0, 1].
        ResourceError: there is not enough memory.
    """
    if header.format in BETTER_BY_PILLOW and OPENCV < (4, 13):
        decoded = _decode_by_pillow(content, header)
        return decoded if decoded is None else upright(decoded, header.orientation)
    # A JPEG decoder returns RGB itself, bit for bit the same.
    is_jpeg = header.format == "jpeg"
    flags = (cv2.IMREAD_COLOR_RGB if is_jpeg else cv2.IMREAD_COLOR) | cv2.IMREAD_IGNORE_ORIENTATION
    flags = cv2.IMREAD_UNCHANGED if header.as_stored else flags
    try:
        if header.planes > 1:
            image = _decode_planes(content, header.planes)
        else:
            image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise ResourceError(f"not enough memory to decode {path}: lower data.workers or free memory") from error
        return None
    if image is not None and header.as_stored:
        try:
            image = to_rgb(image[:, :, [2, 1, 0]] if image.ndim == 3 and image.shape[2] >= 3 else image)
        except PixelError as error:
            raise ImageFileError("unsupported", str(error)) from error
    elif image is not None and not is_jpeg:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return image if image is None else upright(image, header.orientation)


def _decode_planes(content: bytes, planes: int) -> np.ndarray | None:
    """The blue, green and red channels of a TIFF that has one after the other, or its grey one, as stored."""
    channels = []
    for number in (2, 1, 0) if planes > 2 else (0,):
        channel = cv2.imdecode(np.frombuffer(plane(content, number, planes), np.uint8), cv2.IMREAD_UNCHANGED)
        if channel is None or channel.ndim != 2:
            return None
        channels.append(channel)
    return np.stack(channels, axis=-1)


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """The image after the rotation that an EXIF orientation asks for."""
    if orientation == 1:
        return image
    image = cv2.transpose(image) if orientation >= 5 else image
    return cv2.flip(image, _FLIPS[orientation]) if orientation in _FLIPS else image


def _decode_by_pillow(content: bytes, header: ImageHeader) -> np.ndarray | None:
    """As newer releases of OpenCV decode it: the first frame, with the colours of transparent pixels."""
    # Pillow's limit of pixels belongs to the process and ends in errors of its own; the header was checked by ours.
    with _PILLOW_LOCK:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            with Image.open(io.BytesIO(content), formats=[header.format.upper()]) as image:
                if (image.height, image.width) != header.stored_size:  # a frame that is larger than the canvas
                    return None
                return np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error):
            return None
        finally:
            Image.MAX_IMAGE_PIXELS = limit


_PILLOW_LOCK = threading.Lock()


def missing_file(path: Path, hint: str, check: str | None) -> BrokenImageError:
    """The error for a file that does not exist, with what could help, a phrase in brackets."""
    return broken_image(path, f"no such file{hint}", check)


def broken_image(path: Path, reason: str, check: str | None, verb: str = "read") -> BrokenImageError:
    """The error for a file that cannot be used; `verb` "decode": headers do not show it."""
    command = check or f"`codetr prepare {shlex.quote(str(path.parent.parent))}`"
    if verb == "decode":
        command = re.sub("`([^`]*)`", r"`\1 --deep`", command)
    return BrokenImageError(
        f"cannot {verb} image {path}: {reason}. Replace it or remove it from the annotations; {command} lists all such "
        "files",
        path,
        reason,
    )


def _check_pixels(path: Path, header: ImageHeader, max_pixels: int) -> None:
    if header.limit_needed > max_pixels:
        raise too_large(path, header, max_pixels)


def too_large(path: Path, header: ImageHeader, max_pixels: int, hint: str = "") -> BrokenImageError:
    """The error for an image of more than `max_pixels`, with what else could help, a phrase."""
    found = header.excess(max_pixels) + hint
    return BrokenImageError(
        f"image {path} has {found}. Replace it with a smaller one, or allow it with "
        f"--set data.max_pixels={header.limit_needed}",
        path,
        found,
        header.limit_needed,
        in_parts=header.in_parts and not hint,
    )
