"""Short trainings whose processes share the images of every micro batch; a script for each of several processes.

Random numbers are replaced by ones that do not depend on how many images are drawn for: one process draws for both
images at once, two processes for one each.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codetr_cli.config.overrides import apply_overrides, parse_settings
from codetr_cli.config.schema import Settings
from codetr_cli.data.batch import Batch, collate
from codetr_cli.distributed import process_group
from codetr_cli.losses import collaborative
from codetr_cli.losses.build import build_objective
from codetr_cli.losses.random import RandomSource
from codetr_cli.models.build import build_model
from codetr_cli.models.torch_compile import compile_static_parts
from codetr_cli.training import plots, step
from codetr_cli.training.build import build_normalizers
from codetr_cli.training.ema import ModelEma
from codetr_cli.training.metrics import StepMetrics
from codetr_cli.training.optim import build_optimizer
from tests.conftest import TINY_TABLE
from tests.training.fakes import begin, train

CPU = torch.device("cpu")
IMAGES = 2  # of a micro batch, in all processes together

# What each image of a micro batch is: height, width, objects.
EQUAL = ((96, 96, 3), (96, 96, 2))
SIZES = ((96, 64, 4), (64, 112, 1))
ONE_EMPTY = ((80, 96, 1), (80, 96, 0))
ALL_EMPTY = ((64, 96, 0), (96, 64, 0))
EVERYTHING = (EQUAL, SIZES, ONE_EMPTY, ALL_EMPTY)

DEFORMABLE = ("model.family=co_deformable", "model.finest_stride=8", "train.loss.class_weight=2.0")
MASKS = ("model.mask.dim=16", "model.mask.iou_fc_dim=8", "train.loss.mask_candidates=60", "train.loss.mask_samples=32")
WIDE = "train.global_batch_losses=true"
# Name: micro batches a step, kinds of micro batches, settings.
CASES: dict[str, tuple[int, tuple[Any, ...], tuple[str, ...]]] = {
    "co_dino": (1, EVERYTHING, (WIDE,)),
    "co_deformable": (1, EVERYTHING, (WIDE, *DEFORMABLE)),
    "accumulated": (2, EVERYTHING, (WIDE,)),
    "masks": (1, (SIZES, ONE_EMPTY), (WIDE, "model.mask.kind=refine", *MASKS)),
    "roi_masks": (1, (SIZES, ONE_EMPTY), (WIDE, *DEFORMABLE, "model.mask.kind=fcn", *MASKS)),
    "decoder_alone": (
        1,
        (SIZES, ONE_EMPTY),
        (WIDE, "train.loss.aux_heads=false", "train.loss.positive_queries=false", "model.backbone.frozen_stages=2"),
    ),
    "published": (1, (EQUAL, SIZES, ONE_EMPTY), ()),
}
# In several processes it is compiled; it recomputes in the backward pass.
COMPILED = (
    "train.compile=true",
    "model.encoder_checkpointing=2",
    "model.decoder_checkpointing=true",
    "model.aux_checkpointing=true",
)
SLOW_CASES: dict[str, tuple[int, tuple[Any, ...], tuple[str, ...]]] = {
    "compiled": (1, (EQUAL, ONE_EMPTY), (WIDE, *COMPILED))
}


class SameDraws(RandomSource):
    """Numbers that are the same for every image."""

    def uniform(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        last = torch.tensor([0.2]) if len(shape) < 2 else torch.linspace(0.1, 0.7, shape[-1])
        return last.to(like).expand(shape).clone()

    def integers(self, high: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return torch.full(shape, high - 1, device=like.device)

    def permutation(self, count: int, like: Tensor) -> Tensor:
        return torch.arange(count, device=like.device)


def sample(seed: int, height: int, width: int, objects: int) -> tuple[np.ndarray, dict[str, Any]]:
    """An image and its target, with masks."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(objects, 2, generator=generator) * 30
    boxes = torch.cat([corner, corner + 12 + 18 * torch.rand(objects, 2, generator=generator)], 1)
    masks = torch.zeros(objects, height, width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.round().int().tolist(), strict=True):
        mask[y1:y2, x1 : x2 - 3] = 1
    pixels = torch.randint(0, 255, (height, width, 3), generator=generator, dtype=torch.uint8)
    size = (height, width)
    target = {"boxes": boxes, "labels": torch.randint(3, (objects,), generator=generator), "masks": masks,
              "image_id": seed, "size": size, "norm_size": size, "pad_size": size}  # fmt: skip
    return pixels.numpy(), target


class Loader:
    """This process's images of every micro batch."""

    def __init__(self, kinds: tuple[Any, ...], rank: int, processes: int) -> None:
        self.kinds, self.mine = kinds, range(rank, IMAGES, processes)

    def __len__(self) -> int:
        return len(self.kinds)

    def set_epoch(self, epoch: int, *rest: Any) -> int:
        return len(self)

    def __iter__(self) -> Iterator[Batch]:
        for index, kind in enumerate(self.kinds):
            yield collate([sample(10 * index + i, *kind[i]) for i in self.mine])


def run_case(name: str, folder: Path) -> dict[str, Any]:
    """Trains a case and returns everything that must not depend on the number of processes."""
    accumulation, kinds, overrides = (CASES | SLOW_CASES)[name]
    settings: Settings = apply_overrides(parse_settings(TINY_TABLE, where="here"), list(overrides))
    rank, processes = process_group.rank(), process_group.world_size()
    steps = len(kinds) // accumulation
    words = [f"train.max_steps={steps}", "train.ema_momentum=1e-3", "train.checkpoint_every=100"]
    training = begin(folder / f"{name}-{processes}-{rank}", settings, *overrides, *words, accumulation=accumulation)
    torch.manual_seed(5)  # none of its proposals have nearly equal scores, whose order would be that of rounding
    model = build_model(settings.model)
    if settings.train.compile and processes > 1:
        compile_static_parts(model, backend="aot_eager")  # what needs no compiler of the machine
    objective = build_objective(model, settings.train.loss, normalizers=build_normalizers(settings))
    wrapped = process_group.wrap_ddp(objective, CPU)
    training.replace(objective=wrapped, model=model, loader=Loader(kinds, rank, processes))
    state = training.state
    state.optimizer, state.ema = build_optimizer(model, training.context.settings.train), ModelEma(model, 1e-3)
    state.metrics = StepMetrics(
        group_losses=collaborative.group_losses,
        reduce_mean=process_group.reduce_mean,
        world_size=processes,
        device=CPU,
        rank=rank,
    )
    gradients: list[dict[str, Tensor]] = []
    clip, draws = step.clip_gradients, collaborative.RandomSource

    def watched(parameters: list[Tensor], limit: float) -> Tensor:
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
        return clip(parameters, limit)

    step.clip_gradients, collaborative.RandomSource = watched, SameDraws
    try:
        train(training)
    finally:
        step.clip_gradients, collaborative.RandomSource = clip, draws
    lines = [line for line in training.run.metrics() if line["kind"] == "train"]
    return {
        "losses": [line["losses"] for line in lines],
        "gradients": gradients,
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "average": dict(state.ema.state),
        "looks_for_unused": getattr(training.objective, "find_unused_parameters", None),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    plots.draw_plots = lambda lines, folder: []
    out, *names = sys.argv[1:]
    with process_group.joined(CPU):
        found = {name: run_case(name, Path(out)) for name in names}
        torch.save(found, Path(out) / f"rank{process_group.rank()}.pt")
