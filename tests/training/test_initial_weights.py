"""What a training starts from: published checkpoints, addresses, pretrained backbones, or random weights."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from codetr_cli.config.overrides import apply_overrides, to_toml
from codetr_cli.config.presets import load_preset
from codetr_cli.config.schema import Settings
from codetr_cli.models.build import build_model
from codetr_cli.weights import published as published_weights
from codetr_cli.weights.names import to_published
from tests.conftest import Ran
from tests.weights.server import serve

STEPLESS = ("train.max_steps=1", "train.lr=1e-12", "train.weight_decay=0.0")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def train(codetr: Callable[..., Ran], tmp_path: Path, tiny_settings: Settings, tiny_coco: Path):
    """Trains the tiny network one step that changes next to nothing, and gives what was said and the weights."""
    preset = tmp_path / "tiny.toml"
    preset.write_text(to_toml(tiny_settings))
    count = iter(range(9))

    def run(*words: object) -> tuple[Ran, dict[str, torch.Tensor]]:
        folder = tmp_path / f"run{next(count)}"
        sets = [word for item in STEPLESS for word in ("--set", item)]
        command = ("train", "--preset", preset, "--data", tiny_coco, "--device", "cpu", "--no-eval", "--run", folder)
        ran = codetr(*command, *sets, *words)
        weights = folder / "checkpoints/last/model.safetensors"
        return ran, load_file(weights) if weights.is_file() else {}

    return run


def published(settings: Settings, *overrides: str) -> dict[str, torch.Tensor]:
    """A checkpoint of the tiny network under published names, every number drawn."""
    torch.manual_seed(5)
    model = build_model(apply_overrides(settings, list(overrides)).model)
    return {
        str(to_published(name, "sensex")): torch.randn_like(value) * 0.01 for name, value in model.state_dict().items()
    }


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-6)


def test_a_published_file_starts_a_preset_that_is_not_shipped(train, tmp_path, tiny_settings):
    state = published(tiny_settings, "model.num_queries=20", "model.num_classes=2")
    torch.save({"state_dict": state, "meta": {"CLASSES": ("bar", "other")}}, tmp_path / "x.pth")
    ran, after = train("--weights", tmp_path / "x.pth")
    assert ran.code == 0, ran.err
    for words in ("the first 20 queries", "rows of 1 of 3 classes", "known to the checkpoint: bar"):
        assert words in ran.out + ran.err
    assert close(after["query_embed.weight"][:20], state["query_head.transformer.query_embed.weight"])
    label = ["disc", "bar", "ring"].index("bar")
    assert close(after["class_heads.0.weight"][label], state["query_head.cls_branches.0.weight"][0])


def test_a_file_that_names_no_classes_has_those_with_the_same_ids(train, tmp_path, tiny_settings, tiny_coco):
    state = published(tiny_settings)
    torch.save(state, tmp_path / "x.pth")
    head = state["query_head.cls_branches.0.weight"]
    ran, after = train("--weights", tmp_path / "x.pth")
    assert ran.code == 0, ran.err
    assert not close(after["class_heads.0.weight"], head)  # ids 2, 3, 7: other classes
    for path in (tiny_coco / "annotations").glob("*.json"):
        table = json.loads(path.read_text())
        for item in [*table["categories"], *table["annotations"]]:
            key = "category_id" if "category_id" in item else "id"
            item[key] = {2: 1, 3: 2, 7: 3}[item[key]]
        path.write_text(json.dumps(table))
    ran, after = train("--weights", tmp_path / "x.pth")
    assert ran.code == 0, ran.err
    assert "has no class names" in ran.err
    assert close(after["class_heads.0.weight"], head)


def test_an_address_starts_a_training(train, tiny_settings):
    buffer = io.BytesIO()
    state = published(tiny_settings)
    torch.save(state, buffer)
    with serve(buffer.getvalue()) as served:
        for _ in range(2):
            ran, after = train("--weights", served.url)
            assert ran.code == 0, ran.err
        assert len(served.requests) == 1
    assert close(after["query_embed.weight"], state["query_head.transformer.query_embed.weight"])


def test_credentials_of_an_address_stay_out_of_the_run_folder(train, tmp_path, tiny_settings, monkeypatch):
    buffer = io.BytesIO()
    state = published(tiny_settings)
    backbone = {name.removeprefix("backbone."): state[name] for name in state if name.startswith("backbone.")}
    torch.save(backbone, buffer)
    with serve(buffer.getvalue()) as served:
        url = served.url.replace("127", "me:SECRET@127", 1) + "?token=SECRET"
        ran, after = train("--set", f"train.backbone_weights={url}")
        assert ran.code == 0, ran.err
        assert "backbone from " in ran.out + ran.err
        outputs = [ran, train("--weights", url, "--set", f"train.backbone_weights={url}")[0]]
        monkeypatch.setenv("PATH", str(tmp_path / "no sbatch"))
        outputs += [
            train("--slurm", "--weights", url)[0],
            train("--slurm", "--dry-run", "--json", f"--weights={url}")[0],
        ]
    assert len(after) > 0
    files = [path for path in tmp_path.rglob("*") if path.is_file() and b"SECRET" in path.read_bytes()]
    assert files == []
    assert not any("SECRET" in ran.out + ran.err for ran in outputs)
    assert (tmp_path / "run2/slurm/train.sh").is_file()


def test_a_preset_that_was_not_downloaded(train):
    ran, after = train("--weights", "co_dino_r50")
    assert ran.code == 4
    assert "run `codetr download co_dino_r50`" in ran.err
    assert after == {}
    ran, _ = train("--weights", "co_dino_tiny")
    assert ran.code == 2
    assert "is a preset without published weights" in ran.err


def test_a_pretrained_backbone_is_carried_over_and_told(train, tmp_path, tiny_settings):
    state = published(tiny_settings)
    backbone = {name: value for name, value in state.items() if name.startswith("backbone.")}
    torch.save({name.removeprefix("backbone."): value for name, value in backbone.items()}, tmp_path / "b.pth")
    ran, after = train("--set", f"train.backbone_weights={tmp_path / 'b.pth'}")
    assert ran.code == 0, ran.err
    assert f"backbone from {tmp_path / 'b.pth'}: {len(backbone)} entries loaded" in ran.out + ran.err
    assert "random weights" not in ran.err
    assert all(close(after[name], value) for name, value in backbone.items())
    ran, _ = train("--set", "train.backbone_weights=resnet50")
    assert ran.code == 4
    assert "codetr download resnet50" in ran.err


def test_random_weights_warn_once_where_a_pretrained_backbone_is_missing(train, monkeypatch):
    ran, _ = train()
    assert "random weights" not in ran.err  # the tiny network is made for them
    frozen = ("--set", 'model.backbone.norm="frozen_batch"')
    ran, _ = train(*frozen)
    assert ran.err.count("from random weights") == 1
    assert "--set train.backbone_weights=FILE" in ran.err
    monkeypatch.setattr("codetr_cli.training.initial_weights.pretrained_name", lambda settings: "resnet50")
    ran, _ = train(*frozen)
    assert "run `codetr download resnet50` first" in ran.err
    file = published_weights.BACKBONES["resnet50"].file
    assert not file.exists()


def test_fine_tuning_is_one_command_that_fits_its_recipe_and_tells_it(codetr, tmp_path, tiny_coco):
    preset = load_preset("co_dino_tiny")
    torch.save(published(preset), tmp_path / "x.pth")
    small = ["train.max_steps=2", "data.workers=0", "data.short_sides=[64]", "data.crop_short_sides=[64]"]
    small += ["data.crop_size=[64,64]", "data.long_side=64", "train.micro_batch=1", "train.batch_size=1"]
    command = ["train", "--preset", "co_dino_tiny", "--data", tiny_coco, "--weights", tmp_path / "x.pth"]
    command += ["--device", "cpu", "--no-eval", "--run", tmp_path / "run"]
    ran = codetr(*command, *(word for text in small for word in ("--set", text)))
    assert ran.code == 0, ran.err
    said = " ".join((ran.out + ran.err).split())
    for words in ("Recipe for", "The backbone is frozen", "half the preset's", "train.auto_recipe=false"):
        assert words in said
    settings = load_preset(str(tmp_path / "run/settings.toml"))
    assert settings.train.freeze_backbone
    assert settings.train.lr == preset.train.lr / 2
    after = load_file(tmp_path / "run/checkpoints/last/model.safetensors")
    before = published(preset)
    changed = {"backbone": 0, "elsewhere": 0}
    for name, value in after.items():
        start = before.get(str(to_published(name, "sensex")))
        if start is not None and start.shape == value.shape and not torch.equal(start, value):
            changed["backbone" if name.startswith("backbone.") else "elsewhere"] += 1
    assert changed["backbone"] == 0
    assert changed["elsewhere"] > 50
    ran = codetr(*command, *(word for text in small for word in ("--set", text)))  # the same command: the same recipe
    assert "is finished" in ran.err
