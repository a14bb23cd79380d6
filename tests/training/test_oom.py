"""Steps that run out of memory, injected: computed again in parts, then with recomputation, then an error."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from codetr_cli.config.overrides import apply_overrides, to_toml
from codetr_cli.config.schema import Settings
from codetr_cli.data.batch import Batch
from codetr_cli.distributed import process_group
from codetr_cli.errors import MemoryShrunkError, ResourceError, StoppedError
from codetr_cli.losses.build import build_objective
from codetr_cli.models.build import build_model
from codetr_cli.runs.listing import read_run
from codetr_cli.runs.memory_record import read_record
from codetr_cli.runtime.memory import is_out_of_memory
from codetr_cli.runtime.synthetic import synthetic_batch
from codetr_cli.training.oom import split
from codetr_cli.training.state import MicroBatches
from codetr_cli.training.step import train_step
from tests.conftest import REPOSITORY
from tests.distributed.run_files import lines_of
from tests.training.fakes import MICRO_BATCHES, FakeRun, StandInLoader, begin, losses_of, state_of, train

GPU_ERROR = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
CPU_ERROR = RuntimeError("[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can't allocate memory: ...")


pytestmark = pytest.mark.usefixtures("no_plots")


class Loader(StandInLoader):
    """Micro batches of two images whose targets have sizes; or each of the two on its own."""

    def __init__(self, *, alone: bool = False) -> None:
        super().__init__(MICRO_BATCHES * (2 if alone else 1))
        self.alone = alone

    def __iter__(self) -> Iterator[Batch]:
        epoch, start, pairs = self.epoch, self.start, StandInLoader()
        pairs.set_epoch(epoch)
        whole = []
        for batch in pairs:
            for target in batch.targets:
                target |= {"size": (4, 4), "pad_size": (4, 4), "boxes": torch.zeros(3, 4)}
            whole += split(batch, 2) if self.alone else [batch]
        yield from whole[start:]


class RunsOut:
    """Runs out of memory for more than a number of images from a step on; counts the failures."""

    def __init__(self, training: FakeRun, *, images: int, step: int = 1, error: Exception = GPU_ERROR) -> None:
        self.training, self.images, self.step, self.error, self.failures = training, images, step, error, 0
        self.calls: list[list[int]] = []
        self.until_recomputed = False
        training.objective.register_forward_hook(self)

    def __call__(self, module: Any, inputs: tuple[Tensor, Tensor, list[dict[str, Any]]], outputs: Any) -> None:
        ids = [target["image_id"] for target in inputs[2]]
        spared = self.until_recomputed and self.training.progress.recompute_all
        if self.training.progress.step + 1 >= self.step and len(ids) > self.images and not spared:
            self.failures += 1
            raise self.error
        self.calls.append(ids)


def started(path: Path, settings: Settings, *overrides: str, alone: bool = False, **named: Any) -> FakeRun:
    return begin(path, settings, *overrides, **named).replace(loader=Loader(alone=alone))


def memory_lines(training: FakeRun) -> list[dict[str, Any]]:
    return [line for line in training.run.metrics() if line["kind"] == "memory"]


def assert_close(ours: FakeRun, theirs: FakeRun) -> None:
    a, b = state_of(ours), state_of(theirs)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("error", [GPU_ERROR, CPU_ERROR, MemoryError()], ids=["gpu", "cpu", "python"])
def test_steps_in_halves_are_those_of_a_smaller_micro_batch(tmp_path: Path, tiny_settings: Settings, error: Exception):
    halved = started(tmp_path / "halved", tiny_settings, "train.epochs=2")
    memory = RunsOut(halved, images=1, error=error)
    train(halved)
    small = started(tmp_path / "small", tiny_settings, "train.epochs=2", alone=True, accumulation=2, micro_batch=1)
    small.state.total_steps = halved.state.total_steps
    train(small)
    assert memory.failures == 1  # the halves stay
    assert_close(halved, small)
    assert [loss for _, loss, _ in losses_of(halved)] == pytest.approx([loss for _, loss, _ in losses_of(small)])
    assert memory.calls[:4] == [[0], [1], [10], [11]]
    assert halved.progress.micro_batch_splits == 2


def test_no_step_is_lost_and_what_happened_is_recorded(tmp_path: Path, tiny_settings: Settings):
    training = started(tmp_path / "run", tiny_settings, "train.epochs=2", "train.batch_size=4", accumulation=2)
    memory = RunsOut(training, images=1, step=2)
    train(training)
    assert training.progress.step == 6
    assert [line["step"] for line in training.run.metrics() if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    # Step 1 in whole batches, and then every image once, in order.
    images = [image for call in memory.calls for image in call]
    epoch = [10 * index + i for index in range(MICRO_BATCHES) for i in range(2)]
    assert images == epoch * 2
    assert all(value.isfinite().all() for value in state_of(training).values())
    (line,) = memory_lines(training)
    assert line["step"] == 2
    assert line["parts"] == 2
    assert not line["recompute"]
    assert line["images"] == [20, 21]
    (warning,) = training.warnings
    assert (
        "out of memory in step 2 with 2 images in 4x4 pixels with 6 objects in all (image ids 20 (4x4), 21" in warning
    )
    assert "split into 2 parts" in warning
    assert "out of memory in step 2" in training.run.events_path.read_text()
    row = read_run(training.run.path)
    assert row.state == "finished"
    assert row.step == 6


def test_memory_that_runs_out_within_a_step_restarts_the_step(tmp_path: Path, tiny_settings: Settings):
    """In the second of two micro batches: gradients and random numbers of the first must not count twice."""
    whole = started(tmp_path / "whole", tiny_settings, "train.batch_size=4", "train.max_steps=1", accumulation=2)
    whole.progress.micro_batch_splits = 2
    train(whole)
    halved = started(tmp_path / "halved", tiny_settings, "train.batch_size=4", "train.max_steps=1", accumulation=2)
    memory = RunsOut(halved, images=1)
    memory.images = 2
    halved.objective.register_forward_pre_hook(
        lambda module, inputs: setattr(memory, "images", 1 if inputs[2][0]["image_id"] == 10 else memory.images)
    )
    train(halved)
    assert memory.failures == 1
    assert memory.calls == [[0, 1], [0], [1], [10], [11]]
    assert_close(halved, whole)


@pytest.mark.parametrize("stop_after", [1, 3, 6])
def test_a_resumed_run_keeps_its_halves(tmp_path: Path, tiny_settings: Settings, stop_after: int):
    straight = started(tmp_path / "straight", tiny_settings, "train.epochs=2")
    RunsOut(straight, images=1, step=3)
    train(straight)
    stopped = started(tmp_path / "b", tiny_settings, "train.epochs=2", stop_after=stop_after)
    RunsOut(stopped, images=1, step=3)
    with pytest.raises(StoppedError):
        train(stopped)
    resumed = started(tmp_path / "b", tiny_settings, "train.epochs=2")
    memory = RunsOut(resumed, images=1, step=3)
    train(resumed)
    assert memory.failures == (1 if stop_after < 3 else 0)
    a, b = state_of(resumed), state_of(straight)
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert resumed.progress == straight.progress


def test_a_single_image_that_does_not_fit_is_recomputed(tmp_path: Path, tiny_settings: Settings):
    training = started(tmp_path / "run", tiny_settings)
    training.model.encoder, training.model.aux_heads = torch.nn.Module(), torch.nn.Module()
    memory = RunsOut(training, images=0)
    memory.until_recomputed = True
    train(training)
    assert training.progress.recompute_all
    assert training.progress.micro_batch_splits == 2
    assert training.model.encoder.checkpointing == training.context.settings.model.encoder_layers
    assert training.model.aux_heads.checkpointing is True
    assert training.model.backbone.checkpointing is True
    assert [(line["parts"], line["recompute"]) for line in memory_lines(training)] == [(2, False), (2, True)]
    assert training.progress.step == MICRO_BATCHES


def test_a_group_of_one_starts_again(tmp_path: Path, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch):
    """A wrapped network refuses a step whose backward pass was cut short."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    with process_group.joined(torch.device("cpu")):
        training = started(tmp_path / "run", tiny_settings)
        RunsOut(training, images=1)
        with pytest.raises(MemoryShrunkError, match="ran out of memory in step 1"):
            train(training)
        again = started(tmp_path / "run", tiny_settings)
        memory = RunsOut(again, images=1)
        train(again)
    assert memory.failures == 0
    assert again.progress.micro_batch_splits == 2


