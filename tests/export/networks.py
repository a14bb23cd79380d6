"""Narrow networks with random weights that are exported in seconds, and the comparison of a file with its network."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from codetr_cli.config.overrides import apply_overrides, parse_settings
from codetr_cli.config.schema import Settings
from codetr_cli.export.graph import DetectionGraph
from codetr_cli.export.job import export as export_file
from codetr_cli.export.options import SUFFIXES, ExportOptions
from codetr_cli.inference.exported.engine import open_engine
from codetr_cli.inference.exported.metadata import ExportMetadata, output_names
from codetr_cli.inference.loading import LoadedModel, load_detector
from codetr_cli.models.build import build_model, build_postprocess
from codetr_cli.models.codetr import CoDETR
from codetr_cli.models.inference_mode import optimize_for_inference
from codetr_cli.runtime.synthetic import randomize_weights
from codetr_cli.weights.checkpoint import save_checkpoint
from tests.conftest import TINY_TABLE

CLASS_NAMES, CATEGORY_IDS = ["disc", "bar", "ring"], [2, 3, 7]
ONE_LAYER = ("model.encoder_layers=1", "model.decoder_layers=1", "data.pad_divisor=32")
DEFORMABLE = ("model.family=co_deformable", "model.finest_stride=8", "train.loss.class_weight=2.0")
BATCH_NORM = ("model.backbone.norm=frozen_batch",)
SWIN = (
    *("model.backbone.kind=swin", "model.backbone.embed_dim=16", "model.backbone.num_heads=[1, 2, 2, 4]"),
    *("model.backbone.layers=[1, 2, 1, 1]", "model.backbone.window_size=3"),
)
VIT = (
    *("model.backbone.kind=vit", "model.backbone.embed_dim=32", "model.backbone.depth=3", "model.backbone.num_heads=2"),
    *("model.backbone.hidden_dim=48", "model.backbone.window_size=3", "model.backbone.global_blocks=[2]"),
    *("model.backbone.pretrain_size=64", "model.backbone.checkpointing=false", "model.num_levels=5"),
)
REFINE = ("model.mask.kind=refine", "model.mask.dim=16", "model.mask.iou_fc_dim=16")
ANY_SIZES = [
    *[((96, 160), 2), ((160, 96), 1), ((128, 128), 3), ((101, 67), 2), ((64, 224), 5), ((32, 96), 1)],
    ((150, 200), 2),
]
"""(height, width) and images: not the traced size, which is a wider one, and once transposed; odd; small; one whose
padding begins where a cell of the last level does, which is not a power of two smaller."""


@dataclass(frozen=True)
class Exported:
    """An exported file, and the network that it was made from; `metadata` are those that the export reported."""

    path: Path
    checkpoint: Path
    loaded: LoadedModel
    metadata: ExportMetadata

    @cached_property
    def engine(self) -> Any:
        return open_engine(self.path, torch.device("cpu"))


def settings_of(*overrides: str) -> Settings:
    return apply_overrides(parse_settings(TINY_TABLE, "tests/conftest.py"), [*ONE_LAYER, *overrides])


def write_random(path: Path, *overrides: str) -> Path:
    """The checkpoint of a narrow network with random weights."""
    settings = settings_of(*overrides)
    torch.manual_seed(0)
    model = build_model(settings.model)
    randomize_weights(model)
    save_checkpoint(path, model.state_dict(), settings=settings, class_names=CLASS_NAMES, category_ids=CATEGORY_IDS)
    return path


def load_random(*overrides: str) -> LoadedModel:
    """A narrow network with random weights, without a file."""
    settings = settings_of(*overrides)
    torch.manual_seed(1)
    model = build_model(settings.model, aux_heads=False)
    return LoadedModel(
        optimize_for_inference(model), build_postprocess(settings.test), settings, CLASS_NAMES, CATEGORY_IDS
    )


def export(folder: Path, *overrides: str, **options: Any) -> Exported:
    """Exports a narrow network with random weights; processes that want the same folder share one export."""
    wanted = ExportOptions(**options)
    checkpoint, path = folder / "network.safetensors", folder / f"network{SUFFIXES[wanted.format]}"
    folder.mkdir(parents=True, exist_ok=True)
    reported = folder / "reported.json"
    with FileLock(folder / "lock"):
        if not reported.exists():
            result = export_file(write_random(checkpoint, *overrides), wanted, path)
            reported.write_text(result.metadata.to_json(), encoding="utf-8")
    metadata = ExportMetadata.model_validate_json(reported.read_text(encoding="utf-8"))
    return Exported(path, checkpoint, load_detector(checkpoint, torch.device("cpu")), metadata)


def make_input(metadata: ExportMetadata, size: tuple[int, int], batch: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Images of noise and their valid sizes; the last one has padding, and so has every image of a larger file."""
    height, width = size
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([[height, width]] * batch)
    sizes[-1] -= torch.tensor([height // 5, width // 3])
    pixels = torch.randint(0, 256, (batch, height, width, 3), generator=generator, dtype=torch.uint8)
    for image, (valid_height, valid_width) in zip(pixels, sizes.tolist(), strict=True):
        image[valid_height:] = 0
        image[:, valid_width:] = 0
    if metadata.input.pixels:
        return pixels, sizes
    images = (pixels.permute(0, 3, 1, 2).float() - 128) / 64
    for image, (valid_height, valid_width) in zip(images, sizes.tolist(), strict=True):
        image[:, valid_height:] = 0
        image[:, :, valid_width:] = 0
    return images.contiguous(), sizes


def largest_differences(exported: Exported, size: tuple[int, int], batch: int) -> dict[str, float]:
    """The largest difference of each output of a file to that of its network."""
    metadata, model = exported.metadata, exported.loaded.model
    assert isinstance(model, CoDETR)
    images, sizes = make_input(metadata, size, batch)
    with torch.inference_mode():
        graph = DetectionGraph(model, metadata).eval()
        expected = dict(zip(output_names(metadata), graph(images, sizes), strict=True))
    found = exported.engine.run(images, sizes)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert found[name].dtype == value.dtype, name
    return {name: (found[name].double() - expected[name].double()).abs().max().item() for name in expected}
