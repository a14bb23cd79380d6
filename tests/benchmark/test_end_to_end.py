from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from codetr_cli.benchmark import end_to_end
from codetr_cli.benchmark.end_to_end import EndToEndTiming, diagnose, measure_end_to_end, synthetic_images
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.options import DetectOptions
from tests.inference.fakes import write_checkpoint

TIMING = EndToEndTiming(
    images=100,
    unreadable=0,
    images_per_second=40.0,
    stages_ms={},
    busy={"network": 0.5, "reading": 0.2, "finishing": 0.2},
    images_per_batch=1.0,
    workers=2,
    cores=16,
    drawn=True,
    device="cuda",
    peak_memory_bytes=1,
)


@pytest.mark.parametrize(
    ("changes", "bottleneck", "words"),
    [
        ({"busy": {"network": 0.97, "reading": 0.5, "finishing": 0.2}}, "network", ["97%", "--batch N", "--gpus"]),
        ({"busy": {"network": 0.97, "reading": 0.5, "finishing": 0.2}, "images_per_batch": 4.0}, "network", ["bf16"]),
        ({"busy": {"network": 0.97, "reading": 0.5, "finishing": 0.2}, "device": "cpu"}, "network", ["short_side"]),
        ({"busy": {"network": 0.4, "reading": 0.95, "finishing": 0.2}}, "reading", ["--workers 4", "Smaller image"]),
        ({"busy": {"network": 0.4, "reading": 0.2, "finishing": 0.95}}, "finishing", ["--workers 4", "--no-draw"]),
        ({"busy": {"network": 0.4, "reading": 0.2, "finishing": 0.95}, "drawn": False}, "finishing", ["Masks"]),
        ({"busy": {"network": 0.4, "reading": 0.9, "finishing": 0.8}, "cores": 2}, "cores", ["2 processor cores"]),
        ({"busy": {"network": 0.8, "reading": 0.3, "finishing": 0.2}, "cores": 2, "device": "cpu"}, "cores", ["80%"]),
    ],
)
def test_the_bottleneck_is_named_with_what_to_change(changes, bottleneck, words):
    found = diagnose(replace(TIMING, **changes))
    assert found.bottleneck == bottleneck
    assert found.sentence.startswith("Bottleneck: ")
    for word in words:
        assert word in found.sentence


def test_synthetic_images_are_few_files_under_many_names(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(end_to_end, "PHOTOGRAPHS", 2)
    monkeypatch.setattr(end_to_end, "PHOTOGRAPH_SIZE", (48, 64))
    images = synthetic_images(tmp_path, 5)
    assert [image.name for image in images] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["0.jpg", "1.jpg"]
    assert images[0].path.read_bytes() == images[2].path.read_bytes() != images[1].path.read_bytes()
    with Image.open(images[0].path) as image:
        assert image.size == (64, 48)


@pytest.mark.parametrize("draw", [True, False])
def test_all_stages_are_measured_and_nothing_stays(tmp_path, tiny_settings, monkeypatch, draw):
    monkeypatch.setattr(end_to_end, "PHOTOGRAPH_SIZE", (96, 128))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "images").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    detector = Detector.load(write_checkpoint(tmp_path / "m.safetensors", tiny_settings), device="cpu")
    images = synthetic_images(tmp_path / "images", 6)
    images[3].path.write_bytes(b"no image")
    ticks = []
    options = DetectOptions(batch=2, workers=2)
    timing = measure_end_to_end(detector, images, options, draw=draw, tick=lambda: ticks.append(1))
    assert (timing.images, timing.unreadable, len(ticks)) == (6, 1, 6)
    assert list(timing.stages_ms) == ["wait", "read", "prepare", "network", "finish", "write"]
    assert min(timing.stages_ms[name] for name in ("read", "prepare", "network", "finish")) > 0
    assert set(timing.busy) == {"network", "reading", "finishing"}
    assert 1 < timing.images_per_batch <= 2
    assert timing.images_per_second > 0
    assert timing.sentence
    assert not list((tmp_path / "temporary").iterdir())
    assert detector.device == torch.device("cpu")
