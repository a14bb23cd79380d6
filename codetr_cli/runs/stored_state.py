"""What a training state may hold: types and ranges, checked when it is read.

Whether it fits the network and the optimizer is checked where it is restored.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from codetr_cli.errors import CheckpointError
from codetr_cli.reading import check_counts

MAX_PROCESSES = 1 << 16
MAX_STEPS = 1 << 40
MAX_ITEMS = 100_000  # of a state; a large network has 10,000

Count = Annotated[int, Field(ge=0, le=MAX_STEPS)]
Positive = Annotated[int, Field(ge=1, le=MAX_PROCESSES)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Segment = Annotated[tuple[Positive, Positive, Count, Count | None], Field(strict=False)]


class _Table(BaseModel):
    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True, extra="ignore")


class _Progress(_Table):
    """`training.progress.Progress` as it is stored."""

    model_config = ConfigDict(extra="forbid")

    step: Count = 0
    epoch: Count = 0
    batch: Count = 0
    segments: list[Segment] = Field([], max_length=MAX_PROCESSES)
    best: Finite = -1.0
    evaluated_step: Annotated[int, Field(ge=-1, le=MAX_STEPS)] = -1
    fruitless: Count = 0
    bad_steps: Count = 0
    other_order: Annotated[tuple[Count, Count], Field(strict=False)] | None = None
    parts: Positive = 1
    recompute: bool = False


class _Group(_Table):
    params: list[Count]


class _Optimizer(_Table):
    state: dict[Count, dict[str, Tensor | Finite | None]] = {}
    param_groups: list[_Group] = []


class _Parts(_Table):
    weights: bool


class _Random(_Table):
    """`runtime.rng.random_states`."""

    torch: Tensor
    numpy: Annotated[list[Any], Field(min_length=5, max_length=5)]
    python: Annotated[list[Any], Field(min_length=3, max_length=3)]
    cuda: Tensor | None = None


class _State(_Table):
    step: Count
    position: _Progress = _Progress()
    world_size: Positive = 1
    micro_batch: Positive = 1
    optimizer: _Optimizer = _Optimizer()
    scaler: dict[str, Finite] = {}
    randomness: list[_Random] = Field([], max_length=MAX_PROCESSES)
    weights: dict[str, Tensor] | None = None
    parts: _Parts | None = None


def check_state(state: Any) -> dict[str, Any]:
    """The state, once types and ranges of its entries are right; entries that are missing are found when they are used.

    Raises:
        CheckpointError: a value is not what a training writes.
    """
    try:
        _check_counts(state)
    except ValueError as error:
        raise CheckpointError(f"the state is not what a training writes: {error}") from None
    try:
        parsed = _State.model_validate(state)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the state"
        raise CheckpointError(f"{where[:80]} is not what a training writes: {first['msg'][:200]}") from None
    if "position" in state and parsed.position.step != parsed.step:
        raise CheckpointError("position.step is another one than step")
    checked: dict[str, Any] = state
    return checked


def _check_counts(state: Any) -> None:
    """Refuses more items than a training has; the numbers of random states are not counted.

    Raises:
        ValueError: says of what there is too much.
    """
    rest = state
    if isinstance(state, dict) and isinstance(states := state.get("randomness"), list):
        if len(states) > MAX_PROCESSES:
            raise ValueError(f"it has {len(states):,} random states, and the limit is {MAX_PROCESSES:,}")
        rest = {key: value for key, value in state.items() if key != "randomness"}
    check_counts(rest, items=MAX_ITEMS, total=MAX_ITEMS, text=MAX_ITEMS)
