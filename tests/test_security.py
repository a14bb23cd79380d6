"""No code from files: every place that unpickles, evaluates, imports by name or starts a process is explained.

The table of places in `docs/security.md` is the list of what is allowed; the source of the package is compared with it.
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "security.md"
SOURCES = sorted((REPOSITORY / "codetr_cli").rglob("*.py"))

# Modules whose import is reported, with all that is below them.
MODULES = (
    "pickle", "_pickle", "cPickle", "marshal", "shelve", "dbm", "copyreg", "dill", "cloudpickle", "joblib",
    "jsonpickle", "yaml", "ruamel", "subprocess", "multiprocessing", "concurrent.futures.ProcessPoolExecutor",
    "concurrent.futures.process", "concurrent.interpreters", "asyncio", "pty", "torch.multiprocessing",
    "torch.serialization", "torch.storage", "torch.export", "torch.distributed.run", "torch.distributed.launch",
    "torch.distributed.elastic", "torch.distributed.rpc", "torch.utils.model_zoo", "torch._inductor", "torch.classes",
    "logging.config", "pydoc", "timeit", "trace", "cProfile", "profile", "pdb", "bdb", "doctest", "unittest", "venv",
    "ensurepip", "pip", "setuptools", "pkg_resources", "numpy.lib.format", "numpy.ctypeslib", "numpy.f2py", "cv2.dnn",
    "onnx", "onnxruntime", "tensorflow", "h5py", "xml", "lxml", "urllib3", "httpx", "aiohttp", "telnetlib", "smtplib",
    "poplib", "imaplib", "nntplib", "paramiko", "fsspec", "psutil", "sh", "pexpect", "ctypes", "cffi", "webbrowser",
    "runpy", "code", "codeop", "imp", "pkgutil", "zipimport", "importlib.machinery", "importlib.abc", "xmlrpc",
    "socketserver", "urllib.request", "http", "ssl", "ftplib", "requests", "torch.hub", "torch.package", "torch.jit",
    "torch.utils.cpp_extension", "torch.distributed.checkpoint", "triton", "numba", "tarfile", "zipfile", "sqlite3",
    "av", "openvino", "nncf", "tensorrt", "gradio", "uvicorn", "huggingface_hub", "transformers",
)  # fmt: skip
# Names that are reported wherever they are used, by their last parts; `*` stands for the rest of a name.
NAMES = (
    "eval", "exec", "compile", "__import__", "execfile", "breakpoint", "builtins.*", "__builtins__", "builtins",
    "importlib.__import__", "*.ImportString", "*.entry_points", "*.EntryPoint", "types.FunctionType", "types.CodeType",
    "types.MethodType", "pandas.read_*", "pandas.eval", "*.open_memmap", "numpy.DataSource", "*.torch.multiprocessing",
    "*.readNet*", "*.__reduce__", "*.__reduce_ex__", "*.__getattribute__", "sys.modules", "sys.settrace",
    "sys.setprofile", "sys.addaudithook", "pydantic.create_model", "*.get_type_hints", "*.ForwardRef", "globals",
    "locals", "operator.methodcaller", "*.resolve_name", "*.__subclasses__", "*.__globals__", "*.__builtins__",
    "os.system", "os.popen", "os.exec*", "os.spawn*", "os.fork*", "os.posix_spawn*", "os.startfile",
    "os.add_dll_directory", "sys.path", "sys.meta_path", "sys.path_hooks", "importlib.reload",
    "*.spec_from_file_location", "*.exec_module", "*.spec_from_loader", "torch.load", "torch.compile", "torch.hub",
    "torch.jit", "*.load_library", "*.load_inline", "numpy.load", "numpy.fromfile", "numpy.memmap", "numpy.fromregex",
    "numpy.genfromtxt", "numpy.loadtxt", "*.CDLL", "*.unpack_archive", "*.gather_object", "*.all_gather_object",
    "*.broadcast_object_list", "*.scatter_object_list", "*.send_object_list", "*.recv_object_list", "socket.socket",
    "socket.create_*", "*.register_extension", "*.load_state_dict_from_url",
)  # fmt: skip
# Packages whose modules are reached as attributes, without an import of their own.
IMPORTED_ROOTS = ("torch", "numpy", "cv2", "concurrent", "importlib", "logging", "xml", "multiprocessing")
ARGUMENTS = ("allow_pickle", "shell", "weights_only")


_PATTERNS = {
    entry: re.compile(re.escape(entry).replace(r"\*", r"[\w.]+" if entry.startswith("*") else r"\w*"))
    for entry in NAMES
}


@functools.cache
def _matches(name: str) -> str | None:
    """The entry of `NAMES` for a dotted name."""
    for entry, pattern in _PATTERNS.items():
        if pattern.fullmatch(name):
            return entry.removeprefix("*.") if entry.startswith("*") else name
    return None


def _imported(tree: ast.AST) -> dict[str, str]:
    """Everything that a module imports: its name here -> its dotted name."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module or ''}.{alias.name}" for alias in node.names}
    return names


