from __future__ import annotations

import pytest

from codetr_cli.config.presets import load_preset

count_presets = pytest.importorskip("benchmarks.count_presets", reason="a source distribution has no benchmarks")
count, detection_size = count_presets.count, count_presets.detection_size


def test_costs_are_those_of_the_papers():
    """Table 1 of arXiv 2203.03605: DINO with 5 scales 860 GFLOPs and 47 M parameters, with 4 scales 279 GFLOPs."""
    dino = count(load_preset("co_dino_r50"))
    assert dino["gflops"] == pytest.approx(860, rel=0.005)
    assert dino["detection_parameters"] / 1e6 == pytest.approx(47, abs=1.1)
    assert dino["parameters"] > dino["detection_parameters"]
    assert count(load_preset("co_deformable_r50"))["gflops"] == pytest.approx(279, rel=0.005)


@pytest.mark.slow
def test_every_part_is_counted():
    base = count(load_preset("co_dino_tiny"))
    larger = {
        "model.backbone.base_channels=32": "backbone",
        "model.encoder_layers=2": "encoder",
        "model.decoder_layers=4": "decoder",
        "model.num_queries=60": "queries",
        "model.num_points=2": "sampling",
        "model.num_classes=90": "classes",
    }
    for override, part in larger.items():
        assert count(load_preset("co_dino_tiny", [override]))["gflops"] > base["gflops"], part


@pytest.mark.parametrize(
    ("preset", "size"),
    [("co_dino_r50", (800, 1333)), ("co_dino_r50_lsj", (1024, 1024)), ("co_dino_swin_l_o365", (800, 1344))],
)
def test_size_is_the_padded_one(preset: str, size: tuple[int, int]):
    assert detection_size(load_preset(preset)) == size
