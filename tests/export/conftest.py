"""Exported files that several test files look at: each takes seconds, so they are written once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.export import networks
from tests.export.networks import Exported


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime", reason="the optional package ONNX Runtime runs the files")
    pytest.importorskip("onnxscript", reason="the optional package onnxscript converts programs to ONNX")
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exported"  # one for all workers
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def any_size(folder: Path) -> Exported:
    """Co-DINO with folded norms: logits and boxes, images of any size and number."""
    return networks.export(folder / "any_size", *networks.BATCH_NORM, dynamic_size=True)


@pytest.fixture(scope="session")
def swin(folder: Path) -> Exported:
    """Co-Deformable-DETR with a Swin backbone: pixels to boxes, scores and labels, in one size."""
    options = {"size": (96, 160), "preprocess": True, "postprocess": True}
    return networks.export(folder / "swin", *networks.DEFORMABLE, *networks.SWIN, **options)


@pytest.fixture(scope="session")
def vit_masks(folder: Path) -> Exported:
    """Co-DINO with a ViT backbone and masks, in one size."""
    return networks.export(folder / "vit", *networks.VIT, *networks.REFINE, size=(96, 160))
