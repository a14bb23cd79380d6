"""Batches and sizes of an exported file, and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnx", reason="the optional package onnx writes the files")

from codetr_cli.boxes import Target
from codetr_cli.errors import ConfigError
from codetr_cli.inference.exported import network as network_module
from codetr_cli.inference.exported.engine_info import EngineInfo
from codetr_cli.inference.exported.metadata import ExportMetadata
from codetr_cli.inference.exported.network import ExportedNetwork, parameter_count, precision_of, runtime_facts
from codetr_cli.models.build import build_postprocess
from tests.inference.exported import handmade


@dataclass
class FakeEngine:
    """Notes its inputs; each image has one object, whose score is its own."""

    metadata: ExportMetadata
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    info: EngineInfo = field(default_factory=lambda: EngineInfo("Library 1", "CPU", "fp32"))
    inputs: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def run(self, images: Tensor, image_sizes: Tensor) -> dict[str, Tensor]:
        self.inputs.append((images, image_sizes))
        logits = torch.full((len(images), 1, 3), -9.0)
        logits[:, 0, 1] = images.flatten(1)[:, 0].float()
        return {"logits": logits, "boxes": torch.full((len(images), 1, 4), 0.5)}


def targets_of(*sizes: tuple[int, int]) -> list[Target]:
    return [{"size": size, "norm_size": size, "scale_factor": (0.5, 0.5)} for size in sizes]


def make(**options: Any) -> tuple[ExportedNetwork, FakeEngine]:
    engine = FakeEngine(handmade.metadata_of(**options))
    return ExportedNetwork(engine, Path("model.onnx")), engine


def detect(network: ExportedNetwork, images: Tensor, *sizes: tuple[int, int]) -> list[Any]:
    settings = network.engine.metadata.parsed_settings("model.onnx")
    return network.detect(images, None, targets_of(*sizes), build_postprocess(settings.test))


def test_images_are_padded_to_the_size_of_the_file():
    network, engine = make()
    detect(network, torch.ones(1, 3, 64, 96), (60, 90))
    images, sizes = engine.inputs[0]
    assert tuple(images.shape) == (1, 3, 96, 160)
    assert images.sum() == 3 * 64 * 96
    assert sizes.tolist() == [[60, 90]]


def test_larger_images_are_an_error():
    network, _ = make()
    with pytest.raises(ConfigError, match=r"takes images of 96 x 160 pixels, not of 128 x 160"):
        detect(network, torch.ones(1, 3, 128, 160), (128, 160))


def test_a_fixed_batch_is_filled_and_every_image_keeps_its_own_detections():
    network, engine = make(batch=2)
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 3, 96, 160)
    found = detect(network, images, (96, 160), (90, 150), (80, 140))
    assert [len(given) for given, _ in engine.inputs] == [2, 2]
    assert engine.inputs[1][1].tolist() == [[80, 140], [80, 140]]
    assert [detections.scores[0].item() for detections in found] == pytest.approx(
        torch.arange(3.0).sigmoid().tolist(), abs=1e-6
    )
    assert [detections.boxes[0, 2].item() for detections in found] == pytest.approx([240, 225, 210])


def test_pixels_are_last():
    network, engine = make(preprocess=True)
    detect(network, torch.zeros(1, 3, 64, 96, dtype=torch.uint8), (64, 96))
    assert tuple(engine.inputs[0][0].shape) == (1, 96, 160, 3)
    assert engine.inputs[0][0].dtype == torch.uint8


def test_precision(monkeypatch: pytest.MonkeyPatch):
    network, engine = make()
    engine.info = EngineInfo("OpenVINO", "CPU", "fp32 with fp16 weights")
    assert precision_of(network, "auto") == "fp32 with fp16 weights"
    with pytest.raises(ConfigError, match="export the checkpoint again in fp16"):
        precision_of(network, "fp16")
    assert precision_of(nn.Linear(1, 1), "auto") == "fp32"


def test_facts(tmp_path: Path):
    network, _ = make()
    assert runtime_facts(network)["runtime"]["library"] == "Library 1"
    assert runtime_facts(nn.Linear(1, 1)) == {}
    network.path = tmp_path / "model.xml"
    network.path.write_bytes(bytes(400))
    network.path.with_suffix(".bin").write_bytes(bytes(4000))
    assert parameter_count(network) == 1100
    assert parameter_count(nn.Linear(2, 3)) == 9
    assert network_module.LARGEST_FACTOR == 4
