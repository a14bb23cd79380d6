"""Pretrained backbones in their publishers' formats are loaded completely; anything else is refused."""

from __future__ import annotations

import pytest
import torch
import torchvision

from codetr_cli.config.presets import load_preset
from codetr_cli.errors import CheckpointError
from codetr_cli.models.build import build_model
from codetr_cli.weights.checkpoint import save_checkpoint
from codetr_cli.weights.names import to_published
from codetr_cli.weights.pretrained import find_backbone, load_backbone
from codetr_cli.weights.published import BACKBONES
from tests.weights.published_states import SMALL, published_state, raw_state, small_model, small_settings

SMALL_HEAD = [item for item in SMALL if ".backbone." not in item]
BACKBONE_SETTINGS = {
    "resnet": ["layers=[1, 1, 1, 1]", "base_channels=8"],
    "swin": ['kind="swin"', "embed_dim=8", "layers=[1, 2, 1, 1]", "num_heads=[1, 2, 2, 2]", "window_size=4"],
    "vit": [
        'kind="vit"', "embed_dim=32", "depth=2", "num_heads=2", "hidden_dim=20", "patch_size=16", "window_size=4",
        "global_blocks=[1]", "pretrain_size=64",
    ],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))


def settings(kind, *more):
    own = [f"model.backbone.{item}" for item in BACKBONE_SETTINGS[kind]]
    return load_preset("co_dino_r50", [*own, *SMALL_HEAD, *more])


def model(kind, seed, *more):
    torch.manual_seed(seed)
    built = build_model(settings(kind, *more).model)
    for name, value in built.state_dict().items():
        if name.startswith("backbone.") and value.is_floating_point():
            value.copy_(torch.rand_like(value))  # zeros would hide what is not loaded
    return built


def backbone(built):
    return {name: value.clone() for name, value in built.state_dict().items() if name.startswith("backbone.")}


def publishers_entries(built):
    """The backbone's entries as a publisher of backbones names them."""
    entries = {}
    for name, value in backbone(built).items():
        published = to_published(name, "sensex")
        assert published is not None, name
        entries[published.removeprefix("backbone.")] = value
    return entries


def test_torchvision_gives_exactly_the_residual_network(tmp_path):
    published = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [3, 4, 6, 3]).state_dict()
    torch.save(published, tmp_path / "resnet50.pth")
    built = build_model(load_preset("co_dino_r50").model, aux_heads=False)
    rest = {name: value.clone() for name, value in built.state_dict().items() if not name.startswith("backbone.")}
    report = load_backbone(built, tmp_path / "resnet50.pth")
    ours = backbone(built)
    assert f"{len(ours)} entries" in report
    assert "re-initialized" not in report
    for name, value in ours.items():
        assert torch.equal(value, published[name.removeprefix("backbone.")]), name
    used = {name.removeprefix("backbone.") for name in ours}
    assert {name for name in published if name not in used and "num_batches_tracked" not in name} == {
        "fc.weight",
        "fc.bias",
    }
    assert all(torch.equal(built.state_dict()[name], value) for name, value in rest.items())


@pytest.mark.parametrize("section", ["model", None])
def test_swin_as_microsoft_writes_it(tmp_path, section):
    source, target = model("swin", 1), model("swin", 2)
    entries = {name: value for name, value in publishers_entries(source).items() if not name.startswith("norm")}
    entries |= {
        "norm.weight": torch.ones(64),
        "norm.bias": torch.zeros(64),
        "head.weight": torch.ones(10, 64),
        "head.bias": torch.zeros(10),
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.long),
        "layers.1.blocks.1.attn_mask": torch.zeros(4, 16, 16),
    }
    torch.save({section: entries} if section else entries, tmp_path / "swin.pth")
    before = backbone(target)
    report = load_backbone(target, tmp_path / "swin.pth")
    assert "8 norms of its feature maps are re-initialized" in report
    for name, value in backbone(target).items():
        expected = before if name.startswith("backbone.norm") else backbone(source)
        assert torch.equal(value, expected[name]), name


def eva_entries(source):
    entries = {name: value for name, value in publishers_entries(source).items() if not name.startswith("out_norm")}
    rope = {
        f"{prefix}rope.freqs_{part}": torch.ones(16, 16) for prefix in ("", "blocks.0.attn.") for part in ("cos", "sin")
    }
    return {**entries, **rope, "cls_token": torch.ones(1, 1, 32), "mask_token": torch.ones(1, 1, 32),
            "norm.weight": torch.ones(32), "norm.bias": torch.ones(32), "lm_head.weight": torch.ones(9, 32),
            "lm_head.bias": torch.ones(9)}  # fmt: skip


