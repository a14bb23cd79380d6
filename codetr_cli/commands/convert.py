"""`codetr convert`: converts a published checkpoint to .safetensors and accounts for every entry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.commands._option_values import argument_or_option
from codetr_cli.errors import ConfigError, listed
from codetr_cli.number_text import bytes_text

if TYPE_CHECKING:
    from codetr_cli.weights.convert import Conversion

EXAMPLES = (
    "codetr convert co_dino_5scale_r50_1x_coco.pth co_dino_r50.safetensors",
    "codetr convert downloads/my.pth weights/ --preset co_dino_r50",
)


def convert(
    context: typer.Context,
    source: Annotated[
        str | None, typer.Argument(metavar="SRC", help="A published .pth or .safetensors checkpoint.")
    ] = None,
    destination: Annotated[
        Path | None, typer.Argument(metavar="DST", help="The .safetensors file to write, or a folder.")
    ] = None,
    checkpoint: opt.SameCheckpointOption = None,
    preset: opt.PresetOption = None,
    force: opt.ReplaceOption = False,
    json_output: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
    overrides: opt.SetOption = None,
) -> None:
    """Convert a published checkpoint to .safetensors.

    Reads the checkpoints of Sense-X and of MMDetection 3. Every entry is used, or skipped for a reason that is printed;
    an unknown entry is an error. The file is read without executing anything in it.
    """
    console.set_mode(json=json_output, quiet=quiet)
    if checkpoint is not None and destination is None:  # codetr convert --checkpoint SRC DST
        destination, context.params["source"] = Path(source) if source else None, None
    given = argument_or_option(context, "source", "checkpoint")
    if given is None or destination is None:
        raise ConfigError("give the checkpoint and the file to write: codetr convert SRC DST")
    source_file = Path(given)
    target = _target(source_file, destination, force)

    from codetr_cli.inference.model_size import model_shapes
    from codetr_cli.result_files import ResultRecord, refuse_taken
    from codetr_cli.weights.checkpoint import save_checkpoint
    from codetr_cli.weights.convert import convert_file

    conversion = convert_file(source_file, preset=preset, overrides=overrides or [], expected_shapes=model_shapes)
    converted = conversion.checkpoint
    refuse_taken([target], force=force)  # the conversion took some time
    save_checkpoint(
        target,
        converted.state,
        settings=converted.settings,
        class_names=converted.class_names,
        category_ids=converted.category_ids,
        extra=converted.extra,
        on_written=lambda temporary: ResultRecord(target.parent).add(target, temporary, by="convert"),
    )
    _show(conversion, source_file, target)
    console.result_json(_summary(conversion, source_file, target))


def _target(source: Path, destination: Path, force: bool) -> Path:
    """The file to write.

    Raises:
        ConfigError: the target is not a .safetensors file, is the source itself, or may not be written.
    """
    from codetr_cli.result_files import refuse_taken

    target = destination / f"{source.stem}.safetensors" if destination.is_dir() else destination
    if target.suffix != ".safetensors":
        raise ConfigError(f"DST {target} must end in .safetensors, e.g. {target.with_suffix('.safetensors')}")
    if target.exists() and source.exists() and target.samefile(source):
        raise ConfigError(f"SRC and DST are the same file, {source}: give DST another name")
    refuse_taken([target], force=force)
    return target


def _show(conversion: Conversion, source: Path, target: Path) -> None:
    from codetr_cli.weights.names import NAMING_TITLES

    checkpoint = conversion.checkpoint
    size = bytes_text(target.stat().st_size)
    console.info(f"{source}: names of {NAMING_TITLES[conversion.naming]}, architecture of preset {conversion.preset}.")
    for reason, names in conversion.dropped.items():
        console.info(f"skipped {len(names)}: {reason} ({listed(names)})")
    for note in conversion.notes:
        console.warn(note)
    console.result(f"wrote {target}: {len(checkpoint.state)} entries, {len(checkpoint.class_names)} classes, {size}.")


def _summary(conversion: Conversion, source: Path, target: Path) -> dict[str, Any]:
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
