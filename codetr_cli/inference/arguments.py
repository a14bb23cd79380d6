"""Arguments of the Python API: what is wrong is an error that names the argument, its value and what is allowed.

Errors from below are written for the command line; `for_python` words their advice for callers of the API.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from codetr_cli.annotations.annotation_json import ID
from codetr_cli.errors import ArgumentError, CodetrError, ConfigError, nearest, shown
from codetr_cli.inference.options import NO_TILES, TileOptions

NMS_KINDS = ("none", "hard", "soft")
PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")

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
