"""Trainings of stand-ins for a forked process, see `tests.faults`: all that writes a run folder is real."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.config.schema import Settings
from codetr_cli.errors import CodetrError
from codetr_cli.runs import folder as run_folder
from codetr_cli.runs.folder import RunInputs
from codetr_cli.runtime import disk_errors
from codetr_cli.runtime.rng import seed_all
from codetr_cli.training import plots, setup
from codetr_cli.training.background_writer import BackgroundWriter
from codetr_cli.training.plan import TrainJob
from codetr_cli.training.reporter import SilentReporter
from tests.training.fakes import StandInLoader, stand_ins
from tests.training.nonfinite_losses import spoil

MICRO_BATCHES = 2
OVERRIDES = ("train.log_every=1", "train.checkpoint_every=1", "train.ema_momentum=1e-3", "train.max_nonfinite_steps=2")


@dataclass(frozen=True)
class Command:
    """A training command: limits of the run, place of its data, options."""

    steps: int = 4
    patience: int | None = None
    place: str = "here"
    restart: bool = False
    seed: int = 0
    spoiled: tuple[int, ...] = ()


def command_of(root: Path, settings: Settings, command: Command) -> Callable[[], int]:
    """A training command to be run in a forked process, which it changes; the run is the folder `run`.

    It prints the message of an error, and returns the exit code.
    """

    def run() -> int:
        _shorten(command)
        try:
            job = job_of(root, settings, command)
            choice = setup.choose_for(job)
            setup.run_training(job, device=torch.device("cpu"), choice=choice, reporter=SilentReporter())
        except CodetrError as error:
            sys.stderr.write(str(error))
            return error.exit_code
        return 0

    return run


def _shorten(command: Command) -> None:
    """Replaces in this process what takes long, and what makes the order of writes a matter of chance."""
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    disk_errors.PAUSES_S = (0.0, 0.0, 0.0)
    plots.draw_plots = _draw  # type: ignore[assignment]
    setup.build_training = _build(command)
    setup.LOCK_PATIENCE_S = 0.0
    BackgroundWriter.write = _write_and_wait(BackgroundWriter.write)  # type: ignore[method-assign]


def job_of(root: Path, settings: Settings, command: Command) -> TrainJob:
    """The command as it is planned."""
    overrides = [*OVERRIDES, f"train.max_steps={command.steps}", f"train.seed={command.seed}"]
    if command.patience is not None:
        overrides.append(f"train.early_stop_patience={command.patience}")
    data = f"/data/{command.place}"
    return TrainJob(
        settings=apply_overrides(settings, [*overrides, f"data.root={data}"]),
        class_names=["a", "b", "c"],
        category_ids=[1, 2, 3],
        inputs=RunInputs(train_annotations=f"{data}/train.json", train_digest="1a",
                         val_annotations=f"{data}/val.json", val_digest="2b"),
        run=root / "run",
        restart=command.restart,
    )  # fmt: skip


def _build(command: Command) -> Callable[..., Any]:
    """Stands for the network, the data and the evaluation; the AP falls after the first evaluation."""

    def build_training(job: TrainJob, io: Any, **options: Any) -> tuple[Any, Any]:
        def evaluate(step: int) -> dict[str, float]:
            torch.rand(3)
            return {"AP": 0.5 - step / 100, "AP50": 0.5}

        seed_all(0)  # as the real one; `stand_ins` seeds two of the generators
        training = stand_ins(io.folder, job.settings, evaluate=evaluate, loader=StandInLoader(MICRO_BATCHES))
        if command.spoiled:
            spoil(training, *command.spoiled, again=False)
        return replace(training.context, io=io), training.state

    return build_training


def _draw(lines: object, folder: Path) -> list[Path]:
    """Instead of plots, which take longer than the training."""
    with run_folder.replace_file(folder / "losses.png") as temporary:
        temporary.write_bytes(b"a plot")
    return []


def _write_and_wait(write: Callable[..., None]) -> Callable[..., None]:
    """Writes a checkpoint in its thread, but not at the same time as a step: the same writes in the same order."""

    def run(self: BackgroundWriter, work: Callable[[], None]) -> None:
        write(self, work)
        if self._thread is not None:
            self._thread.join()

    return run
