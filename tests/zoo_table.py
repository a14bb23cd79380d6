"""The table in docs/zoo.md: `python -m tests.zoo_table` rewrites it; tests/test_zoo.py checks it and its ticks."""

from __future__ import annotations

from typing import Any

from codetr_cli.commands.presets import BACKBONES, DATASETS, backbone_key
from codetr_cli.config.model_settings import ModelConfig
from codetr_cli.config.presets import load_preset, preset_figures, preset_names
from codetr_cli.config.schema import Settings
from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "zoo.md"
BEGIN, END = "<!-- zoo: written by python -m tests.zoo_table -->\n", "<!-- end of zoo -->\n"

CASES = {
    "co_deformable_r50": "co_deformable_r50_eval",
    "co_deformable_mask_r50": "co_deformable_mask_r50_eval",
    "co_deformable_swin_t": "co_deformable_swin_t_eval",
    "co_deformable_swin_t_3x": "co_deformable_swin_t_eval",
    **dict.fromkeys(("co_deformable_swin_s", "co_deformable_swin_s_3x"), "co_deformable_swin_s_eval"),
    **dict.fromkeys(("co_deformable_swin_b", "co_deformable_swin_b_3x"), "co_deformable_swin_b_eval"),
    "co_deformable_swin_l": "co_deformable_swin_l_900q_eval",
    "co_deformable_swin_l_900q_3x": "co_deformable_swin_l_900q_eval",
    **dict.fromkeys(("co_dino_r50", "co_dino_r50_lsj", "co_dino_r50_lsj_3x"), "co_dino_r50_eval"),
    **dict.fromkeys(("co_dino_r50_lvis", "co_dino_r50_lsj_lvis"), "co_dino_r50_eval"),
    **dict.fromkeys(("co_dino_r50_9enc_lsj", "co_dino_r50_9enc_lsj_3x"), "co_dino_r50_9enc_eval"),
    **{name: "co_dino_swin_l_eval" for name in preset_names() if name.startswith("co_dino_swin_l")},
    "co_dino_vit_l": "co_dino_vit_l_eval",
    "co_dino_vit_l_inst": "co_dino_vit_l_inst_eval",
    "co_dino_vit_l_lsj_lvis": "co_dino_vit_l_lsj_lvis_eval",
    "co_dino_vit_l_inst_lsj_lvis": "co_dino_vit_l_inst_lsj_lvis_eval",
}
"""Preset -> recorded case of the published code with the same network; numbers of classes and queries may differ."""


def zoo_table() -> str:
    """The table in Markdown."""
    figures = preset_figures()
    lines = [
        "| preset | network | data | epochs | box AP | mask AP | loads | equal | GFLOPs | parameters |",
        "|---|---|---|--:|--:|--:|:-:|:-:|--:|--:|",
    ]
    for name in preset_names():
        settings = load_preset(name)
        published = settings.source.config or settings.source.page
        loads = "✓" if name in CASES else "names" if published else "-"
        lines.append(
            f"| `{name}` | {_network(settings)} | {DATASETS[settings.data.dataset]} | {settings.train.epochs} | "
            f"{_ap(settings.source.box_ap, settings.source.box_ap_tta)} | "
            f"{_ap(settings.source.mask_ap, settings.source.mask_ap_tta)} | {loads} | "
            f"{'✓' if name in CASES else '-'} | {figures[name]['gflops']:,.0f} | "
            f"{figures[name]['detection_parameters'] / 1e6:.0f} M |"
        )
    return "\n".join(lines) + "\n"


def network_of(model: ModelConfig) -> dict[str, Any]:
    """Settings that define the network, without numbers of classes and queries, training settings and thresholds."""
    table = model.model_dump(mode="json")
    for name in ("num_classes", "num_queries", "rpn", "atss", "attention_backend"):
        del table[name]
    for name in [name for name in table if name.endswith("checkpointing")]:
        del table[name]
    for part, names in (
        ("backbone", ("checkpointing", "drop_path", "frozen_stages")),
        ("roi", ("nms", "nms_iou", "max_detections")),
        ("mask", ("regions_per_chunk",)),
    ):
        for name in names:
            table[part].pop(name, None)
    # The side of fixed rotary tables, which are computed, may differ: recorded images are smaller.
    table["backbone"]["fixed_size"] = table["backbone"].get("fixed_size") is not None
    return table


def page_parts() -> tuple[str, str, str]:
    """The page before its table, the table, and what comes after it."""
    text = PAGE.read_text(encoding="utf-8")
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    return text[:start], text[start:end], text[end:]


def _network(settings: Settings) -> str:
    model = settings.model
    family = {"co_dino": "Co-DINO", "co_deformable": "Co-Deformable"}[model.family]
    masks = " + masks" if settings.learns_masks else ""
    return f"{family} {BACKBONES.get(backbone_key(settings), 'tiny')}{masks}"


def _ap(single: float | None, augmented: float | None) -> str:
    if single is None:
        return "-"
    return f"{single}" if augmented is None else f"{single} ({augmented} TTA)"


if __name__ == "__main__":
    before, _, after = page_parts()
    PAGE.write_text(before + zoo_table() + after, encoding="utf-8")
