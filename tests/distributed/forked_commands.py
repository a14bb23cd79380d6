"""Runs commands one after the other, with forked processes, which saves the seconds that an import of PyTorch takes.

What a new interpreter would get is pickled all the same. With DYING in the environment, the process of rank 1 kills
itself after its first unit of work, and each unit is written at once. A script.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import codetr_cli.evaluation.job  # noqa: F401 - for all processes
from codetr_cli.cli import main
from codetr_cli.distributed import elastic_agent, shared_work
from codetr_cli.distributed.process_group import RESTARTS
from tests.conftest import REPOSITORY

_add, _init = shared_work.SharedWork.add, elastic_agent.Agent.__init__


def _add_and_die(work: shared_work.SharedWork, *arguments: Any, **named: Any) -> None:
    _add(work, *arguments, **named)
    if os.environ.get("RANK") == "1" and os.environ.get(RESTARTS) == "0":
        os.kill(os.getpid(), signal.SIGKILL)


def _forking_agent(agent: elastic_agent.Agent, spec: Any, **named: Any) -> None:
    pickle.dumps((spec.entrypoint, spec.args))
    _init(agent, spec, **named)
    agent._start_method = "fork"


def run_forked(*commands: Sequence[object], **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the commands in a process of its own; ends with their highest exit code."""
    words = json.dumps([[str(word) for word in command] for command in commands])
    return subprocess.run(
        [sys.executable, "-m", "tests.distributed.forked_commands", words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


if __name__ == "__main__":
    if os.environ.get("DYING"):
        shared_work.FLUSH_S = -1.0
        shared_work.SharedWork.add = _add_and_die  # type: ignore[method-assign]
    elastic_agent.Agent.__init__ = _forking_agent  # type: ignore[method-assign,assignment]
    sys.exit(max(main(words) for words in json.loads(sys.argv[1])))
