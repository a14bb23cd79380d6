"""Checkpoints of codetr: a safetensors file whose metadata has the settings, the classes and a hash of the content."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from codetr_cli.class_names import storable_class_name
from codetr_cli.config.checkpoint_settings import parse_stored
from codetr_cli.config.schema import Settings
from codetr_cli.errors import CheckpointError, ConfigError
from codetr_cli.files import EXPORTED_SUFFIXES, WEIGHTS_NAME, replace_file
from codetr_cli.reading import check_regular, open_file, parse_json
from codetr_cli.weights.metadata import parse_classes, storable_text, version_of
from codetr_cli.weights.safetensors_header import check_header
from codetr_cli.weights.urls import public_settings

FORMAT = "codetr-1"
# A plain import would make this module depend on what the package exports to Python users.
VERSION: str = importlib.import_module("codetr_cli").__version__


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Args:
        state: our names -> tensors.
        settings: of the training or conversion.
        class_names: class name of each label.
        category_ids: id of each label in annotation and result files.
        extra: further metadata, e.g. the file that was converted.
    """

    state: dict[str, Tensor]
    settings: Settings
    class_names: list[str]
    category_ids: list[int]
    extra: dict[str, str] = field(default_factory=dict)


def save_checkpoint(
    path: Path | str,
    state: Mapping[str, Tensor],
    *,
    settings: Settings,
    class_names: Sequence[str],
    category_ids: Sequence[int],
    extra: Mapping[str, str] | None = None,
    on_written: Callable[[Path], object] = lambda temporary: None,
) -> None:
    """Writes a checkpoint; an existing file is replaced atomically.

    Control characters in class names are written as text (`storable_class_name`), so that the file can be read again.

    Args:
        path: the file; missing folders are created.
        state: our names -> tensors, on any device.
        settings: see `Checkpoint`.
        class_names: one per class.
        category_ids: one per class.
        extra: see `Checkpoint`.
        on_written: called with the complete file before it gets its name.

    Raises:
        ResourceError: no space left, or the file cannot be written.
        ValueError: the numbers of class names, category ids and classes of the settings differ.
    """
    path = Path(path)
    settings = public_settings(settings)
    if not len(class_names) == len(category_ids) == settings.model.num_classes:
        raise ValueError(
            f"{len(class_names)} class names and {len(category_ids)} category ids "
            f"for {settings.model.num_classes} classes"
        )
    tensors = _detached(state)
    metadata = {
        "format": FORMAT,
        "codetr_version": VERSION,
        "settings": settings.model_dump_json(),
        "class_names": json.dumps([storable_class_name(name) for name in class_names], ensure_ascii=False),
        "category_ids": json.dumps(list(category_ids)),
        "extra": json.dumps({key: storable_text(text) for key, text in (extra or {}).items()}, ensure_ascii=False),
    }
    metadata["content_sha256"] = _content_hash(tensors, metadata)
    size = sum(tensor.nbytes for tensor in tensors.values())
    with replace_file(path, size, parents=True) as temporary:
        save_file(tensors, temporary, metadata)
        on_written(temporary)


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Reads a checkpoint of codetr, a .safetensors file, and verifies its hash and its metadata.

    All settings are as they were written, if they can be read (`parse_stored`): `config.checkpoint_settings` says which
    of them count. The values of the
    weights are not examined: `weights.values` does that.

    Raises:
        CheckpointError: missing, damaged, not a safetensors file, not written by codetr, or by a newer one; metadata
            with wrong types or values.
    """
    path = Path(path)
    tensors, metadata = read_safetensors(path)
    if "format" not in metadata or "content_sha256" not in metadata:
        raise CheckpointError(
            f"{path} has weights but was not written by codetr: it has no settings and no class names. "
            f"If it is a published Co-DETR checkpoint, convert it: codetr convert {path} NEW.safetensors"
        )
    if metadata["format"] != FORMAT:
        raise CheckpointError(
            f"{path} was written by codetr {version_of(metadata)} in format {metadata['format'][:40]!r}; "
            f"this is codetr {VERSION}, which reads {FORMAT!r}. Install a newer codetr."
        )
    if metadata["content_sha256"] != _content_hash(tensors, metadata):
        raise CheckpointError(
            f"{path} is damaged: its content does not match the hash in its metadata. "
            "Copy it again, or use the previous checkpoint of the run folder."
        )
    try:
        table = parse_json(metadata.get("settings", ""), unique_keys=True)
        if not isinstance(table, dict):
            raise ValueError("they are not a table")
        settings = parse_stored(table, where=str(path))
    except (ValueError, ConfigError) as error:
        version = version_of(metadata)
        by = "" if version == VERSION else f" of codetr {version}"
        raise CheckpointError(f"{path} has settings{by} that codetr {VERSION} cannot read: {error}") from error
    try:
        classes = parse_classes(metadata, settings.model.num_classes, str(path))
    except ValueError as error:
        raise CheckpointError(
            f"{path} has metadata that codetr does not write: {error}. Use the original file, or an earlier checkpoint."
        ) from error
    return Checkpoint(state=tensors, settings=settings, **vars(classes))


def is_safetensors(path: Path) -> bool:
    """Whether a file has the suffix or the first bytes of a safetensors file: eight bytes of length, then JSON."""
    if path.suffix == ".safetensors":
        return True
    try:
        with open_file(path) as file:
            return file.read(9)[8:] == b"{"
    except OSError as error:
        raise CheckpointError(_unreadable(path, error)) from error


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Memory-mapped tensors and metadata of any safetensors file.

    Raises:
        CheckpointError: missing, truncated, or not a safetensors file.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of any safetensors file, without its tensors.

    Raises:
        CheckpointError: missing, truncated, or not a safetensors file.
    """
    with _opened(path) as file:
        return dict(file.metadata() or {})


