"""Contents of `.pth` files that can be unpickled and are no checkpoints: variants of a small published one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

SHAPES = ((), (0,), (1,), (0, 0), (3, 0), (1, 1), (7, 5, 3), (1, 1, 1, 1), (0, 0, 0, 0), (1,) * 20)
DTYPES = (torch.bool, torch.uint8, torch.int16, torch.int64, torch.complex64, torch.complex128, torch.float8_e4m3fn)
# Entries whose shapes tell the architecture, and some others.
TELLING = (
    "query_head.transformer.level_embeds",
    "query_head.transformer.encoder.layers.0.attentions.0.attention_weights.weight",
    "query_head.transformer.encoder.layers.0.ffns.0.layers.0.0.weight",
    "query_head.cls_branches.0.weight",
    "query_head.query_embedding.weight",
    "roi_head.0.bbox_head.shared_fcs.0.weight",
    "roi_head.0.bbox_head.fc_reg.weight",
    "backbone.conv1.weight",
    "neck.convs.0.conv.weight",
    "query_head.transformer.query_embed.weight",
    "backbone.pos_embed",
    "backbone.patch_embed.proj.weight",
    "backbone.rope_win.freqs_cos",
    "backbone.rope_glb.freqs_cos",
    "backbone.blocks.0.attn.rope.freqs_cos",
    "backbone.layers.0.blocks.0.attn.relative_position_bias_table",
    "backbone.stages.0.downsample.norm.weight",
    "backbone.layers.0.downsample.reduction.weight",
    "roi_head.0.mask_head.conv_logits.weight",
    "mask_head.stage_instance_logits.0.weight",
    "mask_iou_head.fcs.0.weight",
)
NAMES: tuple[Any, ...] = (
    *(
        "",
        "\x1b[2J",
        "a" * 100_000,
        "..",
        "{0}",
        "{}",
        "%s",
        "module.",
        "\ud800",
        "backbone.layer\uff11.0.conv1.weight",
    ),
    *(
        "query_head.cls_branches.00.weight",
        f"query_head.cls_branches.{'9' * 5000}.weight",
        "bbox_head.0.scales.7.scale",
    ),
    *(0, None, 1.5, True, b"x", ("a", 1), frozenset()),
)
CLASS_LISTS: tuple[Any, ...] = (
    *(
        None,
        1,
        "",
        "cat",
        [],
        [1, 2, 3],
        ["a"],
        ["a", "b", None],
        {"a": 1},
        ["a"] * 100_000,
        ["a", "b", "a" * 1_000_000],
    ),
    *(["\x1b[2J", "\ud800", "\n"], [["a", "b", "c"]], b"abc", torch.ones(3), ("a", "b", "c"), ["a", "a", "a"]),
)


def broken_contents(state: dict[str, Tensor]) -> Iterator[tuple[str, Any]]:
    """What is wrong, and the content of a file; a published state with it.

    Some are fine after all, with a note: odd class names are no reason to refuse weights.
    """
    for content in (
        None,
        1,
        "text",
        [],
        [1],
        (),
        {},
        torch.ones(1),
        [state],
        b"",
        1.5,
        True,
        {1: 2},
        {"a": {}},
        {"meta": {}},
    ):
        yield f"content {str(content)[:20]}", content
    for section in (None, 1, [], {}, "x", [state], {"state_dict": state}, {"x": 1}, {1: torch.ones(1)}, torch.ones(1)):
        yield f"state_dict {str(section)[:20]}", {"state_dict": section}
        yield f"state_dict {str(section)[:20]} and a model", {"state_dict": section, "model": state}
    for section in ("unknown", 1, None, ("a", 1), "\x1b[2J", "a" * 100_000):
        yield f"section {str(section)[:20]}", {"state_dict": state, section: 1}
    recursive: dict[str, Any] = {"state_dict": state}
    recursive["meta"] = recursive
    yield "recursive", recursive
    itself: dict[str, Any] = {}
    itself["state_dict"] = itself
    yield "itself", itself
    for classes in CLASS_LISTS:
        yield f"CLASSES {str(classes)[:20]}", {"state_dict": state, "meta": {"CLASSES": classes}}
        yield f"dataset_meta {str(classes)[:20]}", {"state_dict": state, "meta": {"dataset_meta": {"classes": classes}}}
        yield f"meta {str(classes)[:20]}", {"state_dict": state, "meta": classes}
    for name in NAMES:
        yield f"name {str(name)[:20]}", {"state_dict": {**state, name: torch.ones(1)}}
        yield f"only name {str(name)[:20]}", {"state_dict": {name: torch.ones(1)}}
    for name in TELLING:
        for shape in SHAPES:
            yield f"{name} {shape}", {"state_dict": {**state, name: torch.zeros(shape)}}
    yield "nothing else", {"state_dict": {name: torch.zeros(()) for name in TELLING}}
    for value in (None, 1, "x", [], {}, torch.ones(1).expand(10**6), (torch.ones(1),)):
        yield f"value {str(value)[:20]}", {"state_dict": {**state, TELLING[0]: value}}
    for dtype in DTYPES:
        yield f"{dtype}", {"state_dict": {**state, TELLING[0]: state[TELLING[0]].to(dtype)}}
        yield f"all {dtype}", {"state_dict": {name: value.to(dtype) for name, value in state.items()}}
    for value in (float("nan"), float("inf")):
        yield (
            f"all {value}",
            {
                "state_dict": {
                    name: torch.full_like(each, value) for name, each in state.items() if each.is_floating_point()
                }
            },
        )
    shared = torch.ones(64, 64)
    yield (
        "one storage for all",
        {"state_dict": {**state, **{f"bbox_head.0.scales.{number}.scale": shared for number in range(2000)}}},
    )
    missing = dict(state)
    del missing[TELLING[0]]
    yield "without an entry", {"state_dict": missing}
    yield (
        "prefix",
        {"state_dict": {f"module.{name}": value for name, value in state.items()} | {"module.": torch.ones(1)}},
    )
    yield "both names", {"state_dict": {**state, **{f"ema_{name.replace('.', '_')}": None for name in state}}}
