from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.config.schema import Settings
from codetr_cli.data.batch import Batch
from codetr_cli.data.loading.loader import Segment
from codetr_cli.errors import StoppedError
from codetr_cli.runs.folder import Origin, RunFolder, read_state
from codetr_cli.runtime.signals import StopRequest
from codetr_cli.training.checkpointing import restore
from codetr_cli.training.ema import ModelEma
from codetr_cli.training.loggers import Loggers
from codetr_cli.training.loop import Training, train
from codetr_cli.training.metrics import Meter
from codetr_cli.training.optim import build_optimizer, build_schedule
from codetr_cli.training.plots import draw_plots
from codetr_cli.training.reporter import Silence

CPU = torch.device("cpu")
MICRO_BATCHES = 5


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than a stand-in's whole training."""
    monkeypatch.setattr("codetr_cli.training.loop.draw_plots", lambda lines, folder: [])


class StandIn(nn.Module):
    """A network and losses that draw from every global generator, as denoising and samplers do."""

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
    """Micro batches that are a function of epoch and index; opening one draws a number, as DataLoader does."""

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
    """An evaluation that gives the scores it was made with, one after the other, and the weights it saw."""

    def __init__(self, *scores: float) -> None:
        self.scores = list(scores)
        self.seen: list[Tensor] = []
        self.model: nn.Module | None = None

    def __call__(self) -> dict[str, float]:
        torch.rand(3)
        assert self.model is not None
        self.seen.append(self.model.head.weight.detach().clone())
        return {"AP": self.scores.pop(0), "AP50": 0.5}


class Recorder(Silence):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.warnings: list[str] = []
        self.notes: list[str] = []

    def step(self, line: Mapping[str, Any], left: int) -> None:
        self.steps.append(line["step"])

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)


class StopAfter(StopRequest):
    """A signal that arrives during a step."""

    def __init__(self, step: int, signal_number: int = 2) -> None:
        self.at, self.signal_number = step, signal_number
        self.training: Training | None = None

    @property
    def number(self) -> int | None:  # type: ignore[override]
        assert self.training is not None
        return self.signal_number if self.training.position.step >= self.at else None


def begin(
    path: Path,
    settings: Settings,
    *overrides: str,
    accumulation: int = 1,
    evaluate: Scores | None = None,
    stop_after: int | None = None,
    stop_signal: int = 2,
    micro_batch: int = 2,
    loader: StandInLoader | None = None,
) -> Training:
    """A training in a folder, from wherever the folder's newest checkpoint is."""
    settings = apply_overrides(settings, ["train.log_every=1", *overrides])
    torch.manual_seed(1)
    np.random.seed(1)
    objective = StandIn()
    folder = RunFolder(path)
    folder.open(settings, Origin(train_annotations="train.json"))
    folder.recover()
    stop = StopAfter(10**9 if stop_after is None else stop_after, stop_signal)
    total = settings.train.max_steps or settings.train.epochs * math.ceil(MICRO_BATCHES / accumulation)
    training = Training(
        settings=settings,
        class_names=["a", "b", "c"],
        category_ids=[1, 2, 3],
        objective=objective,
        model=objective.model,
        optimizer=build_optimizer(objective.model, settings.train),
        schedule=build_schedule(settings.train, total),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        ema=ModelEma(objective.model, settings.train.ema_momentum) if settings.train.ema_momentum else None,
        dtype=None,
        device=CPU,
        loader=loader or StandInLoader(),
        micro_batch=micro_batch,
        accumulation=accumulation,
        total_steps=total,
        run=folder,
        evaluate=evaluate,
        meter=Meter(group_losses=lambda losses: {"all": sum(losses.values())}, reduce_mean=lambda t: t, world_size=1,
                    device=CPU),
        stop=stop,
        report=Recorder(),
    )  # fmt: skip
    stop.training = training
    if evaluate is not None:
        evaluate.model = objective.model
    saved = folder.load()
    if saved is not None:
        restore(training, saved)
    folder.rewind(training.position.step)
    return training


