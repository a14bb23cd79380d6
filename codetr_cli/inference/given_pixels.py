"""Images that Python users give, as pixels: files, PIL images, numpy arrays and tensors, all by the same rules."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from codetr_cli.errors import ArgumentError
from codetr_cli.images.decoder import MAX_PIXELS, BrokenImageError, decode_image, read_image
from codetr_cli.images.large_images import open_regions
from codetr_cli.images.pixels import PixelError, rgb_of_inks, to_rgb
from codetr_cli.images.regions import ArrayRegions, ImageRegions

DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes of 16-bit grey."""
ORIENTATION = 0x0112
"""EXIF's tag."""


class ImageError(BrokenImageError, ArgumentError):
    """An image file that cannot be read, as an argument."""


def to_pixels(image: Any, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """An image of any kind as (H, W, 3) uint8 RGB, upright, by the rule of `images.pixels`.

    Args:
        image: as `Detector.predict` takes it.
        max_pixels: images with more are refused, files before they are decoded.

    Raises:
        ImageError: a file that is missing, damaged, too large or not an image.
        ArgumentError: an image of another shape or type, or with values that are not allowed.
        ResourceError: there is not enough memory, or a drive is not available.
    """
    if isinstance(image, str | os.PathLike):
        if not os.fspath(image):
            raise ArgumentError("image is an empty text: it is the path of an image file")
        with worded_images():
            return read_image(Path(os.fsdecode(image)), max_pixels=max_pixels)
    try:
        if isinstance(image, Image.Image):
            pixels = _of_pillow(image, max_pixels)
        elif isinstance(image, torch.Tensor):
            pixels = _of_tensor(image)
        elif isinstance(image, np.ma.MaskedArray):
            raise PixelError("a masked array has pixels without a value: fill them, e.g. with image.filled(0)")
        elif isinstance(image, np.ndarray):
            pixels = image
        else:
            raise PixelError(
                f"it is a path, a PIL image, a numpy array (H, W, 3) or a torch tensor (3, H, W), not "
                f"{type(image).__name__}"
            )
        _check_count(pixels.shape[:2], max_pixels)
        return to_rgb(pixels)
    except PixelError as error:
        kind = f"{type(image).__module__.partition('.')[0]}.{type(image).__name__}"
        raise ArgumentError(f"image ({kind}): {error}") from error


def to_regions(image: Any, *, max_pixels: int = MAX_PIXELS) -> ImageRegions:
    """An image of any kind, of which parts are read; arguments and errors as of `to_pixels`."""
    if not isinstance(image, str | os.PathLike) or not os.fspath(image):
        return ArrayRegions(to_pixels(image, max_pixels=max_pixels))
    with worded_images():
        return open_regions(Path(os.fsdecode(image)), max_pixels=max_pixels)


@contextmanager
def worded_images() -> Iterator[None]:
    """Errors of image files as those of an argument, with advice for Python."""
    try:
        yield
    except BrokenImageError as error:
        message = error.advise('overrides=["data.max_pixels={}"]')
        raise ImageError(message, error.path, error.reason, error.limit_needed) from error


def _check_count(size: tuple[int, ...], max_pixels: int) -> None:
    if math.prod(size) > max_pixels:
        raise PixelError(
            f"{size[-1]} x {size[0]} pixels, more than data.max_pixels = {max_pixels}: use a smaller one, or allow it "
            f'with overrides=["data.max_pixels={math.prod(size)}"]'
        )


def _of_pillow(image: Image.Image, max_pixels: int) -> NDArray[Any]:
    """The pixels after the rotation that EXIF asks for, as for a file: those of its file, where nothing was changed."""
    _check_count((image.height, image.width), max_pixels)
    if not image.width or not image.height:
        raise PixelError(f"{image.width} x {image.height} has no pixels")
    content = _unread_file(image)
    with suppress(BrokenImageError):  # Pillow reads more formats
        if content is not None:
            return decode_image(content, getattr(image, "filename", ""), max_pixels=max_pixels)
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "I" and image.format == "PNG":  # 16 bits, for older releases of Pillow
            return np.asarray(upright).astype(np.uint16)
        if upright.mode in (*DEEP_MODES, "F"):
            return np.asarray(upright)
        if upright.mode in ("I", "LAB", "HSV"):
            raise PixelError(f"mode {upright.mode} has no fixed range or order of colours: convert it to RGB first")
        if upright.mode == "CMYK":
            return rgb_of_inks(np.asarray(upright))
        if upright.mode in ("La", "RGBa"):
            upright = upright.convert({"La": "LA", "RGBa": "RGBA"}[upright.mode])
        return np.asarray(upright.convert("RGB"))
    except (OSError, SyntaxError, EOFError) as error:
        raise PixelError(f"Pillow cannot decode it: {error}") from error
    except (ValueError, AttributeError) as error:  # what Pillow says of closed images
        if isinstance(error, PixelError):
            raise
        raise PixelError(f"Pillow cannot read its pixels ({error}): was it closed before?") from error


def _unread_file(image: Image.Image) -> bytes | None:
    """The bytes of an opened file whose pixels were not read yet, so that none is changed; None for other images.

    Pillow reduces some depths and colours in other ways than the reader of files.
    """
    file = getattr(image, "fp", None)
    if not isinstance(image, ImageFile.ImageFile) or not image.tile or file is None:
        return None
    try:
        place = file.tell()
        try:
            file.seek(0)
            content = file.read()
        finally:
            file.seek(place)
        with Image.open(io.BytesIO(content), formats=[str(image.format)]) as fresh:
            # Another frame, or a smaller or grey image of a JPEG, may have been chosen.
            is_same = _chosen(image) == _chosen(fresh)
            exif = getattr(image, "_exif", None)
            if is_same and exif is not None:
                is_same = exif.get(ORIENTATION) == fresh.getexif().get(ORIENTATION)
    except (OSError, ValueError, SyntaxError, AttributeError, TypeError, EOFError, Image.DecompressionBombError):
        return None
    return content if is_same else None


def _chosen(image: ImageFile.ImageFile) -> tuple[Any, ...]:
    """What an opened file will be decoded to."""
    tiles = [tuple(tile)[:3] if image.format == "JPEG2000" else tuple(tile) for tile in image.tile]
    return image.mode, image.size, image.tell(), tiles, getattr(image, "_reduce", 0)


def _of_tensor(image: torch.Tensor) -> NDArray[Any]:
    """The pixels (H, W) or (H, W, channels)."""
    if image.is_nested or image.layout != torch.strided or image.is_quantized or image.is_complex():
        kind = "nested" if image.is_nested else f"of type {image.dtype} and layout {image.layout}"
        raise PixelError(f"a tensor {kind} is no image")
    if image.device.type == "meta":
        raise PixelError("a tensor on the device meta has no values")
    if image.ndim not in (2, 3) or (image.ndim == 3 and not 1 <= image.shape[0] <= 4):
        turned = image.ndim == 3 and 1 <= image.shape[2] <= 4
        hint = ": it seems to be (H, W, channels), use image.permute(2, 0, 1)" if turned else ""
        hint = ": give the images of a batch as a list" if image.ndim == 4 else hint
        raise PixelError(f"shape {tuple(image.shape)} is neither (1 to 4, H, W) nor (H, W){hint}")
    image = image.detach().cpu().resolve_conj().resolve_neg()
    if image.is_floating_point():
        image = image.float()
    pixels: NDArray[Any] = (image if image.ndim == 2 else image.permute(1, 2, 0)).numpy()
    return pixels
