"""The memory of the worst batch: which batch that is, that measuring it changes nothing, and that it is measured."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codetr_cli.config.overrides import apply_overrides, to_toml
from codetr_cli.config.presets import load_preset
from codetr_cli.config.schema import Settings
from codetr_cli.data.coco import build_dataset
from codetr_cli.data.transforms import build_transforms
from codetr_cli.losses.build import build_objective
from codetr_cli.models.build import build_model
from codetr_cli.runtime.malloc import return_large_blocks
from codetr_cli.runtime.rng import random_states
from codetr_cli.training import memory_check
from codetr_cli.training.memory_check import Need, WorstBatch, estimate_growth, measure, worst_batch
from codetr_cli.training.recomputation import set_checkpointing
from tests.conftest import Ran
from tests.run_folders import assert_same_weights, losses

CPU = torch.device("cpu")
MIB = 2**20


@dataclass
class Images:
    """ImageSizes and objects of a data set."""

    sizes: np.ndarray
    object_counts: np.ndarray

    @property
    def aspect_flags(self) -> np.ndarray:
        return (self.sizes[:, 1] > self.sizes[:, 0]).astype(np.int64)


def images(*sizes: tuple[int, int], objects: int = 1) -> Images:
    return Images(np.array(sizes), np.full(len(sizes), objects))


# ------------------------------------------------------------------------------------------------------ the worst batch


def test_a_lying_photograph_alone(tiny_settings: Settings):
    settings = apply_overrides(load_preset("co_dino_r50"), ["data.augmentation=none"])
    assert worst_batch(settings, images((480, 640)), 1).size == (800, 1067)
    # A crop of 384x600 is longer than the photograph, and as long as one can be.
    settings = load_preset("co_dino_r50")
    assert sorted(worst_batch(settings, images((480, 640)), 1).size) == [800, 1250]
    assert worst_batch(settings, images((480, 640)), 2).size == (1250, 1250)


def test_two_images_of_different_shape_share_a_canvas():
    settings = load_preset("co_dino_r50", ["data.augmentation=none"])
    both = images((480, 640), (640, 480), (500, 1000))
    assert worst_batch(settings, both, 2).size == (800, 1333)
    mixed = apply_overrides(settings, ["data.aspect_grouping=false"])
    assert worst_batch(mixed, both, 2).size == (1067, 1333)
    assert worst_batch(apply_overrides(mixed, ["data.pad_divisor=32"]), both, 2).size == (1088, 1344)


def test_images_of_processes_that_are_padded_alike_share_a_canvas():
    settings = load_preset("co_dino_r50", ["data.augmentation=none"])
    both = images((480, 640), (640, 480))
    assert worst_batch(settings, both, 1, 2).size in ((800, 1067), (1067, 800))
    alike = apply_overrides(settings, ["train.global_batch_losses=true"])
    assert worst_batch(alike, both, 1, 1).size in ((800, 1067), (1067, 800))
    assert worst_batch(alike, both, 1, 2) == WorstBatch((1067, 1067), 1, 1)


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (300, 1000), (401, 399)])
def test_no_augmented_image_is_larger(tiny_settings: Settings, size: tuple[int, int]):
    """Of many random paths through the augmentation, none leads beyond the worst batch, and some come near."""
    settings = load_preset("co_dino_r50")
    transform = build_transforms(settings.data, settings.test, train=True)
    rng = np.random.default_rng(0)
    reached = []
    for _ in range(3000):
        choices = transform.make_params(rng, size)
        before = size if choices.crop is None else (choices.crop[1].height, choices.crop[1].width)
        reached.append(transform.resize.new_size(before, choices.resize))
    pair, single = (worst_batch(settings, images(size), count).size for count in (2, 1))
    heights, widths = zip(*reached, strict=True)
    assert max(heights) <= pair[0] + 1
    assert max(widths) <= pair[1] + 1
    assert max(heights) * max(widths) > 0.8 * pair[0] * pair[1]
    largest = max(height * width for height, width in reached)
    assert largest <= 1.002 * single[0] * single[1]
    assert largest > 0.85 * single[0] * single[1]


def test_a_canvas_is_always_full_and_pasted_objects_count():
    settings = load_preset("co_dino_r50_lsj", ["data.canvas=1024"])
    data = Images(np.array([(480, 640), (640, 480)]), np.array([63, 10]))
    plain = apply_overrides(settings, ["data.copy_paste=none"])
    assert worst_batch(plain, data, 2) == WorstBatch((1024, 1024), 2, 63)
    assert worst_batch(apply_overrides(settings, ["data.copy_paste=masks"]), data, 2).objects == 126
    assert (
        worst_batch(apply_overrides(settings, ["data.copy_paste=masks", "data.max_pasted=20"]), data, 2).objects == 82
    )
    assert worst_batch(apply_overrides(settings, ["data.copy_paste=boxes"]), data, 2).objects == 126


def test_the_most_objects_of_a_data_set(tiny_settings: Settings, tiny_coco: Path):
    settings = apply_overrides(tiny_settings, [f"data.root={tiny_coco}"])
    dataset = build_dataset(settings, split="train", training=True)
    assert worst_batch(settings, dataset, 2).objects == 3  # the fourth object of an image is a crowd
    assert str(WorstBatch((800, 1344), 2, 63)) == "2 images of 800x1344, 63 objects each"
    assert str(WorstBatch((800, 1344), 1, 1)) == "1 image of 800x1344, 1 object"


# ----------------------------------------------------------------------------------------------------- changing nothing


@pytest.mark.parametrize("overrides", [(), ("train.precision=bf16",), ("model.mask.kind=fcn",)])
def test_measuring_changes_nothing(tiny_settings: Settings, overrides: tuple[str, ...]):
    settings = apply_overrides(tiny_settings, list(overrides))
    model = build_model(settings.model).eval()
    before = {name: value.clone() for name, value in (*model.named_parameters(), *model.named_buffers())}
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    states = copy.deepcopy(random_states(CPU))
    assert measure(model, settings, WorstBatch((96, 128), 2, 5), CPU) is not None
    after = dict((*model.named_parameters(), *model.named_buffers()))
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training
    now = random_states(CPU)
    assert torch.equal(now["torch"], states["torch"])
    assert torch.equal(now["numpy"][1], states["numpy"][1])
    assert now["numpy"][2:] == states["numpy"][2:]
    assert now["python"] == states["python"]


def test_a_training_is_the_same_without_it(
    codetr: Callable[..., Ran], tmp_path: Path, tiny_settings: Settings, tiny_coco: Path
):
    (tmp_path / "tiny.toml").write_text(to_toml(tiny_settings))
    for name in ("true", "false"):
        ran = codetr("train", "--preset", tmp_path / "tiny.toml", "--data", tiny_coco, "--run", tmp_path / name,
                     "--device", "cpu", "--no-eval", "--set", "train.max_steps=3",
                     "--set", f"train.memory_check={name}")  # fmt: skip
        assert ran.code == 0, ran.err
        assert ("memory: the worst batch (2 images of" in ran.out + ran.err) == (name == "true")
    assert_same_weights(tmp_path / "true", tmp_path / "false")
    assert losses(tmp_path / "true") == losses(tmp_path / "false")


# ------------------------------------------------------------------------------------------------------------ measuring


def test_more_images_need_more_and_recomputation_less(tiny_settings: Settings):
    return_large_blocks()  # as a training does
    settings = apply_overrides(tiny_settings, ["model.encoder_layers=12"])
    model = build_model(settings.model)
    objective = build_objective(model, settings.train.loss).train()

    def growth(count: int) -> int:
        return memory_check._growth(objective, settings, WorstBatch((192, 256), count, 5), CPU)

    growth(1)  # loads libraries
    one, two = growth(1), growth(2)
    assert two > one + 20 * MIB
    set_checkpointing(model, apply_overrides(settings, ["model.encoder_checkpointing=12"]).model)
    assert growth(2) < two - 20 * MIB


def test_the_average_and_the_optimizer_are_counted(tiny_settings: Settings):
    model = build_model(tiny_settings.model)
    weights = sum(value.nbytes for value in model.state_dict().values())
    plain = memory_check._allocated_later(model, tiny_settings, CPU)
    averaged = memory_check._allocated_later(model, apply_overrides(tiny_settings, ["train.ema_momentum=1e-4"]), CPU)
    assert plain >= 3 * weights  # two states for each weight, and the copy that is written
    assert averaged - plain == 2 * weights


def test_sharding_leaves_a_part_to_each_process(tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_check, "_growth", lambda *arguments: 0)
    monkeypatch.setattr(memory_check, "memory_in_use", lambda device: 0)
    model = build_model(tiny_settings.model)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    sharded = apply_overrides(tiny_settings, ["train.fsdp=true"])

    def needed(settings: Settings, processes: int) -> int:
        need = measure(model, settings, WorstBatch((64, 64), 1, 2), CPU, processes=processes, limit=1000 * MIB)
        assert need is not None
        return need.needed

    assert needed(tiny_settings, 1) - needed(sharded, 4) > 2 * weights
    # What gradients are exchanged in; all parameters are trained.
    assert needed(tiny_settings, 4) - needed(tiny_settings, 1) == weights


class Growth:
    """Memory as a line in the share of the area; remembers what was tried."""

    def __init__(self, whole: float, constant: float = 0.0) -> None:
        self.whole, self.constant = whole, constant
        self.tried: list[float] = []

    def __call__(self, share: float) -> int:
        self.tried.append(share)
        return round(self.constant + (self.whole - self.constant) * share)


def test_the_whole_size_is_run_when_it_is_sure_to_fit():
    growth = Growth(1000)
    assert estimate_growth(growth, 2000) == (1000, True)
    assert growth.tried == [1 / 16, 1]
    growth = Growth(1000, constant=100)  # libraries that are loaded count as such
    assert estimate_growth(growth, 2000) == (1000, True)
    assert growth.tried == [1 / 16, 1 / 4, 1]


def test_what_might_not_fit_is_estimated_from_smaller_images():
    growth = Growth(1000, constant=200)
    assert estimate_growth(growth, 1200) == (1000, False)
    assert growth.tried == [1 / 16, 1 / 4, 1 / 2]
    growth = Growth(1000)
    assert estimate_growth(growth, 300) == (1000, False)
    assert growth.tried == [1 / 16, 1 / 4]


def test_what_would_take_long_is_estimated(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_check, "MAX_SECONDS", -1.0)
    growth = Growth(1000)
    assert estimate_growth(growth, 100_000) == (1000, False)
    assert 1 not in growth.tried


def test_a_limit_that_is_too_low(tiny_settings: Settings):
    model = build_model(tiny_settings.model)
    need = measure(model, tiny_settings, WorstBatch((96, 128), 2, 5), CPU, limit=10 * MIB)
    assert need is not None
    assert not need.fits
    assert not need.measured
    assert str(need).startswith("about ")


def test_on_a_gpu_what_a_pass_takes_counts_once(tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch):
    """Its allocator, acted: it keeps what a pass took until it is asked to give it back."""
    held, grows, room = 100 * MIB, 700 * MIB, 2000 * MIB
    reserved = [held]

    def growth(*arguments: Any) -> int:
        reserved[0] = held + grows
        return grows

    @contextmanager
    def as_before(*arguments: Any) -> Iterator[None]:
        yield
        reserved[0] = held

    monkeypatch.setattr(memory_check, "_growth", growth)
    monkeypatch.setattr(memory_check, "_unchanged", as_before)
    monkeypatch.setattr(memory_check, "capacity", lambda *arguments: room)
    monkeypatch.setattr(memory_check, "memory_in_use", lambda device: held)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved[0])
    model, gpu = build_model(tiny_settings.model), torch.device("cuda", 0)
    need = measure(model, tiny_settings, WorstBatch((96, 128), 2, 5), gpu)
    assert need == Need(
        held + grows + memory_check._allocated_later(model, tiny_settings, gpu), room, memory_check.MARGIN["cuda"]
    )


def test_how_a_need_is_told():
    assert str(Need(int(11.2 * 2**30), 24 * 2**30, 0.05)) == "11.2 of 24.0 GiB"
    assert str(Need(24 * 2**30, 24 * 2**30, 0.05, measured=False, exceeded=True)) == "more than 24.0 of 24.0 GiB"
    assert not Need(96, 100, 0.05).fits
    assert Need(95, 100, 0.05).fits
