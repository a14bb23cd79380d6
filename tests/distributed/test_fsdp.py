"""Two real processes with sharded weights against one with whole ones; the two are started once for all tests."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.config.presets import load_preset
from codetr_cli.config.schema import Settings
from codetr_cli.distributed import fsdp
from codetr_cli.distributed.fsdp import shard_like, units
from codetr_cli.distributed.shard_files import read_index
from codetr_cli.errors import CheckpointError, ConfigError
from codetr_cli.models.build import build_model
from codetr_cli.runs.folder import RunFolder
from codetr_cli.training import preview
from codetr_cli.weights.checkpoint import load_checkpoint
from tests.conftest import write_tiny_coco
from tests.distributed import sharded_training, world_size_cases
from tests.distributed.pairs import run_pair
from tests.distributed.rounding import without_rounding

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Done:
    """What two processes computed, and the folder with their runs."""

    folder: Path
    ranks: list[dict[str, Any]]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Two processes ran `tests/distributed/sharded_training.py`."""
    reason = fsdp.why_not_shard()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("sharded")
    write_tiny_coco(folder / "coco")
    run_pair("-m", "tests.distributed.sharded_training", folder)
    return Done(folder, [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)])  # noqa: TID251


@pytest.fixture
def _known_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codetr_cli.training.plots.draw_plots", lambda lines, folder: [])
    for name, case in sharded_training.MINE.items():
        monkeypatch.setitem(world_size_cases.CASES, name, case)


def assert_near(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        own = torch.as_tensor(ours[name]).reshape(torch.as_tensor(value).shape)
        torch.testing.assert_close(own, torch.as_tensor(value), rtol=1e-5, atol=tolerance, msg=lambda m, n=name: n + m)


@pytest.mark.usefixtures("_known_cases")
@pytest.mark.parametrize("name", list(sharded_training.MINE))
def test_two_sharded_processes_compute_what_one_does(two: Done, tmp_path: Path, name: str):
    one = world_size_cases.run_case(name, tmp_path)
    assert len(one["losses"]) > 1
    for ours in (rank[name] for rank in two.ranks):
        for index, losses in enumerate(ours["losses"]):  # of rank 0, which logs the means
            assert_near(losses, one["losses"][index], 1e-6)
        for index, gradients in enumerate(one["gradients"]):
            assert_near(ours["gradients"][index], gradients, 1e-5)
        for what in ("weights", "average"):
            assert_near(ours[what], one[what], 1e-5)
            assert_near(*(without_rounding(table[what], one["gradients"]) for table in (ours, one)), 1e-6)


def test_each_process_holds_its_part(two: Done):
    for name in sharded_training.MINE:
        shares = [rank[name]["share"] for rank in two.ranks]
        assert shares == pytest.approx([0.5, 0.5], abs=0.01)
        assert sum(shares) == pytest.approx(1)


def test_a_sharded_training_goes_on_as_if_it_had_not_been_stopped(two: Done):
    straight, stopped = (RunFolder(two.folder / name) for name in ("straight", "stopped"))
    ours, theirs = (load_checkpoint(run.last / "model.safetensors").state for run in (stopped, straight))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    losses = [[line["losses"] for line in run.metrics() if line["kind"] == "train"] for run in (straight, stopped)]
    assert losses[0] == losses[1]
    assert [line["metrics"] for line in straight.metrics() if line["kind"] == "eval"][-1]["AP"] >= 0


def test_the_weights_are_an_ordinary_checkpoint(two: Done, tiny_settings: Settings):
    for folder in ("last", "best"):
        checkpoint = load_checkpoint(two.folder / "straight/checkpoints" / folder / "model.safetensors")
        assert {name: (value.shape, type(value)) for name, value in checkpoint.state.items()} == {
            name: (value.shape, Tensor) for name, value in build_model(tiny_settings.model).state_dict().items()
        }


@pytest.mark.parametrize("shard", [False, True])
def test_one_process_continues_what_two_began(two: Done, shard: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Alone, in whole tensors, whatever the setting says: the parts of both processes make the state."""
    monkeypatch.setattr("codetr_cli.training.plots.draw_plots", lambda lines, folder: [])
    RunFolder(two.folder / "straight").rewind(sharded_training.STEPS)  # as if killed before its end was logged
    ours, theirs = (
        sharded_training.train_a_run(two.folder, "straight", sharded_training.STEPS, resume=True, shard=shard),
        two.ranks[0],
    )
    for kind, values in theirs["last"].items():
        assert len(values) > 100
        assert ours[kind].keys() == values.keys()
        assert [n for n, value in values.items() if not torch.equal(ours[kind][n], value.view_as(ours[kind][n]))] == []


def test_a_damaged_part_is_noticed(two: Done, tmp_path: Path):
    run = RunFolder(shutil.copytree(two.folder / "stopped", tmp_path / "run"))
    folder = run.last
    part = next((folder / "sharded").glob("*.safetensors"))
    content = part.read_bytes()
    part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    saved = run.load()
    assert saved is not None
    assert saved.folder.name == "previous"
    part.unlink()
    with pytest.raises(CheckpointError, match="should have the files"):
        read_index(folder / "sharded", ())


def test_a_torch_without_the_needed_parts_is_refused_by_version(
    tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fsdp, "FSDPModule", object)
    monkeypatch.setattr(torch, "__version__", "2.7.1")
    settings = apply_overrides(tiny_settings, ["train.fsdp=true"])
    with pytest.raises(ConfigError, match=r"newer PyTorch than 2\.7\.1: 2\.11.* Use train\.fsdp=false"):
        preview.check_settings(settings, CPU, 1)


def test_what_sharding_cannot_do_is_refused(tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fsdp, "why_not_shard", lambda: None)
    compiled = apply_overrides(tiny_settings, ["train.fsdp=true", "train.compile=true"])
    with pytest.raises(ConfigError, match=r"train\.compile=false"):
        preview.check_settings(compiled, CPU, 1)
    with pytest.raises(ConfigError, match=r"train\.fsdp needs bf16 or fp32"):
        fsdp.check_shardable(fp16=True, compiled=False)


def test_a_process_alone_keeps_its_weights_whole():
    whole = torch.ones(3)
    assert shard_like(whole, torch.zeros(3)) is whole


def test_most_of_a_large_network_is_gathered_layer_by_layer():
    """Layers of backbone and encoder are units of their own; the rest stays gathered while a step runs."""
    with torch.device("meta"):
        model = build_model(load_preset("co_dino_vit_l").model)
    of_units = [sum(p.numel() for p in unit.parameters()) for unit in units(model)]
    assert len(of_units) == 24 + 6 + 1 + 1 + 2
    total = sum(p.numel() for p in model.parameters())
    in_units = sum(of_units[24:])  # the blocks are in the backbone
    assert in_units > 0.85 * total
    assert max(of_units[:30]) < 0.05 * total