def state_of(training: Training) -> dict[str, Tensor]:
    state = {f"model.{name}": value for name, value in training.model.state_dict().items()}
    for index, values in training.optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    if training.ema:
        state |= {f"ema.{name}": value for name, value in training.ema.state.items()}
    return state


def assert_same(ours: Training, theirs: Training) -> None:
    a, b = state_of(ours), state_of(theirs)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert ours.position == theirs.position


def losses_of(training: Training) -> list[tuple[int, float, float]]:
    return [(x["step"], x["loss"], x["lr"]) for x in training.run.metrics() if x["kind"] == "train"]


# ------------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("stop_after", [1, 2, 5, 7, 9])
@pytest.mark.parametrize(
    "overrides",
    [(), ("train.ema_momentum=1e-3",), ("train.lr_schedule=cosine", "train.warmup_steps=4")],
    ids=["plain", "ema", "cosine"],
)
def test_a_stopped_run_continues_bit_for_bit(
    tmp_path: Path, tiny_settings: Settings, stop_after: int, overrides: tuple[str, ...]
):
    overrides = ("train.epochs=2", *overrides)
    straight = begin(tmp_path / "straight", tiny_settings, *overrides, evaluate=Scores(0.1, 0.2))
    train(straight)
    stopped = begin(tmp_path / "b", tiny_settings, *overrides, evaluate=Scores(0.1, 0.2), stop_after=stop_after)
    with pytest.raises(StoppedError, match=f"after step {stop_after} of 10"):
        train(stopped)
    left = [0.1, 0.2] if stop_after <= 5 else [0.2]
    torch.rand(7)  # another process: its generators are elsewhere
    resumed = begin(tmp_path / "b", tiny_settings, *overrides, evaluate=Scores(*left))
    assert resumed.position.step == stop_after
    train(resumed)
    assert_same(resumed, straight)
    assert losses_of(resumed) == losses_of(straight)


@pytest.mark.parametrize("stop_after", [1, 3, 4])
def test_resuming_with_accumulation(tmp_path: Path, tiny_settings: Settings, stop_after: int):
    overrides = ("train.epochs=2", "train.batch_size=4")  # 5 micro batches: 2 + 2 + 1 an epoch
    straight = begin(tmp_path / "straight", tiny_settings, *overrides, accumulation=2)
    train(straight)
    assert straight.position.step == 6
    with pytest.raises(StoppedError):
        train(begin(tmp_path / "b", tiny_settings, *overrides, accumulation=2, stop_after=stop_after))
    resumed = begin(tmp_path / "b", tiny_settings, *overrides, accumulation=2)
    train(resumed)
    assert_same(resumed, straight)


def test_two_steps_and_one_more_are_three_steps(tmp_path: Path, tiny_settings: Settings):
    straight = begin(tmp_path / "straight", tiny_settings, "train.max_steps=3")
    train(straight)
    train(begin(tmp_path / "b", tiny_settings, "train.max_steps=2"))
    longer = begin(tmp_path / "b", tiny_settings, "train.max_steps=3")
    assert longer.position.step == 2
    train(longer)
    assert_same(longer, straight)
    assert [line["kind"] for line in longer.run.metrics()] == ["train", "train", "train", "end"]


def test_a_run_killed_between_checkpoints_repeats_the_lost_steps(tmp_path: Path, tiny_settings: Settings):
    overrides = ("train.epochs=1", "train.checkpoint_every=2")
    straight = begin(tmp_path / "straight", tiny_settings, *overrides)
    train(straight)
    killed = begin(tmp_path / "b", tiny_settings, *overrides)
    killed.report.step = lambda line, left: (_ for _ in ()).throw(KeyboardInterrupt) if line["step"] == 4 else None
    with pytest.raises(KeyboardInterrupt):
        train(killed)
    assert killed.run.metrics()[-1]["step"] == 4
    resumed = begin(tmp_path / "b", tiny_settings, *overrides)
    assert resumed.position.step == 2
    train(resumed)
    assert_same(resumed, straight)
    assert losses_of(resumed) == losses_of(straight)


