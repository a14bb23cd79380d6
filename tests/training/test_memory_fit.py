"""Settings that fit the memory: which are tried in which order, what is proposed, applied and kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from codetr_cli.config.overrides import apply_overrides, to_toml
from codetr_cli.config.presets import load_preset
from codetr_cli.config.schema import Settings
from codetr_cli.runs.memory_record import MemoryRecord, read_record, with_fitted, write_record
from codetr_cli.training import memory_fit
from codetr_cli.training.memory_check import Need
from codetr_cli.training.memory_fit import has_fast_bf16, memory_options
from tests.conftest import Ran
from tests.runtime.fake_machine import pretend_gpus

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
MIB = 2**20

Train = Callable[..., Ran]


@pytest.fixture
def train(codetr: Callable[..., Ran], tmp_path: Path, tiny_settings: Settings, tiny_coco: Path) -> Train:
    """`codetr train` of the tiny network, 4 images a step."""
    preset = tmp_path / "tiny.toml"
    preset.write_text(
        to_toml(
            apply_overrides(tiny_settings, ["train.batch_size=4", "train.micro_batch=4", "train.memory_check=true"])
        )
    )

    def run(*words: object) -> Ran:
        return codetr("train", "--preset", preset, "--data", tiny_coco, "--run", tmp_path / "run", "--device", "cpu",
                      "--no-eval", "--set", "train.max_steps=2", *words)  # fmt: skip

    return run


class Memory:
    """Stands in for measuring: what is needed follows from the settings, and the limit is as given."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.asked: list[tuple[int, int, bool, bool]] = []

    def __call__(self, model: Any, settings: Settings, worst: Any, device: Any, **named: Any) -> Need:
        config = settings.model
        self.asked.append((worst.images, config.encoder_checkpointing, config.aux_checkpointing,
                           config.backbone.checkpointing))  # fmt: skip
        saved = 10 * config.encoder_checkpointing + 10 * config.aux_checkpointing + 10 * config.backbone.checkpointing
        return Need((100 - saved) * worst.images * MIB, self.limit * MIB, 0.0)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Memory]:
    def limited(limit: int) -> Memory:
        stand_in = Memory(limit)
        monkeypatch.setattr(memory_fit, "measure", stand_in)
        return stand_in

    return limited


# ------------------------------------------------------------------------------------------------- the memory options


def changed(settings: Settings, device: torch.device, world_size: int = 1) -> list[str]:
    return [option.flags for option in memory_options(settings, device, world_size)]


def test_the_order_of_what_is_tried():
    settings = load_preset("co_dino_r50", ["train.micro_batch=4"])
    recomputed = ["--set model.encoder_checkpointing=6",
                  "--set model.decoder_checkpointing=true --set model.aux_checkpointing=true",
                  "--set model.backbone.checkpointing=true"]  # fmt: skip
    options = changed(settings, CPU)
    assert options[:3] == [" ".join(recomputed[: count + 1]) for count in range(3)]
    assert options[3:5] == [" ".join([*recomputed, f"--set train.micro_batch={size}"]) for size in (2, 1)]
    assert len(options) == 5 + has_fast_bf16(CPU)


def test_what_is_on_already_is_not_tried():
    settings = load_preset("co_dino_vit_l", ["model.encoder_checkpointing=6", "train.micro_batch=1"])
    assert not any("backbone" in words or "encoder" in words or "micro" in words for words in changed(settings, CPU))


def test_images_at_once_divide_a_process_share(tiny_settings: Settings):
    settings = apply_overrides(tiny_settings, ["train.batch_size=18", "train.micro_batch=9"])
    sizes = [option.settings.train.micro_batch for option in memory_options(settings, CPU, 2)]
    assert list(dict.fromkeys(sizes)) == [9, 3, 1]
    assert all(option.settings.train.batch_size == 18 for option in memory_options(settings, CPU, 2))


def test_bf16_and_shards_where_the_device_has_them(monkeypatch: pytest.MonkeyPatch):
    pretend_gpus(monkeypatch, 8)
    monkeypatch.setattr(memory_fit, "why_not_shard", lambda: None)
    settings = load_preset("co_dino_r50", ["train.precision=fp32"])
    options = list(memory_options(settings, CUDA, 8))
    assert options[-2].changes["train.precision"] == "bf16"
    assert options[-1].changes["train.fsdp"] is True
    assert "train.fsdp" not in list(memory_options(settings, CUDA, 1))[-1].changes
    automatic = load_preset("co_dino_r50")  # bf16 already
    assert not any("precision" in option.flags for option in memory_options(automatic, CUDA, 8))
    compiled = load_preset("co_dino_r50", ["train.compile=true"])
    assert not any("fsdp" in option.flags for option in memory_options(compiled, CUDA, 8))
    monkeypatch.setattr(memory_fit, "why_not_shard", lambda: "an old PyTorch")
    assert not any("fsdp" in option.flags for option in memory_options(settings, CUDA, 8))


def test_a_cpu_without_bf16_is_not_asked_for_it(monkeypatch: pytest.MonkeyPatch, tiny_settings: Settings):
    for supported in (True, False):
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, name, lambda supported=supported: supported, raising=False)
        assert has_fast_bf16(CPU) == supported
        assert any("bf16" in words for words in changed(tiny_settings, CPU)) == supported


# -------------------------------------------------------------------------------------------------------- in a training


