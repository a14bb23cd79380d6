"""Numbers that go wrong, injected: losses of given images or steps made NaN, gradients made infinite by a hook."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from codetr_cli.config.overrides import to_toml
from codetr_cli.config.schema import Settings
from codetr_cli.data.loading.loader import AspectGroupedSampler
from codetr_cli.errors import CheckpointError, DivergedError, StoppedError
from codetr_cli.losses.collaborative import CollaborativeObjective
from codetr_cli.runs.folder import read_state
from codetr_cli.training import repro, step
from codetr_cli.training.nonfinite import SCALE_FLOOR
from codetr_cli.training.repro import read_micro_batches, replay
from tests.conftest import REPOSITORY, Ran
from tests.training.fakes import CPU, FakeRun, Scores, assert_same, begin, losses_of, train


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plots, and no waiting for the disk: that takes longer than these trainings."""
    monkeypatch.setattr("codetr_cli.training.plots.draw_plots", lambda lines, folder: [])
    monkeypatch.setattr(os, "fsync", lambda file: None)


def spoil(training: FakeRun, *steps: int, again: bool = True) -> None:
    """Makes the losses of some optimizer steps NaN; not `again` where images are reshuffled."""
    forward = training.objective.forward

    def spoiled(*inputs: Any) -> dict[str, Tensor]:
        losses = forward(*inputs)
        position = training.progress
        if position.step + 1 in steps and (again or position.reshuffled_from is None):
            losses["loss_bbox"] = losses["loss_bbox"] * math.nan
        return losses

    training.objective.forward = spoiled


def lines(training: FakeRun, kind: str) -> list[dict[str, Any]]:
    return [line for line in training.run.metrics() if line["kind"] == kind]


def weights(training: FakeRun) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in training.model.state_dict().items()}


# ---------------------------------------------------------------------------------------------------- skipped steps


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_non_finite_loss_is_skipped_and_named(
    tmp_path: Path, tiny_settings: Settings, value: float, dtype: torch.dtype | None
):
    training = begin(tmp_path, tiny_settings, "train.batch_size=4", "train.ema_momentum=1e-3", accumulation=2)
    training.replace(dtype=dtype)
    training.objective.bad_image, training.objective.bad_value = 31, value  # the second image of micro batch 3
    seen: list[tuple[dict[str, Tensor], dict[str, Tensor], Any]] = []
    training.reporter.step_done = lambda progress: seen.append(
        (
            weights(training),
            dict(training.state.ema.state),
            training.state.optimizer.state_dict()["state"][0]["step"].item(),
        )
    )
    train(training)
    assert [step for _, _, step in seen] == [1, 1, 2]
    assert all(torch.equal(seen[0][0][name], seen[1][0][name]) for name in seen[0][0])
    assert not torch.equal(seen[1][0]["head.weight"], seen[2][0]["head.weight"])
    (line,) = lines(training, "skip")
    assert (line["step"], line["epoch"], line["in_a_row"]) == (2, 0, 1)
    assert line["losses"] == {"loss_bbox": str(value)}
    assert line["image_ids"] == [30, 31]
    text = f"step 2 skipped (1 in a row, 3 allowed): loss_bbox = {value} on the images with id 30, 31"
    assert training.warnings == [text]
    assert text in training.run.events_path.read_text()
    assert [x["step"] for x in lines(training, "train")] == [1, 3]
    assert all(math.isfinite(loss) for _, loss, _ in losses_of(training))
    assert lines(training, "end")
    assert "NaN" not in training.run.metrics_path.read_text()


def test_non_finite_gradients_are_skipped_and_named(tmp_path: Path, tiny_settings: Settings):
    training = begin(tmp_path, tiny_settings)
    training.model.head.weight.register_hook(
        lambda gradient: gradient * (math.inf if training.progress.step == 1 else 1)
    )
    train(training)
    (line,) = lines(training, "skip")
    assert (line["step"], line["losses"], line["gradients"]) == (2, {}, ["head.weight"])
    assert line["image_ids"] == [10, 11]
    assert "gradients of head.weight are not finite on the images with id 10, 11" in training.warnings[0]
    assert training.progress.nonfinite_steps == 0
    assert training.state.optimizer.state_dict()["state"][0]["step"].item() == 4


def test_a_window_of_losses_excludes_skipped_steps(tmp_path: Path, tiny_settings: Settings):
    whole = begin(tmp_path / "a", tiny_settings, "train.log_every=1", "train.epochs=2")
    spoil(whole, 3, 6, 7)
    train(whole)
    windows = begin(tmp_path / "b", tiny_settings, "train.log_every=5", "train.epochs=2")
    spoil(windows, 3, 6, 7)
    train(windows)
    losses = {step: loss for step, loss, _ in losses_of(whole)}
    assert sorted(losses) == [1, 2, 4, 5, 8, 9, 10]
    assert [x["loss"] for x in lines(windows, "train")[1:]] == pytest.approx(
        [(losses[2] + losses[4] + losses[5]) / 3, (losses[8] + losses[9] + losses[10]) / 3]
    )