def test_an_evaluation_that_is_not_repeated_changes_nothing(tmp_path: Path, tiny_settings: Settings):
    straight = begin(tmp_path / "straight", tiny_settings, "train.epochs=2", evaluate=Scores(0.1, 0.2))
    train(straight)
    killed = begin(tmp_path / "b", tiny_settings, "train.epochs=2", evaluate=Scores(0.1))
    killed.report.step = lambda line, left: (_ for _ in ()).throw(KeyboardInterrupt) if line["step"] == 7 else None
    with pytest.raises(KeyboardInterrupt):
        train(killed)
    resumed = begin(tmp_path / "b", tiny_settings, "train.epochs=2", evaluate=Scores(0.2))
    assert resumed.position.step == resumed.position.evaluated_step == 5
    train(resumed)
    assert_same(resumed, straight)


@pytest.mark.parametrize("epochs", [1, 3])
def test_another_number_of_images_at_once_uses_what_is_left_of_the_epoch(
    tmp_path: Path, tiny_settings: Settings, epochs: int
):
    """3 of 5 micro batches are used; those of another size that follow still hold 2 images in this stand-in."""
    overrides = (f"train.epochs={epochs}", "train.lr_schedule=cosine")
    with pytest.raises(StoppedError):
        train(begin(tmp_path, tiny_settings, *overrides, stop_after=3))
    resumed = begin(tmp_path, tiny_settings, *overrides, evaluate=Scores(0.1, 0.2, 0.3), micro_batch=1, accumulation=2)
    position = resumed.position
    assert (position.step, position.epoch, position.batch, position.segments) == (3, 0, 0, [(1, 2, 3, None)])
    assert "each image of the epoch is used" in resumed.report.warnings[0]
    assert torch.initial_seed() == tiny_settings.train.seed + 3_000  # not the draws of the run's beginning once more
    # One step of two micro batches is left of this epoch, and each other has three.
    assert resumed.total_steps == 3 + 1 + 3 * (epochs - 1)
    assert resumed.schedule.factor(resumed.total_steps, epochs) == pytest.approx(0, abs=1e-6)
    train(resumed)
    lines = resumed.run.metrics()
    assert [line["step"] for line in lines if line["kind"] == "eval"] == [4, 7, 10][:epochs]
    assert (position.epoch, position.batch, position.segments) == (epochs, 0, [])
    assert resumed.run.status() == "finished"


def test_an_epoch_of_which_nothing_is_left_at_another_width_is_over(tmp_path: Path, tiny_settings: Settings):
    with pytest.raises(StoppedError):
        train(begin(tmp_path, tiny_settings, "train.epochs=2", stop_after=4))
    resumed = begin(tmp_path, tiny_settings, "train.epochs=2", loader=StandInLoader(4), micro_batch=1)
    assert (resumed.position.step, resumed.position.epoch, resumed.position.segments) == (4, 1, [])
    assert resumed.total_steps == 4 + 4


def test_a_run_that_had_reached_its_end_trains_no_more_at_another_width(tmp_path: Path, tiny_settings: Settings):
    """A kill came between its last checkpoint and the line that says so; it would have more steps now."""
    train(begin(tmp_path, tiny_settings, accumulation=2))
    resumed = begin(tmp_path, tiny_settings, micro_batch=1)
    assert (resumed.position.step, resumed.position.epoch, resumed.total_steps) == (3, 1, 3)


def test_the_weights_of_a_checkpoint_are_the_average_where_there_is_one(tmp_path: Path, tiny_settings: Settings):
    training = begin(tmp_path, tiny_settings, "train.ema_momentum=1e-3", "train.max_steps=3")
    train(training)
    saved = training.run.load()
    assert saved is not None
    assert torch.equal(saved.weights.state["head.weight"], training.ema.state["head.weight"])
    assert torch.equal(saved.state["weights"]["head.weight"], training.model.head.weight)
    assert not torch.equal(training.ema.state["head.weight"], training.model.head.weight)


