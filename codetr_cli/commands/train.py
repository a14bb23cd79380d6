"""`codetr train`: trains a preset on a dataset, or continues a training that was interrupted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.commands._defaults import Invocation
from codetr_cli.commands._launch import requested, run_placed, worker_output
from codetr_cli.commands._option_values import data_settings, refuse_both
from codetr_cli.commands._submit import submit_job
from codetr_cli.commands._weights import hide_backbone_url, resolve_weights
from codetr_cli.errors import ConfigError, listed
from codetr_cli.files import check_folder

if TYPE_CHECKING:
    import torch

    from codetr_cli.config.schema import Settings
    from codetr_cli.distributed.topology import Request
    from codetr_cli.runs.resume import RunChoice
    from codetr_cli.training.plan import TrainJob
    from codetr_cli.training.reporter import StepProgress
    from codetr_cli.training.setup import Outcome

EXAMPLES = (
    "codetr train --preset co_dino_r50 --data /path/to/coco --gpus 8",
    "codetr train --preset co_dino_r50 --weights co_dino_r50 --data my_dataset",
    "codetr train --preset co_dino_tiny --device cpu --set train.epochs=5",
)
FIRST_PRESETS = {
    "co_dino_tiny": "small enough for a laptop CPU; to try the program",
    "co_dino_r50": "ResNet-50; the usual start on one or more GPUs",
    "co_dino_swin_l": "Swin-L; high accuracy, needs GPUs with much memory",
}
"""Preset to start with -> why."""


def train(
    context: typer.Context,
    preset: opt.PresetOption = None,
    data: opt.DataSetsOption = None,
    format: opt.FormatOption = None,
    val_fraction: opt.ValFractionOption = None,
    annotations: opt.AnnotationsOption = None,
    images: opt.ImagesOption = None,
    weights: opt.WeightsOption = None,
    no_eval: opt.NoEvalOption = False,
    gpus: opt.GpusOption = None,
    device: opt.DeviceOption = "auto",
    procs: opt.ProcsOption = None,
    precision: opt.TrainPrecisionOption = None,
    auto_fit: opt.AutoFitOption = False,
    run: opt.RunOption = None,
    restart: opt.RestartOption = False,
    dry_run: opt.DryRunOption = False,
    json_output: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
    nodes: opt.NodesOption = None,
    rdzv_endpoint: opt.EndpointOption = None,
    node_rank: opt.NodeRankOption = None,
    max_restarts: opt.MaxRestartsOption = None,
    slurm: opt.SlurmOption = False,
    overrides: opt.SetOption = None,
) -> None:
    """Train a detector, or continue a training that was stopped.

    The same command continues an interrupted training. Classes come from the annotations; several datasets, each with
    --data, are merged by class name; --ann FILE is one annotation file of any name, of which a part is reserved for
    validation. --auto-fit tries activation checkpointing, a smaller micro batch, bf16 and FSDP,
    in this order. Ctrl-C saves and stops; press it again to quit immediately.
    """
    console.set_mode(json=json_output, quiet=quiet)
    check_folder(run, "--run")
    if preset is None:
        names = "\n".join(f"  --preset {name:<15} {reason}" for name, reason in FIRST_PRESETS.items())
        raise ConfigError(f"which preset? Three to start with:\n{names}\n`codetr presets` lists all.")
    from codetr_cli.config.overrides import user_set
    from codetr_cli.config.presets import load_preset
    from codetr_cli.training.plan import plan_job

    invocation: Invocation = context.obj
    refuse_both(annotations, data)
    overrides = data_settings(
        format=format, val_fraction=val_fraction, annotations=annotations, images=images, overrides=overrides
    )
    overrides = [*invocation.defaults.setting(overrides), *overrides]
    if precision is not None:
        overrides.append(f"train.precision={precision}")
    settings = load_preset(preset, overrides)
    chosen = user_set(settings)
    settings = hide_backbone_url(settings, unused=weights is not None)
    plan = partial(plan_job, settings, data=data, evaluate=not no_eval, run=run, restart=restart, chosen=chosen)
    request = requested(context)
    if slurm:
        submit_job(plan(weights=resolve_weights(weights)), request, invocation.words, dry_run=dry_run)
        return
    mode = (json_output, quiet)
    outcome = _plan_and_train(settings, plan, request, weights, auto_fit=auto_fit, dry_run=dry_run, mode=mode)
    if outcome is not None:
        _show_outcome(outcome, json_output)


def _plan_and_train(
    settings: Settings,
    plan: Callable[..., TrainJob],
    request: Request,
    weights: str | None,
    *,
    auto_fit: bool,
    dry_run: bool,
    mode: tuple[bool, bool],
) -> Outcome | None:
    """Trains in as many processes as requested; None for a dry run, and where another machine has the outcome.

    `plan` makes the job, given the weights; `mode` is whether to print JSON, and whether to print results only.
    """
    from codetr_cli.distributed.topology import place
    from codetr_cli.training.preview import check_settings
    from codetr_cli.training.setup import choose_for

    placement = place(request)
    check_settings(settings, placement.device, placement.world_size)
    if weights is None:
        resolve_weights(settings.train.backbone_weights)
    job = replace(plan(weights=resolve_weights(weights)), auto_fit=auto_fit)
    # Processes that several launchers start must agree on the folder: the first one chooses once they are connected.
    choice = None if placement.agreed else choose_for(job, dry_run=dry_run)
    if dry_run:
        _show_plan(job, placement.device, placement.world_size, choice, json_output=mode[0])
        return None
    outcome: Outcome | None = run_placed(train_here, (job, placement.device, choice, *mode), placement)
    return outcome


def train_here(
    job: TrainJob, device: torch.device, choice: RunChoice | None, json_output: bool, quiet: bool
) -> Outcome:
    """Trains in this process, alone or as one of several, and shows its progress."""
    from codetr_cli.training.setup import run_training

    with worker_output(json=json_output, quiet=quiet), closing(_Display()) as display:
        return run_training(job, device=device, choice=choice, reporter=display)


class _Display:
    """Shows the progress of a training: one counter and one estimate of the time left; the rest is in metrics.jsonl."""

    def __init__(self) -> None:
        self._shown = ExitStack()
        self._advance: console.Advance | None = None
        self._kind = ""
        self._last_ap: float | None = None
        self._best_ap: float | None = None

    def step_done(self, progress: StepProgress) -> None:
        line = progress.line
        fields: dict[str, Any] = {"epoch": line["epoch"] + 1, "loss": line["loss"]}
        if self._last_ap is not None:
            fields["AP"] = f"{self._last_ap:.3f} (best {self._best_ap:.3f})"
        fields["images/s"] = line["images_per_s"]
        advance = self._show("training", progress.total_steps, done=progress.step - 1)
        advance(1, seconds_left=line["eta_s"], **fields)

    def evaluating(self, images: int, total: int) -> None:
        self._show("evaluating", total)(images)

    def evaluated(self, ap: float, best_ap: float) -> None:
        self._last_ap, self._best_ap = ap, best_ap
        self.close()

    def close(self) -> None:
        """Removes the progress from the terminal; the next step shows it again."""
        self._shown.close()
        self._kind = ""

    def _show(self, kind: str, total: int, done: int = 0) -> console.Advance:
        """The progress of one kind of work; that of another kind is removed."""
        if self._kind != kind or self._advance is None:
            self.close()
            self._advance = self._shown.enter_context(console.progress(kind, total, done=done))
            self._kind = kind
        return self._advance


def _show_plan(
    job: TrainJob, device: torch.device, processes: int, choice: RunChoice | None, *, json_output: bool
) -> None:
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
                **asdict(plan),
            }
        )
        return
    console.result_lines(to_toml(job.settings))
    bad = f" ({plan.bad_files:,} skipped, their files cannot be read)" if plan.bad_files else ""
    names = listed(job.class_names, 8)
    rows = [
        ("run", where),
        ("images", f"{plan.images:,} of {job.inputs.train_annotations}{bad}"),
        ("validation", f"{plan.val_images:,} images" if plan.val_images is not None else "none"),
        ("classes", f"{len(job.class_names)}: {names}"),
        ("batch", plan.batches.describe()),
        ("steps", f"{plan.steps_per_epoch:,} per epoch, {plan.total_steps:,} in total"),
        ("learning rate", f"{plan.learning_rate:g}"),
        ("device", f"{plan.device}, {plan.precision}"),
        ("parameters", f"{plan.parameters:,}, {plan.trained_parameters:,} of them trained"),
        ("weights", job.inputs.weights or "random"),
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
