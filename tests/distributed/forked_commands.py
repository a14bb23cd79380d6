"""Runs commands one after the other. A script, which is forked.

With DYING in the environment, the process of rank 1 kills itself after its first unit of work, and each unit is written
at once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from codetr_cli.cli import main
from codetr_cli.distributed import elastic_agent, shared_work
from codetr_cli.distributed.process_group import RESTARTS
from tests import forked

_add = shared_work.SharedWork.add


def _add_and_die(work: shared_work.SharedWork, *arguments: Any, **named: Any) -> None:
    _add(work, *arguments, **named)
    if os.environ.get("RANK") == "1" and os.environ.get(RESTARTS) == "0":
        os.kill(os.getpid(), signal.SIGKILL)


def run_forked(*commands: Sequence[object], **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the commands in a process of its own; ends with their highest exit code."""
    words = json.dumps([[str(word) for word in command] for command in commands])
    return forked.run_forked("-m", "tests.distributed.forked_commands", words, **environment)


if __name__ == "__main__":
    if os.environ.get("DYING"):
        shared_work.FLUSH_S = -1.0
        elastic_agent.ERROR_DELAY_S = 0.1  # the other process waits for the dead one, and has no error to write
        shared_work.SharedWork.add = _add_and_die  # type: ignore[method-assign]
    sys.exit(max(main(words) for words in json.loads(sys.argv[1])))
