"""What two processes with sharded weights compute and save; a script for each of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from codetr_cli.config.overrides import apply_overrides, parse_settings
from codetr_cli.distributed import fsdp, process_group
from codetr_cli.runs.resume import RunChoice
from codetr_cli.training import loop, plots, setup
from codetr_cli.training.plan import plan_job
from codetr_cli.training.reporter import SilentReporter
from codetr_cli.training.state import TrainContext, TrainState
from tests.conftest import TINY_TABLE
from tests.distributed import world_size_cases
from tests.distributed.world_size_cases import CASES, CPU, ONE_EMPTY, SIZES, WIDE, run_case

RECOMPUTED = (
    "model.encoder_checkpointing=1",
    "model.decoder_checkpointing=true",
    "model.aux_checkpointing=true",
    "model.backbone.checkpointing=true",
)
MINE: dict[str, tuple[int, tuple[Any, ...], tuple[str, ...]]] = {
    "accumulated": CASES["accumulated"],
    "recomputed": (1, (SIZES, ONE_EMPTY), (WIDE, *RECOMPUTED)),
}
STEPS, BEFORE = 3, 1


def as_whole(results: Any) -> Any:
    """The results with every spread tensor put together; single numbers as they were."""
    if isinstance(results, dict):
        return {name: as_whole(value) for name, value in results.items()}
    if isinstance(results, list):
        return [as_whole(value) for value in results]
    if not isinstance(results, Tensor) or not hasattr(results, "full_tensor"):
        return results
    return results.full_tensor().detach()


def own_share(results: dict[str, Any]) -> float:
    """How much of the weights this process holds."""
    weights = results["weights"].values()
    return sum(process_group.local_part(w).numel() for w in weights) / sum(w.numel() for w in weights)


def train_a_run(folder: Path, name: str, steps: int, *, resume: bool, shard: bool = True) -> dict[str, Any]:
    """Trains in a run folder, with an average, up to a step, and returns weights and moments then."""
    words = [f"train.max_steps={steps}", f"train.fsdp={str(shard).lower()}", "train.ema_momentum=1e-3",
             "train.micro_batch=1", "train.batch_size=2", "train.epochs=9", "train.eval_every=9",
             "train.memory_check=false"]  # fmt: skip
    os.environ[process_group.LAUNCH_ID] = (
        f"{name} to {steps}"  # what an earlier group of these processes said is not read
    )
    settings = apply_overrides(parse_settings(TINY_TABLE, where="here"), words)
    evaluate = name == "straight"  # which changes nothing that is trained
    job = plan_job(settings, data=str(folder / "coco"), run=folder / name, evaluate=evaluate)
    last: dict[str, Any] = {}

    def train(context: TrainContext, state: TrainState) -> None:
        loop.train(context, state)
        last["weights"] = dict(fsdp.full_weights(context.model))
        last["moments"] = {
            f"{name}.{key}": value
            for name, parameter in context.model.named_parameters()
            for key, value in state.optimizer.state[parameter].items()
        }
        last.update(as_whole(last))

    with mock.patch.object(setup, "train", train):
        setup.run_training(job, device=CPU, choice=RunChoice(folder / name, resume, ""), reporter=SilentReporter())
    return last


if __name__ == "__main__":
    torch.set_num_threads(1)
    plots.draw_plots = lambda lines, folder: []
    out = Path(sys.argv[1])
    CASES.update(MINE)
    world_size_cases.process_group.wrap_ddp = fsdp.shard
    with process_group.joined(CPU):
        found = {}
        for case in MINE:
            results = run_case(case, out)
            found[case] = {**as_whole(results), "share": own_share(results)}
        rank = process_group.rank()
        del results
    found["last"] = train_a_run(out, "straight", STEPS, resume=False)
    train_a_run(out, "stopped", BEFORE, resume=False)
    train_a_run(out, "stopped", STEPS, resume=True)
    torch.save(found, out / f"rank{rank}.pt")
