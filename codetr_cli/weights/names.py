"""Published checkpoint names and ours: literal tables, `{}` standing for an index, read in both directions.

The published code exists twice, and each copy writes its own names: `mmdet3` is MMDetection 3.3 (projects/CO-DETR),
`sensex` is Sense-X/Co-DETR. A family of networks is a table; a naming is the families' tables plus what this publisher
spells differently. A name that is in no table is neither dropped nor guessed: it is an error that lists it.

A new family (another backbone, another head) is one more table in `SHARED` or in `SPELLINGS`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Generic, Literal, TypeVar

from codetr_cli.errors import CheckpointError, listed
from codetr_cli.weights.tables.aux_heads import AUX_HEADS
from codetr_cli.weights.tables.masks import MASK_HEADS
from codetr_cli.weights.tables.necks import CHANNEL_MAPPER
from codetr_cli.weights.tables.resnet import RESNET
from codetr_cli.weights.tables.swin import SWIN, SWIN_MMDET3, SWIN_SENSEX
from codetr_cli.weights.tables.transformer import CO_DEFORMABLE, CO_DINO, TRANSFORMER
from codetr_cli.weights.tables.vit import ROTARY_TABLES, VIT

Naming = Literal["mmdet3", "sensex"]
T = TypeVar("T")

NAMING_TITLES: dict[Naming, str] = {"mmdet3": "MMDetection 3", "sensex": "Sense-X/Co-DETR"}

SHARED = {**RESNET, **SWIN, **CHANNEL_MAPPER, **TRANSFORMER, **AUX_HEADS, **MASK_HEADS}

FAMILIES = {"co_dino": CO_DINO, "co_deformable": CO_DEFORMABLE}
"""Names that belong to one family; two of them may be published for the same entry of ours."""

SPELLINGS: dict[Naming, dict[str, str]] = {
    "mmdet3": {**SWIN_MMDET3, "query_head.dn_generator.label_embedding.weight": "label_embed.weight"},
    "sensex": {**SWIN_SENSEX, **VIT, "query_head.label_embedding.weight": "label_embed.weight"},
}

SUPPORTED = "Co-DINO or Co-Deformable-DETR with a ResNet, Swin or ViT backbone, with or without masks"

REASON_BATCH_COUNTER = "batch counters of the batch norms, which are frozen"
REASON_ROTARY_TABLE = "tables of rotary positions, which follow from sizes"
REASON_WINDOW_INDEX = "indices of relative positions, which follow from the size of a window"
REASON_RAW_COPY = "second set of weights kept by weight averaging; the plain names already hold the averages"

DROPPED = {
    "backbone.bn1.num_batches_tracked": REASON_BATCH_COUNTER,
    "backbone.layer{}.{}.bn{}.num_batches_tracked": REASON_BATCH_COUNTER,
    "backbone.layer{}.{}.downsample.1.num_batches_tracked": REASON_BATCH_COUNTER,
    "backbone.layers.{}.blocks.{}.attn.relative_position_index": REASON_WINDOW_INDEX,
    "backbone.stages.{}.blocks.{}.attn.w_msa.relative_position_index": REASON_WINDOW_INDEX,
    **dict.fromkeys(ROTARY_TABLES, REASON_ROTARY_TABLE),
}


@dataclass(frozen=True)
class Renamed(Generic[T]):
    """Entries under our names, and what became of the rest.

    Args:
        naming: whose names the entries had.
        state: our name -> value, in the order of the source.
        dropped: reason -> published names that were left out for it.
    """

    naming: Naming
    state: dict[str, T]
    dropped: dict[str, list[str]] = field(default_factory=dict)


def rename(entries: Mapping[str, T], naming: Naming | None = None) -> Renamed[T]:
    """Gives every published entry our name, or drops it for a known reason.

    Args:
        entries: published name -> value of any kind. A `module.` prefix on all names, left by data-parallel training,
            is ignored, as the published loaders do.
        naming: whose names; None finds out.

    Raises:
        CheckpointError: a name that is in no table (the first ones are listed), or two names for one entry.
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
                    f"two entries stand for {ours}, the second is {name}: the file is not a plain checkpoint"
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
    """Whose names these are; without an entry that the publishers spell differently, MMDetection's."""
    names = list(names)
    counts = {
        naming: sum(any(_pattern(template).fullmatch(name) for template in spellings) for name in names)
        for naming, spellings in SPELLINGS.items()
    }
    return max(counts, key=lambda naming: counts[naming])


def to_ours(name: str, naming: Naming) -> str | None:
    """Our name of a published entry, or None when it is in no table."""
    return _translate(name, _rules(naming))


def to_published(name: str, naming: Naming, family: str = "co_dino") -> str | None:
    """The published name of one of our entries, or None when it is in no table."""
    return _translate(name, _rules(naming, reverse=True, family=family))


def matches(name: str, templates: Iterable[str]) -> bool:
    """Whether an entry's name is one of the templates."""
    return any(_pattern(template).fullmatch(name) for template in templates)


def drop_reason(name: str) -> str | None:
    """Why a published entry that has no name of ours may be left out; None when it may not."""
    return next((reason for template, reason in DROPPED.items() if _pattern(template).fullmatch(name)), None)


def table(naming: Naming, family: str | None = None) -> dict[str, str]:
    """The whole table of one publisher, for one family or for all: published template -> our template."""
    families = FAMILIES.values() if family is None else [FAMILIES[family]]
    return {**SHARED, **SPELLINGS[naming], **{k: v for names in families for k, v in names.items()}}


def _translate(name: str, rules: dict[str, list[tuple[re.Pattern[str], str]]]) -> str | None:
    for pattern, target in rules.get(_digits_out(name), []):
        match = pattern.fullmatch(name)
        if match:
            return target.format(*match.groups())
    return None


@cache
def _rules(
    naming: Naming, reverse: bool = False, family: str | None = None
) -> dict[str, list[tuple[re.Pattern[str], str]]]:
    """The table, grouped by its templates with every number taken out: a name is tried against one or two of them."""
    rules: dict[str, list[tuple[re.Pattern[str], str]]] = defaultdict(list)
    for published, ours in table(naming, family).items():
        source, target = (ours, published) if reverse else (published, ours)
        rules[_digits_out(source)].append((_pattern(source), target))
    return dict(rules)


@cache
def _pattern(template: str) -> re.Pattern[str]:
    # A leading zero would be a second spelling of the same index.
    return re.compile(re.escape(template).replace(r"\{\}", "(0|[1-9][0-9]*)"), re.ASCII)


def _digits_out(text: str) -> str:
    return re.sub(r"\{\}|[0-9]+", "#", text)


def _unknown_text(unknown: list[str], known: int) -> str:
    if not known:
        return (
            f"no entry has a name of a published Co-DETR checkpoint; the first are {listed(unknown, 12)}. This is a "
            f"checkpoint of another architecture: give one of {SUPPORTED}."
        )
    return (
        f"{len(unknown)} entries have names that no known architecture has: {listed(unknown, 12)}. {known} others "
        f"are known. Checkpoints of {SUPPORTED} can be converted; if it is one, these entries were "
        "added by hand: remove them."
    )