def content_id(path: Path) -> str | None:
    """The hash that a checkpoint of codetr records of its content, which is not verified here; None of other files.

    Raises:
        CheckpointError: missing, truncated, or not readable.
    """
    return read_metadata(path).get("content_sha256") if is_safetensors(path) else None


def read_extra(path: Path) -> dict[str, str] | None:
    """`Checkpoint.extra` of a checkpoint of codetr, of which nothing else is read; None of other files.

    Raises:
        CheckpointError: the file cannot be read, or has metadata that codetr does not write.
    """
    if not is_safetensors(path) or "format" not in (metadata := read_metadata(path)):
        return None
    try:
        extra = parse_json(metadata.get("extra", "{}"), unique_keys=True)
    except ValueError as error:
        raise CheckpointError(f"{path} has metadata that codetr does not write: {error}") from error
    if not isinstance(extra, dict) or not all(isinstance(value, str) for value in extra.values()):
        raise CheckpointError(f"{path} has metadata that codetr does not write: extra is no table of texts")
    return extra


def stored_settings(path: Path) -> Settings | None:
    """The settings in the metadata of a checkpoint of codetr; its tensors are not read. None if there are none.

    They are as they were written: `config.checkpoint_settings` says which of them count.
    """
    try:
        if not is_safetensors(path):
            return None
        table = parse_json(read_metadata(path).get("settings", ""), unique_keys=True)
        return parse_stored(table, where=str(path)) if isinstance(table, dict) else None
    except (CheckpointError, ConfigError, ValueError):
        return None


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder: give the .safetensors file in it, e.g. checkpoints/last/{WEIGHTS_NAME}."
        )
    try:
        checked = check_header(path)
        with safe_open(path, framework="pt", device="cpu") as file:
            _check_unchanged(checked, check_regular(path))
            yield file
    except OSError as error:
        raise CheckpointError(_unreadable(path, error)) from error
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a safetensors file ({error}): it is truncated, damaged, or of another type. "
            "Copy or convert it again, or use the previous checkpoint of the run folder."
        ) from error


def _check_unchanged(before: os.stat_result, after: os.stat_result) -> None:
    if any(getattr(before, key) != getattr(after, key) for key in ("st_dev", "st_ino", "st_size", "st_mtime_ns")):
        raise ValueError("it changed while it was read")


def _unreadable(path: Path, error: OSError) -> str:
    # safetensors raises OSErrors without `strerror`.
    reason = error.strerror or ("No such file or directory" if isinstance(error, FileNotFoundError) else str(error))
    return f"cannot read the checkpoint {path}: {reason}. Check the path."


def _detached(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors needs them: contiguous, on the CPU, without shared storage."""
    tensors: dict[str, Tensor] = {}
    owners: set[int] = set()
    for name, tensor in state.items():
        value = tensor.detach().to("cpu").contiguous()
        owner = value.untyped_storage().data_ptr()
        tensors[name] = value.clone() if owner in owners else value
        owners.add(owner)
    return tensors


def _content_hash(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of all tensors and of the other metadata."""

    def hash_tensor(name: str) -> str:
        tensor = tensors[name]
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
        digest = hashlib.sha256(data).hexdigest()
        return f"{name} {tensor.dtype} {tuple(tensor.shape)} {digest}\n"

    total = hashlib.sha256()
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # hashlib releases the GIL
        for line in pool.map(hash_tensor, sorted(tensors)):
            total.update(line.encode())
    for key in sorted(metadata):
        if key != "content_sha256":
            total.update(f"{key}={metadata[key]}\n".encode())
    return total.hexdigest()


def refuse_exported(path: Path) -> None:
    """Refuses the files of `codetr export` where weights are needed.

    Raises:
        CheckpointError: it is one, by its suffix.
    """
    if path.suffix in EXPORTED_SUFFIXES:
        raise CheckpointError(
            f"{path} is an exported file: codetr predict, label, eval, bench and serve run it, but its weights cannot "
            "be trained or converted. Give the checkpoint that it was made from."
        )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(_unreadable(path, error)) from error
