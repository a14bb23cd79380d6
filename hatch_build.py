"""Compiles the CPU kernel while a wheel or an editable install is built, where there is a C compiler.

Without a compiler the wheel is pure Python and plain PyTorch takes the kernel's place; `codetr prepare` says so.
"""

from __future__ import annotations

import importlib.util
import platform
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the compiled kernel to the wheel and names the platform that it is for."""

    folder: tempfile.TemporaryDirectory[str] | None = None
    """Holds the kernel until it is in the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the files are collected; `version` is "standard" or "editable".

        An editable install gets its kernel beside the source, where Python will look for it, and keeps the one that it
        has when no other can be built. For a wheel nothing is written to the source tree, and no kernel found there
        is taken (pyproject.toml excludes it): it may be of another source or machine.
        """
        compiler = _load(Path(self.root) / "codetr_cli" / "ops" / "compile_kernel.py")
        try:
            if version == "editable":
                compiler.compile_kernel()
                return
            self.folder = tempfile.TemporaryDirectory(prefix="codetr-kernel-")
            library = compiler.compile_kernel(Path(self.folder.name) / compiler.LIBRARY.name)
        except (compiler.CompilerError, OSError) as error:
            self.app.display_warning(f"codetr: the CPU kernel is skipped, PyTorch replaces it: {error}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag()}"  # opened by path: fits every Python
        build_data["force_include"][str(library)] = f"codetr_cli/ops/{library.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called when the wheel is written."""
        if self.folder is not None:
            self.folder.cleanup()


def platform_tag() -> str:
    """The platform of what the compiler makes here, as names of wheels say it."""
    name = sysconfig.get_platform()
    if name.startswith("macosx-"):
        # A Python for both kinds of Mac says "universal2", but the compiler makes the library for this one alone.
        # From macOS 11 on pip counts whole releases only, and Macs with Apple's own processors begin there.
        machine = platform.machine()
        major, minor = (int(number) for number in f"{name.split('-')[1]}.0".split(".")[:2])
        if major > 10 or machine == "arm64":
            major, minor = max(major, 11), 0
        name = f"macosx-{major}-{minor}-{machine}"
    return name.replace("-", "_").replace(".", "_")


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
