"""`codetr train`: trains a preset on a COCO-layout folder, or continues a training that was interrupted."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from codetr_cli import console
from codetr_cli.commands._options import (
    DataSetsOption,
    DeviceOption,
    DryRunOption,
    JsonOption,
    QuietOption,
    RunOption,
    SetOption,
)
from codetr_cli.commands._slurm import submit_job
from codetr_cli.commands._weights import fetched

if TYPE_CHECKING:
    import torch

    from codetr_cli.runs.resume import Choice
    from codetr_cli.training.plan import Job
    from codetr_cli.training.reporter import StepProgress
    from codetr_cli.training.setup import Outcome


LINE_SECONDS = 20.0  # between two lines of losses on a terminal


def train(
    context: typer.Context,
    preset: Annotated[
        str,
        typer.Option("--preset", metavar="NAME", help="A preset, see `codetr presets`, or the path of a TOML file."),
    ],
    data: DataSetsOption = None,
    run: RunOption = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="FILE",
            help="Fine-tune from a checkpoint, run folder, published .pth file, address, or downloaded preset.",
        ),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option("--gpus", metavar="N", min=1, help="Train on N GPUs of this machine.")
    ] = None,
    device: DeviceOption = "auto",
    procs: Annotated[
        int | None, typer.Option("--procs", metavar="N", min=1, help="Train in N processes on the CPU.")
    ] = None,
    nodes: Annotated[
        int | None, typer.Option("--nodes", metavar="N", min=1, help="Train on N machines; start this on each.")
    ] = None,
    rdzv_endpoint: Annotated[
        str | None,
        typer.Option("--rdzv-endpoint", metavar="HOST:PORT", help="Where machines meet: one of them, and a free port."),
    ] = None,
    node_rank: Annotated[
        int | None,
        typer.Option("--node-rank", metavar="N", min=0, help="Number of this machine; 0 is the one they meet at."),
    ] = None,
    max_restarts: Annotated[
        int | None,
        typer.Option(
            "--max-restarts",
            metavar="N",
            min=0,
            help="Start all processes again, from the newest checkpoint, after one died: N times at most. "
            "Without it: 3 with several processes, else 0.",
        ),
    ] = None,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Write a SLURM batch script of this training, and submit it.")
    ] = False,
    auto_fit: Annotated[
        bool,
        typer.Option(
            "--auto-fit",
            help="When the worst batch needs more memory than there is, train with what fits: recomputation, fewer "
            "images at once, bf16, sharding, in this order.",
        ),
    ] = False,
    no_eval: Annotated[bool, typer.Option("--no-eval", help="Never evaluate; no validation data is needed.")] = False,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Start anew instead of continuing; an older run in the folder is moved aside."),
    ] = False,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a detector. The same command continues a training that was stopped or killed.

    Classes come from the annotations. Ctrl-C saves and stops; once more stops at once.
    """
    console.set_mode(json=json_output, quiet=quiet)
    from codetr_cli.config.presets import chosen_settings, load_preset
    from codetr_cli.distributed.launcher import launch
    from codetr_cli.distributed.process_group import launched_rank
    from codetr_cli.distributed.topology import Request, place
    from codetr_cli.training.plan import plan_job
    from codetr_cli.training.preview import check_settings
    from codetr_cli.training.setup import choose_for

    settings, chosen_by_hand = load_preset(preset, overrides), chosen_settings(preset, overrides)
    plan = partial(plan_job, settings, data=data, evaluate=not no_eval, run=run, fresh=fresh, chosen=chosen_by_hand)
    request = Request(
        device=device,
        gpus=gpus,
        procs=procs,
        nodes=nodes,
        endpoint=rdzv_endpoint,
        node=node_rank,
        max_restarts=max_restarts,
    )
    if slurm:
        job = plan(weights=fetched(weights))
        submit_job(job, request, context.obj, dry_run=dry_run)
        return
    placement = place(request)
    chosen, processes = placement.device, placement.world_size
    check_settings(settings, chosen, processes)
    if weights is None:
        fetched(settings.train.backbone_weights)
    job = replace(plan(weights=fetched(weights)), auto_fit=auto_fit)
    # Processes that several launchers start must agree on the folder: the first one chooses once they are connected.
    choice = None if placement.agreed else choose_for(job)
    if dry_run:
        _show_plan(job, chosen, processes, choice, json_output)
        return
    arguments = (job, chosen, choice, json_output, quiet)
    with console.tolerate_closed_streams():
        outcome = (
            _work(*arguments) if placement.plan is None else launch(_work, arguments, placement.plan, console.warn)
        )
    if launched_rank() == 0 and outcome is not None:  # another machine has the outcome
        _show_outcome(outcome, json_output)


