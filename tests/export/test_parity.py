"""Published architectures with random weights: the file gives the detections of the network, in several runtimes."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from codetr_cli.export import job
from codetr_cli.export.job import describe
from codetr_cli.export.options import ExportOptions
from codetr_cli.export.request import WriteRequest
from codetr_cli.inference.exported.engine import open_engine
from codetr_cli.inference.loading import LoadedModel, load_detector
from codetr_cli.models.codetr import CoDETR
from codetr_cli.models.inference_mode import optimize_for_inference
from codetr_cli.runtime.synthetic import randomize_weights
from tests.export.networks import make_input

logger = logging.getLogger(__name__)
pytestmark = pytest.mark.slow

NETWORKS = {
    "r50_608x800": ("co_dino_r50", (608, 800), []),
    "r50_800x1333": ("co_dino_r50", (800, 1333), []),
    "deformable_swin_t": ("co_deformable_swin_t", (608, 800), []),
    "vit_narrow": (
        "co_dino_vit_l",
        (608, 800),
        ["model.backbone.embed_dim=256", "model.backbone.num_heads=4", "model.backbone.hidden_dim=683"],
    ),
}
FORMATS = {"onnx": "onnxruntime", "openvino": "openvino"}
SAME_LOGIT, SAME_BOX = 5e-3, 1e-3


def matched_share(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Share of the queries of a network that have a counterpart in the file, in whatever row.

    Random weights give many proposals of almost one score: some swap their ranks, and with them the learned contents of
    their queries.
    """
    logits = torch.cdist(found["logits"], expected["logits"], p=float("inf"))
    boxes = torch.cdist(found["boxes"], expected["boxes"], p=float("inf"))
    return ((logits < SAME_LOGIT) & (boxes < SAME_BOX)).any(1).float().mean().item()


def load(preset: str, overrides: list[str]) -> LoadedModel:
    torch.manual_seed(0)
    loaded = load_detector(preset, torch.device("cpu"), overrides, random_weights=True, optimize=False)
    assert isinstance(loaded.model, CoDETR)
    randomize_weights(loaded.model)
    optimize_for_inference(loaded.model)
    return loaded


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("network", NETWORKS)
def test_equal_to_the_network(network: str, format: Any, tmp_path: Path, record_property: Any):
    pytest.importorskip(FORMATS[format], reason="an optional runtime")
    if format not in job.WRITERS:
        pytest.skip(f"this version does not write {format}")
    preset, size, overrides = NETWORKS[network]
    loaded = load(preset, overrides)
    metadata = describe(loaded, ExportOptions(format=format, size=size))
    path = tmp_path / f"network{'.onnx' if format == 'onnx' else '.xml'}"
    started = time.perf_counter()
    job.WRITERS[format](WriteRequest(loaded.model, metadata, path))
    record_property("export_s", time.perf_counter() - started)
    engine = open_engine(path, torch.device("cpu"))
    assert metadata.input.height is not None
    assert metadata.input.width is not None
    for batch in (1, 2):
        images, sizes = make_input(metadata, (metadata.input.height, metadata.input.width), batch)
        found = engine.run(images, sizes)
        with torch.inference_mode():
            outputs = loaded.model(images, _mask(images, sizes))
        expected = {"logits": outputs["pred_logits"], "boxes": outputs["pred_boxes"]}
        share = matched_share(found, expected)
        difference = (found["logits"] - expected["logits"]).abs().max().item()
        logger.info("%s %s batch %d: %.4f of the queries, rows %.2g", network, format, batch, share, difference)
        assert share > 0.97
        assert (found["logits"] - expected["logits"]).abs().median() < 1e-3
        assert (found["boxes"] - expected["boxes"]).abs().median() < 1e-4


def _mask(images: Tensor, sizes: Tensor) -> Tensor:
    mask = torch.ones(images.shape[0], *images.shape[2:], dtype=torch.bool)
    for own, (height, width) in zip(mask, sizes.tolist(), strict=True):
        own[:height, :width] = False
    return mask
