"""Compiles the CPU kernel while a wheel or an editable install is built, where there is a C compiler.

Without a compiler the wheel is pure Python and plain PyTorch takes the kernel's place; `codetr prepare` says so.
"""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the compiled kernel to the wheel and names the platform that it is for."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the files are collected; `version` is "standard" or "editable"."""
        compiler = _load(Path(self.root) / "codetr_cli" / "ops" / "compile_kernel.py")
        try:
            library = compiler.compile_kernel()
        except compiler.CompilerError as error:
            compiler.LIBRARY.unlink(missing_ok=True)  # never ship one of another source or machine
            self.app.display_warning(f"codetr: the CPU kernel is left out, PyTorch takes its place: {error}")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"  # opened by path: fits every Python
        build_data["artifacts"].append(str(library.relative_to(self.root)))


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
