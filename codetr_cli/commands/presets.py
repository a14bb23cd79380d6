"""`codetr presets`: what ships with the program, with the published numbers and how they were measured."""

from __future__ import annotations

from typing import Annotated

import typer

from codetr_cli import console
from codetr_cli.commands._options import JsonOption, SetOption


def presets(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A preset, or the path of a TOML file: print all its settings.")
    ] = None,
    overrides: SetOption = None,
    json_output: JsonOption = False,
) -> None:
    """List the presets, or print every resolved setting of one as TOML."""
    from codetr_cli.config import load_preset, preset_names, to_toml
    from codetr_cli.errors import ConfigError

    console.set_mode(json=json_output)
    if name is not None:
        settings = load_preset(name, overrides)
        console.result_json(settings.model_dump(mode="json"))
        if not json_output:
            console.result(to_toml(settings).rstrip("\n"))
        return
    if overrides:
        raise ConfigError("--set needs the preset that it changes: codetr presets NAME --set KEY=VALUE")

    shipped = [load_preset(preset) for preset in preset_names()]
    console.result_json(
        {"presets": [{"name": s.name, "summary": s.summary, **s.source.model_dump(mode="json")} for s in shipped]}
    )
    if not json_output:
        console.table(
            "Presets",
            ["name", "summary", "published box AP", "measured as"],
            [[s.name, s.summary, s.source.box_ap, s.source.protocol] for s in shipped],
        )
        console.info("`codetr presets NAME` prints all settings of one; `codetr train --preset NAME` trains it.")
