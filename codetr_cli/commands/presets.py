"""`codetr presets`: the presets of the package, with their published AP and how it was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.number_text import cell_text

if TYPE_CHECKING:
    from codetr_cli.config.schema import Settings

BACKBONES = {
    ("resnet", (3, 4, 6, 3), 64): "R50",
    ("swin", (2, 2, 6, 2), 96): "Swin-T",
    ("swin", (2, 2, 18, 2), 96): "Swin-S",
    ("swin", (2, 2, 18, 2), 128): "Swin-B",
    ("swin", (2, 2, 18, 2), 192): "Swin-L",
    ("vit", 24, 1024): "ViT-L",
}
"""Kind, layers and channels -> the name that the papers use."""
DATASETS = {"coco": "COCO", "lvis": "LVIS", "objects365": "Objects365"}
SPACE_BETWEEN = 3  # characters between two columns of the table
EXAMPLES = ("codetr presets", "codetr presets --family co_dino --dataset coco", "codetr presets co_dino_r50")


class Column(NamedTuple):
    """A column of the table: its heading, its key in a row, and its rank; on a narrow terminal high ranks go first."""

    heading: str
    key: str
    rank: int


COLUMNS = (
    Column("preset", "name", 0),
    Column("backbone", "backbone", 2),
    Column("data", "data", 1),
    Column("epochs", "epochs", 5),
    Column("augmentation", "augmentation", 8),
    Column("queries", "queries", 6),
    Column("box AP", "box_ap", 0),
    Column("mask AP", "mask_ap", 3),
    Column("with TTA", "with_tta", 4),
    Column("parameters [M]", "millions", 7),
    Column("GFLOPs", "gflops", 7),
    Column("at", "pixels", 10),
    Column("weights' licence", "licence", 9),
)


def presets(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A preset or a TOML file: print all its settings.")
    ] = None,
    family: Annotated[str | None, opt.option("--family", "NAME", "Only co_dino or co_deformable.", opt.INPUT)] = None,
    dataset: Annotated[str | None, opt.option("--dataset", "NAME", "Only coco, lvis or objects365.", opt.INPUT)] = None,
    json_output: opt.JsonOption = False,
    overrides: opt.SetOption = None,
) -> None:
    """List the presets, or print the settings of one as TOML."""
    from codetr_cli.config.overrides import to_toml
    from codetr_cli.config.presets import load_preset, preset_figures, preset_names
    from codetr_cli.errors import ConfigError
    from codetr_cli.weights.urls import public_settings

    console.set_mode(json=json_output)
    if name is not None:
        settings = public_settings(load_preset(name, overrides))
        console.result_json(settings.model_dump(mode="json"))
        if not json_output:
            console.result_lines(to_toml(settings))
        return
    if overrides:
        raise ConfigError("--set needs the preset that it changes: codetr presets NAME --set KEY=VALUE")

    shipped = [load_preset(preset) for preset in preset_names()]
    _check("--family", family, {settings.model.family for settings in shipped})
    _check("--dataset", dataset, set(DATASETS))
    figures = preset_figures()
    rows = [
        _row(settings, figures[settings.name])
        for settings in shipped
        if family in (None, settings.model.family) and dataset in (None, settings.data.dataset)
    ]
    console.result_json({"presets": rows})
    if not json_output:
        _show([{**row, **_words(row)} for row in rows])


def _check(option: str, value: str | None, choices: set[str]) -> None:
    from codetr_cli.errors import ConfigError, nearest

    if value is not None and value not in choices:
        raise ConfigError(f"{option} {value!r}: {nearest(value, sorted(choices))}")


def _row(settings: Settings, figures: dict[str, Any]) -> dict[str, Any]:
    """One preset, as `--json` prints it."""
    model, train = settings.model, settings.train
    return {
        "name": settings.name,
        "summary": settings.summary,
        "family": model.family,
        "backbone": _backbone(settings),
        "dataset": settings.data.dataset,
        "epochs": train.epochs,
        "augmentation": _augmentation(settings),
        "queries": model.num_queries,
        "classes": model.num_classes,
        **figures,
        **settings.source.model_dump(mode="json"),
    }


def _words(row: dict[str, Any]) -> dict[str, Any]:
    """Values that the table shows in another form than JSON."""
    with_tta = [row[key] for key in ("box_ap_tta", "mask_ap_tta") if row[key] is not None]
    return {
        "data": DATASETS[row["dataset"]],
        "with_tta": " / ".join(str(ap) for ap in with_tta) or None,
        "millions": round(row["detection_parameters"] / 1e6, 1),
        "gflops": round(row["gflops"]) if row["gflops"] > 10 else row["gflops"],
        "pixels": "x".join(str(side) for side in row["size"]),
    }


def _backbone(settings: Settings) -> str:
    backbone = settings.model.backbone
    return BACKBONES.get(backbone_key(settings), f"small {backbone.kind}")


def backbone_key(settings: Settings) -> tuple[str, object, int]:
    """Kind, depth and channels of the backbone: its key in `BACKBONES`."""
    backbone = settings.model.backbone
    if backbone.kind == "resnet":
        return backbone.kind, backbone.layers, backbone.base_channels
    return backbone.kind, backbone.depth if backbone.kind == "vit" else backbone.layers, backbone.embed_dim


def _augmentation(settings: Settings) -> str:
    data = settings.data
    if data.augmentation == "lsj":
        return f"LSJ {data.canvas}" + ("" if data.copy_paste == "none" else ", copy-paste")
    if data.augmentation == "detr":
        return f"DETR {min(data.short_sides)}-{max(data.short_sides)}"
    return data.augmentation


def _show(rows: list[dict[str, Any]]) -> None:
    """Prints the table with as many columns as fit on the terminal."""
    columns = [column for column in COLUMNS if any(row[column.key] is not None for row in rows)]
    hidden = []
    while (
        len(columns) > 1
        and _table_columns(columns, rows) > console.columns()
        and any(column.rank for column in columns)
    ):
        last = max(columns, key=lambda column: column.rank)
        columns.remove(last)
        hidden.append(last.heading.split(" [")[0])
    console.table(
        "Presets",
        [column.heading for column in columns],
        [[row[column.key] for column in columns] for row in rows],
    )
    console.info(
        "AP as published, at a single scale except with TTA (test-time augmentation). Parameters and GFLOPs are\n"
        "counted for detection with the decoder; one multiply-add is one operation."
    )
    if hidden:
        console.info(f"Hidden columns: {', '.join(hidden)}. A wider terminal or --json shows them.")
    console.info("`codetr presets NAME` prints all settings of one; `codetr train --preset NAME` trains it.")


def _table_columns(columns: list[Column], rows: list[dict[str, Any]]) -> int:
    cells = [max(len(column.heading), *(len(cell_text(row[column.key])) for row in rows)) for column in columns]
    return sum(cells) + SPACE_BETWEEN * len(cells)