def test_eva_at_the_same_size_is_loaded_unchanged(tmp_path):
    source, target = model("vit", 1), model("vit", 2)
    assert backbone(source)["backbone.pos_embed"].shape == (1, 17, 32)
    torch.save({"module": eva_entries(source)}, tmp_path / "eva.pt")
    before = backbone(target)
    assert "2 norms" in load_backbone(target, tmp_path / "eva.pt")
    for name, value in backbone(target).items():
        expected = before if "out_norm" in name else backbone(source)
        assert torch.equal(value, expected[name]), name


def test_eva_at_another_size_is_resized_bicubically(tmp_path):
    source, target = model("vit", 1), model("vit", 2, "model.backbone.pretrain_size=96")
    entries = eva_entries(source)
    entries["patch_embed.proj.weight"] = torch.rand(32, 3, 14, 14)
    torch.save(entries, tmp_path / "eva.pt")
    load_backbone(target, tmp_path / "eva.pt")
    ours = backbone(target)
    positions, kernel = ours["backbone.pos_embed"], ours["backbone.patch_embed.proj.weight"]
    assert positions.shape == (1, 37, 32)
    assert torch.equal(positions[:, 0], entries["pos_embed"][:, 0])
    grid = entries["pos_embed"][:, 1:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False)
    for row, column in ((0, 0), (2, 5), (5, 1)):
        assert torch.equal(positions[0, 1 + row * 6 + column], resized[0, :, row, column])
    resized = torch.nn.functional.interpolate(
        entries["patch_embed.proj.weight"], size=(16, 16), mode="bicubic", align_corners=False
    )
    assert torch.equal(kernel, resized)


def test_backbones_of_detectors_are_loaded(tmp_path):
    ours = tmp_path / "ours.safetensors"
    classes = {"class_names": ["a", "b", "c"], "category_ids": [1, 2, 3]}
    save_checkpoint(ours, raw_state(), settings=small_settings(), **classes)
    target = small_model(5, seed=7)
    load_backbone(target, ours)
    for name, value in backbone(target).items():
        assert torch.equal(value, raw_state()[name]), name
    assert target.state_dict()["class_heads.0.weight"].shape[0] == 5


def test_a_published_detector_of_unknown_sizes_is_refused(tmp_path):
    torch.save({"state_dict": published_state()}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="another architecture than preset"):
        load_backbone(small_model(seed=7), tmp_path / "x.pth")


def test_wrong_files_are_refused_and_change_nothing(tmp_path):
    target = model("swin", 2)
    before = backbone(target)
    entries = publishers_entries(model("swin", 1))
    wrong = {
        "one entry less": ({k: v for k, v in entries.items() if k != "patch_embed.proj.bias"}, "missing.*proj.bias"),
        "an unknown entry": ({**entries, "layers.0.gate": torch.ones(1)}, r"unknown entries: layers\.0\.gate"),
        "a longer stage": (
            publishers_entries(model("swin", 1, "model.backbone.layers=[2, 2, 1, 1]")),
            r"do not exist.*layers\.0\.blocks\.1",
        ),
        "another embed_dim": (publishers_entries(model("swin", 1, "model.backbone.embed_dim=16")), "another shape"),
        "another window": (
            publishers_entries(model("swin", 1, "model.backbone.window_size=7")),
            "169x1 instead of 49x1",
        ),
        "another kind": (publishers_entries(model("resnet", 1)), "missing: .*do not exist"),
        "nothing": ({}, "no named entries"),
        "no names": ([1, 2], "no named entries"),
        "numbers that one number stands for": (
            {**entries, "patch_embed.proj.bias": torch.zeros(1).expand(8)},
            r"patch_embed\.proj\.bias",
        ),
        "no tensors": ({"patch_embed.proj.weight": 3}, r"unknown entries: patch_embed\.proj\.weight"),
    }
    for what, (content, message) in wrong.items():
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match=message):
            load_backbone(target, tmp_path / "x.pth")
        assert all(torch.equal(value, before[name]) for name, value in backbone(target).items()), what
    (tmp_path / "x.pth").write_bytes(b"<html>not found</html>")
    with pytest.raises(CheckpointError, match="text"):
        load_backbone(target, tmp_path / "x.pth")


def test_what_the_setting_means(tmp_path):
    def find(word, kind="co_dino_r50"):
        return find_backbone(load_preset(kind, [f"train.backbone_weights={word}"]))

    assert find("none") is None
    assert find("auto") is None
    with pytest.raises(CheckpointError, match="run `codetr download resnet50`"):
        find("resnet50")
    file = BACKBONES["resnet50"].file
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    assert find("auto") == find("resnet50") == file
    assert find("auto", "co_deformable_swin_t") is None
    assert find("none") is None
    assert find(str(tmp_path / "own.pth")) == tmp_path / "own.pth"
    with pytest.raises(CheckpointError, match="codetr download co_dino_swin_l"):
        find("co_dino_swin_l")
