"""Where published weights come from."""

from __future__ import annotations

from codetr_cli.config.presets import load_preset, preset_names
from codetr_cli.weights.published import BACKBONES, pretrained_name


def test_every_preset_has_the_backbone_of_its_published_recipe():
    expected = {
        "r50": "resnet50",
        "swin_t": "swin_t",
        "swin_s": "swin_s",
        "swin_b": "swin_b",
        "swin_l": "swin_l",
        "vit": "eva02_l",
    }
    for name in preset_names():
        part = next((part for part in expected if part in name), None)
        assert pretrained_name(load_preset(name)) == (expected[part] if part else None), name


def test_the_urls_are_of_files():
    for backbone_ in BACKBONES.values():
        remote = backbone_.remote()
        assert remote.url.startswith("https://")
        assert remote.filename.endswith((".pth", ".pt"))
        assert backbone_.remote("https://mirror/other.bin").filename == remote.filename
    assert BACKBONES["resnet50"].remote().sha256.startswith("0676ba61")
