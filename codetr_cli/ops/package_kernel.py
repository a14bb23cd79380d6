"""The compiled kernel as a part of packages of AOTInductor, which call it without Python and without codetr.

The operator `codetr::deform_attn` is declared to AOTInductor as a C function, and the function and deform_attn.c are
linked into the package.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from codetr_cli.ops.compile_kernel import (
    FLAGS,
    CompilerError,
    compile_objects,
    defines,
    find_compiler,
    instruction_sets,
    run,
    source_digest,
    target_machine,
)

SHIM = Path(__file__).with_name("deform_attn_shim.cpp")

DECLARATION = (
    "AOTITorchError aoti_torch_cpu_deform_attn(AtenTensorHandle, const int64_t *, int64_t, AtenTensorHandle *, "
    "AtenTensorHandle, AtenTensorHandle, const char *, AtenTensorHandle *)"
)
"""The function of deform_attn_shim.cpp; AOTInductor derives its name and arguments from those of the operator."""

OPTION = "custom_ops_to_c_shims"
"""Of AOTInductor, with which operators are C functions; torch 2.7 has none."""

SEARCH_PATH = "LIBRARY_PATH"
"""Environment variable with the folders in which gcc and clang search libraries."""

HOST_COMPILERS = ("g++", "clang++", "c++")


def why_not_package() -> str | None:
    """The reason why this torch cannot make the kernel a part of a package, one sentence; None where it can."""
    from torch._inductor import config

    if not hasattr(config.aot_inductor, OPTION):
        return f"torch {torch.__version__} cannot link operators into a package; torch 2.8 and newer can."
    return None


@contextlib.contextmanager
def linked_kernel() -> Iterator[dict[str, Any]]:
    """Options of AOTInductor under which the CPU kernel becomes a part of the package, valid in the context.

    Raises:
        CompilerError: a compiler is missing or fails.
    """
    before = os.environ.get(SEARCH_PATH)
    with tempfile.TemporaryDirectory(prefix="codetr-kernel-") as folder:
        name = build_archive(Path(folder))
        os.environ[SEARCH_PATH] = folder if not before else os.pathsep.join([folder, before])
        try:
            yield {
                f"aot_inductor.{OPTION}": {torch.ops.codetr.deform_attn.default: [DECLARATION]},
                "aot_inductor.custom_op_libs": [name],
            }
        finally:
            if before is None:
                del os.environ[SEARCH_PATH]
            else:
                os.environ[SEARCH_PATH] = before


def build_archive(folder: Path) -> str:
    """Compiles the static library of kernel and operator into a folder.

    Returns:
        its name for the linker.

    Raises:
        CompilerError: a compiler is missing or fails.
    """
    compiler = find_compiler()
    sets = instruction_sets(target_machine(compiler))
    objects = compile_objects([*compiler, *FLAGS], folder, sets)
    include = Path(torch.__file__).parent / "include"
    shim = folder / "shim.o"
    flags = ["-O2", "-std=c++17", "-fPIC", "-fopenmp", f"-I{include}"]
    run([*_find_host_compiler(), *flags, *defines(sets), "-c", str(SHIM), "-o", str(shim)])
    name = f"codetr_deform_attn_{source_digest()}"
    run(["ar", "rcs", str(folder / f"lib{name}.a"), *map(str, objects), str(shim)])
    return name


def _find_host_compiler() -> list[str]:
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in HOST_COMPILERS:
        if shutil.which(name):
            return [name]
    raise CompilerError(f"no C++ compiler was found ({', '.join(HOST_COMPILERS)} or the environment's CXX)")
