"""A short training without a real network: stand-ins for model, data, evaluation, signals and progress."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.config.schema import Settings
from codetr_cli.data.batch import Batch
from codetr_cli.data.loading.loader import Segment
from codetr_cli.distributed.watchdog import Heartbeat
from codetr_cli.runs.folder import RunFolder, RunInputs, event_log
from codetr_cli.runtime.signals import StopRequest
from codetr_cli.training import loop
from codetr_cli.training.checkpointing import restore
from codetr_cli.training.ema import ModelEma
from codetr_cli.training.loggers import Loggers
from codetr_cli.training.metrics import StepMetrics
from codetr_cli.training.optim import Schedule, build_optimizer
from codetr_cli.training.plan import BatchSizes
from codetr_cli.training.plots import RunPlots
from codetr_cli.training.progress import Progress
from codetr_cli.training.reporter import SilentReporter, StepProgress
from codetr_cli.training.state import RunIO, TrainContext, TrainState

CPU = torch.device("cpu")
MICRO_BATCHES = 5


class StandIn(nn.Module):
    """A network and losses that use every global random number generator, like denoising and samplers."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.backbone = nn.Linear(3, 4)
        self.model.head = nn.Linear(4, 2)
        self.bad_image: int | None = None
        self.bad_value = math.nan

    def forward(self, images: Tensor, padding_mask: Tensor, targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        features = images.mean((2, 3)) + 0.1 * torch.randn(len(images), 3) + 0.1 * float(np.random.rand())
        outputs = self.model.head(self.model.backbone(features))
        losses = {"loss_cls": outputs.square().mean(), "loss_bbox": (outputs - 1).abs().mean()}
        if self.bad_image in [target["image_id"] for target in targets]:
            losses["loss_bbox"] = losses["loss_bbox"] * self.bad_value
        return losses


class StandInLoader:
    """Micro batches that are a function of epoch and index; an iterator uses a random number, like DataLoader."""

    def __init__(self, count: int = MICRO_BATCHES) -> None:
        self.count, self.epoch, self.start, self.reshuffled_from = count, 0, 0, None
        self.done = 0

    def __len__(self) -> int:
        return self.count

    def set_epoch(
        self, epoch: int, start_batch: int = 0, reshuffled_from: int | None = None, segments: Sequence[Segment] = ()
    ) -> int:
        self.epoch, self.start, self.reshuffled_from = epoch, start_batch, reshuffled_from
        self.done = sum(used * width * size // 2 for width, size, used, _ in segments)  # in batches of 2, as they come
        return self.count - self.done - start_batch

    def __iter__(self) -> Iterator[Batch]:
        torch.rand(1)
        first = self.count if self.reshuffled_from is None else self.reshuffled_from
        order = [*range(first), *reversed(range(first, self.count))]
        for index in order[self.done + self.start :]:
            generator = torch.Generator().manual_seed(100 * self.epoch + index)
            images = torch.randint(0, 255, (2, 3, 4, 4), dtype=torch.uint8, generator=generator)
            targets = [{"image_id": 10 * index + i} for i in range(2)]
            yield Batch(images, torch.zeros(2, 4, 4, dtype=torch.bool), targets)


class Scores:
    """An evaluation with given scores, one after the other; records the evaluated weights."""

    def __init__(self, *scores: float) -> None:
        self.scores = list(scores)
        self.seen: list[Tensor] = []
        self.model: nn.Module | None = None

    def __call__(self, step: int) -> dict[str, float]:
        torch.rand(3)
        assert self.model is not None
        self.seen.append(self.model.head.weight.detach().clone())
        return {"AP": self.scores.pop(0), "AP50": 0.5}


class Recorder(SilentReporter):
    """Records the reported steps."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def step_done(self, progress: StepProgress) -> None:
        self.steps.append(progress.step)


class StopAfter(StopRequest):
    """A signal that arrives during a step."""

    def __init__(self, step: int, signal_number: int = 2) -> None:
        self.at, self.signal_number = step, signal_number
        self.state: TrainState | None = None

    @property
    def number(self) -> int | None:  # type: ignore[override]
        assert self.state is not None
        return self.signal_number if self.state.progress.step >= self.at else None


class Messages(logging.Handler):
    """Log messages by level."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.by_level: dict[int, list[str]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.by_level.setdefault(record.levelno, []).append(record.getMessage())


class FakeRun:
    """A training of stand-ins in a run folder.

    Attributes:
        context: see `TrainContext`.
        state: see `TrainState`.
        reporter: of the training.
        stop: of the training.
    """

    def __init__(self, context: TrainContext, state: TrainState, reporter: Recorder, stop: StopAfter) -> None:
        self.context, self.state, self.reporter, self.stop = context, state, reporter, stop
        self._messages = Messages()

    def replace(self, **changes: Any) -> FakeRun:
        """Replaces fields of the context."""
        self.context = dataclasses.replace(self.context, **changes)
        return self

    @property
    def run(self) -> RunFolder:
        return self.context.io.folder

    @property
    def model(self) -> Any:
        return self.context.model

    @property
    def objective(self) -> Any:
        return self.context.objective

    @property
    def loader(self) -> Any:
        return self.context.loader

    @property
    def progress(self) -> Progress:
        return self.state.progress

    @property
    def warnings(self) -> list[str]:
        return self._messages.by_level.get(logging.WARNING, [])

    @property
    def notes(self) -> list[str]:
        return self._messages.by_level.get(logging.INFO, [])

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Records log messages, also in events.log."""
        package = logging.getLogger("codetr_cli")
        with event_log(self.run):
            package.addHandler(self._messages)
            try:
                yield
            finally:
                package.removeHandler(self._messages)


def train(training: FakeRun) -> None:
    """Trains to the end of the run."""
    with training.logging():
        loop.train(training.context, training.state)


def begin(path: Path, settings: Settings, *overrides: str, evaluate: Any = None, **options: Any) -> FakeRun:
    """A training in a folder, continued from the folder's newest checkpoint if there is one; options of `stand_ins`."""
    settings = apply_overrides(settings, ["train.log_every=1", *overrides])
    folder = RunFolder(path)
    folder.open(settings, RunInputs(train_annotations="train.json"))
    folder.recover()
    training = stand_ins(folder, settings, evaluate=evaluate, **options)
    if isinstance(evaluate, Scores):
        evaluate.model = training.model
    with training.logging():
        saved = folder.load()
        if saved is not None:
            restore(training.context, training.state, saved)
    folder.rewind(training.progress.step)
    return training


def stand_ins(
    folder: RunFolder,
    settings: Settings,
    *,
    accumulation: int = 1,
    evaluate: Any = None,
    stop_after: int | None = None,
    stop_signal: int = 2,
    micro_batch: int = 2,
    loader: Any = None,
    loggers: Loggers | None = None,
) -> FakeRun:
    """The start of a training in a folder that is open."""
    torch.manual_seed(1)
    np.random.seed(1)
    objective = StandIn()
    reporter, stop = Recorder(), StopAfter(10**9 if stop_after is None else stop_after, stop_signal)
    loader = loader or StandInLoader()
    total = settings.train.max_steps or settings.train.epochs * math.ceil(len(loader) / accumulation)
    context = TrainContext(
        settings=settings,
        class_names=["a", "b", "c"],
        category_ids=[1, 2, 3],
        device=CPU,
        dtype=None,
        batches=BatchSizes(micro_batch * accumulation, micro_batch, accumulation, 1),
        objective=objective,
        model=objective.model,
        loader=loader,
        evaluate=evaluate,
        shard_writers=None,
        io=RunIO(folder=folder, loggers=loggers or Loggers(), reporter=reporter, stop=stop, heartbeat=Heartbeat()),
    )
    state = TrainState(
        optimizer=build_optimizer(objective.model, settings.train),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        ema=ModelEma(objective.model, settings.train.ema_momentum) if settings.train.ema_momentum else None,
        total_steps=total,
        schedule=Schedule(settings.train, total),
        metrics=StepMetrics(
            group_losses=lambda losses: {"all": sum(losses.values())},
            reduce_mean=lambda tensor: tensor,
            world_size=1,
            device=CPU,
        ),
        plots=RunPlots(folder),
    )
    stop.state = state
    return FakeRun(context, state, reporter, stop)


def state_of(training: FakeRun) -> dict[str, Tensor]:
    """Weights, optimizer state and average."""
    state = {f"model.{name}": value for name, value in training.model.state_dict().items()}
    for index, values in training.state.optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    if training.state.ema:
        state |= {f"ema.{name}": value for name, value in training.state.ema.state.items()}
    return state


def assert_same(ours: FakeRun, theirs: FakeRun) -> None:
    """Both have the same state, bit for bit."""
    a, b = state_of(ours), state_of(theirs)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert ours.progress == theirs.progress


def losses_of(training: FakeRun) -> list[tuple[int, float, float]]:
    """Step, loss and learning rate of each line of metrics.jsonl."""
    return [(x["step"], x["loss"], x["lr"]) for x in training.run.metrics() if x["kind"] == "train"]
