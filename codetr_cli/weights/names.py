"""Translates entry names between published checkpoints and ours, in both directions, with literal tables.

Two published implementations have different names: `mmdet3` is MMDetection 3.3 (projects/CO-DETR), `sensex` is
Sense-X/Co-DETR. Most names are the same in both (`SHARED`, `FAMILIES`); `SPELLINGS` has the names of one publisher. A
name that is in no table is an error.

A new backbone or head is a new table in `SHARED` or in `SPELLINGS`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Generic, Literal, TypeVar

from codetr_cli.errors import CheckpointError, listed
from codetr_cli.weights import tables

Naming = Literal["mmdet3", "sensex"]
T = TypeVar("T")

NAMING_TITLES: dict[Naming, str] = {"mmdet3": "MMDetection 3", "sensex": "Sense-X/Co-DETR"}


def _expanded(names: dict[str, str]) -> dict[str, str]:
    """The table with two rows, `weight` and `bias`, for each name that ends with `*`."""
    return {
        published.replace("*", leaf): ours.replace("*", leaf)
        for published, ours in names.items()
        for leaf in (("weight", "bias") if published.endswith("*") else ("",))
    }


SHARED = _expanded(
    tables.RESNET | tables.SWIN | tables.CHANNEL_MAPPER | tables.TRANSFORMER | tables.AUX_HEADS | tables.MASK_HEADS
)

FAMILIES = {"co_dino": _expanded(tables.CO_DINO), "co_deformable": _expanded(tables.CO_DEFORMABLE)}
"""Names of one family. Both families may have a name for the same entry of ours."""

SPELLINGS: dict[Naming, dict[str, str]] = {
    "mmdet3": _expanded(tables.SWIN_MMDET3 | {"query_head.dn_generator.label_embedding.weight": "label_embed.weight"}),
    "sensex": _expanded(tables.SWIN_SENSEX | tables.VIT | {"query_head.label_embedding.weight": "label_embed.weight"}),
}

SUPPORTED = "Co-DINO or Co-Deformable-DETR with a ResNet, Swin or ViT backbone, with or without masks"

REASON_BATCH_COUNTER = "batch counters of the frozen batch norms"
REASON_ROTARY_TABLE = "rotary embedding tables, which the model computes"
REASON_WINDOW_INDEX = "relative position indices, which the model computes"
REASON_RAW_COPY = "raw weights of weight averaging; the plain names hold the averages"

DROPPED = {
    "backbone.bn1.num_batches_tracked": REASON_BATCH_COUNTER,
    "backbone.layer{}.{}.bn{}.num_batches_tracked": REASON_BATCH_COUNTER,
    "backbone.layer{}.{}.downsample.1.num_batches_tracked": REASON_BATCH_COUNTER,
    "backbone.layers.{}.blocks.{}.attn.relative_position_index": REASON_WINDOW_INDEX,
    "backbone.stages.{}.blocks.{}.attn.w_msa.relative_position_index": REASON_WINDOW_INDEX,
    **dict.fromkeys(tables.ROTARY_TABLES, REASON_ROTARY_TABLE),
}


@dataclass(frozen=True)
class Renamed(Generic[T]):
    """Entries under our names.

    Args:
        naming: the publisher of the entries.
        state: our name -> value, in the order of the file.
        dropped: reason -> published names of the entries that are not needed.
    """

    naming: Naming
    state: dict[str, T]
    dropped: dict[str, list[str]] = field(default_factory=dict)


def rename(entries: Mapping[str, T], naming: Naming | None = None) -> Renamed[T]:
    """Translates published entry names to ours; drops entries that we know we do not need.

    Args:
        entries: published name -> value of any type. A `module.` prefix of all names, from data-parallel training, is
            removed, as the published loaders do.
        naming: the publisher; None detects it.

    Raises:
        CheckpointError: a name is in no table, or two names translate to the same entry.
    """
    if entries and all(name.startswith("module.") for name in entries):
        entries = {name.removeprefix("module."): value for name, value in entries.items()}
    naming = naming or find_naming(entries)
    # mmcv and MMDetection register the second copy of `a.b.c` as the buffer `ema_a_b_c` of the model itself.
    raw_copies = {"ema_" + name.replace(".", "_") for name in entries}
    state: dict[str, T] = {}
    dropped: dict[str, list[str]] = defaultdict(list)
    unknown: list[str] = []
    for name, value in entries.items():
        ours = to_ours(name, naming)
        reason = REASON_RAW_COPY if name in raw_copies else drop_reason(name)
        if ours is not None:
            if ours in state:
                raise CheckpointError(
                    f"two entries translate to {ours}, the second is {name}: this is not a plain checkpoint"
                )
            state[ours] = value
        elif reason is not None:
            dropped[reason].append(name)
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(_unknown_text(unknown, len(state)))
    return Renamed(naming, state, dict(dropped))


def find_naming(names: Iterable[str]) -> Naming:
    """Detects the publisher by the names that only one of them uses; MMDetection if there are none."""
    names = list(names)
    counts = {naming: sum(matches(name, spellings) for name in names) for naming, spellings in SPELLINGS.items()}
    return max(counts, key=lambda naming: counts[naming])


def to_ours(name: str, naming: Naming) -> str | None:
    """Our name of a published entry, or None if it is in no table."""
    return _translate(name, _rules(naming))


def to_published(name: str, naming: Naming, family: str = "co_dino") -> str | None:
    """The published name of one of our entries, or None if it is in no table."""
    return _translate(name, _rules(naming, reverse=True, family=family))


def matches(name: str, templates: Iterable[str]) -> bool:
    """Whether an entry's name matches one of the templates."""
    return any(_pattern(template).fullmatch(name) for template in templates)


