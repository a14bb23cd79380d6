"""`codetr runs`: lists trainings with their state."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.errors import ConfigError
from codetr_cli.number_text import seconds_text

if TYPE_CHECKING:
    from codetr_cli.runs.listing import RunRow

DAY_S = 86400.0
EXAMPLES = ("codetr runs", "codetr runs /data/experiments --json")


def runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with runs, or one run.")] = Path("runs"),
    json_output: opt.JsonOption = False,
) -> None:
    """List trainings: state, best AP, epochs, loss, age.

    A run that diverged keeps the failed step in its folder diverged/; the message of the training names the command
    that replays it.
    """
    console.set_mode(json=json_output)
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}: `codetr train` makes runs in runs/, or give another folder")
    from codetr_cli.runs.listing import list_runs

    rows = list_runs(folder)
    console.result_json({"folder": folder, "runs": [asdict(row) for row in rows]})
    if json_output:
        return
    if not rows:
        console.result(f"no runs in {folder}")
        return
    console.table(
        "Runs",
        ["run", "preset", "state", "best AP", "epochs", "step", "last loss", "last update"],
        [_cells(row, folder) for row in rows],
    )
    for row in rows:
        if row.problem is not None:
            console.warn(f"{row.run}: {row.problem}")


def _cells(row: RunRow, folder: Path) -> list[object]:
    path = Path(row.run)
    return [
        str(path.relative_to(folder)) if path != folder else row.run,
        row.preset,
        row.state,
        None if row.best_ap is None else f"{row.best_ap:.3f}",
        _of(row.epochs_done, row.epochs) if row.preset else None,
        _of(row.step, row.max_steps) if row.preset else None,
        row.loss,
        None if row.age_s is None else f"{_age_text(row.age_s)} ago",
    ]


def _of(done: int, total: int | None) -> str:
    return f"{done:,}/{total:,}" if total else f"{done:,}"


def _age_text(age_s: float) -> str:
    return f"{age_s / DAY_S:.0f} days" if age_s >= 2 * DAY_S else seconds_text(age_s)
