"""Published checkpoint names and ours: one literal table, `{}` standing for an index, read in both directions.

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

from codetr_cli.errors import CheckpointError

Naming = Literal["mmdet3", "sensex"]
T = TypeVar("T")

NAMING_TITLES: dict[Naming, str] = {"mmdet3": "MMDetection 3", "sensex": "Sense-X/Co-DETR"}

RESNET = {
    "backbone.conv1.weight": "backbone.conv1.weight",
    "backbone.bn1.weight": "backbone.bn1.weight",
    "backbone.bn1.bias": "backbone.bn1.bias",
    "backbone.bn1.running_mean": "backbone.bn1.running_mean",
    "backbone.bn1.running_var": "backbone.bn1.running_var",
    "backbone.layer{}.{}.conv{}.weight": "backbone.layer{}.{}.conv{}.weight",
    "backbone.layer{}.{}.bn{}.weight": "backbone.layer{}.{}.bn{}.weight",
    "backbone.layer{}.{}.bn{}.bias": "backbone.layer{}.{}.bn{}.bias",
    "backbone.layer{}.{}.bn{}.running_mean": "backbone.layer{}.{}.bn{}.running_mean",
    "backbone.layer{}.{}.bn{}.running_var": "backbone.layer{}.{}.bn{}.running_var",
    "backbone.layer{}.{}.downsample.0.weight": "backbone.layer{}.{}.downsample.0.weight",
    "backbone.layer{}.{}.downsample.1.weight": "backbone.layer{}.{}.downsample.1.weight",
    "backbone.layer{}.{}.downsample.1.bias": "backbone.layer{}.{}.downsample.1.bias",
    "backbone.layer{}.{}.downsample.1.running_mean": "backbone.layer{}.{}.downsample.1.running_mean",
    "backbone.layer{}.{}.downsample.1.running_var": "backbone.layer{}.{}.downsample.1.running_var",
}

CHANNEL_MAPPER = {
    "neck.convs.{}.conv.weight": "neck.convs.{}.conv.weight",
    "neck.convs.{}.gn.weight": "neck.convs.{}.norm.weight",
    "neck.convs.{}.gn.bias": "neck.convs.{}.norm.bias",
    "neck.extra_convs.{}.conv.weight": "neck.extra_convs.{}.conv.weight",
    "neck.extra_convs.{}.gn.weight": "neck.extra_convs.{}.norm.weight",
    "neck.extra_convs.{}.gn.bias": "neck.extra_convs.{}.norm.bias",
}

_ENCODER = "query_head.transformer.encoder.layers.{}."
_DECODER = "query_head.transformer.decoder.layers.{}."

CO_DINO = {
    "query_head.transformer.level_embeds": "encoder.level_embed",
    _ENCODER + "attentions.0.sampling_offsets.weight": "encoder.layers.{}.self_attn.sampling_offsets.weight",
    _ENCODER + "attentions.0.sampling_offsets.bias": "encoder.layers.{}.self_attn.sampling_offsets.bias",
    _ENCODER + "attentions.0.attention_weights.weight": "encoder.layers.{}.self_attn.attention_weights.weight",
    _ENCODER + "attentions.0.attention_weights.bias": "encoder.layers.{}.self_attn.attention_weights.bias",
    _ENCODER + "attentions.0.value_proj.weight": "encoder.layers.{}.self_attn.value_proj.weight",
    _ENCODER + "attentions.0.value_proj.bias": "encoder.layers.{}.self_attn.value_proj.bias",
    _ENCODER + "attentions.0.output_proj.weight": "encoder.layers.{}.self_attn.output_proj.weight",
    _ENCODER + "attentions.0.output_proj.bias": "encoder.layers.{}.self_attn.output_proj.bias",
    _ENCODER + "ffns.0.layers.0.0.weight": "encoder.layers.{}.ffn.linear1.weight",
    _ENCODER + "ffns.0.layers.0.0.bias": "encoder.layers.{}.ffn.linear1.bias",
    _ENCODER + "ffns.0.layers.1.weight": "encoder.layers.{}.ffn.linear2.weight",
    _ENCODER + "ffns.0.layers.1.bias": "encoder.layers.{}.ffn.linear2.bias",
    _ENCODER + "norms.0.weight": "encoder.layers.{}.self_attn_norm.weight",
    _ENCODER + "norms.0.bias": "encoder.layers.{}.self_attn_norm.bias",
    _ENCODER + "norms.1.weight": "encoder.layers.{}.ffn_norm.weight",
    _ENCODER + "norms.1.bias": "encoder.layers.{}.ffn_norm.bias",
    _DECODER + "attentions.0.attn.in_proj_weight": "decoder.layers.{}.self_attn.in_proj_weight",
    _DECODER + "attentions.0.attn.in_proj_bias": "decoder.layers.{}.self_attn.in_proj_bias",
    _DECODER + "attentions.0.attn.out_proj.weight": "decoder.layers.{}.self_attn.out_proj.weight",
    _DECODER + "attentions.0.attn.out_proj.bias": "decoder.layers.{}.self_attn.out_proj.bias",
    _DECODER + "attentions.1.sampling_offsets.weight": "decoder.layers.{}.cross_attn.sampling_offsets.weight",
    _DECODER + "attentions.1.sampling_offsets.bias": "decoder.layers.{}.cross_attn.sampling_offsets.bias",
    _DECODER + "attentions.1.attention_weights.weight": "decoder.layers.{}.cross_attn.attention_weights.weight",
    _DECODER + "attentions.1.attention_weights.bias": "decoder.layers.{}.cross_attn.attention_weights.bias",
    _DECODER + "attentions.1.value_proj.weight": "decoder.layers.{}.cross_attn.value_proj.weight",
    _DECODER + "attentions.1.value_proj.bias": "decoder.layers.{}.cross_attn.value_proj.bias",
    _DECODER + "attentions.1.output_proj.weight": "decoder.layers.{}.cross_attn.output_proj.weight",
    _DECODER + "attentions.1.output_proj.bias": "decoder.layers.{}.cross_attn.output_proj.bias",
    _DECODER + "ffns.0.layers.0.0.weight": "decoder.layers.{}.ffn.linear1.weight",
    _DECODER + "ffns.0.layers.0.0.bias": "decoder.layers.{}.ffn.linear1.bias",
    _DECODER + "ffns.0.layers.1.weight": "decoder.layers.{}.ffn.linear2.weight",
    _DECODER + "ffns.0.layers.1.bias": "decoder.layers.{}.ffn.linear2.bias",
    _DECODER + "norms.0.weight": "decoder.layers.{}.self_attn_norm.weight",
    _DECODER + "norms.0.bias": "decoder.layers.{}.self_attn_norm.bias",
    _DECODER + "norms.1.weight": "decoder.layers.{}.cross_attn_norm.weight",
    _DECODER + "norms.1.bias": "decoder.layers.{}.cross_attn_norm.bias",
    _DECODER + "norms.2.weight": "decoder.layers.{}.ffn_norm.weight",
    _DECODER + "norms.2.bias": "decoder.layers.{}.ffn_norm.bias",
    "query_head.transformer.decoder.ref_point_head.0.weight": "decoder.query_pos_mlp.layers.0.weight",
    "query_head.transformer.decoder.ref_point_head.0.bias": "decoder.query_pos_mlp.layers.0.bias",
    "query_head.transformer.decoder.ref_point_head.2.weight": "decoder.query_pos_mlp.layers.1.weight",
    "query_head.transformer.decoder.ref_point_head.2.bias": "decoder.query_pos_mlp.layers.1.bias",
    "query_head.transformer.decoder.norm.weight": "decoder.norm.weight",
    "query_head.transformer.decoder.norm.bias": "decoder.norm.bias",
    "query_head.transformer.enc_output.weight": "proposals.memory_proj.weight",
    "query_head.transformer.enc_output.bias": "proposals.memory_proj.bias",
    "query_head.transformer.enc_output_norm.weight": "proposals.memory_norm.weight",
    "query_head.transformer.enc_output_norm.bias": "proposals.memory_norm.bias",
    "query_head.transformer.query_embed.weight": "query_embed.weight",
    "query_head.transformer.aux_pos_trans.{}.weight": "positive_queries.projections.{}.weight",
    "query_head.transformer.aux_pos_trans.{}.bias": "positive_queries.projections.{}.bias",
    "query_head.transformer.aux_pos_trans_norm.{}.weight": "positive_queries.norms.{}.weight",
    "query_head.transformer.aux_pos_trans_norm.{}.bias": "positive_queries.norms.{}.bias",
    "query_head.cls_branches.{}.weight": "class_heads.{}.weight",
    "query_head.cls_branches.{}.bias": "class_heads.{}.bias",
    "query_head.reg_branches.{}.0.weight": "box_heads.{}.layers.0.weight",
    "query_head.reg_branches.{}.0.bias": "box_heads.{}.layers.0.bias",
    "query_head.reg_branches.{}.2.weight": "box_heads.{}.layers.1.weight",
    "query_head.reg_branches.{}.2.bias": "box_heads.{}.layers.1.bias",
    "query_head.reg_branches.{}.4.weight": "box_heads.{}.layers.2.weight",
    "query_head.reg_branches.{}.4.bias": "box_heads.{}.layers.2.bias",
    "query_head.downsample.0.weight": "downsample.conv.weight",
    "query_head.downsample.0.bias": "downsample.conv.bias",
    "query_head.downsample.1.weight": "downsample.norm.weight",
    "query_head.downsample.1.bias": "downsample.norm.bias",
}

AUX_HEADS = {
    "rpn_head.rpn_conv.weight": "aux_heads.rpn.conv.weight",
    "rpn_head.rpn_conv.bias": "aux_heads.rpn.conv.bias",
    "rpn_head.rpn_cls.weight": "aux_heads.rpn.objectness.weight",
    "rpn_head.rpn_cls.bias": "aux_heads.rpn.objectness.bias",
    "rpn_head.rpn_reg.weight": "aux_heads.rpn.box_deltas.weight",
    "rpn_head.rpn_reg.bias": "aux_heads.rpn.box_deltas.bias",
    "roi_head.0.bbox_head.shared_fcs.{}.weight": "aux_heads.roi.fcs.{}.weight",
    "roi_head.0.bbox_head.shared_fcs.{}.bias": "aux_heads.roi.fcs.{}.bias",
    "roi_head.0.bbox_head.fc_cls.weight": "aux_heads.roi.class_head.weight",
    "roi_head.0.bbox_head.fc_cls.bias": "aux_heads.roi.class_head.bias",
    "roi_head.0.bbox_head.fc_reg.weight": "aux_heads.roi.box_head.weight",
    "roi_head.0.bbox_head.fc_reg.bias": "aux_heads.roi.box_head.bias",
    "bbox_head.0.cls_convs.0.conv.weight": "aux_heads.atss.class_tower.conv.weight",
    "bbox_head.0.cls_convs.0.gn.weight": "aux_heads.atss.class_tower.norm.weight",
    "bbox_head.0.cls_convs.0.gn.bias": "aux_heads.atss.class_tower.norm.bias",
    "bbox_head.0.reg_convs.0.conv.weight": "aux_heads.atss.box_tower.conv.weight",
    "bbox_head.0.reg_convs.0.gn.weight": "aux_heads.atss.box_tower.norm.weight",
    "bbox_head.0.reg_convs.0.gn.bias": "aux_heads.atss.box_tower.norm.bias",
    "bbox_head.0.atss_cls.weight": "aux_heads.atss.class_head.weight",
    "bbox_head.0.atss_cls.bias": "aux_heads.atss.class_head.bias",
    "bbox_head.0.atss_reg.weight": "aux_heads.atss.box_head.weight",
    "bbox_head.0.atss_reg.bias": "aux_heads.atss.box_head.bias",
    "bbox_head.0.atss_centerness.weight": "aux_heads.atss.centerness_head.weight",
    "bbox_head.0.atss_centerness.bias": "aux_heads.atss.centerness_head.bias",
    "bbox_head.0.scales.{}.scale": "aux_heads.atss.scales.{}",
}

SHARED = {**RESNET, **CHANNEL_MAPPER, **CO_DINO, **AUX_HEADS}

SPELLINGS: dict[Naming, dict[str, str]] = {
    "mmdet3": {"query_head.dn_generator.label_embedding.weight": "label_embed.weight"},
    "sensex": {"query_head.label_embedding.weight": "label_embed.weight"},
}

REASON_BATCH_COUNTER = "batch counters of the batch norms, which are frozen"
REASON_RAW_COPY = "second set of weights kept by weight averaging; the plain names already hold the averages"

DROPPED = {
    "backbone.bn1.num_batches_tracked": REASON_BATCH_COUNTER,
    "backbone.layer{}.{}.bn{}.num_batches_tracked": REASON_BATCH_COUNTER,
    "backbone.layer{}.{}.downsample.1.num_batches_tracked": REASON_BATCH_COUNTER,
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


def to_published(name: str, naming: Naming) -> str | None:
    """The published name of one of our entries, or None when it is in no table."""
    return _translate(name, _rules(naming, reverse=True))


def drop_reason(name: str) -> str | None:
    """Why a published entry that has no name of ours may be left out; None when it may not."""
    return next((reason for template, reason in DROPPED.items() if _pattern(template).fullmatch(name)), None)


def table(naming: Naming) -> dict[str, str]:
    """The whole table of one publisher: published template -> our template."""
    return {**SHARED, **SPELLINGS[naming]}


def _translate(name: str, rules: dict[str, list[tuple[re.Pattern[str], str]]]) -> str | None:
    for pattern, target in rules.get(_digits_out(name), []):
        match = pattern.fullmatch(name)
        if match:
            return target.format(*match.groups())
    return None


@cache
def _rules(naming: Naming, reverse: bool = False) -> dict[str, list[tuple[re.Pattern[str], str]]]:
    """The table, grouped by its templates with every number taken out: a name is tried against one or two of them."""
    rules: dict[str, list[tuple[re.Pattern[str], str]]] = defaultdict(list)
    for published, ours in table(naming).items():
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
    listed = ", ".join(unknown[:12]) + (f" and {len(unknown) - 12} more" if len(unknown) > 12 else "")
    if not known:
        return (
            f"no entry has a name of a published Co-DETR checkpoint; the first are {listed}. "
            "This is a checkpoint of another architecture: give one of Co-DINO with a ResNet backbone."
        )
    return (
        f"{len(unknown)} entries have names that no known architecture has: {listed}. {known} others are known. "
        "Co-DINO with a ResNet backbone can be converted; if it is one, these entries were added by hand: remove them."
    )