def drop_reason(name: str) -> str | None:
    """Why a published entry is not needed; None if it is unknown."""
    return next((reason for template, reason in DROPPED.items() if _pattern(template).fullmatch(name)), None)


def table(naming: Naming, family: str | None = None) -> dict[str, str]:
    """The table of one publisher, for one family or all: published template -> our template."""
    families = FAMILIES.values() if family is None else [FAMILIES[family]]
    return {**SHARED, **SPELLINGS[naming], **{k: v for names in families for k, v in names.items()}}


def _translate(name: str, rules: dict[str, list[tuple[re.Pattern[str], str]]]) -> str | None:
    for pattern, target in rules.get(_without_digits(name), []):
        match = pattern.fullmatch(name)
        if match:
            return target.format(*match.groups())
    return None


@cache
def _rules(
    naming: Naming, reverse: bool = False, family: str | None = None
) -> dict[str, list[tuple[re.Pattern[str], str]]]:
    """The table, grouped by source template without digits, so that a name is matched against one or two patterns."""
    rules: dict[str, list[tuple[re.Pattern[str], str]]] = defaultdict(list)
    for published, ours in table(naming, family).items():
        source, target = (ours, published) if reverse else (published, ours)
        rules[_without_digits(source)].append((_pattern(source), target))
    return dict(rules)


@cache
def _pattern(template: str) -> re.Pattern[str]:
    # A leading zero would be a second spelling of the same index.
    return re.compile(re.escape(template).replace(r"\{\}", "(0|[1-9][0-9]*)"), re.ASCII)


def _without_digits(text: str) -> str:
    return re.sub(r"\{\}|[0-9]+", "#", text)


def _unknown_text(unknown: list[str], known: int) -> str:
    if not known:
        return (
            f"no entry has a name of a published Co-DETR checkpoint; the first are {listed(unknown, 12)}. The "
            f"checkpoint has another architecture: use one of {SUPPORTED}."
        )
    return (
        f"{len(unknown)} entries have unknown names: {listed(unknown, 12)}. {known} other entries are known. "
        f"Checkpoints of {SUPPORTED} can be converted; if this is one, these entries were added by hand: remove them."
    )
