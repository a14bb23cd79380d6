"""What tables of settings are made of: their class, and the ranges of their values.

Every number is finite and has limits, and so have texts and lists: settings also come in files of strangers, and none
of them may request work without end. The limits are far beyond what detectors need.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

MAX_TEXT = 4096  # characters: the longest path of Linux
MAX_LIST = 1000
Positive = Annotated[int, Field(gt=0, le=10**12)]
Count = Annotated[int, Field(gt=0, le=10**6)]  # of boxes, regions or images
# Of what no weight depends on and time and memory do, some with the square; published are up to 8,000 and 2,000.
Candidates = Annotated[int, Field(gt=0, le=20_000)]
Kept = Annotated[int, Field(gt=0, le=10_000)]
Layers = Annotated[int, Field(gt=0, le=64)]
Channels = Annotated[int, Field(gt=0, le=2**16)]
Side = Annotated[int, Field(gt=0, le=2**14)]  # in pixels
Std = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def split_words(value: Any) -> Any:
    """Splits comma-separated text into a list; other values stay as they are."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


class Section(BaseModel):
    """A table of settings: unknown keys are errors and values are immutable after validation."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, str_max_length=MAX_TEXT
    )
