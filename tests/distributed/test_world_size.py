"""Two processes with an image each against one process with both: losses, gradients, weights and their average."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from codetr_cli.config.overrides import apply_overrides, to_toml
from codetr_cli.config.schema import Settings
from codetr_cli.data.batch import collate, pad
from codetr_cli.inference import loading
from codetr_cli.losses.build import build_objective
from codetr_cli.losses.random import RandomSource
from codetr_cli.models.build import build_model
from codetr_cli.models.codetr import CoDETR
from codetr_cli.models.torch_compile import compile_static_parts
from codetr_cli.training import plots
from tests.conftest import Ran
from tests.distributed.pairs import run_pair
from tests.distributed.rounding import norm_of, without_rounding
from tests.distributed.world_size_cases import CASES, run_case, sample

TOLERANCE = 1e-6  # of float32: of each loss, of the norm of all gradients, of each weight
EQUAL_CASES = [name for name in CASES if name != "published"]
Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Results:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "draw_plots", lambda lines, folder: [])
        torch.set_num_threads(1)
        return {name: run_case(name, tmp_path_factory.mktemp("alone")) for name in CASES}


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    return in_two_processes(tmp_path_factory.mktemp("together"), *CASES)


def in_two_processes(folder: Path, *names: str) -> list[Results]:
    """What each of them computed."""
    run_pair("-m", "tests.distributed.world_size_cases", folder, *names)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]  # noqa: TID251


def furthest(ours: dict[str, Any], theirs: dict[str, Any], scale: float | None = None) -> tuple[float, str]:
    """The largest difference of two tables, each of its own size (but 1 at least) unless a scale is given."""
    assert ours.keys() == theirs.keys()
    found = (0.0, "")
    for name in ours:
        a, b = (torch.as_tensor(table[name], dtype=torch.float64) for table in (ours, theirs))
        size = b.abs().clamp(min=1) if scale is None else torch.tensor(scale)
        found = max(found, (float(((a - b).abs() / size).max()), name))
    return found


@pytest.mark.parametrize("name", EQUAL_CASES)
def test_two_processes_are_one(alone: Results, together: list[Results], name: str):
    assert_one(together[0][name], alone[name])


def assert_one(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert len(ours["losses"]) == len(theirs["losses"]) == len(ours["gradients"]) > 1
    for step, (a, b) in enumerate(zip(ours["losses"], theirs["losses"], strict=True)):
        difference, loss = furthest(a, b)
        assert difference <= TOLERANCE, f"{loss} of step {step + 1}"
    for step, (a, b) in enumerate(zip(ours["gradients"], theirs["gradients"], strict=True)):
        difference, parameter = furthest(a, b, scale=norm_of(b))
        assert difference <= TOLERANCE, f"gradient of {parameter} in step {step + 1}"
    for what in ("weights", "average"):
        difference, parameter = furthest(ours[what], theirs[what])
        assert difference <= 10 * TOLERANCE, f"{what}: {parameter}"
        difference, parameter = furthest(
            *(without_rounding(table[what], theirs["gradients"]) for table in (ours, theirs))
        )
        assert difference <= TOLERANCE, f"{what}: {parameter}"


@pytest.mark.slow
def test_two_compiled_processes_that_recompute_are_one_that_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plots, "draw_plots", lambda lines, folder: [])
    assert_one(in_two_processes(tmp_path, "compiled")[0]["compiled"], run_case("compiled", tmp_path))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks, and hides it by other means than ours
def test_a_compiled_training_resumes_bit_for_bit(
    tmp_path: Path,
    tiny_settings: Settings,
    tiny_coco: Path,
    codetr: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
):
    compiled: list[str] = []

    def compile_without_compiler(model: CoDETR) -> CoDETR:
        compiled.append("yes")
        return compile_static_parts(model, backend="aot_eager")

    monkeypatch.setattr(loading, "compile_static_parts", compile_without_compiler)
    monkeypatch.setattr(loading, "why_not_compile", lambda device: None)
    preset = tmp_path / "tiny.toml"
    preset.write_text(to_toml(tiny_settings))
    states = []
    for stops in ((2,), (1, 2)):
        for steps in stops:
            ran = codetr("train", "--preset", preset, "--data", tiny_coco, "--device", "cpu", "--no-eval", "--run",
                         tmp_path / str(len(stops)), "--set", "train.compile=true", "--set", f"train.max_steps={steps}",
                         "--set", "model.encoder_checkpointing=1")  # fmt: skip
            assert ran.code == 0, ran.err
        states.append(load_file(tmp_path / str(len(stops)) / "checkpoints/last/model.safetensors"))
    assert "resumed after step 1 of 2" in ran.out
    assert len(compiled) == 3
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []


@pytest.mark.parametrize("name", list(CASES))
def test_both_processes_hold_the_same_to_the_last_bit(together: list[Results], name: str):
    first, second = (results[name] for results in together)
    for what in ("weights", "average"):
        assert [key for key, value in first[what].items() if not torch.equal(value, second[what][key])] == []
    for a, b in zip(first["gradients"], second["gradients"], strict=True):
        assert [key for key in a if not torch.equal(a[key], b[key])] == []


def test_as_published_processes_change_what_is_each_ones_own(alone: Results, together: list[Results]):
    """The comparison above sees it when processes do not agree."""
    ours, theirs = together[0]["published"], alone["published"]
    assert furthest(ours["losses"][0], theirs["losses"][0])[0] > 1e-3
    assert furthest(ours["losses"][-1], theirs["losses"][-1])[0] > 0.1


# --------------------------------------------------------------------------------------------- what processes agree on


def test_padding_is_added_below_and_on_the_right():
    batch = collate([sample(0, 40, 60, 2)])
    assert pad(batch, 40, 60) is batch
    larger = pad(batch, 48, 64)
    assert larger.images.shape == (1, 3, 48, 64)
    assert torch.equal(larger.images[..., :40, :60], batch.images)
    assert not larger.images[..., 40:, :].any()
    assert bool(larger.padding_mask[:, 40:].all())
    assert bool(larger.padding_mask[:, :, 60:].all())
    assert not larger.padding_mask[:, :40, :60].any()
    assert larger.targets is batch.targets


# -------------------------------------------------------------------------------------------- a gradient for everything


def test_processes_never_look_for_unused_parameters(together: list[Results]):
    """A parameter that one process trains and another does not would hang or fail the trainings above."""
    assert [results[name]["looks_for_unused"] for results in together for name in CASES] == [False] * 2 * len(CASES)


@pytest.mark.parametrize("counts", [(2, 1), (1, 0), (0, 0)])
@pytest.mark.parametrize("name", ["co_dino", "co_deformable", "masks", "roi_masks", "decoder_alone"])
def test_every_trained_parameter_gets_a_gradient_in_every_step(tiny_settings, name: str, counts: tuple[int, ...]):
    settings = apply_overrides(tiny_settings, list(CASES[name][2]))
    objective = build_objective(build_model(settings.model), settings.train.loss).train()
    batch = collate([sample(i, 64, 80, count) for i, count in enumerate(counts)])
    losses = objective(batch.images.float() / 64 - 2, batch.padding_mask, batch.targets, RandomSource())
    torch.stack(list(losses.values())).sum().backward()
    trained = {key: p.grad for key, p in objective.named_parameters() if p.requires_grad}
    assert [key for key, gradient in trained.items() if gradient is None] == []
    assert all(bool(gradient.isfinite().all()) for gradient in trained.values() if gradient is not None)
