"""The program as a package of PyTorch (`.pt2`): compiled by AOTInductor, with the exported program beside it.

It is compiled for the kind of device that the network is on, a CPU or a GPU.

`torch._inductor.aoti_load_package` runs the compiled program, `torch.export.load` reads the exported one, which can be
compiled again for another machine. Neither needs codetr, unless the exported program has its operators. Torch 2.7
writes the compiled program only.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from codetr_cli.errors import ConfigError, ResourceError
from codetr_cli.export.graph import trace
from codetr_cli.export.inductor import quick_compilation
from codetr_cli.export.quiet import without_warnings
from codetr_cli.export.request import WriteRequest
from codetr_cli.inference.exported.metadata import METADATA_KEY, ExportMetadata
from codetr_cli.inference.exported.trust import remember
from codetr_cli.models.torch_compile import use_private_cache, why_not_compile
from codetr_cli.ops.compile_kernel import CompilerError
from codetr_cli.ops.deform_attn import available_backends, use_backend
from codetr_cli.ops.package_kernel import linked_kernel, why_not_package

PROGRAM_NAME = "model"
"""Of both programs in a package: what torch loads by default."""

DEVELOPERS = ("torch.utils.cpp_extension", "torch._inductor", "torch.export")
"""Loggers whose warnings concern the developers of torch."""


def write_torch_package(request: WriteRequest) -> None:
    """Writes a package, and lists it as one of this user's own, see `trust`.

    Raises:
        ConfigError: options that packages do not have.
        ResourceError: no compiler, one that fails, or a torch that lacks something.
    """
    metadata = request.metadata
    device = _device(request)
    _check(metadata, device)
    use_private_cache()
    request.step("tracing the network")
    program = trace_program(request)
    request.step("compiling it, which takes minutes")
    try:
        with tempfile.TemporaryDirectory(prefix="codetr-package-") as folder, without_warnings(*DEVELOPERS):
            files = compile_program(program, metadata, Path(folder))
            _save(request.path, program, files)
    except (CompilerError, RuntimeError) as error:
        raise ResourceError(f"the network cannot be compiled here: {_shortened(error)}") from error
    remember(request.path)


def _save(path: Path, program: ExportedProgram, files: list[Any]) -> None:
    """As `save_package`.

    Raises:
        ResourceError: the file cannot be written.
    """
    try:
        save_package(path, program, files)
    except RuntimeError as error:  # of PyTorch's writer, which does not say what the system has said
        raise ResourceError(
            f"PyTorch cannot write {path.name} ({_shortened(error)}): often the disk is full, or the file would be "
            "larger than a file may be (`ulimit -f`). Free some space or choose another folder, then run the command "
            "again."
        ) from error


def _device(request: WriteRequest) -> torch.device:
    return next(request.model.parameters()).device


def _check(metadata: ExportMetadata, device: torch.device) -> None:
    if metadata.precision == "int8":
        raise ConfigError("--format torch has no int8: use --format openvino")
    if device.type not in PLUGIN_BACKENDS:
        raise ResourceError(f"--format torch compiles for cpu and cuda, not for {device.type}: use --device cpu.")
    if metadata.attention == "plugin" and (reason := _why_no_plugin(device)):
        raise ResourceError(f"--attention plugin: {reason} Use --attention gridsample, or --format onnx.")
    if reason := why_not_compile("cpu"):
        raise ResourceError(f"{reason} Install one (on Debian and Ubuntu: apt install g++), or use --format onnx.")
    if reason := why_not_compile(device.type):
        raise ResourceError(f"{reason} Install it, or use --device cpu.")


PLUGIN_BACKENDS = {"cpu": "cpu", "cuda": "triton"}
"""The kernel that the attention `plugin` puts into packages, by type of device."""


def _why_no_plugin(device: torch.device) -> str | None:
    if device.type == "cpu":
        return why_not_package()
    return available_backends(device)[PLUGIN_BACKENDS[device.type]]


def trace_program(request: WriteRequest) -> ExportedProgram:
    """The exported program; with the attention `plugin`, it calls the operator of codetr's kernel for the device."""
    with contextlib.ExitStack() as stack:
        if request.metadata.attention == "plugin":
            stack.enter_context(use_backend(PLUGIN_BACKENDS[_device(request).type]))
        return trace(request.model, request.metadata)


def compile_program(program: ExportedProgram, metadata: ExportMetadata, folder: Path) -> list[Any]:
    """Compiles a program.

    Args:
        program: of `trace_program`.
        metadata: becomes part of the result.
        folder: for the files.

    Returns:
        what torch packages: files, and perhaps weights.

    Raises:
        CompilerError: the compiler of codetr's kernel is missing or fails.
        RuntimeError: AOTInductor fails.
    """
    arguments, keywords = program.example_inputs
    options: dict[str, Any] = {
        "aot_inductor.package": True,
        "aot_inductor.output_path": str(folder),
        "aot_inductor.metadata": {METADATA_KEY: metadata.to_json()},
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(quick_compilation())
        if metadata.attention == "plugin" and arguments[0].device.type == "cpu":
            options |= stack.enter_context(linked_kernel())
        module = program.module()
        assert isinstance(module, torch.fx.GraphModule)
        files = torch._inductor.aot_compile(module, arguments, keywords, options=options)
    assert isinstance(files, list)
    return files


def save_package(path: Path, program: ExportedProgram, files: list[Any]) -> None:
    """Writes the package of a compiled program and, if this torch can do so, the exported program."""
    try:
        from torch.export.pt2_archive._package import package_pt2
    except ImportError:  # torch 2.7
        from torch._inductor.package.package import package_aoti

        package_aoti(str(path), files)
        return
    package_pt2(str(path), exported_programs={PROGRAM_NAME: program}, aoti_files={PROGRAM_NAME: files})


def _shortened(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:600] or type(error).__name__
