"""Arguments of the Python API: what is wrong is an error that names the argument, its value and what is allowed.

Errors from below are written for the command line; `for_python` words their advice for callers of the API.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from codetr_cli.annotations.annotation_json import ID
from codetr_cli.errors import ArgumentError, CodetrError, ConfigError, nearest, shown
from codetr_cli.images.decoder import MAX_PIXELS, BrokenImageError, decode_image, read_image
from codetr_cli.images.large_images import open_regions
from codetr_cli.images.pixels import PixelError, rgb_of_inks, to_rgb
from codetr_cli.images.regions import ArrayRegions, ImageRegions
from codetr_cli.inference.options import NO_TILES, TileOptions

NMS_KINDS = ("none", "hard", "soft")
PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes of 16-bit grey."""

ORIENTATION = 0x0112
"""EXIF's tag."""
_SETTINGS = re.compile(r"--set [\w.]+=\S+(?: --set [\w.]+=\S+)*")
_WORDS = (
    (re.compile(r"run `codetr download ([\w.]+)`"), r"download the weights of \1 first"),
    (re.compile(r"for the manual download, see `codetr download ([\w.]+)`"), r"download those of \1 by hand"),
    (re.compile(r"`codetr train` writes them .*$"), "Give a .safetensors file, a run folder, or a published .pth file"),
    (re.compile(r"; `codetr [^`]*` compares all of them"), ""),
    (re.compile(r"--device (\w+(?::\d+)?)"), r'device="\1"'),
    (re.compile(r"--precision (\w+)"), r'precision="\1"'),
    (re.compile(r"(?:,? with|: choose one with)? --preset(?: [\w.]+)?"), ""),
    (re.compile(r" with --url"), ""),
    (re.compile(r"--license ([\w.-]+)"), r'license="\1"'),
    (re.compile(r"(?:with )?--force"), "with force=True"),
    (re.compile(r"--set"), "overrides"),
)


class ImageError(BrokenImageError, ArgumentError):
    """An image file that cannot be read, as an argument."""


def for_python(text: str) -> str:
    """A message with the arguments of the API in place of options of the command line."""
    text = _SETTINGS.sub(lambda found: f"overrides={[*_split(found[0])]}", text)
    for pattern, words in _WORDS:
        text = pattern.sub(words, text)
    return text


def _split(options: str) -> Iterator[str]:
    for word in options.split():
        if word != "--set":
            yield word.rstrip(".,;:")


@contextmanager
def worded_for_python() -> Iterator[None]:
    """Inside, errors have the words of `for_python`, and those of usage are an `ArgumentError`."""
    try:
        yield
    except ArgumentError:
        raise
    except ConfigError as error:
        raise ArgumentError(for_python(str(error))) from error
    except CodetrError as error:
        error.args = (for_python(str(error)), *error.args[1:])
        raise


def check_score(score: Any, name: str = "score") -> float:
    """The lowest score to keep.

    Args:
        score: its value.
        name: of the argument.

    Raises:
        ArgumentError: it is no number in [0, 1].
    """
    if isinstance(score, bool | np.bool_) or not isinstance(score, Real) or not 0 <= float(score) <= 1:
        percent = isinstance(score, Real) and not isinstance(score, bool) and 1 < float(score) <= 100
        hint = f"; {float(score):g} per cent are {float(score) / 100:g}" if percent else ""
        raise ArgumentError(f"{name}={shown(score)}: it is a number from 0 to 1{hint}")
    return float(score)


def check_class_scores(scores: Any, class_names: Sequence[str]) -> dict[str, float]:
    """The lowest scores of some classes by name.

    Raises:
        ArgumentError: they are no table of classes and numbers in [0, 1].
    """
    if scores is None:
        return {}
    if not isinstance(scores, Mapping):
        raise ArgumentError(f'class_scores={shown(scores)}: it is a table of scores by class, e.g. {{"person": 0.5}}')
    for name in scores:
        if name not in class_names:
            hint = f"; {nearest(name, list(class_names))}" if isinstance(name, str) else ""
            raise ArgumentError(f"class_scores has {shown(name)}: there is no such class{hint}")
    return {name: check_score(score, f"class_scores[{shown(name)}]") for name, score in scores.items()}


def check_count(name: str, count: Any, otherwise: str) -> int | None:
    """A number of things, or None.

    Args:
        name: of the argument.
        count: its value.
        otherwise: what None stands for, a phrase.

    Raises:
        ArgumentError: it is neither None nor a whole number from 1.
    """
    if count is None:
        return None
    if isinstance(count, bool | np.bool_) or not isinstance(count, Integral) or count < 1:
        raise ArgumentError(f"{name}={shown(count)}: it is a whole number from 1, or None: {otherwise}")
    return int(count)


