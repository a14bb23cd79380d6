"""Fonts for labels: Pillow's own one, and others of the machine for characters that it has not.

Shaping of scripts such as Arabic or Devanagari is Pillow's, where it was built with Raqm.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from codetr_cli.errors import counted, listed

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PREFERRED = ("notosanscjk", "notosans", "dejavusans", "unifont", "arial", "segoe", "hiragino", "msyh", "simsun")
"""Beginnings of the file names of fonts that are tried first, without case and punctuation."""
MAX_FONTS = 3000
"""Fonts of the machine that are searched."""
OWN = ""
"""Stands for Pillow's own font among the paths of fonts."""
GAP = "\u2002"
"""Separates parts of a text, which are drawn apart: a name and a score, so that both are drawn once for many images."""
MAX_CACHED_PX = 64
"""Largest text that is kept."""
_logger = logging.getLogger(__name__)


def text_patch(text: str, size_px: int) -> NDArray[np.uint8]:
    """A text as opacities (h, w) uint8 without margins at its sides, of the size that `text_size` states.

    Parts between `GAP` are drawn from left to right whatever their script is.
    """
    path = _font_for(text) or OWN
    rows = _rows(text, path, size_px)
    patches = [_patch(part, path, size_px, rows) for part in text.split(GAP)]
    if len(patches) == 1:
        return patches[0]
    gap = np.zeros((rows[1] - rows[0], _gap_px(size_px)), np.uint8)
    return np.concatenate([each for patch in patches for each in (patch, gap)][:-1], axis=1)


def _patch(text: str, path: str, size_px: int, rows: tuple[int, int]) -> NDArray[np.uint8]:
    return (_cached_patch if size_px <= MAX_CACHED_PX else _drawn_patch)(text, path, size_px, rows)


def _drawn_patch(text: str, path: str, size_px: int, rows: tuple[int, int]) -> NDArray[np.uint8]:
    """A text in one font as opacities, with these rows of the font."""
    font = _font(path, size_px)
    left, _, right, _ = font.getbbox(text)
    patch = Image.new("L", (max(round(right - left), 1), rows[1] - rows[0]))
    ImageDraw.Draw(patch).text((-left, -rows[0]), text, fill=255, font=font)
    return np.asarray(patch)


_cached_patch = lru_cache(maxsize=2048)(_drawn_patch)


@lru_cache(maxsize=4096)
def text_size(text: str, size_px: int) -> tuple[int, int]:
    """Width and height of a text in pixels; all texts in Pillow's own font have the same height."""
    path = _font_for(text) or OWN
    boxes = [_font(path, size_px).getbbox(part) for part in text.split(GAP)]
    upper, lower = _rows(text, path, size_px)
    return sum(max(round(box[2] - box[0]), 1) for box in boxes) + (len(boxes) - 1) * _gap_px(size_px), lower - upper


def _gap_px(size_px: int) -> int:
    return max(size_px // 3, 2)


def is_drawable(text: str) -> bool:
    """Whether one font of this machine has all characters of a text."""
    return _font_for(text) is not None


def missing_fonts(names: Iterable[str]) -> str:
    """A sentence on those of some names that no font of this machine can draw; empty without any."""
    missing = [name for name in names if not is_drawable(name)]
    if not missing:
        return ""
    return (
        f"no font of this machine has the characters of {counted(len(missing), 'class name')} ({listed(missing)}): "
        "drawn as category ids. Install one, e.g. Noto Sans"
    )


@lru_cache(maxsize=64)
def _font(path: str, size_px: int) -> Font:
    return ImageFont.load_default(size_px) if path == OWN else ImageFont.truetype(path, size_px)


def _rows(text: str, path: str, size_px: int) -> tuple[int, int]:
    """The rows from the highest to the lowest pixel of usual characters, and of the text if it may have others."""
    _, upper, _, lower = _font(path, size_px).getbbox("Ag|" if path == OWN else f"Ag|{text}")
    return math.floor(upper), math.ceil(lower)


@lru_cache(maxsize=4096)
def _font_for(text: str) -> str | None:
    """The first font that has all characters of a text; None if none has."""
    if text.replace(GAP, "").isascii():
        return OWN
    characters = frozenset(map(ord, text)) - {ord(" "), ord(GAP)}
    if characters <= _own_characters():
        return OWN
    return next((path for path in _fonts() if characters <= _characters(path)), None)


@lru_cache(maxsize=1)
def _own_characters() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    font = ImageFont.load_default(12)
    if not isinstance(font, ImageFont.FreeTypeFont) or font.font_bytes is None:
        return frozenset(range(0x20, 0x7F))
    import io

    return frozenset(FT2Font(io.BytesIO(font.font_bytes)).get_charmap())


@lru_cache(maxsize=1)
def _fonts() -> list[str]:
    """The fonts of Matplotlib and of the machine, those with most characters first as far as their names show."""
    import matplotlib
    from matplotlib.font_manager import findSystemFonts

    shipped = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    found = sorted(findSystemFonts(), key=_preference)
    return [str(shipped), *found[:MAX_FONTS]]


def _preference(path: str) -> tuple[int, str]:
    name = "".join(filter(str.isalnum, Path(path).stem.casefold()))
    rank = next((i for i, beginning in enumerate(PREFERRED) if name.startswith(beginning)), len(PREFERRED))
    is_plain = not any(word in name for word in ("bold", "italic", "oblique", "light", "thin", "mono", "serif"))
    return 2 * rank + (not is_plain), path


@lru_cache(maxsize=MAX_FONTS + 1)
def _characters(path: str) -> frozenset[int]:
    """The characters of a font; none if it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        characters = frozenset(FT2Font(path).get_charmap())
        _font(path, 12)
    except (OSError, RuntimeError, ValueError) as error:
        _logger.debug("font %s: %s", path, error)
        return frozenset()
    return characters