def test_fp16_overflow_counts_only_when_the_scale_cannot_be_lowered(tmp_path: Path, tiny_settings: Settings):
    training = begin(tmp_path, tiny_settings, "train.epochs=2", "train.max_nonfinite_steps=3")
    training.state.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    training.model.head.weight.register_hook(lambda gradient: gradient * (math.inf if bad else 1))
    bad, scales, counts = True, [], []

    def note(progress: Any) -> None:
        nonlocal bad
        scales.append(training.state.scaler.get_scale())
        counts.append(training.progress.nonfinite_steps)
        bad = len(scales) < 5

    training.reporter.step_done = note
    before = weights(training)
    train(training)
    assert scales[:6] == [4.0, 2.0, SCALE_FLOOR, 1.0, 1.0, 1.0]
    assert counts[:6] == [0, 0, 0, 1, 2, 0]
    assert [line["step"] for line in lines(training, "skip")] == [4, 5]
    assert training.state.optimizer.state_dict()["state"][0]["step"].item() == 5
    assert not torch.equal(training.model.head.weight, before["head.weight"])


def test_an_fp16_loss_that_is_not_finite_counts_at_once(tmp_path: Path, tiny_settings: Settings):
    training = begin(tmp_path, tiny_settings)
    training.state.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    spoil(training, 2)
    train(training)
    assert [line["step"] for line in lines(training, "skip")] == [2]
    assert training.state.scaler.get_scale() == 8.0  # it is not the scale's fault


# ------------------------------------------------------------------------------------------------------- going back


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


# --------------------------------------------------------------------------------------------------------------- ending


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


