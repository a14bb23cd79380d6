"""An exported file in the place of a network: sizes, batches and post-processing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from codetr_cli.config.overrides import replace_settings
from codetr_cli.data.batch import collate
from codetr_cli.data.sample import Sample
from codetr_cli.data.transforms import build_transforms
from codetr_cli.errors import ConfigError
from codetr_cli.export.job import describe
from codetr_cli.export.options import ExportOptions
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.exported.network import ExportedNetwork
from codetr_cli.inference.loading import LoadedModel
from codetr_cli.inference.options import TileOptions
from codetr_cli.inference.pipeline import detect
from codetr_cli.inference.tiling import build_tiling
from codetr_cli.models.build import build_postprocess
from codetr_cli.models.postprocess import Detections
from tests.export import networks
from tests.inference.exported.fake_engine import FakeEngine

SIZES = [(90, 150), (150, 90), (64, 100), (96, 160), (40, 40)]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return networks.load_random("test.nms_min_score=0")


@pytest.fixture(scope="module")
def with_masks() -> LoadedModel:
    return networks.load_random(*networks.VIT, *networks.REFINE)


def detections(network: Any, loaded: LoadedModel, images: int, **test: Any) -> list[Detections]:
    settings = replace_settings(loaded.settings, {f"test.{name}": value for name, value in test.items()})
    transform = build_transforms(settings.data, settings.test, train=False)
    samples = []
    for number, (height, width) in enumerate(SIZES[:images]):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        sample = transform(Sample.from_image(pixels), np.random.default_rng(0))
        target = sample.to_target(image_id=number, orig_size=(height, width), pad_divisor=settings.data.pad_divisor)
        samples.append((sample.image, target))
    postprocess = build_postprocess(settings.test)
    with torch.inference_mode():
        return detect(network, postprocess, collate(samples), mean=settings.data.mean, std=settings.data.std)


def assert_same(found: list[Detections], expected: list[Detections]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) == len(theirs) > 0
        assert torch.equal(ours.labels, theirs.labels)
        torch.testing.assert_close(ours.boxes, theirs.boxes, atol=1e-3, rtol=0)
        torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-5, rtol=0)
        assert (ours.masks is None) == (theirs.masks is None)
        if ours.masks is not None and ours.mask_scores is not None:
            torch.testing.assert_close(ours.masks, theirs.masks, atol=1e-3, rtol=0)
            torch.testing.assert_close(ours.mask_scores, theirs.mask_scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("nms", ["soft", "hard", "none"])
@pytest.mark.parametrize("options", [{}, {"postprocess": True}, {"postprocess": True, "preprocess": True}])
def test_equal_to_the_network(loaded: LoadedModel, options: dict[str, Any], nms: str):
    test = {"fixed_size": [96, 160], "nms": nms}
    engine = FakeEngine(loaded, describe(loaded, ExportOptions(size=(96, 160), **options)))
    expected = detections(loaded.model, loaded, 3, **test)
    assert_same(detections(ExportedNetwork(engine), loaded, 3, **test), expected)
    assert engine.shapes == [(3, 96, 160, 3) if options.get("preprocess") else (3, 3, 96, 160)]


def test_equal_to_the_network_with_masks(with_masks: LoadedModel):
    test = {"fixed_size": [96, 160]}
    engine = FakeEngine(with_masks, describe(with_masks, ExportOptions(size=(96, 160))))
    expected = detections(with_masks.model, with_masks, 2, **test)
    assert expected[0].masks is not None
    assert_same(detections(ExportedNetwork(engine), with_masks, 2, **test), expected)


def test_the_last_batch_is_filled(loaded: LoadedModel):
    engine = FakeEngine(loaded, describe(loaded, ExportOptions(size=(96, 160), batch=2)))
    found = detections(ExportedNetwork(engine), loaded, 5, fixed_size=[96, 160])
    assert engine.shapes == [(2, 3, 96, 160)] * 3
    assert_same(found, detections(loaded.model, loaded, 5, fixed_size=[96, 160]))


def test_a_detector_gives_a_file_its_fixed_number_of_images(loaded: LoadedModel):
    engine = FakeEngine(loaded, describe(loaded, ExportOptions(size=(96, 160), batch=2)))
    settings = replace_settings(loaded.settings, {"test.fixed_size": [96, 160]})
    detector = Detector(replace(loaded, model=ExportedNetwork(engine), settings=settings), device="cpu")
    list(detector.stream([np.zeros((50, 80, 3), np.uint8)] * 4))
    assert engine.shapes == [(2, 3, 96, 160)] * 2
    engine.shapes.clear()
    detector.predict(np.zeros((96, 300, 3), np.uint8), tiles="96x64")
    assert len(engine.shapes) < len(list(build_tiling(settings, TileOptions(size=(96, 64))).tiles((96, 300))))


def test_smaller_images_are_padded(loaded: LoadedModel):
    engine = FakeEngine(loaded, describe(loaded, ExportOptions(size=(160, 160))))
    found = detections(ExportedNetwork(engine), loaded, 1)
    assert engine.shapes == [(1, 3, 160, 160)]
    assert_same(found, detections(loaded.model, loaded, 1, fixed_size=[160, 160]))


def test_larger_images_are_refused(loaded: LoadedModel):
    engine = FakeEngine(loaded, describe(loaded, ExportOptions(size=(64, 96))))
    with pytest.raises(ConfigError, match=r"takes images of 64 x 96 pixels, not of 96 x 160.*--dynamic-size"):
        detections(ExportedNetwork(engine), loaded, 1)


def test_more_candidates_than_there_are(loaded: LoadedModel):
    engine = FakeEngine(loaded, describe(loaded, ExportOptions(size=(96, 160), postprocess=True)))
    found = detections(ExportedNetwork(engine), loaded, 1, fixed_size=[96, 160], max_detections=30, nms="none")
    assert len(found[0]) == 30, "all queries' boxes are kept, for tiles and for another NMS"
    with pytest.raises(ConfigError, match=r"31 candidates .* this file keeps 30: .*--set test\.max_detections=31"):
        detections(ExportedNetwork(engine), loaded, 1, fixed_size=[96, 160], max_detections=31, nms="none")
