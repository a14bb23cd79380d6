"""One process or many: what the options of a verb request, and its work in the processes that they start."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import typer

from codetr_cli import console
from codetr_cli.closed_streams import tolerate_closed_streams
from codetr_cli.errors import ConfigError

if TYPE_CHECKING:
    from codetr_cli.distributed.topology import Placement, Request

LAUNCH_OPTIONS = ("gpus", "procs", "nodes", "rdzv_endpoint", "node_rank", "max_restarts", "slurm")
"""Parameters of every verb that several processes can do, besides `device`."""


def requested(context: typer.Context) -> Request:
    """The processes that the options of a verb request; all verbs have these options under the same names."""
    from codetr_cli.distributed.topology import Request

    given = context.params
    return Request(
        device=given["device"],
        gpus=given["gpus"],
        procs=given["procs"],
        nodes=given["nodes"],
        endpoint=given["rdzv_endpoint"],
        node=given["node_rank"],
        max_restarts=given.get("max_restarts"),  # a benchmark has none
    )


def run_placed(function: Callable[..., Any], arguments: Sequence[Any], placement: Placement) -> Any:
    """The result of `function(*arguments)` in this process or in those that the placement starts.

    Returns:
        the result of rank 0; None in a process that does not have it, which prints nothing then.
    """
    from codetr_cli.distributed.launcher import launch
    from codetr_cli.distributed.process_group import launched_rank

    with tolerate_closed_streams():
        result = function(*arguments) if placement.spec is None else launch(function, arguments, placement.spec)
    return result if launched_rank() == 0 else None


def refuse_launch_options(context: typer.Context, what: str) -> None:
    """Refuses options for several processes.

    Raises:
        ConfigError: one of them is given for something, a phrase, that one process does.
    """
    given = [name for name in LAUNCH_OPTIONS if context.params.get(name)]  # a benchmark has no max_restarts
    if given:
        raise ConfigError(f"--{given[0].replace('_', '-')} is of no use here: {what} takes one process")


@contextmanager
def worker_output(*, json: bool, quiet: bool) -> Iterator[None]:
    """The output of a process that does the work, which may be the process of the command itself.

    Log messages are those of rank 0.
    """
    from codetr_cli.distributed.process_group import launched_rank

    console.set_mode(json=json, quiet=quiet)
    log = console.log_to_console() if launched_rank() == 0 else nullcontext()
    with tolerate_closed_streams(), log:
        yield
