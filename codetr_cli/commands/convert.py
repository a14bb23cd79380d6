"""`codetr convert`: a published checkpoint in, one of ours out, with an account of every entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codetr_cli import console
from codetr_cli.commands._options import JsonOption, PresetOption, QuietOption, SetOption

if TYPE_CHECKING:
    from codetr_cli.config.schema import Settings
    from codetr_cli.weights.convert import Conversion

SHOWN_NAMES = 3


def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A published .pth or .safetensors checkpoint.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The .safetensors file to write, or a folder.")],
    preset: PresetOption = None,
    overrides: SetOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace DST when it exists.")] = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Convert a published checkpoint (Sense-X or MMDetection 3) to .safetensors.

    Every entry is used, or left out for a reason that is printed; anything unknown is an error. The file is read
    without running anything that is in it.
    """
    console.set_mode(json=json_output, quiet=quiet)
    target = _target(source, destination, force)

    from codetr_cli.weights.checkpoint import save_checkpoint
    from codetr_cli.weights.convert import convert_file

    conversion = convert_file(source, preset=preset, overrides=overrides or [], expected_shapes=model_shapes)
    checkpoint = conversion.checkpoint
    save_checkpoint(
        target,
        checkpoint.state,
        settings=checkpoint.settings,
        class_names=checkpoint.class_names,
        category_ids=checkpoint.category_ids,
        extra=checkpoint.extra,
    )
    _show(conversion, source, target)
    console.result_json(_facts(conversion, source, target))


def _target(source: Path, destination: Path, force: bool) -> Path:
    """The file to write.

    Raises:
        ConfigError: of another kind than .safetensors, the source itself, or there already.
    """
    from codetr_cli.errors import ConfigError

    target = destination / f"{source.stem}.safetensors" if destination.is_dir() else destination
    if target.suffix != ".safetensors":
        raise ConfigError(f"DST {target} must end in .safetensors, e.g. {target.with_suffix('.safetensors')}")
    if target.exists() and source.exists() and target.samefile(source):
        raise ConfigError(f"SRC and DST are the same file, {source}: give DST another name")
    if target.exists() and not force:
        raise ConfigError(f"{target} exists already: give DST another name, or replace it with --force")
    return target


def model_shapes(settings: Settings) -> Mapping[str, Sequence[int]]:
    """Names and shapes of all entries of the model, which is built without memory for its weights."""
    import torch

    from codetr_cli.models.build import build_model

    with torch.device("meta"):
        model = build_model(settings.model)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _show(conversion: Conversion, source: Path, target: Path) -> None:
    from codetr_cli.weights.names import NAMING_TITLES

    checkpoint = conversion.checkpoint
    size = console.bytes_text(target.stat().st_size)
    console.info(f"{source}: names of {NAMING_TITLES[conversion.naming]}, architecture of preset {conversion.preset}.")
    for reason, names in conversion.dropped.items():
        more = ", ..." if len(names) > SHOWN_NAMES else ""
        console.info(f"left out {len(names)}: {reason} ({', '.join(names[:SHOWN_NAMES])}{more})")
    for note in conversion.notes:
        console.warn(note)
    console.result(f"wrote {target}: {len(checkpoint.state)} entries, {len(checkpoint.class_names)} classes, {size}.")


def _facts(conversion: Conversion, source: Path, target: Path) -> dict[str, Any]:
    checkpoint = conversion.checkpoint
    return {
        "source": source,
        "source_sha256": checkpoint.extra["source_sha256"],
        "output": target,
        "output_bytes": target.stat().st_size,
        "naming": conversion.naming,
        "preset": conversion.preset,
        "entries": len(checkpoint.state),
        "dropped": [{"reason": reason, "names": names} for reason, names in conversion.dropped.items()],
        "notes": conversion.notes,
        "class_names": checkpoint.class_names,
        "category_ids": checkpoint.category_ids,
    }
