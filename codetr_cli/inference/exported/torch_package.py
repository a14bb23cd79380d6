"""Packages of PyTorch (`.pt2`), compiled by AOTInductor.

A package contains a shared library, so that loading one executes it. Nothing of the file is executed before its
metadata were read from the archive and `trust` allowed it. The exported program in the file is not read: its format
has pickles.
"""

from __future__ import annotations

import platform
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codetr_cli.errors import CheckpointError, ResourceError
from codetr_cli.inference.exported.engine_info import EngineInfo
from codetr_cli.inference.exported.metadata import (
    MAX_METADATA,
    METADATA_KEY,
    ExportMetadata,
    output_names,
    parse_metadata,
)
from codetr_cli.inference.exported.trust import check_trusted
from codetr_cli.reading import open_file, parse_json
from codetr_cli.weights.zip_files import open_zip

DEVICE_KEY, MACHINE_KEY, SET_KEY = "AOTI_DEVICE_KEY", "AOTI_MACHINE", "AOTI_CPU_ISA"
"""What AOTInductor says of the code: the type of its device, and for which processors it is compiled."""

CAPABILITY_KEY = "AOTI_COMPUTE_CAPABILITY"
"""Likewise, of code for NVIDIA's GPUs: 90 for 9.0."""

INSTRUCTION_SETS = ("DEFAULT", "AVX2", "AVX512")
"""Those of x86-64 processors as torch names them; each includes the former."""

METADATA_SUFFIX = "_metadata.json"

UNREADABLE = (OSError, ValueError, zipfile.BadZipFile, EOFError)
"""Errors of `read_table`."""


class TorchPackageEngine:
    """See `engine.Engine`."""

    def __init__(
        self, runner: Callable[..., Any], metadata: ExportMetadata, info: EngineInfo, device: torch.device
    ) -> None:
        self._runner, self.metadata, self.info, self.device = runner, metadata, info, device

    @classmethod
    def open(cls, path: Path, device: torch.device) -> TorchPackageEngine:
        """Loads a package; as `engine.open_engine`.

        Raises:
            CheckpointError: as there, or its code may not run here: see `trust`.
            ResourceError: its code is for another kind of device or processor.
        """
        try:
            table = read_table(path)
        except UNREADABLE as error:
            raise CheckpointError(f"{path} is not a package of PyTorch that codetr can read: {error}") from error
        text = table.get(METADATA_KEY)
        metadata = parse_metadata(text if isinstance(text, str) else None, str(path))
        _check_hardware(path, table, device)
        check_trusted(path)
        try:
            if device.type == "cuda":  # without an index, it would be the GPU that it was compiled on
                runner = torch._inductor.aoti_load_package(str(path), device_index=device.index or 0)
            else:
                runner = torch._inductor.aoti_load_package(str(path))
        except Exception as error:  # a library that cannot be opened can raise anything
            raise CheckpointError(
                f"torch {torch.__version__} cannot load {path}, which torch {metadata.versions.get('torch')} compiled: "
                f"{error}"
            ) from error
        provider = f"AOTInductor on {device.type}"
        info = EngineInfo(f"PyTorch {torch.__version__}", provider, metadata.precision)
        return cls(runner, metadata, info, device)

    def run(self, images: Tensor, image_sizes: Tensor) -> dict[str, Tensor]:
        """See `engine.Engine`."""
        with torch.no_grad():
            outputs = self._runner(images, image_sizes)
        return dict(zip(output_names(self.metadata), outputs, strict=True))


def is_for_gpu(path: Path) -> bool:
    """Whether a package is compiled for a GPU; False for one that cannot be read, which is no error here."""
    try:
        return read_table(path).get(DEVICE_KEY) == "cuda"
    except UNREADABLE:
        return False


def read_table(path: Path) -> Mapping[str, Any]:
    """The table of texts that AOTInductor keeps in a package, codetr's metadata among them; executes nothing.

    Raises:
        OSError: the file cannot be read.
        BadZipFile: it is no archive, or a damaged one.
        ValueError: it has no such table, or a bad one.
    """
    with open_file(path) as file, open_zip(file) as archive:
        names = [entry for entry in archive.infolist() if entry.filename.endswith(METADATA_SUFFIX)]
        if not names:
            raise ValueError("it has no metadata")
        tables = [_read_member(archive, entry) for entry in names]
    if any(table != tables[0] for table in tables):
        raise ValueError("its parts have different metadata")
    return tables[0]


def _read_member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> dict[str, Any]:
    limit = 4 * MAX_METADATA  # bytes; texts are escaped
    if entry.file_size > limit:
        raise ValueError(f"its metadata have more than {limit:,} bytes")
    table = parse_json(archive.read(entry).decode("utf-8"), unique_keys=True)
    if not isinstance(table, dict):
        raise ValueError("its metadata are not a table")
    return table


def _check_hardware(path: Path, table: Mapping[str, Any], device: torch.device) -> None:
    """Refuses code for another device or processor, which could end the process."""
    made_for = str(table.get(DEVICE_KEY))[:20]
    if made_for != device.type:
        raise ResourceError(f"{path} is compiled for {made_for}, not for {device.type}: use --device {made_for}.")
    machine = str(table.get(MACHINE_KEY, platform.machine()))[:20]
    if machine != platform.machine():
        raise ResourceError(
            f"{path} is compiled for {machine} processors, and this one is {platform.machine()}: export the checkpoint "
            "here."
        )
    wanted, here = str(table.get(SET_KEY, "")).split(" ")[0], torch.backends.cpu.get_cpu_capability()
    known = wanted in INSTRUCTION_SETS and here in INSTRUCTION_SETS
    if known and INSTRUCTION_SETS.index(wanted) > INSTRUCTION_SETS.index(here):
        raise ResourceError(
            f"{path} is compiled for processors with {wanted}, and this one has {here}: export the checkpoint here."
        )
    capability = str(table.get(CAPABILITY_KEY, ""))[:20]
    if device.type == "cuda" and torch.version.hip is None and capability.isdecimal():
        _check_capability(path, divmod(int(capability), 10), torch.cuda.get_device_capability(device))


def _check_capability(path: Path, wanted: tuple[int, int], here: tuple[int, int]) -> None:
    """Machine code for a GPU runs on those with the same first number and the same or a later second one."""
    if wanted[0] != here[0] or wanted[1] > here[1]:
        of_file, of_gpu = (".".join(map(str, numbers)) for numbers in (wanted, here))
        raise ResourceError(
            f"{path} is compiled for GPUs of compute capability {of_file}, and this one has {of_gpu}: export the "
            "checkpoint here."
        )
