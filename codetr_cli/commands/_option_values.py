"""What values of options mean: those that stand for others, exclude each other, or are read from text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from codetr_cli.errors import ConfigError, listed

if TYPE_CHECKING:
    from codetr_cli.inference.options import TileOptions


def argument_or_option(context: typer.Context, argument: str, option: str) -> Any:
    """The value of an argument that may be given as an option instead; both are names of parameters.

    Raises:
        ConfigError: both are given, or the option several times.
    """
    first, second = context.params[argument], context.params[option]
    if isinstance(second, list | tuple):
        second = only(second, f"--{option.removesuffix('_option')}")
    if first is not None and second is not None:
        raise ConfigError(
            f"both {first} and --{option.removesuffix('_option')} {second} are given, and they mean the same thing: "
            "give one of them"
        )
    return second if first is None else first


def is_given(context: typer.Context, parameter: str) -> bool:
    """Whether an option is on the command line, rather than a default of the program or of the user's file."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def separated(values: Sequence[str] | None, default: str) -> list[str]:
    """The values of a repeatable option that takes several with commas between them.

    Args:
        values: as given.
        default: where there are none.
    """
    return [name for value in values or [default] for name in map(str.strip, value.split(",")) if name] or [default]


def only(values: Sequence[str] | None, option: str) -> str | None:
    """The value of an option that may be given once; the parser of the command line would take the last in silence.

    Raises:
        ConfigError: it is given several times.
    """
    if values and len(values) > 1:
        raise ConfigError(
            f"{option} is given {len(values)} times ({listed(values)}), but this command reads one data set: run it "
            "once for each. train and eval merge several"
        )
    return values[0] if values else None


def data_settings(
    *,
    format: str | None = None,
    val_fraction: float | None = None,
    annotations: str | None = None,
    images: str | None = None,
    overrides: list[str] | None = None,
) -> list[str]:
    """The overrides of a command with those that its options for the data stand for, which count less."""
    given = {
        "data.format": format,
        "data.val_fraction": val_fraction,
        "data.annotations": annotations and json.dumps(annotations, ensure_ascii=False),
        "data.images": images and json.dumps(images, ensure_ascii=False),
    }
    return [*(f"{key}={value}" for key, value in given.items() if value is not None), *(overrides or [])]


def data_words(
    *,
    format: str | None = None,
    val_fraction: float | None = None,
    annotations: str | None = None,
    images: str | None = None,
) -> list[str]:
    """The words of a command that give these options for the data."""
    given = {"--ann": annotations, "--images": images, "--format": format, "--val-fraction": val_fraction}
    return [word for name, value in given.items() if value is not None for word in (name, str(value))]


def refuse_both(annotations: str | None, data: object) -> None:
    """Refuses an annotation file beside other data.

    Raises:
        ConfigError: both are given.
    """
    if annotations is not None and data:
        named = data if isinstance(data, str) else " ".join(map(str, data)) if isinstance(data, list) else str(data)
        raise ConfigError(
            f"both --ann {annotations} and the data {named} are given: give one of them, or the file as a further "
            "--data where several are merged"
        )


def tile_options(tiles: str | None, overlap: float | None, *, tta: bool) -> TileOptions | None:
    """The tiles of a command; None without `--tiles`, and for "none".

    Raises:
        ConfigError: a size or overlap that is not allowed, an overlap without tiles, or test-time augmentation.
    """
    from codetr_cli.inference.options import NO_TILES, TILES_OR_TTA, TileOptions

    if tiles in (None, NO_TILES):
        if overlap is not None:
            raise ConfigError("--overlap is of tiles: give --tiles, too, e.g. --tiles auto")
        return None
    assert tiles is not None
    if tta:
        raise ConfigError(f"--tiles and --tta: {TILES_OR_TTA}")
    return TileOptions.parse(tiles, 0.2 if overlap is None else overlap)


def batch_of(text: str) -> int | None:
    """Images at once, None for `auto`.

    Raises:
        ConfigError: it is neither a number from 1 nor `auto`.
    """
    if text == "auto":
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 6 and int(text) > 0):
        raise ConfigError(f"--batch {text}: give the number of images at once, from 1, or auto")
    return int(text)
