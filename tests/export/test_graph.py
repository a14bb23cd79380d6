"""The exported program gives the outputs of its network, at sizes and batches that it was not traced with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from codetr_cli.export.graph import MAX_BATCH, best_candidates, example_input, padding_mask, trace
from codetr_cli.export.job import describe
from codetr_cli.export.options import ExportOptions
from codetr_cli.models.build import build_postprocess
from codetr_cli.models.pooling import RegionPooling
from tests.export import networks
from tests.export.networks import ANY_SIZES, Exported, largest_differences


@pytest.mark.parametrize(("size", "batch"), ANY_SIZES)
def test_any_size(any_size: Exported, size: tuple[int, int], batch: int):
    differences = largest_differences(any_size, size, batch)
    assert differences["logits"] < 1e-4, differences
    assert differences["boxes"] < 1e-5, differences


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_swin_candidates(swin: Exported, batch: int):
    differences = largest_differences(swin, (96, 160), batch)
    assert differences["labels"] == 0
    assert differences["scores"] < 1e-5
    assert differences["boxes"] < 1e-3, differences


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
def test_vit_masks(vit_masks: Exported, batch: int):
    differences = largest_differences(vit_masks, (96, 160), batch)
    assert differences["labels"] == 0
    assert differences["boxes"] < 1e-3, differences
    assert differences["masks"] < 1e-3, differences
    assert differences["mask_ious"] < 1e-4


BACKBONES = {"swin": networks.SWIN, "swin_deformable": (*networks.DEFORMABLE, *networks.SWIN), "vit": networks.VIT}
WINDOW_SIZES = [*ANY_SIZES, ((64, 64), 2), ((208, 304), 2), ((33, 35), 1)]
"""One window and several, whole ones and cut ones, in every stage of a Swin."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "format"), [("swin", "onnx"), ("swin", "openvino"), ("swin_deformable", "onnx"), ("vit", "onnx")]
)
def test_windows_at_any_size(folder: Path, backbone: str, format: str):
    if format == "openvino":
        pytest.importorskip("openvino", reason="the optional package OpenVINO writes the files")
    name = f"{backbone}_any_size_{format}"
    exported = networks.export(folder / name, *BACKBONES[backbone], dynamic_size=True, format=format)
    for size, batch in WINDOW_SIZES:
        if backbone == "vit" and any(side % 16 for side in size):
            continue  # its patches are cut off at the edge, not padded
        differences = largest_differences(exported, size, batch)
        assert differences["logits"] < 1e-4, (size, differences)
        assert differences["boxes"] < 1e-5, (size, differences)


@pytest.mark.slow
def test_the_batch_has_the_range_that_is_promised():
    loaded = networks.load_random()
    program = trace(loaded.model, describe(loaded, ExportOptions(size=(96, 160))))
    (range_of_batch,) = program.range_constraints.values()
    assert (int(range_of_batch.lower), int(range_of_batch.upper)) == (1, MAX_BATCH)


@pytest.mark.parametrize(("pixels", "batch", "shape"), [(False, 2, (2, 3, 96, 160)), (True, None, (2, 96, 160, 3))])
def test_example_input(pixels: bool, batch: int | None, shape: tuple[int, ...]):
    loaded = networks.load_random()
    metadata = describe(loaded, ExportOptions(size=(96, 160), preprocess=pixels, batch=batch))
    example = example_input(metadata, loaded.model)
    assert example.images.shape == shape
    assert example.images.dtype == (torch.uint8 if pixels else torch.float32)
    assert (example.image_sizes < torch.tensor([96, 160])).any(), "without padding its arithmetic is not traced"
    assert bool(example.dynamic_shapes["images"]) == (batch is None)


def test_the_traced_size_is_large_enough_for_every_level():
    loaded = networks.load_random("data.pad_divisor=1")
    example = example_input(describe(loaded, ExportOptions(dynamic_size=True)), loaded.model)
    assert min(example.images.shape[2:]) >= 128
    assert example.images.shape[2] != example.images.shape[3]


def test_padding_mask():
    mask = padding_mask(torch.tensor([[2, 3], [4, 5]]), 4, 5)
    assert (~mask[0]).nonzero().tolist() == [[row, column] for row in range(2) for column in range(3)]
    assert not mask[1].any()


def test_candidates_are_those_of_the_post_processing(tiny_settings):
    generator = torch.Generator().manual_seed(0)
    logits, boxes = torch.randn(2, 30, 3, generator=generator), torch.rand(2, 30, 4, generator=generator)
    sizes = torch.tensor([[90, 120], [64, 128]])
    postprocess = replace(build_postprocess(tiny_settings.test), nms="none", max_detections=25)
    targets = [{"norm_size": tuple(size), "scale_factor": (1.0, 1.0)} for size in sizes.tolist()]
    expected = postprocess(logits, boxes, targets)
    found = best_candidates(logits, boxes, sizes, 25)
    for index, detections in enumerate(expected):
        assert torch.equal(found.boxes[index], detections.boxes)
        assert torch.equal(found.scores[index], detections.scores)
        assert torch.equal(found.labels[index], detections.labels)
    assert found.boxes[0].max() <= 120
    assert found.labels.dtype == torch.int64


def test_fewer_scores_than_candidates():
    found = best_candidates(torch.randn(1, 3, 2), torch.rand(1, 3, 4), torch.tensor([[9, 9]]), 300)
    assert found.scores.shape == (1, 6)


def test_each_region_is_pooled_from_its_map(monkeypatch: pytest.MonkeyPatch):
    pooling = RegionPooling(strides=(4, 8, 16), output_size=5, finest_scale=16)
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 6, 96 // stride, 128 // stride, generator=generator) for stride in (4, 8, 16)]
    corner = torch.rand(20, 2, generator=generator) * 60
    sides = torch.tensor([6.0, 20.0, 40.0, 70.0]).repeat(5)[:, None] + torch.rand(20, 2, generator=generator)
    image = torch.arange(20)[:, None] % 2
    regions = torch.cat([image.float(), corner, corner + sides], 1)
    assert len(pooling.levels(regions[:, 1:]).unique()) == 3
    expected = pooling(maps, regions)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert torch.equal(pooling(maps, regions), expected)
