from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from codetr_cli.config.schema import Settings
from codetr_cli.data.batch import Batch
from codetr_cli.errors import StoppedError
from codetr_cli.runs.folder import read_state
from codetr_cli.training.loggers import Loggers
from codetr_cli.training.plots import draw_plots
from tests.training.fakes import Scores, StandInLoader, assert_same, begin, losses_of, train

pytestmark = pytest.mark.usefixtures("no_plots")


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
    assert resumed.progress.step == stop_after
    train(resumed)
    assert_same(resumed, straight)
    assert losses_of(resumed) == losses_of(straight)


@pytest.mark.parametrize("stop_after", [1, 3, 4])
def test_resuming_with_accumulation(tmp_path: Path, tiny_settings: Settings, stop_after: int):
    overrides = ("train.epochs=2", "train.batch_size=4")  # 5 micro batches: 2 + 2 + 1 an epoch
    straight = begin(tmp_path / "straight", tiny_settings, *overrides, accumulation=2)
    train(straight)
    assert straight.progress.step == 6
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
    assert longer.progress.step == 2
    train(longer)
    assert_same(longer, straight)
    assert [line["kind"] for line in longer.run.metrics()] == ["train", "train", "train", "end"]


def test_a_run_killed_between_checkpoints_repeats_the_lost_steps(tmp_path: Path, tiny_settings: Settings):
    overrides = ("train.epochs=1", "train.checkpoint_every=2")
    straight = begin(tmp_path / "straight", tiny_settings, *overrides)
    train(straight)
    killed = begin(tmp_path / "b", tiny_settings, *overrides)
    killed.reporter.step_done = lambda progress: (
        (_ for _ in ()).throw(KeyboardInterrupt) if progress.step == 4 else None
    )
    with pytest.raises(KeyboardInterrupt):
        train(killed)
    assert killed.run.metrics()[-1]["step"] == 4
    resumed = begin(tmp_path / "b", tiny_settings, *overrides)
    assert resumed.progress.step == 2
    train(resumed)
    assert_same(resumed, straight)
    assert losses_of(resumed) == losses_of(straight)


def test_an_evaluation_that_is_not_repeated_changes_nothing(tmp_path: Path, tiny_settings: Settings):
    straight = begin(tmp_path / "straight", tiny_settings, "train.epochs=2", evaluate=Scores(0.1, 0.2))
    train(straight)
    killed = begin(tmp_path / "b", tiny_settings, "train.epochs=2", evaluate=Scores(0.1))
    killed.reporter.step_done = lambda progress: (
        (_ for _ in ()).throw(KeyboardInterrupt) if progress.step == 7 else None
    )
    with pytest.raises(KeyboardInterrupt):
        train(killed)
    resumed = begin(tmp_path / "b", tiny_settings, "train.epochs=2", evaluate=Scores(0.2))
    assert resumed.progress.step == resumed.progress.evaluated_step == 5
    train(resumed)
    assert_same(resumed, straight)


@pytest.mark.parametrize("epochs", [1, 3])
def test_another_number_of_images_at_once_trains_the_rest_of_the_epoch(
    tmp_path: Path, tiny_settings: Settings, epochs: int
):
    """3 of 5 micro batches are used; those of another size that follow still hold 2 images in this stand-in."""
    overrides = (f"train.epochs={epochs}", "train.lr_schedule=cosine")
    with pytest.raises(StoppedError):
        train(begin(tmp_path, tiny_settings, *overrides, stop_after=3))
    resumed = begin(tmp_path, tiny_settings, *overrides, evaluate=Scores(0.1, 0.2, 0.3), micro_batch=1, accumulation=2)
    progress = resumed.progress
    assert (progress.step, progress.epoch, progress.batch, progress.epoch_segments) == (3, 0, 0, [(1, 2, 3, None)])
    assert "each image of the epoch is used" in resumed.warnings[0]
    assert torch.initial_seed() == tiny_settings.train.seed + 3_000  # not the random numbers of the start of the run
    # One step of two micro batches is left of this epoch, and each other has three.
    assert resumed.state.total_steps == 3 + 1 + 3 * (epochs - 1)
    assert resumed.state.schedule.factor(resumed.state.total_steps, epochs) == pytest.approx(0, abs=1e-6)
    train(resumed)
    lines = resumed.run.metrics()
    assert [line["step"] for line in lines if line["kind"] == "eval"] == [4, 7, 10][:epochs]
    assert (progress.epoch, progress.batch, progress.epoch_segments) == (epochs, 0, [])
    assert resumed.run.status() == "finished"


def test_an_epoch_without_images_left_after_a_change_of_world_size_ends(tmp_path: Path, tiny_settings: Settings):
    with pytest.raises(StoppedError):
        train(begin(tmp_path, tiny_settings, "train.epochs=2", stop_after=4))
    resumed = begin(tmp_path, tiny_settings, "train.epochs=2", loader=StandInLoader(4), micro_batch=1)
    assert (resumed.progress.step, resumed.progress.epoch, resumed.progress.epoch_segments) == (4, 1, [])
    assert resumed.state.total_steps == 4 + 4


