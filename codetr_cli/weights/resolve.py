"""Resolves weights: a preset's name, a path or a URL becomes a checkpoint on this disk.

The cache has a folder for each preset, with the published file and its conversion, and conversions of other files.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from codetr_cli.config.presets import load_preset, preset_names
from codetr_cli.config.schema import Settings
from codetr_cli.errors import CheckpointError, CodetrError, ResourceError
from codetr_cli.files import cache_dir
from codetr_cli.receipts import has_changed, write_receipt
from codetr_cli.weights.checkpoint import (
    VERSION,
    Checkpoint,
    is_safetensors,
    load_checkpoint,
    read_metadata,
    save_checkpoint,
)
from codetr_cli.weights.checkpoint import refuse_exported as refuse_exported
from codetr_cli.weights.convert import Conversion, ExpectedShapes, convert_file
from codetr_cli.weights.download import DownloadProgress, fetch
from codetr_cli.weights.published import PublishedWeights, published_weights
from codetr_cli.weights.remote import Remote, doubt
from codetr_cli.weights.urls import is_url, local_name

logger = logging.getLogger(__name__)

DOUBTED = "The file was downloaded; the next time, codetr asks the server whether it has another one by then."


def resolve_weights(weights: str | Path, *, progress: DownloadProgress | None = None) -> Path:
    """The file of a preset's name, a path or a URL; `open_weights` reads it.

    Args:
        weights: a preset's name, the path of a file, or an http(s) URL, which is downloaded once.
        progress: called during a download.

    Raises:
        CheckpointError: the preset's weights are not in the cache, or the URL gives a wrong file.
        ConfigError: another kind of URL.
        ResourceError: no connection, no space left.
    """
    weights = str(weights)
    if is_url(weights):
        remote = Remote.from_url(weights)
        folder = hashlib.sha256(weights.encode()).hexdigest()[:16]
        return fetch(remote, cache_dir() / "urls" / folder / remote.filename, copies=2, progress=progress)
    if weights in preset_names():
        return preset_weights(load_preset(weights))
    return Path(weights)


def preset_weights(settings: Settings) -> Path:
    """The converted weights of a preset that was downloaded; converts them on first use.

    Raises:
        CheckpointError: they are not in the cache.
    """
    published = published_weights(settings)
    if _is_intact(published.converted) and (not published.file.is_file() or is_current(published.converted)):
        return published.converted
    if published.file.is_file():
        if has_changed(published.file):
            raise CheckpointError(
                f"{published.file} has changed since it was downloaded: run `codetr download {settings.name}`, which "
                "downloads it again."
            )
        convert_preset(published)
        return published.converted
    if not published.known:
        raise CheckpointError(
            f"no weights have been published for preset {settings.name!r}: give a checkpoint that was trained with it."
        )
    action = "run" if published.remote else "for the manual download, see"
    raise CheckpointError(
        f"the weights of preset {settings.name!r} are not in the cache: {action} `codetr download {settings.name}`."
    )


def convert_preset(published: PublishedWeights, expected_shapes: ExpectedShapes | None = None) -> Conversion:
    """Converts a preset's published file in the cache.

    Raises:
        CheckpointError: another file than the preset's, or damaged.
        ResourceError: no space left.
    """
    with doubted_if_unusable(published.file):
        conversion = convert_file(
            published.file, prefer=published.preset, only_preferred=True, expected_shapes=expected_shapes
        )
    save_checkpoint(published.converted, **vars(conversion.checkpoint))
    write_receipt(published.converted)
    return conversion


def usable_conversion(published: PublishedWeights) -> Checkpoint | None:
    """The converted weights of a preset, made by this version; None if there are none or they are damaged."""
    if not (_is_intact(published.converted) and is_current(published.converted)):
        return None
    return load_checkpoint(published.converted)


def open_weights(path: Path | str, *, prefer: Settings | None = None) -> Checkpoint:
    """Reads a checkpoint of codetr, or a published one, which is converted once and cached.

    Args:
        path: .safetensors or .pth.
        prefer: settings for a published checkpoint if it has their architecture; otherwise the shipped presets are
            searched. Not used for checkpoints of codetr.

    Raises:
        CheckpointError: as `load_checkpoint` and `convert_file`.
    """
    path = Path(path)
    refuse_exported(path)
    with doubted_if_unusable(path):
        if is_safetensors(path) and "format" in read_metadata(path):
            return load_checkpoint(path)
        cached = _conversion_path(path, prefer)
        if cached is not None and _is_intact(cached):
            return load_checkpoint(cached)
        checkpoint = convert_file(path, prefer=prefer, check_finite=False).checkpoint  # loading checks it
    if cached is not None:
        try:
            save_checkpoint(cached, **vars(checkpoint))
            write_receipt(cached)
        except ResourceError as error:
            logger.info("the converted weights are not cached: %s", error)
    return checkpoint


@contextmanager
def doubted_if_unusable(path: Path) -> Iterator[None]:
    """Marks a file that was downloaded if it turns out not to be usable.

    Raises:
        CheckpointError: as in the block, with the origin of the file.
    """
    try:
        yield
    except CheckpointError as error:
        known = str(error).endswith(DOUBTED)  # from a block inside this one
        if known or not doubt(path):
            raise
        raise CheckpointError(f"{str(error).rstrip('. ')}. {DOUBTED}") from error


def _is_intact(path: Path) -> bool:
    """Whether a conversion is there and as it was written; a damaged one is logged.

    One without a receipt, of an earlier version of codetr, is read completely, once.
    """
    if not path.is_file():
        return False
    changed = has_changed(path)
    problem = "it has changed since it was written" if changed else ""
    if changed is None:
        try:
            load_checkpoint(path)
            write_receipt(path)
        except CheckpointError as error:
            problem = str(error)
    if problem:
        logger.warning("the converted weights %s in the cache are damaged and are not used: %s", path, problem)
    return not problem


def is_current(path: Path) -> bool:
    """Whether this version of codetr made a conversion; settings of presets may differ between versions."""
    try:
        return read_metadata(path).get("codetr_version") == VERSION
    except CodetrError:
        return False


def _conversion_path(path: Path, prefer: Settings | None) -> Path | None:
    """Where the conversion of a file in its present state is cached; None if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    wanted = prefer.model_dump_json() if prefer else ""
    key = f"{path.absolute()}|{status.st_size}|{status.st_mtime_ns}|{VERSION}|{wanted}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return cache_dir() / "converted" / f"{local_name(path.stem)}-{digest}.safetensors"
