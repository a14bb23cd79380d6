"""Python programs in processes of their own that need not import PyTorch: forked from one that has imported it.

An import takes seconds of a core, in every process of every launch. A program is given as its words are on a command
line: `-m MODULE`, `-c CODE` or a file, then arguments. Processes that a launcher starts are forked as well; what a new
interpreter would get is pickled all the same. Where the interpreter's own start is under test, `new_python` starts one.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from codetr_cli.distributed import elastic_agent
from codetr_cli.training import plots
from tests import quick_plots

REPOSITORY = Path(__file__).resolve().parent.parent
ONE_THREAD = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


class Program(Protocol):
    """What `subprocess.Popen` has too."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def kill(self) -> None: ...
    def send_signal(self, number: int, /) -> None: ...
    def communicate(self, *, timeout: float) -> tuple[str, str]: ...


Python = Callable[..., Program]
"""Starts a program, given its words: `new_python` or `ForkedPython`."""


def new_python(*words: object, **environment: str) -> subprocess.Popen[str]:
    """Starts a new interpreter; its streams are read by `communicate`."""
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        env={**os.environ, **ONE_THREAD, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class ForkedPython:
    """A program that runs as `new_python` would run it, in the working folder and the environment of this process.

    Args:
        words: of the program.
        output: a file that both streams are appended to; `communicate` has them otherwise.
        environment: changes of this process's variables.
    """

    def __init__(self, *words: object, output: Path | None = None, **environment: str) -> None:
        folder = tempfile.mkdtemp(prefix="codetr-tests-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._streams = [Path(folder, name) for name in ("stdout", "stderr")]
        for path in self._streams:
            path.touch()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.preloaded"])
        known = {**os.environ, **ONE_THREAD, **environment}
        streams = self._streams if output is None else [output, output]
        arguments = ([str(word) for word in words], known, Path.cwd(), streams)
        self._process = context.Process(target=_run, args=arguments)
        before = {name: os.environ.get(name) for name in ONE_THREAD}
        os.environ.update(ONE_THREAD)  # of the first process, which imports
        try:
            self._process.start()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int:
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int, /) -> None:
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def communicate(self, *, timeout: float) -> tuple[str, str]:
        """What it has written to both streams, once it has ended."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        out, err = (path.read_text(encoding="utf-8", errors="replace") for path in self._streams)
        return out, err


def run_forked(*words: object, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end."""
    program = ForkedPython(*words, **environment)
    out, err = program.communicate(timeout=timeout)
    assert program.returncode is not None
    return subprocess.CompletedProcess(words, program.returncode, out, err)


def _run(words: list[str], environment: Mapping[str, str], folder: Path, streams: list[Path]) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(streams, start=1):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method(None, force=True)  # type: ignore[arg-type] # that of a new interpreter
    fork_the_processes_of_launchers()
    plots._save = quick_plots.save
    kind, *rest = words
    if kind == "-W":
        warnings.simplefilter(rest.pop(0))  # type: ignore[arg-type]
        warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
        kind, *rest = rest
    sys.argv = [kind, *rest]
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path.insert(0, str(Path(kind).parent))
        runpy.run_path(kind, run_name="__main__")


def fork_the_processes_of_launchers() -> None:
    """The processes that a launcher in this process starts are forked."""
    init = elastic_agent.Agent.__init__

    def forking(agent: elastic_agent.Agent, spec: Any, **named: Any) -> None:
        pickle.dumps((spec.entrypoint, spec.args))
        init(agent, spec, **named)
        agent._start_method = "fork"

    elastic_agent.Agent.__init__ = forking  # type: ignore[method-assign,assignment]