def test_what_fits_is_told_and_not_changed(train: Train, memory: Callable[[int], Memory], tmp_path: Path):
    asked = memory(900).asked
    ran = train()
    assert ran.code == 0, ran.err
    assert "memory: the worst batch (4 images of " in ran.err
    assert ") needs 0.39 of 0.88 GiB" in ran.err
    assert len(asked) == 1
    record = read_record(tmp_path / "run")
    assert record.fitted == {}
    assert record.checked["device"] == "cpu"


def test_what_does_not_fit_is_refused_with_what_to_type(train: Train, memory: Callable[[int], Memory], tmp_path: Path):
    asked = memory(190).asked
    ran = train()
    assert ran.code == 5
    words = (
        "--set model.encoder_checkpointing=2 --set model.decoder_checkpointing=true --set "
        "model.aux_checkpointing=true --set model.backbone.checkpointing=true --set train.micro_batch=2"
    )
    shown = " ".join(ran.err.split())
    assert f"With {words} it needs 0.12 of 0.19 GiB: add that to the command, or --auto-fit" in shown
    assert "train.memory_check=false" in shown
    assert asked == [(4, 0, False, False), (4, 2, False, False), (4, 2, True, False), (4, 2, True, True),
                     (2, 2, True, True)]  # fmt: skip
    again = train(*words.split())  # what was proposed is accepted
    assert again.code == 0, again.err


def test_auto_fit_applies_the_first_that_fits_and_keeps_it(
    train: Train, memory: Callable[[int], Memory], tmp_path: Path
):
    memory(190)
    ran = train("--auto-fit", "--set", "train.max_steps=2")
    assert ran.code == 0, ran.err
    shown = " ".join(ran.err.split())
    assert "--auto-fit sets model.encoder_checkpointing=2 (was 0)" in shown
    assert "train.micro_batch=2 (was 4)" in shown
    run = tmp_path / "run"
    settings = load_preset(str(run / "settings.toml"))
    assert settings.train.micro_batch == 2
    assert settings.train.batch_size == 4
    assert settings.model.encoder_checkpointing == 2
    events = (run / "events.log").read_text()
    assert "--auto-fit sets" in events
    assert "1 process x 2 at a time x 2 accumulated" in events
    # The same command, longer: the fitted settings stay, nothing is measured again, nobody is warned.
    asked = memory(190).asked
    longer = train("--auto-fit", "--set", "train.max_steps=4")
    assert longer.code == 0, longer.err
    assert "resumed after step 2 of 4" in longer.err
    assert asked == []
    assert "images in another order" not in longer.err
    assert load_preset(str(run / "settings.toml")).train.micro_batch == 2


def test_another_choice_by_hand_is_not_undone_but_checked_anew(
    train: Train, memory: Callable[[int], Memory], tmp_path: Path
):
    memory(190)
    assert train("--auto-fit").code == 0
    asked = memory(10_000).asked
    ran = train("--set", "train.max_steps=3", "--set", "train.micro_batch=1")
    assert ran.code == 0, ran.err
    assert [images for images, *_ in asked] == [1]
    assert load_preset(str(tmp_path / "run/settings.toml")).train.micro_batch == 1


def test_what_was_chosen_by_hand_meanwhile_is_what_the_next_fit_is_kept_for(
    train: Train, memory: Callable[[int], Memory], tmp_path: Path
):
    memory(190)
    assert train("--auto-fit", "--set", "train.batch_size=8", "--set", "train.micro_batch=8").code == 0
    assert read_record(tmp_path / "run").fitted["train.micro_batch"] == [8, 2]
    by_hand = ("--auto-fit", "--set", "train.batch_size=8", "--set", "train.micro_batch=4")
    assert train(*by_hand, "--set", "train.max_steps=3").code == 0
    assert read_record(tmp_path / "run").fitted["train.micro_batch"] == [4, 2]
    asked = memory(190).asked
    assert train(*by_hand, "--set", "train.max_steps=4").code == 0
    assert asked == []


def test_when_nothing_fits(train: Train, memory: Callable[[int], Memory]):
    memory(1)
    ran = train("--auto-fit")
    assert ran.code == 5
    shown = " ".join(ran.err.split())
    assert "Even with --set model.encoder_checkpointing=2" in shown
    assert "smaller images (data.short_sides" in shown
    assert "Traceback" not in shown


def test_it_can_be_left_out(train: Train, memory: Callable[[int], Memory]):
    asked = memory(1).asked
    assert train("--set", "train.memory_check=false").code == 0
    assert asked == []


def test_a_machine_that_tells_nothing_of_memory(train: Train, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_fit, "measure", lambda *arguments, **named: None)
    ran = train()
    assert ran.code == 0, ran.err
    assert "memory: this system does not report" in ran.err


# ----------------------------------------------------------------------------------------------------------- the record


def test_fitted_settings_hold_while_the_command_is_the_same(tmp_path: Path, tiny_settings: Settings):
    assert with_fitted(tiny_settings, tmp_path) == tiny_settings
    fitted = {"train.precision": ["fp32", "bf16"], "model.aux_checkpointing": [False, True], "train.gone": [1, 2]}
    write_record(tmp_path, MemoryRecord(fitted=fitted))
    settings = with_fitted(tiny_settings, tmp_path)
    assert settings.train.precision == "bf16"
    assert settings.model.aux_checkpointing
    other = with_fitted(apply_overrides(tiny_settings, ["train.precision=auto"]), tmp_path)
    assert other.train.precision == "auto"
    assert json.loads((tmp_path / "memory.json").read_text())["fitted"] == fitted
