"""What of an exported file can be changed, and what cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from codetr_cli.errors import ConfigError
from codetr_cli.export.job import describe
from codetr_cli.export.options import ExportOptions
from codetr_cli.inference.exported import load
from codetr_cli.inference.exported.load import check_overrides, default_tiles, load_network
from codetr_cli.inference.options import TileOptions
from tests.export import networks
from tests.inference.exported.fake_engine import FakeEngine

PATH = Path("x.onnx")


def test_settings_of_the_file_with_overrides(monkeypatch: pytest.MonkeyPatch):
    loaded = networks.load_random()
    engine = FakeEngine(loaded, describe(loaded, ExportOptions(size=(96, 160))))
    monkeypatch.setattr(load, "open_engine", lambda path, device: engine)
    network, settings = load_network(PATH, torch.device("cpu"), ["test.nms=hard"])
    assert network.engine is engine
    assert settings.test.nms == "hard"
    assert settings.test.fixed_size == (96, 160)


@pytest.mark.parametrize(
    ("override", "how"),
    [
        ("model.num_queries=10", r"--set model\.num_queries=10"),
        ("data.mean=[0, 0, 0]", r"--set data\.mean"),
        ("data.pad_divisor=64", r"--set data\.pad_divisor=64"),
        (" test.head = atss", r"--set"),
        ("test.short_side=64", "--size or --dynamic-size"),
        ("test.fixed_size=[64, 64]", "--size or --dynamic-size"),
    ],
)
def test_what_the_file_has_decided(override: str, how: str):
    metadata = describe(networks.load_random(), ExportOptions(size=(96, 160)))
    with pytest.raises(ConfigError, match=rf"is part of the exported file x\.onnx: export .* again with {how}"):
        check_overrides(metadata, [override], PATH)


def test_sizes_of_a_file_for_any_size():
    metadata = describe(networks.load_random(), ExportOptions(dynamic_size=True))
    check_overrides(metadata, ["test.short_side=64", "test.nms_iou=0.5"], PATH)
    with pytest.raises(ConfigError, match="part of the exported file"):
        check_overrides(metadata, ["model.num_levels=5"], PATH)


def test_default_tiles():
    loaded, tiles = networks.load_random(), TileOptions(size=(128, 96), overlap=0.3)
    assert default_tiles(describe(loaded, ExportOptions(tiles=tiles))) == tiles
    assert default_tiles(describe(loaded, ExportOptions(tiles=TileOptions()))) == TileOptions()
    assert default_tiles(describe(loaded, ExportOptions())) is None
