"""Numbers that go wrong, injected: losses of given images or steps made NaN, gradients made infinite by a hook."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from codetr_cli.config.schema import Settings
from codetr_cli.training.nonfinite import SCALE_FLOOR
from codetr_cli.training.repro import read_micro_batches
from tests.distributed.pairs import run_pair
from tests.training.fakes import begin, losses_of, train
from tests.training.nonfinite_losses import lines, spoil, weights

pytestmark = pytest.mark.usefixtures("no_plots", "no_fsync")


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


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What two processes that train together did, of which only the second one sees numbers that are not finite."""
    root = tmp_path_factory.mktemp("together")
    run_pair("-c", TOGETHER, root)
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
