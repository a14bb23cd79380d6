"""An exported file in the place of a checkpoint: detections, and the settings that it has decided."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("onnx", reason="the optional package onnx writes the files")
pytest.importorskip("onnxruntime", reason="the optional package ONNX Runtime runs the files")

from codetr_cli.errors import CheckpointError, ConfigError
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.exported.load import default_tiles, load_network, processor_of
from codetr_cli.inference.loading import load_detector
from codetr_cli.inference.options import TileOptions
from codetr_cli.training.plan import _find_weights
from codetr_cli.weights.convert import convert_file
from codetr_cli.weights.pretrained import load_backbone
from codetr_cli.weights.resolve import open_weights
from tests.inference.exported import handmade

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return handmade.write_onnx(tmp_path_factory.mktemp("onnx") / "model.onnx")


@pytest.fixture(scope="module")
def any_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return handmade.write_onnx(tmp_path_factory.mktemp("onnx") / "model.onnx", dynamic_size=True)


def test_a_detector_of_a_file(path: Path):
    detector = Detector.load(path)
    assert detector.class_names == handmade.CLASS_NAMES
    image = np.random.default_rng(0).integers(0, 256, (120, 90, 3), np.uint8)
    found = detector.predict(image, score=0.05)
    assert len(found) == 20
    assert (found.boxes[:, 2:] <= [90.01, 120.01]).all()
    assert set(found.category_ids) <= set(handmade.CATEGORY_IDS)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.num_queries=20", "settings below model are part of the exported file"),
        ("test.head=atss", "the atss head is not part of the exported file"),
        ("data.pad_divisor=16", r"export the checkpoint again with --set data\.pad_divisor=16"),
        ("test.short_side=64", r"with another --size, or with --dynamic-size"),
        ("test.fixed_size=[128, 128]", r"with another --size, or with --dynamic-size"),
    ],
)
def test_settings_that_the_file_has_decided(path: Path, override: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load_network(path, CPU, [override])


def test_settings_of_the_same_value_and_of_detection(path: Path):
    overrides = ["test.head=decoder", "test.nms=none", "test.max_detections=5", "test.short_side=96"]
    _, settings = load_network(path, CPU, overrides)
    assert (settings.test.nms, settings.test.max_detections) == ("none", 5)


def test_other_sizes_of_a_file_of_any_size(any_size: Path):
    _, settings = load_network(any_size, CPU, ["test.short_side=64"])
    assert settings.test.short_side == 64


def test_the_processor_of_settings():
    assert processor_of([]) is None
    assert processor_of(["test.openvino_device=GPU", "test.openvino_device=cpu"]) is None
    assert processor_of(["test.nms=none", "test.openvino_device = gpu.1"]) == "GPU.1"


def test_precisions(path: Path):
    assert Detector.load(path, precision="fp32").precision == "fp32"
    with pytest.raises(ValueError, match=r"precision bf16: the exported file .*model\.onnx has fp32"):
        Detector.load(path, precision="bf16")


def test_test_time_augmentation(path: Path, any_size: Path):
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    with pytest.raises(ValueError, match=r"tta_scales, more than the input of the exported file .* 96 x 160"):
        Detector.load(path, tta=True)
    smaller = Detector.load(path, tta=True, overrides=["test.tta_scales=[0.5, 1.0]"])
    assert len(smaller.predict(image, score=0.05))
    assert len(Detector.load(any_size, tta=True).predict(image, score=0.05))


def test_weights_are_not_taken_from_it(path: Path):
    for use in (open_weights, convert_file, lambda file: load_backbone(torch.nn.Identity(), file), _find_weights):
        with pytest.raises(CheckpointError, match=r"is an exported file: .*Give the checkpoint that it was made from"):
            use(path)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="is an exported file"):
        load_detector(path, CPU, training=True)


def test_a_missing_file_names_the_command_that_writes_it(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"there is no file .*model\.onnx: `codetr export` writes such files"):
        Detector.load(tmp_path / "model.onnx")


def test_streams(path: Path):
    detector = Detector.load(path)
    images = list(np.random.default_rng(0).integers(0, 256, (5, 50, 80, 3), np.uint8))
    found = list(detector.stream(images, score=0.05, batch=2, workers=2))
    for image, prediction in zip(images, found, strict=True):
        np.testing.assert_allclose(prediction.boxes, detector.predict(image, score=0.05).boxes, atol=1e-3)


def test_default_tiles():
    tiles = TileOptions(size=(128, 96), overlap=0.3)
    assert default_tiles(handmade.metadata_of(tiles=tiles)) == tiles
    assert default_tiles(handmade.metadata_of(tiles=TileOptions())) == TileOptions()
    assert default_tiles(handmade.metadata_of()) is None