def _work(job: Job, device: torch.device, choice: Choice | None, json_output: bool, quiet: bool) -> Outcome:
    """Trains in this process, alone or as one of several, and draws its progress."""
    from codetr_cli.training.setup import run_training

    console.set_mode(json=json_output, quiet=quiet)
    with console.tolerate_closed_streams(), _Display() as display:
        return run_training(job, device=device, choice=choice, reporter=display)


class _Display:
    """Shows what a training reports.

    On a terminal a line of losses now and then, and a bar of the steps below it; elsewhere lines of both together.
    """

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._shown = ExitStack()
        self._advance: console.Advance | None = None
        self._what = ""
        self._next_line = 0.0

    def __enter__(self) -> _Display:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def step_done(self, progress: StepProgress) -> None:
        fields = _fields(progress)
        if not self._terminal:
            self._show("training", progress.total_steps - progress.step + 1)(1, **fields)
            return
        if time.monotonic() >= self._next_line:
            self.close()
            console.info(", ".join(f"{name} {value}" for name, value in fields.items()))
            self._next_line = time.monotonic() + LINE_SECONDS
        beside = {name: fields[name] for name in ("loss", "images/s", "data wait")}
        self._show("training", progress.total_steps, done=progress.step - 1)(1, **beside)

    def evaluating(self, images: int, total: int) -> None:
        self._show("evaluating", total)(images)

    def evaluated(self, ap: float, best_ap: float) -> None:
        self.close()

    def close(self) -> None:
        """Takes the progress off the terminal; the next step brings it back."""
        self._shown.close()
        self._what = ""

    def _show(self, what: str, total: int, done: int = 0) -> console.Advance:
        """The progress of one kind of work; another kind's is taken off."""
        if self._what != what or self._advance is None:
            self.close()
            self._advance = self._shown.enter_context(console.progress(what, total))
            self._advance(done)
            self._what = what
        return self._advance


def _fields(progress: StepProgress) -> dict[str, str]:
    """What is shown of a step, by name."""
    return {
        "step": f"{progress.step}/{progress.total_steps}",
        "epoch": str(progress.epoch + 1),
        "loss": f"{progress.loss:.4g}",
        **{name: f"{value:.3g}" for name, value in progress.loss_groups.items()},
        "lr": f"{progress.lr:.3g}",
        "images/s": f"{progress.images_per_s:.2f}",
        "data wait": f"{progress.data_wait:.0%}",
        "memory": console.bytes_text(progress.memory_bytes),
        "ETA": console.seconds_text(progress.eta_s),
    }


def _show_plan(job: Job, device: torch.device, processes: int, choice: Choice | None, json_output: bool) -> None:
    from codetr_cli.config.overrides import to_toml
    from codetr_cli.training.preview import preview

    plan = preview(job, device=device, world_size=processes)
    where = choice.note if choice else "the run folder is chosen when training starts"
    if json_output:
        console.result_json(
            {
                "settings": job.settings.model_dump(mode="json"),
                "class_names": job.class_names,
                "run": choice.path if choice else None,
                "resume": choice.resume if choice else False,
                **plan.as_dict(),
            }
        )
        return
    console.result(to_toml(job.settings).rstrip("\n"))
    bad = f" ({plan.bad_files:,} left out, their files cannot be read)" if plan.bad_files else ""
    rows: list[tuple[str, object]] = [
        ("run", where),
        ("images", f"{plan.images:,} of {job.origin.train_annotations}{bad}"),
        ("validation", f"{plan.val_images:,} images" if plan.val_images is not None else "none"),
        (
            "classes",
            f"{len(job.class_names)}: {', '.join(job.class_names[:8])}{' ...' if len(job.class_names) > 8 else ''}",
        ),
        ("batch", plan.batches.describe()),
        ("steps", f"{plan.steps_per_epoch:,} an epoch, {plan.total_steps:,} in all"),
        ("learning rate", f"{plan.learning_rate:g}"),
        ("device", f"{plan.device}, {plan.precision}"),
        ("parameters", f"{plan.parameters:,}, of them trained {plan.trained_parameters:,}"),
        ("weights", job.origin.weights or "random"),
    ]
    console.table("Plan", ["what", "value"], rows)
    for note in job.notes:
        console.info(note)
    for warning in job.warnings:
        console.warn(warning)


def _show_outcome(outcome: Outcome, json_output: bool) -> None:
    console.result_json(
        {
            "run": outcome.run,
            "steps": outcome.steps,
            "epochs": outcome.epochs,
            "weights": outcome.weights,
            "metrics": outcome.metrics,
            "best_ap": outcome.best_ap,
            "best_weights": outcome.best_weights,
        }
    )
    if json_output:
        return
    console.result(f"trained {outcome.steps:,} steps; newest weights: {outcome.weights}")
    if outcome.best_ap is not None:
        console.result(f"best AP {outcome.best_ap:.3f}: {outcome.best_weights}")
