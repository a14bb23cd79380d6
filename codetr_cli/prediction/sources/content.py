"""The pixels of an image that is not a file of its own: a member of an archive, or at an address."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from codetr_cli.errors import CodetrError
from codetr_cli.images.decoder import BrokenImageError, decode_image
from codetr_cli.images.image_header import BYTES_PER_PIXEL, MAX_EXTRA_BYTES
from codetr_cli.prediction.sources.input_list import InputImage
from codetr_cli.prediction.sources.remote import RemoteError, read_url
from codetr_cli.reading import open_file


def read_content(image: InputImage, *, max_pixels: int) -> bytes:
    """The bytes of an image.

    Args:
        image: not a file of its own.
        max_pixels: decides how many bytes it may have.

    Raises:
        BrokenImageError: they cannot be read, or are too many.
    """
    limit = MAX_EXTRA_BYTES + BYTES_PER_PIXEL * max_pixels
    try:
        if image.url:
            return read_url(image.url, limit=limit, start=image.start, size=image.size if image.member else None)
        if image.size > limit:
            raise RemoteError(f"it has {image.size:,} bytes, and the limit is {limit:,}")
        with open_file(image.path) as archive:
            archive.seek(image.start)
            content = archive.read(image.size)
        if len(content) < image.size:
            raise RemoteError("the archive ends before its last byte")
    except (OSError, CodetrError, RemoteError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise BrokenImageError(f"cannot read image {image.file}: {reason}", image.path, reason) from error
    return content


def read_pixels(image: InputImage, *, max_pixels: int) -> NDArray[np.uint8]:
    """The pixels (H, W, 3) uint8 RGB of an image that is not a file of its own.

    Raises:
        BrokenImageError: it cannot be read, is not an image, or is too large.
    """
    pixels: NDArray[Any] = decode_image(
        read_content(image, max_pixels=max_pixels), image.path, max_pixels=max_pixels, check=""
    )
    return pixels
