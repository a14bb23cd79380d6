"""`codetr runs`: what became of trainings, at a glance; and the step again that one of them ended at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codetr_cli import console
from codetr_cli.commands._options import DeviceOption, JsonOption

if TYPE_CHECKING:
    from codetr_cli.runs.listing import RunRow

DAY_S = 86400.0


def runs(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder with runs, or one run. Without it: runs.")
    ] = Path("runs"),
    replay: Annotated[
        bool,
        typer.Option(
            "--replay",
            help="DIR is a run that diverged: compute the step again at which it ended, and show its losses.",
        ),
    ] = False,
    device: DeviceOption = "auto",
    json_output: JsonOption = False,
) -> None:
    """List trainings: preset, state, best AP, epochs done, last loss, and how long ago they wrote something."""
    console.set_mode(json=json_output)
    from codetr_cli.errors import ConfigError

    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}: `codetr train` makes runs in runs/, or give another folder")
    if replay:
        _replay(folder, device, json_output)
        return
    from codetr_cli.runs.listing import list_runs

    rows = list_runs(folder)
    console.result_json({"folder": folder, "runs": [row.as_dict() for row in rows]})
    if json_output:
        return
    if not rows:
        console.result(f"no runs in {folder}")
        return
    console.table(
        "Runs",
        ["run", "preset", "state", "best AP", "epochs", "step", "last loss", "last sign of life"],
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
    return f"{age_s / DAY_S:.0f} days" if age_s >= 2 * DAY_S else console.seconds_text(age_s)


def _replay(folder: Path, device: str, json_output: bool) -> None:
    from codetr_cli.runtime.environment import choose_device
    from codetr_cli.training.repro import STEP, read_step, replay

    kept = folder if (folder / STEP).is_file() else folder / "diverged"
    facts = read_step(kept)
    shares = list(replay(kept, choose_device(device)))
    bad = sorted({name for share in shares for losses in share.losses for name, value in losses.items()
                  if not abs(value) < float("inf")})  # fmt: skip
    gradients = sorted({name for share in shares for name in share.gradients})
    console.result_json(
        {
            "step": facts,
            "not_finite_losses": bad,
            "not_finite_gradients": gradients,
            "processes": [
                {"rank": share.rank, "image_ids": share.image_ids, "losses": share.losses} for share in shares
            ],
        }
    )
    if json_output:
        return
    columns = [(share.rank, index) for share in shares for index in range(len(share.losses))]
    names = list(dict.fromkeys(name for share in shares for losses in share.losses for name in losses))
    console.table(
        f"Losses of step {facts['step']}, computed again from {kept}",
        ["loss", *(f"process {rank}, pass {index + 1}" for rank, index in columns)],
        [["images", *(", ".join(map(str, shares[rank].image_ids[index])) for rank, index in columns)]]
        + [[name, *(shares[rank].losses[index][name] for rank, index in columns)] for name in names],
    )
    if bad:
        console.result(f"not finite: {', '.join(bad)}")
    elif gradients:
        console.result(f"all losses are finite; not so the gradients of {', '.join(gradients)}")
    else:
        console.result("all losses and gradients are finite here: what went wrong then does not go wrong this time")
