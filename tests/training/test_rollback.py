"""Going back to the last good checkpoint after non-finite steps, once; then the end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from codetr_cli.config.overrides import to_toml
from codetr_cli.config.schema import Settings
from codetr_cli.data.loading.loader import AspectGroupedSampler
from codetr_cli.errors import DivergedError, StoppedError
from codetr_cli.losses.collaborative import CollaborativeObjective
from codetr_cli.runs.folder import read_state
from codetr_cli.training.repro import read_micro_batches
from tests.conftest import Ran
from tests.training.fakes import FakeRun, Scores, assert_same, begin, losses_of, train
from tests.training.nonfinite_losses import lines, spoil, spoiled_forward, weights

pytestmark = pytest.mark.usefixtures("no_plots", "no_fsync")


def test_after_many_bad_steps_the_run_goes_back_and_on_in_another_order(tmp_path: Path, tiny_settings: Settings):
    """Six steps, of which the last three are bad: back to the checkpoint of step 2."""
    overrides = ("train.epochs=3", "train.checkpoint_every=2", "train.max_nonfinite_steps=3")
    training = begin(tmp_path, tiny_settings, *overrides, evaluate=Scores(0.3, 0.1, 0.2, 0.1))
    spoil(training, 4, 5, 6, again=False)
    asked: list[tuple[int, int, int | None]] = []
    set_epoch = training.loader.set_epoch
    training.loader.set_epoch = lambda *words: (asked.append(words[:3]), set_epoch(*words))[1]
    train(training)
    # Step 5 ended an epoch amid bad steps: that checkpoint is not the one to go back to.
    assert list(dict.fromkeys(asked)) == [(0, 0, None), (1, 0, None), (0, 2, 2), (1, 0, 0), (2, 0, 0)]
    (back,) = lines(training, "rollback")
    assert (back["step"], back["epoch"], back["batch"], back["from_step"]) == (2, 0, 2, 6)
    assert [line["step"] for line in back["skipped"]] == [4, 5, 6]
    assert [line["step"] for line in lines(training, "train")] == list(range(1, 16))
    assert [line["step"] for line in lines(training, "eval")] == [5, 10, 15]
    assert lines(training, "skip") == []
    assert "going back from step 6 to the checkpoint of step 2" in training.run.events_path.read_text()
    assert training.progress.best == 0.3  # of the evaluation that was taken back; its checkpoint is still there
    assert lines(training, "end")


def test_a_run_that_went_back_resumes_bit_for_bit(tmp_path: Path, tiny_settings: Settings):
    overrides = ("train.epochs=3", "train.checkpoint_every=2", "train.max_nonfinite_steps=2")

    def started(path: Path, stop_after: int | None = None) -> FakeRun:
        training = begin(path, tiny_settings, *overrides, stop_after=stop_after)
        spoil(training, 4, 5, again=False)
        return training

    straight = started(tmp_path / "straight")
    train(straight)
    for stop_after in (4, 3, 7, 11):  # 4: amid the bad steps; the others: only once it has gone back
        path = tmp_path / str(stop_after)
        stopped = started(path, stop_after)
        if stop_after == 3:
            stopped.stop.at = 10**9

            def killed(progress: Any, stopped: FakeRun = stopped) -> None:
                if stopped.progress.reshuffled_from is not None and progress.step == 3:
                    raise KeyboardInterrupt

            stopped.reporter.step_done = killed
        with pytest.raises((StoppedError, KeyboardInterrupt)):
            train(stopped)
        resumed = started(path)
        assert (resumed.progress.reshuffled_from is None) == (stop_after == 4)
        assert resumed.progress.nonfinite_steps == (1 if stop_after == 4 else 0)
        train(resumed)
        assert losses_of(resumed) == losses_of(straight)
        assert_same(resumed, straight)


@pytest.mark.parametrize("stop_after", [2, 3])
def test_a_run_that_went_back_continues_with_another_world_size(
    tmp_path: Path, tiny_settings: Settings, stop_after: int
):
    """Back from step 3 to the checkpoint of step 1, then killed in the next step or in the one after it."""
    overrides = ("train.epochs=2", "train.checkpoint_every=1", "train.max_nonfinite_steps=2")
    training = begin(tmp_path, tiny_settings, *overrides)
    spoil(training, 2, 3, again=False)

    def halt(progress: Any) -> None:
        if training.progress.reshuffled_from is not None and training.progress.step == stop_after:
            raise KeyboardInterrupt

    training.reporter.step_done = halt
    with pytest.raises(KeyboardInterrupt):
        train(training)
    resumed = begin(tmp_path, tiny_settings, *overrides, micro_batch=1, accumulation=2)
    position = resumed.progress
    # All steps after the first are reshuffled, and so are all later ones.
    assert position.epoch_segments == [(1, 2, stop_after - 1, 1)]
    assert (position.step, position.batch, position.reshuffled_from) == (stop_after - 1, 0, (0, 0))
    stopped = begin(tmp_path, tiny_settings, *overrides, micro_batch=1, accumulation=2, stop_after=stop_after)
    with pytest.raises(StoppedError):
        train(stopped)
    again = begin(tmp_path, tiny_settings, *overrides, micro_batch=1, accumulation=2)
    assert again.progress.epoch_segments == position.epoch_segments
    assert (again.progress.batch, again.progress.reshuffled_from) == (2, (0, 0))


def test_the_order_after_going_back_has_every_image():
    groups = np.array([0, 1] * 20)
    ranks = [AspectGroupedSampler(groups, micro_batch=2, rank=rank, world_size=2, seed=3) for rank in (0, 1)]

    def batches(start: int, other: int | None, epoch: int = 5) -> list[list[list[int]]]:
        for sampler in ranks:
            sampler.set_epoch(epoch, start, other)
        return [[[index for _, index in batch] for batch in sampler] for sampler in ranks]

    planned, changed = batches(0, None), batches(0, 3)
    assert sorted(index for rank in changed for batch in rank for index in batch) == list(range(40))
    for ours, theirs in zip(changed, planned, strict=True):
        assert ours[:3] == theirs[:3]
        assert ours[3:] != theirs[3:]
        assert sorted(ours) == sorted(theirs)
    assert batches(5, 3) == [rank[5:] for rank in changed]  # resumed in the middle of it
    assert batches(0, 0, 6) != batches(0, None, 6)


def test_the_second_time_the_run_ends_with_a_reproducer(tmp_path: Path, tiny_settings: Settings):
    training = begin(
        tmp_path, tiny_settings, "train.epochs=3", "train.checkpoint_every=2", "train.max_nonfinite_steps=2"
    )
    spoil(training, *range(4, 16))
    with pytest.raises(DivergedError) as error:
        train(training)
    assert error.value.exit_code == 6
    text = str(error.value)
    assert "2 steps in a row were not finite and were skipped, the last of them step 5 (epoch 1)" in text
    assert "loss_bbox = nan on the images with id" in text
    assert "had gone back to a checkpoint before" in text
    assert f"`python -m codetr_cli.training.repro {tmp_path / 'diverged'}` computes that step again" in text
    assert read_state(training.run.last / "state.pt")["step"] == 2
    assert [line["kind"] for line in training.run.metrics()][-3:] == ["skip", "skip", "diverged"]
    folder = tmp_path / "diverged"
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "rank0.safetensors", "step.json"}
    facts = json.loads((folder / "step.json").read_text())
    assert (facts["step"], facts["seed"], facts["processes"], facts["losses"]) == (5, 0, 1, {"loss_bbox": "nan"})
    kept = load_file(folder / "model.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in training.model.state_dict().items())
    ((batch, states),) = read_micro_batches(folder / "rank0.safetensors")
    assert [target["image_id"] for target in batch.targets] == facts["image_ids"]
    assert torch.equal(batch.images, training.state.step_inputs[0][0].images)
    assert torch.equal(states["torch"], training.state.step_inputs[0][1]["torch"])
    # Continuing repeats the same steps and the same end; nothing is lost by trying.
    again = begin(tmp_path, tiny_settings, "train.epochs=3", "train.checkpoint_every=2", "train.max_nonfinite_steps=2")
    assert again.progress.step == 2
    assert "diverged" not in [line["kind"] for line in again.run.metrics()]


def test_without_a_good_checkpoint_the_run_ends_at_once(tmp_path: Path, tiny_settings: Settings):
    training = begin(tmp_path, tiny_settings, "train.max_nonfinite_steps=2")
    spoil(training, *range(1, 6))
    before = weights(training)
    with pytest.raises(DivergedError, match=r"step 2 \(epoch 1\).*no good checkpoint to go back to"):
        train(training)
    assert all(torch.equal(value, before[name]) for name, value in training.model.state_dict().items())
    assert training.run.load() is None
    assert lines(training, "train") == []


def test_a_short_run_of_bad_steps_only_does_not_end_well(tmp_path: Path, tiny_settings: Settings):
    training = begin(tmp_path, tiny_settings, "train.max_steps=3")  # ten bad steps would be allowed
    spoil(training, 1, 2, 3)
    with pytest.raises(DivergedError):
        train(training)


@pytest.mark.slow
def test_going_back_with_worker_processes(
    tmp_path: Path,
    tiny_coco: Path,
    tiny_settings: Settings,
    codetr: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
):
    """Where one bad step is too many the run goes back and then ends; else a bad image costs its steps only."""
    preset, run = tmp_path / "tiny.toml", tmp_path / "run"
    preset.write_text(to_toml(tiny_settings))
    words = ("train", "--preset", preset, "--data", tiny_coco, "--device", "cpu", "--no-eval", "--run", run)
    monkeypatch.setattr(CollaborativeObjective, "forward", spoiled_forward(201))
    more = ("--set", "train.epochs=2", "--set", "data.workers=1", "--set", "train.checkpoint_every=1")
    ran = codetr(*words, *more, "--set", "train.max_nonfinite_steps=1")
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kinds = [line["kind"] for line in metrics]
    assert (ran.code, kinds.count("rollback"), kinds[-1]) == (6, 1, "diverged"), ran.err
    shutil.rmtree(run)
    ran = codetr(*words, *more)
    assert ran.code == 0, ran.err
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    skipped = [line for line in metrics if line["kind"] == "skip"]
    assert {line["epoch"] for line in skipped} == {0, 1}
    assert all(201 in line["image_ids"] and line["losses"] == {"loss_rpn_bbox": "nan"} for line in skipped)
    assert ran.err.count("in a row, 6 allowed)") == len(skipped) < 4