# ------------------------------------------------------------------------------------------------------------- stopping


@pytest.mark.parametrize(("number", "code", "name"), [(2, 130, "Ctrl-C"), (15, 143, "SIGTERM")])
def test_a_signal_saves_and_says_how_to_continue(
    tmp_path: Path, tiny_settings: Settings, number: int, code: int, name: str
):
    training = begin(tmp_path, tiny_settings, stop_after=2, stop_signal=number)
    with pytest.raises(
        StoppedError, match=f"stopped by {name} after step 2 of 5.*start the same command again"
    ) as error:
        train(training)
    assert error.value.exit_code == code
    assert training.run.load().state["step"] == 2


# ------------------------------------------------------------------------------------------------ the step's arithmetic


def test_accumulated_micro_batches_are_averaged(tmp_path: Path, tiny_settings: Settings):
    """One step over two micro batches moves as plain AdamW does on the mean of their losses."""
    overrides = ("train.max_steps=1", "train.batch_size=4", "train.clip_norm=0")
    training = begin(tmp_path / "ours", tiny_settings, *overrides, accumulation=2)
    train(training)
    theirs = begin(tmp_path / "theirs", tiny_settings, *overrides, accumulation=2)
    state = torch.get_rng_state()
    batches = list(theirs.loader)[:2]
    torch.set_rng_state(state)  # opening a loader must not move the generators
    data = tiny_settings.data
    for batch in batches:
        images = (batch.images.float() - torch.tensor(data.mean).view(3, 1, 1)) / torch.tensor(data.std).view(3, 1, 1)
        (sum(theirs.objective(images, batch.padding_mask, batch.targets).values()) / 2).backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in theirs.model.parameters()]).norm()
    assert training.run.metrics()[0]["grad_norm"] == pytest.approx(norm.item())
    theirs.optimizer.step()
    for name, value in training.model.state_dict().items():
        torch.testing.assert_close(value, theirs.model.state_dict()[name], rtol=1e-6, atol=1e-8)


def test_learning_rates_of_a_run_with_a_milestone(tmp_path: Path, tiny_settings: Settings):
    training = begin(tmp_path, tiny_settings, "train.epochs=3", "train.lr_milestones=[1, 2]", "train.lr=1.0")
    train(training)
    assert [lr for _, _, lr in losses_of(training)] == pytest.approx([1.0] * 5 + [0.1] * 5 + [0.01] * 5)


# ----------------------------------------------------------------------------------------------- evaluation, log lines


def test_evaluations_come_after_epochs_and_keep_the_best(tmp_path: Path, tiny_settings: Settings):
    scores = Scores(0.1, 0.3, 0.2)
    training = begin(tmp_path, tiny_settings, "train.epochs=3", evaluate=scores)
    train(training)
    assert [(x["step"], x["epoch"], x["metrics"]["AP"]) for x in training.run.metrics() if x["kind"] == "eval"] == [
        (5, 1, 0.1), (10, 2, 0.3), (15, 3, 0.2),
    ]  # fmt: skip
    assert read_state(training.run.best / "state.pt")["step"] == 10
    assert read_state(training.run.last / "state.pt")["step"] == 15