def test_without_a_way_to_use_less_memory_the_training_ends(tmp_path: Path, tiny_settings: Settings):
    training = started(tmp_path / "run", tiny_settings)
    memory = RunsOut(training, images=0)
    with pytest.raises(
        ResourceError, match=r"out of memory in step 1 .*although .*2 parts and all supported.*short_sides"
    ):
        train(training)
    assert memory.failures == 3  # whole, in halves, recomputed


def test_other_errors_are_not_taken_for_lack_of_memory(tmp_path: Path, tiny_settings: Settings):
    assert not is_out_of_memory(RuntimeError("size mismatch"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_the_gradient_of_a_split_batch_is_that_of_accumulated_images(tiny_settings: Settings, tmp_path: Path):
    """With the real objective and images of different sizes; random numbers are used in the same order."""
    settings = apply_overrides(tiny_settings, ["train.micro_batch=2"])
    large = synthetic_batch((96, 128), 1, objects=5, num_classes=3)
    small = synthetic_batch((64, 96), 1, objects=2, num_classes=3)
    images = torch.zeros(2, 3, 96, 128, dtype=torch.uint8)
    mask = torch.ones(2, 96, 128, dtype=torch.bool)
    images[0], mask[0] = large.images[0], False
    images[1, :, :64, :96], mask[1, :64, :96] = small.images[0], False
    both = Batch(images, mask, [*large.targets, *small.targets])
    gradients = []
    for parts, batches in ((2, [both]), (1, [large, small])):
        torch.manual_seed(0)
        training = begin(tmp_path / str(parts), settings)
        model = build_model(settings.model)
        objective = build_objective(model, settings.train.loss).train()
        training.replace(objective=objective, model=model)
        training.state.optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        training.progress.micro_batch_splits = parts
        torch.manual_seed(5)
        train_step(training.context, training.state, MicroBatches(iter(batches).__next__, len(batches)))
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    ours, theirs = gradients
    assert ours.keys() == theirs.keys()
    largest = max(float(value.abs().max()) for value in theirs.values())
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-6, atol=1e-6 * largest, msg=name)


def test_parts_are_as_equal_as_can_be():
    batch = synthetic_batch((32, 48), 5, objects=1)
    for target, (h, w) in zip(batch.targets, [(32, 48), (32, 48), (16, 48), (8, 8), (32, 16)], strict=True):
        target["pad_size"] = (h, w)
    parts = split(batch, 2)
    assert [len(part) for part in parts] == [2, 3]
    assert [tuple(part.images.shape[2:]) for part in split(batch, 5)] == [
        (32, 48),
        (32, 48),
        (16, 48),
        (8, 8),
        (32, 16),
    ]
    assert [tuple(part.images.shape[2:]) for part in split(batch, 4, keep_padding=True)] == [(32, 48)] * 4
    assert split(batch, 1) == [batch]


# ---------------------------------------------------------------------------------------------------- several processes

SHORT_OF_MEMORY = """
import sys
from pathlib import Path

import torch

from codetr_cli import cli
from codetr_cli.losses.collaborative import CollaborativeObjective

def short(objective, inputs):
    import torch.distributed as dist
    if dist.get_rank() == 1 and len(inputs[0]) > 1:
        short.calls += 1
        if short.calls > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")

short.calls = 0
init = CollaborativeObjective.__init__

def hooked(self, *arguments, **named):
    init(self, *arguments, **named)
    if torch.distributed.is_initialized():
        self.register_forward_pre_hook(short)

CollaborativeObjective.__init__ = hooked

if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_of_two_processes_one_that_runs_out_has_all_start_again(
    tmp_path: Path, tiny_settings: Settings, tiny_coco: Path
):
    (tmp_path / "tiny.toml").write_text(to_toml(tiny_settings))
    (tmp_path / "short_of_memory.py").write_text(SHORT_OF_MEMORY)
    run = tmp_path / "run"
    words = ["train", "--preset", tmp_path / "tiny.toml", "--data", tiny_coco, "--run", run, "--device", "cpu",
             "--procs", 2, "--no-eval", "--set", "train.max_steps=8", "--set", "train.batch_size=4",
             "--set", "train.checkpoint_every=2", "--set", "train.memory_check=false"]  # fmt: skip
    ran = subprocess.run(
        [sys.executable, str(tmp_path / "short_of_memory.py"), *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "training process 1 ran out of memory in step 5" in ran.stderr
    assert "restart 1 of at most 3" in ran.stderr
    lines = lines_of(run)
    (line,) = [line for line in lines if line["kind"] == "memory"]
    assert (line["parts"], line["process"], len(line["images"])) == (2, 1, 2)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 9))
    assert all(math.isfinite(line["loss"]) for line in lines if line["kind"] == "train")
    weights = load_file(run / "checkpoints/last/model.safetensors")
    assert all(np.isfinite(value.numpy()).all() for value in weights.values())
    assert read_record(run).parts == 2