def test_a_run_that_had_reached_its_end_does_not_train_after_a_change_of_world_size(
    tmp_path: Path, tiny_settings: Settings
):
    """The process was killed between its last checkpoint and the end line; it would have more steps now."""
    train(begin(tmp_path, tiny_settings, accumulation=2))
    resumed = begin(tmp_path, tiny_settings, micro_batch=1)
    assert (resumed.progress.step, resumed.progress.epoch, resumed.state.total_steps) == (3, 1, 3)


def test_the_weights_of_a_checkpoint_are_the_average_where_there_is_one(tmp_path: Path, tiny_settings: Settings):
    training = begin(tmp_path, tiny_settings, "train.ema_momentum=1e-3", "train.max_steps=3")
    train(training)
    saved = training.run.load()
    assert saved is not None
    assert torch.equal(saved.weights.state["head.weight"], training.state.ema.state["head.weight"])
    assert torch.equal(saved.state["weights"]["head.weight"], training.model.head.weight)
    assert not torch.equal(training.state.ema.state["head.weight"], training.model.head.weight)


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
    monkeypatch.setattr("codetr_cli.training.plots.draw_plots", draw_plots)
    monkeypatch.setattr("codetr_cli.training.plots.PLOT_SECONDS", 0.0)
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
    assert torch.equal(scores.seen[0], training.state.ema.state["head.weight"])


def test_an_interrupted_evaluation_is_repeated(tmp_path: Path, tiny_settings: Settings):
    def killed(step: int) -> dict[str, float]:
        raise KeyboardInterrupt

    training = begin(tmp_path, tiny_settings, "train.epochs=2", evaluate=killed)
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
    assert resumed.progress.best == 0.4
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
        assert training.progress.evals_without_improvement == (0, 0, 0, 1)[done]
    train(training)
    lines = training.run.metrics()
    assert [line["step"] for line in lines if line["kind"] == "eval"] == [5, 10, 15, 20]
    assert [line["best"] for line in lines if line["kind"] == "eval"] == [0.1, 0.3, 0.3, 0.3]
    assert lines[-1].items() >= {"kind": "end", "step": 20, "epoch": 4, "early": True}.items()
    assert training.run.status() == "finished"
    text = "finished early, at step 20 of 25: no better AP than 0.3000 in 2 evaluations"
    assert text in training.run.events_path.read_text()
    assert training.notes[-1] == text
    assert read_state(training.run.best / "state.pt")["step"] == 10
    # With more patience the same run continues.
    longer = begin(tmp_path, tiny_settings, "train.epochs=5", "train.early_stop_patience=3", evaluate=Scores(0.9))
    train(longer)
    assert longer.run.metrics()[-1].items() >= {"kind": "end", "step": 25, "epoch": 5, "early": False}.items()


def test_a_kill_before_the_early_end_changes_nothing(tmp_path: Path, tiny_settings: Settings):
    overrides = ("train.epochs=5", "train.early_stop_patience=1")
    training = begin(tmp_path, tiny_settings, *overrides, evaluate=Scores(0.3, 0.2))
    draw = training.state.plots.draw

    def killed_at_10() -> None:
        if training.progress.step == 10:
            raise KeyboardInterrupt
        draw()

    training.state.plots.draw = killed_at_10
    with pytest.raises(KeyboardInterrupt):
        train(training)
    assert training.run.status() == "interrupted"
    resumed = begin(tmp_path, tiny_settings, *overrides, evaluate=Scores())
    train(resumed)
    assert resumed.run.metrics()[-1]["step"] == 10
    assert resumed.run.status() == "finished"


def test_what_is_logged_reaches_the_loggers(tmp_path: Path, tiny_settings: Settings):
    lines: list[dict[str, Any]] = []

    class Recording:
        log = lines.append

        def close(self, ending: str) -> None:
            lines.append({"ending": ending})

    with Loggers({"recording": Recording}) as loggers:
        training = begin(tmp_path, tiny_settings, evaluate=Scores(0.5), loggers=loggers)
        train(training)
    assert lines == [*training.run.metrics(), {"ending": "finished"}]


def test_plots_are_current_after_each_evaluation(
    tmp_path: Path, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    drawn: list[int] = []
    monkeypatch.setattr("codetr_cli.training.plots.draw_plots", lambda lines, folder: drawn.append(lines[-1]["step"]))
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
    assert windows.reporter.steps == list(range(1, 11))


class SlowLoader(StandInLoader):
    """Every micro batch is long in coming."""

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            time.sleep(0.15)  # far more than a step takes on a busy machine
            yield batch


def test_waiting_for_data_is_warned_of_once(tmp_path: Path, tiny_settings: Settings):
    for loader, times in ((SlowLoader(), 1), (StandInLoader(), 0)):
        training = begin(tmp_path / f"{times}", tiny_settings, "train.log_every=1", loader=loader)
        if not times:
            training.state.metrics.waiting = nullcontext  # however slow this machine is just now
        train(training)
        assert sum("`codetr bench data" in text for text in training.warnings) == times
        waits = [line["data_wait"] for line in training.run.metrics() if line["kind"] == "train"]
        assert (max(waits) > 0.2) == bool(times)