def test_plots_are_there_at_the_end_and_while_it_trains(
    tmp_path: Path, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("codetr_cli.training.loop.draw_plots", draw_plots)
    monkeypatch.setattr("codetr_cli.training.loop.PLOT_SECONDS", 0.0)
    training = begin(tmp_path, tiny_settings, evaluate=Scores(0.1), stop_after=2)
    with pytest.raises(StoppedError):
        train(training)
    assert {path.name for path in training.run.plots_dir.iterdir()} == {"losses.png", "learning_rate.png"}
    train(begin(tmp_path, tiny_settings, evaluate=Scores(0.1)))
    assert {path.name for path in training.run.plots_dir.iterdir()} == {"losses.png", "learning_rate.png", "ap.png"}


def test_evaluations_may_be_rarer_and_the_end_always_has_one(tmp_path: Path, tiny_settings: Settings):
    training = begin(tmp_path, tiny_settings, "train.epochs=5", "train.eval_every=2", evaluate=Scores(0.1, 0.2, 0.3))
    train(training)
    assert [x["epoch"] for x in training.run.metrics() if x["kind"] == "eval"] == [2, 4, 5]


def test_the_average_is_what_is_evaluated(tmp_path: Path, tiny_settings: Settings):
    scores = Scores(0.1)
    training = begin(tmp_path, tiny_settings, "train.ema_momentum=1e-3", evaluate=scores)
    train(training)
    assert torch.equal(scores.seen[0], training.ema.state["head.weight"])


def test_an_evaluation_that_a_kill_cut_short_is_made_up_for(tmp_path: Path, tiny_settings: Settings):
    def killed() -> dict[str, float]:
        raise KeyboardInterrupt

    training = begin(tmp_path, tiny_settings, "train.epochs=2")
    training.evaluate = killed
    with pytest.raises(KeyboardInterrupt):
        train(training)
    resumed = begin(tmp_path, tiny_settings, "train.epochs=2", evaluate=Scores(0.1, 0.2))
    train(resumed)
    assert [x["step"] for x in resumed.run.metrics() if x["kind"] == "eval"] == [5, 10]


def test_an_evaluation_that_was_done_is_not_repeated(tmp_path: Path, tiny_settings: Settings):
    training = begin(tmp_path, tiny_settings, "train.epochs=2", evaluate=Scores(0.4), stop_after=6)
    with pytest.raises(StoppedError):
        train(training)
    resumed = begin(tmp_path, tiny_settings, "train.epochs=2", evaluate=Scores(0.2))
    assert resumed.position.best == 0.4
    train(resumed)
    assert read_state(resumed.run.best / "state.pt")["step"] == 5


@pytest.mark.parametrize("stop_after", [None, 7, 15, 17])
def test_a_run_that_gets_no_better_ends_early(tmp_path: Path, tiny_settings: Settings, stop_after: int | None):
    """The AP of the second evaluation is the best one; two more pass, whatever interrupts the run."""
    scores, overrides = [0.1, 0.3, 0.2, 0.3, 0.9], ("train.epochs=5", "train.early_stop_patience=2")
    training = begin(tmp_path, tiny_settings, *overrides, evaluate=Scores(*scores), stop_after=stop_after)
    if stop_after is not None:
        with pytest.raises(StoppedError):
            train(training)
        done = sum(line["kind"] == "eval" for line in training.run.metrics())
        training = begin(tmp_path, tiny_settings, *overrides, evaluate=Scores(*scores[done:]))
        assert training.position.fruitless == (0, 0, 0, 1)[done]
    train(training)
    lines = training.run.metrics()
    assert [line["step"] for line in lines if line["kind"] == "eval"] == [5, 10, 15, 20]
    assert [line["best"] for line in lines if line["kind"] == "eval"] == [0.1, 0.3, 0.3, 0.3]
    assert lines[-1] == {"kind": "end", "step": 20, "epoch": 4, "early": True}
    assert training.run.status() == "finished"
    text = "finished at step 20 of 25: no better AP than 0.3000 in 2 evaluations"
    assert text in training.run.events_path.read_text()
    assert training.report.notes == [f"finished early, at step {text.removeprefix('finished at step ')}"]
    assert read_state(training.run.best / "state.pt")["step"] == 10
    # With more patience the same run goes on.
    longer = begin(tmp_path, tiny_settings, "train.epochs=5", "train.early_stop_patience=3", evaluate=Scores(0.9))
    train(longer)
    assert longer.run.metrics()[-1] == {"kind": "end", "step": 25, "epoch": 5, "early": False}


def test_a_kill_before_the_early_end_changes_nothing(tmp_path: Path, tiny_settings: Settings):
    overrides = ("train.epochs=5", "train.early_stop_patience=1")
    training = begin(tmp_path, tiny_settings, *overrides, evaluate=Scores(0.3, 0.2))
    training.report.evaluated = lambda line: (_ for _ in ()).throw(KeyboardInterrupt) if line["step"] == 10 else None
    with pytest.raises(KeyboardInterrupt):
        train(training)
    assert training.run.status() == "interrupted"
    resumed = begin(tmp_path, tiny_settings, *overrides, evaluate=Scores())
    train(resumed)
    assert resumed.run.metrics()[-1]["step"] == 10
    assert resumed.run.status() == "finished"


def test_what_is_logged_reaches_the_loggers(tmp_path: Path, tiny_settings: Settings):
    told: list[dict[str, Any]] = []

    class Told:
        log = told.append

        def close(self, ending: str) -> None:
            told.append({"ending": ending})

    training = begin(tmp_path, tiny_settings, evaluate=Scores(0.5))
    with Loggers({"told": Told}) as training.loggers:
        train(training)
    assert told == [*training.run.metrics(), {"ending": "finished"}]


def test_plots_that_cannot_be_drawn_stop_nothing(
    tmp_path: Path, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    def fail(*words: Any) -> None:
        raise OSError("no fonts")

    monkeypatch.setattr("codetr_cli.training.loop.draw_plots", fail)
    training = begin(tmp_path, tiny_settings, evaluate=Scores(0.5))
    train(training)
    assert training.run.status() == "finished"
    assert "the plots could not be drawn: OSError: no fonts" in training.run.events_path.read_text()


def test_plots_are_current_after_each_evaluation(
    tmp_path: Path, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    drawn: list[int] = []
    monkeypatch.setattr("codetr_cli.training.loop.draw_plots", lambda lines, folder: drawn.append(lines[-1]["step"]))
    train(begin(tmp_path, tiny_settings, "train.epochs=3", evaluate=Scores(0.1, 0.2, 0.3)))
    assert drawn == [5, 10, 15, 15]


def test_a_log_line_averages_its_window(tmp_path: Path, tiny_settings: Settings):
    every = begin(tmp_path / "a", tiny_settings, "train.epochs=2")
    train(every)
    windows = begin(tmp_path / "b", tiny_settings, "train.epochs=2", "train.log_every=4")
    train(windows)
    lines = [x for x in windows.run.metrics() if x["kind"] == "train"]
    assert [x["step"] for x in lines] == [1, 4, 8, 10]
    losses = [loss for _, loss, _ in losses_of(every)]
    assert lines[3]["loss"] == pytest.approx((losses[8] + losses[9]) / 2)
    line = lines[1]
    assert line["loss"] == pytest.approx(sum(line["losses"].values()))
    assert set(line["losses"]) == {"loss_cls", "loss_bbox"}
    assert line["groups"] == {"all": pytest.approx(line["loss"])}
    assert line["images_per_s"] > 0
    assert 0 <= line["data_wait"] <= 1
    assert line["memory_bytes"] > 0
    assert line["eta_s"] > 0
    assert lines[-1]["eta_s"] == 0
    assert windows.report.steps == list(range(1, 11))


class SlowLoader(StandInLoader):
    """Every micro batch is long in coming."""

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            time.sleep(0.15)  # far more than a step takes on a busy machine
            yield batch


def test_waiting_for_data_is_told_once(tmp_path: Path, tiny_settings: Settings):
    for loader, times in ((SlowLoader(), 1), (StandInLoader(), 0)):
        training = begin(tmp_path / f"{times}", tiny_settings, "train.log_every=1")
        training.loader, training.report = loader, Recorder()
        if not times:
            training.meter.waiting = nullcontext  # however slow this machine is just now
        train(training)
        assert sum("`codetr bench --data" in text for text in training.report.warnings) == times
        waits = [line["data_wait"] for line in training.run.metrics() if line["kind"] == "train"]
        assert (max(waits) > 0.2) == bool(times)
