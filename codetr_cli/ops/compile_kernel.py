"""Compiles deform_attn.c to a library: in place for an editable install, in a temporary folder for a wheel.

Uses the standard library only. `python codetr_cli/ops/compile_kernel.py` compiles manually.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("deform_attn.c")

LIBRARY = SOURCE.with_name("libcodetr_deform_attn.so")
"""The same name on every system: Python opens it by path."""

FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")

X86_SETS = {
    "avx2": ("-mavx2", "-mfma"),
    "avx512": ("-mavx2", "-mfma", "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq"),
}
"""Instruction sets beyond the compiler's default one, with the flags that allow them."""


class CompilerError(Exception):
    """No compiler, or one that cannot compile the kernel; the message includes its output."""


def source_digest() -> str:
    """Digest of the kernel's source and of how it is compiled; a library with another digest is not used."""
    return hashlib.sha256(SOURCE.read_bytes() + repr((FLAGS, X86_SETS)).encode()).hexdigest()[:16]


def find_compiler() -> list[str]:
    """The command of the C compiler: $CC, else cc, gcc or clang.

    Raises:
        CompilerError: none of them is installed.
    """
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise CompilerError("no C compiler was found (cc, gcc, clang or the environment's CC)")


def compile_kernel(library: Path = LIBRARY, extra_flags: tuple[str, ...] = ()) -> Path:
    """Compiles the kernel for every instruction set of this kind of machine and links one library.

    Args:
        library: file to write; replaced atomically on success.
        extra_flags: for the compiler and the linker, for example a sanitizer's.

    Raises:
        CompilerError: there is no compiler, it failed, or the library cannot be written.
    """
    compiler = find_compiler()
    try:
        _compile([*compiler, *FLAGS, *extra_flags], library, target_machine(compiler))
    except OSError as error:
        raise CompilerError(f"{library} cannot be written: {error}") from error
    return library


def _compile(compiler: list[str], library: Path, machine: str) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".kernel-") as folder:
        objects = compile_objects(compiler, Path(folder), instruction_sets(machine))
        built = Path(folder) / library.name
        run([*compiler, "-shared", *map(str, objects), "-o", str(built), "-lm"])
        built.replace(library)


def instruction_sets(machine: str) -> dict[str, tuple[str, ...]]:
    """Instruction sets that the kernel is compiled for on a kind of machine, with their flags."""
    return {"base": ()} | (X86_SETS if machine in ("x86_64", "amd64") else {})


def compile_objects(compiler: list[str], folder: Path, sets: dict[str, tuple[str, ...]]) -> list[Path]:
    """Compiles the kernel for every instruction set, and the part that finds out which of them this machine has.

    Args:
        compiler: its command, with the flags for all.
        folder: for the object files.
        sets: see `instruction_sets`.

    Raises:
        CompilerError: it failed.
    """
    objects = [folder / f"{name}.o" for name in (*sets, "entry")]
    for (name, flags), target in zip(sets.items(), objects, strict=False):
        run([*compiler, *flags, f"-DVARIANT={name}", "-c", str(SOURCE), "-o", str(target)])
    run([*compiler, *defines(sets), f'-DSOURCE="{source_digest()}"', "-c", str(SOURCE), "-o", str(objects[-1])])
    return objects


def defines(sets: dict[str, tuple[str, ...]]) -> list[str]:
    """Flags that declare for which instruction sets the kernel was compiled."""
    return [f"-DHAVE_{name.upper()}" for name in sets]


def target_machine(compiler: list[str]) -> str:
    """The processor that the compiler makes code for: a cross compiler's is not this machine's."""
    if sys.maxsize <= 2**32:  # a 32-bit Python on a 64-bit processor builds for itself, not for the processor
        return sysconfig.get_platform()
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        target = subprocess.run([*compiler, "-dumpmachine"], capture_output=True, text=True, check=True).stdout
        if target.strip():
            return target.partition("-")[0].lower()
    return platform.machine().lower()


def run(command: list[str]) -> None:
    """Runs a compiler.

    Raises:
        CompilerError: it cannot be started, or fails.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CompilerError(f"{command[0]} could not be started: {error}") from error
    if done.returncode:
        raise CompilerError(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    try:
        compile_kernel()
    except CompilerError as error:
        sys.exit(str(error))