def check_images(images: Any) -> None:
    """Checks that an argument is several images.

    Raises:
        ArgumentError: it is one image, or nothing that can be iterated over.
    """
    is_one = isinstance(images, str | bytes | os.PathLike | Image.Image) or getattr(images, "ndim", 4) < 4
    if is_one or not isinstance(images, Iterable):
        raise ArgumentError(f"images={shown(images)}: it is a list or iterator of images; `predict` takes a single one")


def check_tiles(tiles: Any) -> TileOptions | None:
    """How large images are cut.

    Raises:
        ArgumentError: it is neither None, options, nor a text that describes a size.
    """
    if tiles is None or isinstance(tiles, TileOptions):
        return tiles
    if tiles == NO_TILES:
        return None
    if not isinstance(tiles, str):
        raise ArgumentError(
            f'tiles={shown(tiles)}: it is a text such as "1024x1024", "auto" or "none", TileOptions, or None'
        )
    with worded_for_python():
        return TileOptions.parse(tiles)


def check_word(name: str, word: Any, choices: Sequence[str]) -> Any:
    """An argument that is one of some words.

    Raises:
        ArgumentError: it is not.
    """
    if not isinstance(word, str) or word not in choices:
        known = ", ".join(map(repr, choices))
        guess = f" ({nearest(word, list(choices))})" if isinstance(word, str) else ""
        raise ArgumentError(f"{name}={shown(word)}: it is one of {known}{guess if 'did you' in guess else ''}")
    return word


def check_pixels(name: str, value: Any, limit: int) -> int | None:
    """An argument that is a number of pixels, or None for a default.

    Raises:
        ArgumentError: it is neither None nor a whole number from 1 to the limit.
    """
    if value is None:
        return None
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral) or not 1 <= int(value) <= limit:
        raise ArgumentError(f"{name}={shown(value)}: it is a whole number of pixels from 1 to {limit:,}, or None")
    return int(value)


def check_size(name: str, size: Any) -> tuple[int, int]:
    """An argument that is the (height, width) of an image.

    Raises:
        ArgumentError: it is no pair of whole numbers from 1.
    """
    sides = list(size) if isinstance(size, Sequence | np.ndarray) and not isinstance(size, str) else []
    numbers = [side for side in sides if isinstance(side, Integral) and not isinstance(side, bool | np.bool_)]
    if len(numbers) != len(sides) or len(sides) != 2 or min(numbers) < 1:
        raise ArgumentError(f"{name}={shown(size)}: it is (height, width) in whole pixels from 1")
    return int(sides[0]), int(sides[1])


def check_flag(name: str, value: Any) -> None:
    """Checks an argument that is true or false.

    Raises:
        ArgumentError: it is something else.
    """
    if not isinstance(value, bool | np.bool_):
        raise ArgumentError(f"{name}={shown(value)}: it is True or False")


def check_overrides(overrides: Any) -> list[str]:
    """The overrides as a list.

    Raises:
        ArgumentError: they are no list of texts; a single text is none.
    """
    if isinstance(overrides, str | bytes) or not isinstance(overrides, Sequence):
        raise ArgumentError(f'overrides={shown(overrides)}: it is a list of texts, e.g. ["test.short_side=640"]')
    if wrong := [item for item in overrides if not isinstance(item, str)]:
        raise ArgumentError(f'overrides has {shown(wrong[0])}: it is a list of texts, e.g. ["test.short_side=640"]')
    return list(overrides)


def check_device(device: Any) -> str:
    """The name of a device; "cpu" of the CPU with a number, too, which PyTorch accepts.

    Raises:
        ArgumentError: it is no text or device.
    """
    if not isinstance(device, str | torch.device):
        raise ArgumentError(f'device={shown(device)}: it is a text such as "auto", "cpu" or "cuda:1"')
    return "cpu" if str(device) == "cpu:0" else str(device)


def check_image_id(image_id: Any) -> int:
    """The id of an image in COCO's format.

    Raises:
        ArgumentError: it is no whole number of at most 64 bits.
    """
    is_number = isinstance(image_id, Integral) and not isinstance(image_id, bool | np.bool_)
    if not is_number or not ID.low <= int(image_id) <= ID.high:
        raise ArgumentError(f"image_id={shown(image_id)}: it is {ID.words}")
    return int(image_id)


def check_path(path: Any) -> str | Path:
    """The path of a checkpoint.

    Raises:
        ArgumentError: it is no path, or empty.
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ArgumentError(f"path={shown(path)}: it is the path of a checkpoint or run folder, a URL, or a preset")
    return path if isinstance(path, str | Path) else Path(os.fsdecode(path))


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