@pytest.mark.parametrize("refused", ["repro.save_file", "repro.Path.mkdir"])
def test_a_full_disk_does_not_hide_what_happened(
    tmp_path: Path, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch, refused: str
):
    def full(*words: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    training = begin(tmp_path, tiny_settings, "train.max_nonfinite_steps=1")
    spoil(training, 1)
    skip_step = step.skip_step

    def skip_and_fill(*words: Any) -> None:
        skip_step(*words)
        monkeypatch.setattr(f"codetr_cli.training.{refused}", full)
        monkeypatch.setattr("codetr_cli.runs.folder.append", full)

    monkeypatch.setattr(step, "skip_step", skip_and_fill)
    with pytest.raises(DivergedError, match=r"loss_bbox = nan.*could not be saved.*no space left"):
        train(training)


# ------------------------------------------------------------------------------------------------- the whole program


def spoiled_forward(bad_image: int, seen: list[dict[str, float]] | None = None) -> Callable[..., dict[str, Tensor]]:
    """The real objective with a NaN among the losses of one image."""
    forward = CollaborativeObjective.forward

    def run(self: CollaborativeObjective, images: Tensor, mask: Tensor, targets: list[Any]) -> dict[str, Tensor]:
        losses = forward(self, images, mask, targets)
        if bad_image in [target["image_id"] for target in targets]:
            losses["loss_rpn_bbox"] = losses["loss_rpn_bbox"] * math.nan
        if seen is not None:
            seen.append({name: float(value.detach()) for name, value in losses.items()})
        return losses

    return run


def test_a_run_that_diverged_is_replayed_to_the_last_bit(
    tmp_path: Path,
    tiny_coco: Path,
    tiny_settings: Settings,
    codetr: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    preset, run = tmp_path / "tiny.toml", tmp_path / "run"
    preset.write_text(to_toml(tiny_settings))
    words = ("train", "--preset", preset, "--data", tiny_coco, "--device", "cpu", "--no-eval", "--run", run)
    seen: list[dict[str, float]] = []
    with monkeypatch.context() as patch:
        patch.setattr(CollaborativeObjective, "forward", spoiled_forward(201, seen))
        ran = codetr(*words, "--set", "train.max_nonfinite_steps=1", "--set", "data.workers=1")
        assert ran.code == 6, ran.err
        assert "loss_rpn_bbox = nan" in ran.err
        (replayed,) = replay(run / "diverged", CPU)
    assert 201 in replayed.image_ids[0]
    assert str(replayed.losses[0]) == str(seen[-2])  # NaN is not equal to itself; the last one is the replay's own
    (fixed,) = replay(run / "diverged", CPU)
    repro.main([str(run / "diverged")])
    (printed,) = json.loads(capfd.readouterr().out)
    assert printed["losses"] == fixed.losses
    assert fixed.gradients == []
    assert math.isfinite(fixed.losses[0]["loss_rpn_bbox"])
    assert {name: value for name, value in fixed.losses[0].items() if name != "loss_rpn_bbox"} == {
        name: value for name, value in seen[-2].items() if name != "loss_rpn_bbox"
    }
    (run / "diverged/step.json").unlink()
    with pytest.raises(CheckpointError, match="no complete reproducer"):
        next(replay(run / "diverged", CPU))


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


# ------------------------------------------------------------------------------------------------------- two processes

TOGETHER = """
import json, math, os, sys
from pathlib import Path
import torch
from codetr_cli.config.overrides import parse_settings
from codetr_cli.distributed import process_group
from codetr_cli.errors import DivergedError
from codetr_cli.training import plots
from tests.conftest import TINY_TABLE
from tests.training import fakes

plots.draw_plots = lambda lines, folder: []
os.fsync = lambda file: None
torch.set_num_threads(1)
root, answers = Path(sys.argv[1]), {}


class Loader(fakes.StandInLoader):
    def __iter__(self):
        for batch in super().__iter__():
            for target in batch.targets:
                target["image_id"] += 1000 * process_group.rank()
            yield batch


with process_group.joined(torch.device("cpu")):
    rank = process_group.rank()
    if rank == 1:  # what only the process of rank 0 may do
        for method in ("open", "recover", "rewind", "log", "event", "save", "mark_best", "go_back_to"):
            setattr(fakes.RunFolder, method, lambda *words, **more: None)

    def begin(name, *overrides):
        training = fakes.begin(root / name, parse_settings(TINY_TABLE, "here"), *overrides)
        process_group.barrier()
        objective = process_group.wrap_ddp(training.objective, torch.device("cpu"))
        return training.replace(loader=Loader(), objective=objective)

    def spoil_rank_1(training, *steps, again=True):
        module = training.objective.module
        forward = module.forward

        def spoiled(*inputs):
            losses = forward(*inputs)
            position = training.progress
            if rank == 1 and position.step + 1 in steps and (again or position.reshuffled_from is None):
                losses["loss_cls"] = losses["loss_cls"] * math.nan
            return losses

        module.forward = spoiled

    def sums(training):
        return [value.double().sum().item() for value in training.model.state_dict().values()]

    once = begin("once")
    spoil_rank_1(once, 2)
    states = []
    once.reporter.step_done = lambda progress: states.append(sums(once))
    fakes.train(once)
    answers["once"] = states
    back = begin("back", "train.checkpoint_every=1", "train.max_nonfinite_steps=2")
    spoil_rank_1(back, 3, 4, again=False)
    fakes.train(back)
    answers["back"] = [sums(back), back.progress.step, back.progress.reshuffled_from]
    gradient = begin("gradient")
    if rank == 1:
        gradient.model.head.bias.register_hook(lambda g: g * (math.inf if gradient.progress.step == 2 else 1))
    fakes.train(gradient)
    answers["gradient"] = sums(gradient)
    never = begin("never", "train.max_nonfinite_steps=2")
    spoil_rank_1(never, 1, 2, 3, 4, 5)
    try:
        fakes.train(never)
    except DivergedError as error:
        answers["never"] = str(error)
Path(root, f"answers{rank}.json").write_text(json.dumps(answers))
"""


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What two processes that train together did, of which only the second one sees numbers that are not finite."""
    root = tmp_path_factory.mktemp("together")
    common = {**os.environ, "PYTHONPATH": str(REPOSITORY), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    common |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, root],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for process in processes:
        _, err = process.communicate(timeout=180)
        assert process.returncode == 0, err
    return root, [json.loads((root / f"answers{rank}.json").read_text()) for rank in (0, 1)]


def metrics(root: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / name / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_skip_the_same_step(together: tuple[Path, list[dict[str, Any]]]):
    root, (first, second) = together
    assert first["once"] == second["once"]
    states = first["once"]
    assert states[0] == states[1]
    assert len({tuple(state) for state in states}) == 4
    (line,) = [line for line in metrics(root, "once") if line["kind"] == "skip"]
    assert (line["step"], line["losses"], line["image_ids"]) == (2, {"loss_cls": "nan"}, [1010, 1011])


def test_two_processes_name_a_gradient_and_all_images(together: tuple[Path, list[dict[str, Any]]]):
    root, (first, second) = together
    assert first["gradient"] == second["gradient"]
    (line,) = [line for line in metrics(root, "gradient") if line["kind"] == "skip"]
    assert (line["step"], line["gradients"], line["image_ids"]) == (3, ["head.bias"], [20, 21, 1020, 1021])


def test_two_processes_go_back_together(together: tuple[Path, list[dict[str, Any]]]):
    root, (first, second) = together
    assert first["back"] == second["back"]
    assert first["back"][1:] == [5, [0, 2]]
    assert [line["kind"] for line in metrics(root, "back")] == ["train", "train", "rollback", *["train"] * 3, "end"]


def test_two_processes_end_together_and_keep_both_shares(together: tuple[Path, list[dict[str, Any]]]):
    root, (first, second) = together
    assert first["never"] == second["never"]
    assert "step 2 (epoch 1): loss_cls = nan on the images with id 1010, 1011" in first["never"]
    folder = root / "never/diverged"
    assert json.loads((folder / "step.json").read_text())["processes"] == 2
    ids = [[t["image_id"] for b, _ in read_micro_batches(folder / f"rank{r}.safetensors") for t in b.targets]
           for r in (0, 1)]  # fmt: skip
    assert ids == [[10, 11], [1010, 1011]]
