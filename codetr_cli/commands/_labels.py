"""Values of the options that decide which detections become labels: scores, bands of scores, names of classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from codetr_cli.errors import ConfigError

if TYPE_CHECKING:
    from codetr_cli.prediction.labels.options import LabelOptions

DEFAULT_SCORE = 0.3
_NUMBER = re.compile(r"\s*(\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?\s*")


def label_options(
    class_map: str | None, review: str | None, *, outlines: bool = False, crops: bool = False
) -> LabelOptions:
    """The options of these names.

    Raises:
        ConfigError: a value that is none of its option.
    """
    from codetr_cli.prediction.labels.class_map import read_class_map
    from codetr_cli.prediction.labels.options import LabelOptions

    band = band_of(review, "--review")
    names = {} if class_map is None else read_class_map(class_map)
    return LabelOptions(class_map=names, review=band, outlines=outlines, crops=crops)


def scores_of(texts: Sequence[str] | None) -> tuple[float, dict[str, float]]:
    """The lowest score of all classes, and those of single classes by name.

    Args:
        texts: `0.3` or `CLASS=0.4`, as `--score` was given; a name may have `=` in it.

    Raises:
        ConfigError: a score that is no number from 0 to 1, or two of the same class.
    """
    lowest: float | None = None
    scores: dict[str, float] = {}
    for text in texts or ():
        name, equals, value = text.rpartition("=")
        score = _share(value, f"--score {text}")
        name = name.strip()
        if (equals and name in scores) or (not equals and lowest is not None):
            raise ConfigError(f"--score is given twice for {name or 'all classes'}: give one of them")
        if not equals:
            lowest = score
        elif name:
            scores[name] = score
        else:
            raise ConfigError(f"--score {text}: name the class before the =, e.g. --score person=0.4")
    return DEFAULT_SCORE if lowest is None else lowest, scores


def band_of(text: str | None, option: str) -> tuple[float, float] | None:
    """Two scores `LOW:HIGH`; None if the option is not given.

    Raises:
        ConfigError: they are something else.
    """
    if text is None:
        return None
    low, colon, high = text.partition(":")
    example = f"give two scores, e.g. {option} 0.2:0.5"
    if not colon:
        raise ConfigError(f"{option} {text}: {example}")
    band = _share(low, f"{option} {text}"), _share(high, f"{option} {text}")
    if band[0] >= band[1]:
        raise ConfigError(f"{option} {text}: the second score must be larger than the first; {example}")
    return band


def _share(text: str, given: str) -> float:
    """A number from 0 to 1."""
    if _NUMBER.fullmatch(text) is None or not 0 <= float(text) <= 1:
        hint = f"; {float(text):g} per cent are {float(text) / 100:g}" if _is_percent(text) else ""
        raise ConfigError(f"{given}: a score is a number from 0 to 1{hint}")
    return float(text)


def _is_percent(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None and 1 < float(text) <= 100
