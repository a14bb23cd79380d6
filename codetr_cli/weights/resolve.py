"""The one door for weights: what a person names, a preset, a file or an address, becomes a checkpoint on this disk.

The cache holds a folder for each preset, with the published file and its conversion, and conversions of other files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from codetr_cli.config.presets import load_preset, preset_names
from codetr_cli.config.schema import Settings
from codetr_cli.errors import CheckpointError, CodetrError, ResourceError
from codetr_cli.files import cache_dir
from codetr_cli.weights.checkpoint import (
    VERSION,
    Checkpoint,
    is_safetensors,
    load_checkpoint,
    read_metadata,
    save_checkpoint,
)
from codetr_cli.weights.convert import Conversion, convert_file
from codetr_cli.weights.download import Progress, Remote, fetch, is_url
from codetr_cli.weights.published import PublishedWeights, published_weights

ExpectedShapes = Callable[[Settings], Mapping[str, Sequence[int]]]


def resolve_weights(text: str | Path, *, progress: Progress | None = None) -> Path:
    """The file that is meant; `open_weights` reads it.

    Args:
        text: a preset's name, the path of a file, or an http(s) address, which is downloaded once.
        progress: told how a download goes on.

    Raises:
        CheckpointError: a preset whose weights are not on this disk, or a wrong file at the address.
        ConfigError: an address of another kind.
        ResourceError: no connection, no space.
    """
    text = str(text)
    if is_url(text):
        remote = Remote.at(text)
        folder = hashlib.sha256(text.encode()).hexdigest()[:16]
        return fetch(remote, cache_dir() / "urls" / folder / remote.filename, copies=2, progress=progress)
    if text in preset_names():
        return preset_weights(load_preset(text))
    return Path(text)


def preset_weights(settings: Settings, expected_shapes: ExpectedShapes | None = None) -> Path:
    """The converted weights of a preset that was downloaded; converts them where that was not done yet.

    Args:
        settings: the preset.
        expected_shapes: as for `convert_file`.

    Raises:
        CheckpointError: they are not on this disk: says how to get them.
    """
    place = published_weights(settings)
    if place.converted.is_file() and (not place.file.is_file() or is_current(place.converted)):
        return place.converted
    if place.file.is_file():
        convert_preset(place, expected_shapes)
        return place.converted
    raise CheckpointError(
        f"the weights of preset {settings.name!r} are not on this machine: `codetr download {settings.name}` "
        + ("fetches them." if place.remote else "says where they are and where to put them.")
        if place.known
        else f"nobody has published weights for preset {settings.name!r}: give a checkpoint that was trained with it."
    )


def convert_preset(place: PublishedWeights, expected_shapes: ExpectedShapes | None = None) -> Conversion:
    """Converts a preset's published file into the cache.

    Raises:
        CheckpointError: it is another file than the preset's, or damaged.
        ResourceError: no space left.
    """
    conversion = convert_file(place.file, prefer=place.preset, only_preferred=True, expected_shapes=expected_shapes)
    _save(conversion.checkpoint, place.converted)
    return conversion


def open_weights(path: Path | str, *, prefer: Settings | None = None, device: torch.device | str = "cpu") -> Checkpoint:
    """Reads a checkpoint of codetr's, or a published one, which is converted once and kept in the cache.

    Args:
        path: .safetensors or .pth.
        prefer: settings to take for a published checkpoint when its architecture is theirs; None or another
            architecture: the shipped presets are searched. Not used for checkpoints of codetr.
        device: where the tensors go.

    Raises:
        CheckpointError: as `load_checkpoint` and `convert.convert_file`.
    """
    path = Path(path)
    if is_safetensors(path) and "format" in read_metadata(path):
        return load_checkpoint(path, device)
    kept = _conversion_place(path, prefer)
    if kept is not None and kept.is_file():
        with suppress(CheckpointError):  # damaged in the cache: it is made again
            return load_checkpoint(kept, device)
    checkpoint = convert_file(path, prefer=prefer).checkpoint
    if kept is not None:
        with suppress(ResourceError):  # no space to keep it: what was read is as good
            _save(checkpoint, kept)
    if torch.device(device).type != "cpu":
        for name, tensor in checkpoint.state.items():
            checkpoint.state[name] = tensor.to(device)
    return checkpoint


def _conversion_place(path: Path, prefer: Settings | None) -> Path | None:
    """Where the conversion of a file as it is now is kept; None for a file that is not there."""
    try:
        facts = path.stat()
    except OSError:
        return None
    wanted = prefer.model_dump_json() if prefer else ""
    key = f"{path.absolute()}|{facts.st_size}|{facts.st_mtime_ns}|{VERSION}|{wanted}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return cache_dir() / "converted" / f"{path.stem}-{digest}.safetensors"


def is_current(path: Path) -> bool:
    """Whether this version of codetr made a conversion; presets may say more than they did before."""
    try:
        return read_metadata(path).get("codetr_version") == VERSION
    except CodetrError:
        return False


def _save(checkpoint: Checkpoint, path: Path) -> None:
    save_checkpoint(
        path,
        checkpoint.state,
        settings=checkpoint.settings,
        class_names=checkpoint.class_names,
        category_ids=checkpoint.category_ids,
        extra=checkpoint.extra,
    )