def _dotted(node: ast.expr, imported: dict[str, str]) -> str:
    """The full name of an expression; what is no name is written as `_`."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, imported)}.{node.attr}"
    return imported.get(node.id, node.id) if isinstance(node, ast.Name) else "_"


def _reported(name: str) -> set[str]:
    """What is reported of a dotted name, by its module and by its last parts."""
    found = {module for module in MODULES if f"{name}.".startswith(f"{module}.")}
    return found | ({match} if (match := _matches(name)) else set())


def _looked_up(call: ast.Call, imported: dict[str, str]) -> set[str]:
    """What a call of `getattr` can reach: a constant name is as if written, any name of a module is reported."""
    owner, name = call.args[0], call.args[1]
    dotted = _dotted(owner, imported)
    if isinstance(name, ast.Constant):
        return _reported(f"{dotted}.{name.value}")
    root = owner.func if isinstance(owner, ast.Call) else owner
    if isinstance(owner, ast.Call) and _dotted(root, imported).endswith(("import_module", "__import__")):
        return {"getattr"}
    while isinstance(root, ast.Attribute):
        root = root.value
    of_module = isinstance(root, ast.Name) and (root.id in imported or "module" in root.id.lower())
    return {"getattr"} if of_module and not isinstance(owner, ast.Call) else set()


def places(source: str) -> set[str]:
    """What a module does that is reported."""
    tree = ast.parse(source)
    imported = _imported(tree)
    found: set[str] = set().union(*map(_reported, imported.values()))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load):
            name = _dotted(node, imported)
            found |= _reported(name) if name.partition(".")[0] in IMPORTED_ROOTS or _matches(name) else set()
        if isinstance(node, ast.Call):
            found |= {f"{key.arg}=" for key in node.keywords if key.arg in ARGUMENTS}
            called = _dotted(node.func, imported)
            constant = bool(node.args) and isinstance(node.args[0], ast.Constant)
            if called.endswith("import_module"):
                argument = ast.unparse(node.args[0]) if constant else ""
                names = [module for module in MODULES if f"{argument[1:-1]}.".startswith(f"{module}.")]
                found |= {*names} if constant else {"import_module"}
            if called.endswith(".compile") and called != "re.compile":
                found.add("torch.compile")
            if called in ("getattr", "builtins.getattr") and len(node.args) > 1:
                found |= _looked_up(node, imported)
    return found


def listed() -> dict[str, set[str]]:
    """What the page allows, by file."""
    table: dict[str, set[str]] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and (files := re.findall(r"`(codetr_cli/[\w/]+\.py)`", cells[0])):
            for file in files:
                assert cells[2], f"no reason for {file}"
                table.setdefault(file, set()).update(re.findall(r"`([^`]+)`", cells[1]))
    return table


def test_every_place_is_explained_in_the_documentation():
    """A new one fails here: find another way, or explain in `docs/security.md` why no file can make use of it."""
    found = {str(path.relative_to(REPOSITORY)): places(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert {file: what for file, what in found.items() if what} == listed()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import pickle", "pickle"),
        ("import pickle as p", "pickle"),
        ("from pickle import loads", "pickle"),
        ("def f():\n    import _pickle", "_pickle"),
        ("x = eval(y)", "eval"),
        ("f = eval", "eval"),
        ("exec(y)", "exec"),
        ("compile(y, 'x', 'exec')", "compile"),
        ("__import__(y)", "__import__"),
        ("importlib.import_module(y)", "import_module"),
        ("import_module(f'a.{y}')", "import_module"),
        ("importlib.import_module('triton.testing')", "triton"),
        ("os.system(y)", "os.system"),
        ("os.execvp(y, z)", "os.execvp"),
        ("os.posix_spawn(y)", "os.posix_spawn"),
        ("from os import system", "os.system"),
        ("import subprocess", "subprocess"),
        ("from subprocess import Popen", "subprocess"),
        ("torch.load(y)", "torch.load"),
        ("from torch import load", "torch.load"),
        ("torch.hub.load(y)", "torch.hub"),
        ("from torch.hub import load", "torch.hub"),
        ("import torch as t\nt.load(y)", "torch.load"),
        ("from os import system as s", "os.system"),
        ("from os import execv as e\ne(y)", "os.execv"),
        ("import numpy as np\nnp.load(y)", "numpy.load"),
        ("import numpy as np\nnp.load(y, allow_pickle=True)", "allow_pickle="),
        ("run(y, shell=True)", "shell="),
        ("import yaml", "yaml"),
        ("import shelve", "shelve"),
        ("from marshal import loads", "marshal"),
        ("ctypes.CDLL(y)", "CDLL"),
        ("torch.ops.load_library(y)", "load_library"),
        ("model.compile()", "torch.compile"),
        ("import webbrowser", "webbrowser"),
        ("dist.broadcast_object_list(y)", "broadcast_object_list"),
        ("().__class__.__base__.__subclasses__()", "__subclasses__"),
        ("spec.loader.exec_module(y)", "exec_module"),
        ("import torch.multiprocessing as mp", "torch.multiprocessing"),
        ("from torch import multiprocessing", "torch.multiprocessing"),
        ("import torch\ntorch.multiprocessing.spawn(y)", "torch.multiprocessing"),
        (
            "import concurrent.futures\nconcurrent.futures.ProcessPoolExecutor()",
            "concurrent.futures.ProcessPoolExecutor",
        ),
        ("import concurrent.futures as c\nc.ProcessPoolExecutor()", "concurrent.futures.ProcessPoolExecutor"),
        ("from concurrent import futures\nfutures.ProcessPoolExecutor()", "concurrent.futures.ProcessPoolExecutor"),
        ("from concurrent.futures import ProcessPoolExecutor as P", "concurrent.futures.ProcessPoolExecutor"),
        ("from concurrent.futures.process import ProcessPoolExecutor", "concurrent.futures.process"),
        ("import builtins\nbuiltins.eval(y)", "builtins.eval"),
        ("from builtins import exec as e", "builtins.exec"),
        ("builtins.compile(y)", "builtins.compile"),
        ("builtins.__import__(y)", "builtins.__import__"),
        ("import importlib\nimportlib.__import__(y)", "importlib.__import__"),
        ("import os\ngetattr(os, 'system')(y)", "os.system"),
        ("import os as o\ngetattr(o, 'popen')(y)", "os.popen"),
        ("import builtins as b\ngetattr(b, 'eval')(y)", "builtins.eval"),
        ("import sys\ngetattr(sys, 'modules')", "sys.modules"),
        ("import torch\ngetattr(torch, 'load')(y)", "torch.load"),
        ("import torch\ngetattr(torch, y)", "getattr"),
        ("import torch.nn as n\ngetattr(n.functional, y)", "getattr"),
        ("from torch import nn\ngetattr(nn, y)", "getattr"),
        ("getattr(import_module('a'), y)", "getattr"),
        ("getattr(module, y)", "getattr"),
        ("import logging.config", "logging.config"),
        ("import logging\nlogging.config.dictConfig(y)", "logging.config"),
        ("from pydantic import ImportString", "ImportString"),
        ("import pydantic\npydantic.ImportString", "ImportString"),
        ("from pydoc import locate", "pydoc"),
        ("from importlib.metadata import entry_points", "entry_points"),
        ("import importlib.metadata as m\nm.entry_points()", "entry_points"),
        ("torch.serialization.load(y)", "torch.serialization"),
        ("from torch.serialization import load", "torch.serialization"),
        ("torch.storage._load_from_bytes(y)", "torch.storage"),
        ("from torch import export", "torch.export"),
        ("torch.export.load(y)", "torch.export"),
        ("from torch.distributed import run", "torch.distributed.run"),
        ("import pandas as pd\npd.read_pickle(y)", "pandas.read_pickle"),
        ("from pandas import read_csv", "pandas.read_csv"),
        ("from numpy.lib import format", "numpy.lib.format"),
        ("import numpy as np\nnp.lib.format.read_array(y)", "numpy.lib.format"),
        ("import types\ntypes.FunctionType(y, z)", "types.FunctionType"),
        ("from types import CodeType", "types.CodeType"),
        ("import av", "av"),
        ("import timeit", "timeit"),
        ("import cv2\ncv2.dnn.readNet(y)", "cv2.dnn"),
        ("from cv2 import dnn", "cv2.dnn"),
        ("import xml.etree.ElementTree", "xml"),
        ("from xml.sax import parse", "xml"),
        ("import os\nos.system", "os.system"),
        *[
            (f"import {module}", module)
            for module in (
                "urllib3",
                "requests",
                "aiohttp",
                "telnetlib",
                "smtplib",
                "ftplib",
                "webbrowser",
                "shelve",
                "dill",
                "joblib",
                "cloudpickle",
                "runpy",
                "code",
                "pty",
                "httpx",
                "pydoc",
            )
        ],
    ],
)
def test_places_are_found(source: str, expected: str):
    assert expected in places(source)


@pytest.mark.parametrize(
    "source",
    [
        "re.compile(x)",
        "json.loads(x)",
        "model.eval()",
        "importlib.import_module('wandb')",
        "run(load)",
        "path.open()",
        "getattr(settings, y)",
        "import os\ngetattr(os, 'pread', None)",
        "from concurrent.futures import ThreadPoolExecutor",
        "import logging\nlogging.getLogger()",
        "import torch\ntorch.nn.Linear(1, 1)",
    ],
)
def test_other_code_is_not_reported(source: str):
    assert places(source) == set()


def test_every_named_test_of_the_page_exists():
    for name in re.findall(r"`(tests/[\w/]+\.py)`", PAGE.read_text(encoding="utf-8")):
        assert Path(REPOSITORY / name).is_file(), name
