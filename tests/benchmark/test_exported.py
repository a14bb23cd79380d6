"""The speed of an exported file, and its stages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("onnx", reason="the optional package onnx writes the files")
pytest.importorskip("onnxruntime", reason="the optional package ONNX Runtime runs the files")

from codetr_cli.benchmark.network import BenchmarkedNetwork
from codetr_cli.errors import CheckpointError, ConfigError
from tests.inference.exported import handmade


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return handmade.write_onnx(tmp_path_factory.mktemp("onnx") / "model.onnx")


def load(path: Path, *, training: bool = False) -> BenchmarkedNetwork:
    return BenchmarkedNetwork(str(path), [], torch.device("cpu"), training=training, random_weights=False)


@pytest.mark.parametrize("options", [{}, {"postprocess": True}, {"preprocess": True}])
def test_stages_and_runtime(tmp_path: Path, options: dict[str, bool]):
    network = load(handmade.write_onnx(tmp_path / "model.onnx", **options))
    spec = network.spec(runs=(1, 3, 2))
    found = network.measure(spec)
    assert found["size"] == [96, 160]
    assert found["precision"] == "fp32"
    assert found["runtime"]["provider"] == "CPUExecutionProvider"
    assert list(found["stages_ms"]) == ["data", "network", "post-processing"]
    stages = found["stages_ms"]
    assert stages["network"] > 0
    assert stages["post-processing"] > 0
    assert found["parameters"] > 1000


def test_another_precision(path: Path):
    with pytest.raises(ConfigError, match=r"the exported file .* has fp32"):
        load(path).spec(runs=(1, 1, 1), precision="bf16")


def test_a_larger_input(path: Path):
    network = load(path)
    with pytest.raises(ConfigError, match="takes images of 96 x 160 pixels"):
        network.measure(network.spec(runs=(1, 1, 1), size=(128, 160)))


def test_no_comparison_with_its_optimizations(path: Path):
    network = load(path)
    with pytest.raises(ConfigError, match="is an exported file: measure it, and the checkpoint"):
        network.compare(network.spec(runs=(1, 1, 1)))


def test_no_training(path: Path):
    with pytest.raises(CheckpointError, match="is an exported file"):
        load(path, training=True)
