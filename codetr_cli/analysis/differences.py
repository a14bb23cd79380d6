"""Differences of two measurements with bootstrap intervals, and a sentence on what can be concluded from them.

The same resamples of the images are used on both sides: what is hard in an image is hard for both, and cancels out.
Shape letters: S resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from codetr_cli.analysis.bootstrap import interval

LEVEL = 0.95
"""Of intervals."""
FEW_IMAGES = 30
"""With fewer images, resamples of them resemble each other too much for an interval of its nominal level."""
MOST_IMAGES = 100.0
"""A difference that would need this many times the images is reported without their number."""

FOUR_OF_FIVE = ((1.960 + 0.842) / 1.960) ** 2
"""Times the images whose interval just reaches zero: with these, 80 % of normal intervals of `LEVEL` are without it."""

Conclusion = Literal["better", "worse", "equal", "unclear", "unknown"]
"""Of the second side: better or worse by more than chance explains; equal in all resamples; unclear; unknown: there is
nothing to measure."""


@dataclass(frozen=True)
class Difference:
    """What the second side has more than the first.

    Attributes:
        first: value of the first side; NaN where there is none.
        second: value of the second side.
        low: start of the interval of the difference; NaN without resamples.
        high: end of the interval.
        p: how often a difference of this size is chance, if there is none (two-sided; from the standard deviation of
            the resamples as that of a normal distribution); NaN without resamples.
        is_good: whether more is better: of AP it is, of errors it is not.
        is_sampled: whether both sides were measured in the same resamples; without an interval nevertheless, there are
            too few images for one.
    """

    first: float
    second: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    is_good: bool = True
    is_sampled: bool = True

    @property
    def value(self) -> float:
        """The difference, `second - first`."""
        return self.second - self.first

    @property
    def conclusion(self) -> Conclusion:
        """What the interval shows of the second side."""
        if math.isnan(self.value):
            return "unknown"
        if math.isnan(self.low):
            return "equal" if self.value == 0 else "unclear"
        if self.low == self.high == 0 == self.value:
            return "equal"
        if self.low <= 0 <= self.high:
            return "unclear"
        return "better" if (self.low > 0) == self.is_good else "worse"


def paired_difference(
    first: float,
    second: float,
    first_samples: NDArray[np.float64],
    second_samples: NDArray[np.float64],
    *,
    is_good: bool = True,
) -> Difference:
    """The difference of two values with the interval of its resamples.

    Args:
        first: of the first side, measured on all images; NaN where there is nothing to measure.
        second: of the second side.
        first_samples: (S,) the same of each resample; NaN where a resample has nothing to measure.
        second_samples: (S,) of the same resamples.
        is_good: as of `Difference`.
    """
    if math.isnan(first) or math.isnan(second):
        return Difference(math.nan, math.nan, is_good=is_good)
    found = second_samples - first_samples
    found = found[np.isfinite(found)]
    if len(found) < 2:
        return Difference(first, second, is_good=is_good)
    low, high = interval(found, LEVEL)
    return Difference(first, second, low, high, _chance(second - first, float(found.std(ddof=1))), is_good)


def _chance(value: float, deviation: float) -> float:
    """How often a normal variable with this standard deviation is farther from zero than the value."""
    if deviation == 0:
        return 1.0 if value == 0 else 0.0
    return math.erfc(abs(value) / deviation / math.sqrt(2))


def clear_after_holm(chances: Sequence[float], level: float = 1 - LEVEL) -> list[bool]:
    """Which of many differences are no chance, by Holm's method: one wrong "yes" among all has the probability `level`.

    Args:
        chances: p of each; NaN: never clear, and not counted.
        level: the probability.
    """
    known = sorted((p, index) for index, p in enumerate(chances) if not math.isnan(p))
    clear = [False] * len(chances)
    for rank, (p, index) in enumerate(known):
        if p > level / (len(known) - rank):
            break
        clear[index] = True
    return clear


def images_needed(difference: Difference, images: int) -> int | None:
    """About how many images would show an unclear difference in four of five cases, if it is real.

    Returns:
        None: not known, or far too many.
    """
    half = (difference.high - difference.low) / 2
    if difference.conclusion != "unclear" or not half > 0 or difference.value == 0:
        return None
    # With as many images as make the half width equal to the value, the interval would contain zero every second time.
    factor = FOUR_OF_FIVE * (half / abs(difference.value)) ** 2
    # The interval contains zero, and may do so even with a half width below the value, as it need not be symmetric.
    return None if factor > MOST_IMAGES else round_up(max(factor, 1.1) * images)


def round_up(number: float) -> int:
    """The next whole number with two significant digits."""
    unit = 10 ** max(math.floor(math.log10(max(number, 1))) - 1, 0)
    return math.ceil(round(number / unit, 6)) * unit


def sentence(difference: Difference, images: int, *, first: str = "A", second: str = "B", metric: str = "AP") -> str:
    """The conclusion for a reader, in points from 0 to 100.

    Args:
        difference: of values in [0, 1].
        images: that it was measured on.
        first: name of the first side.
        second: name of the second side.
        metric: what was measured.
    """
    on = f"on {images:,} image{'' if images == 1 else 's'}"
    conclusion = difference.conclusion
    if conclusion == "unknown":
        return f"No verdict: {on} there is no object to find, so there is no {metric}."
    if conclusion == "equal":
        return f"No difference: {first} and {second} have the same {metric}, {100 * difference.first:.1f}, {on}."
    digits = _digits(
        [difference.value] if conclusion == "unclear" else [difference.value, difference.low, difference.high]
    )
    by = f"{100 * abs(difference.value):.{digits}f} {metric}"
    place = f"{second} is {by} {'above' if difference.value > 0 else 'below'} {first}"
    if not difference.value:
        place = f"{second} has the {metric} of {first}"
    if math.isnan(difference.low) and not difference.is_sampled:
        return f"No verdict: {place}, {on}; without the detections there is no interval of the difference."
    if math.isnan(difference.low):
        return f"No verdict: {place}, {on}, too few to exclude chance."
    bounds = [100 * difference.low, 100 * difference.high]
    if conclusion == "worse":
        bounds = sorted(abs(bound) for bound in bounds)
    low, high = (f"{round(bound, digits) + 0.0:.{digits}f}" for bound in bounds)  # + 0.0: no "-0.0"
    if conclusion == "unclear":
        return f"No clear difference: {place}, 95 % interval {low} to {high}, {on}."
    return f"{second} is {conclusion} than {first} by {by}, 95 % interval {low} to {high}, {on}."


def _digits(values: Sequence[float]) -> int:
    """Digits behind the point of values in points: one, or as many as show that none of them is zero."""
    smallest = min((100 * abs(value) for value in values if value and math.isfinite(value)), default=1.0)
    return next((digits for digits in (1, 2, 3) if round(smallest, digits) > 0), 4)
