"""The network as one program from input tensors to output tensors, traced by torch.export.

Shape letters: B batch, H W size of the input, K classes, Q queries, N candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from codetr_cli.boxes import cxcywh_to_xyxy
from codetr_cli.data.batch import normalize
from codetr_cli.export.fake_shapes import quick_shapes
from codetr_cli.export.precision import cast_network, input_dtype
from codetr_cli.inference.exported.metadata import ExportMetadata
from codetr_cli.models.codetr import CoDETR, Encoded
from codetr_cli.models.layers import at_least_float32, smaller
from codetr_cli.ops.deform_attn_export import use_formulation

MAX_BATCH = 128
"""Most images of an input with any number of images."""
TRACED_SIZE = (1216, 1600)
"""(height, width) that is traced for images of any size. Every level has several cells, and several windows of the
backbone: torch.export takes a dimension of size one for a fixed one. No pixel is computed, so it takes no longer."""
TRACED_BATCH = 2  # torch.export takes a dimension of size one for a fixed one


def padding_mask(image_sizes: Tensor, height: int, width: int) -> Tensor:
    """Bool (B, H, W), True where an input of this size is padding; `image_sizes` (B, 2) are the valid (h, w)."""
    rows, columns = (torch.arange(side, device=image_sizes.device) for side in (height, width))
    below = rows[None, :, None] >= image_sizes[:, 0, None, None]
    return below | (columns[None, None] >= image_sizes[:, 1, None, None])


class DetectionGraph(nn.Module):
    """What is exported: `images` and `image_sizes` to the outputs of `metadata.output_names`.

    Args:
        model: in evaluation mode.
        metadata: says what inputs and outputs are.
    """

    def __init__(self, model: CoDETR, metadata: ExportMetadata) -> None:
        super().__init__()
        self.model = model
        self.input, self.output = metadata.input, metadata.output
        self.count = self.output.kept(model.proposals.num_queries)

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        """See `metadata.InputRule` and `metadata.OutputRule`."""
        if self.input.pixels:
            images = images.permute(0, 3, 1, 2)
        mask = padding_mask(image_sizes, images.shape[2], images.shape[3])
        if self.input.pixels:
            images = normalize(images, mask, self.input.mean, self.input.std)
        encoded = self.model.encode(images.to(input_dtype(self.model)), mask)
        outputs = self.model.predict(encoded)
        logits, boxes = outputs["pred_logits"], outputs["pred_boxes"]
        if not self.output.detections:
            return logits, boxes
        candidates = best_candidates(logits, boxes, image_sizes, self.count)
        return (*candidates, *(self._masks(encoded, candidates) if self.output.masks else ()))

    def _masks(self, encoded: Encoded, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """Masks (B, N, M, M) as probabilities on a grid over each box, and their estimated IoU (B, N)."""
        branch = self.model.mask_branch
        assert branch is not None
        batch, count = candidates.scores.shape
        image = torch.arange(batch, device=candidates.boxes.device, dtype=candidates.boxes.dtype)
        numbers = image[:, None, None].expand(-1, count, 1)
        regions = torch.cat([numbers, candidates.boxes], -1).flatten(0, 1)
        maps = [at_least_float32(level) for level in encoded.layout.split_levels(encoded.memory)]
        found = branch(maps, branch.head.semantic_maps(maps[0]), regions, candidates.labels.flatten())
        masks = found.probabilities
        return masks.view(batch, count, *masks.shape[1:]), found.iou.view(batch, count)


class Candidates(NamedTuple):
    """The best scores of each image, over queries and classes, best first.

    Attributes:
        boxes: (B, N, 4) xyxy in pixels of the input.
        scores: (B, N).
        labels: (B, N) int64.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def best_candidates(logits: Tensor, boxes: Tensor, image_sizes: Tensor, count: int) -> Candidates:
    """As the post-processing does it before NMS, in pixels of the input.

    Args:
        logits: (B, Q, K).
        boxes: (B, Q, 4) cxcywh in [0, 1] of the valid input.
        image_sizes: (B, 2) valid (h, w).
        count: N, where there are as many scores.
    """
    queries, classes = logits.shape[1:]
    scores, flat = logits.sigmoid().flatten(1).topk(smaller(count, queries * classes), dim=1)
    query = (flat // classes)[..., None].expand(-1, -1, 4)
    limits = image_sizes.flip(1).repeat(1, 2)[:, None].to(boxes.dtype)  # (B, 1, 4) as (w, h, w, h)
    corners = cxcywh_to_xyxy(boxes.gather(1, query)) * limits
    return Candidates(corners.clamp(min=0).minimum(limits), scores, flat % classes)


@dataclass(frozen=True)
class ExampleInput:
    """Inputs to trace with, and which of their sizes may vary."""

    images: Tensor
    image_sizes: Tensor
    dynamic_shapes: dict[str, Any]


def example_input(metadata: ExportMetadata, model: CoDETR) -> ExampleInput:
    """Inputs as the metadata describe them, with padding."""
    rule = metadata.input
    batch = rule.batch or TRACED_BATCH
    traced = [-(-side // rule.divisor) * rule.divisor for side in TRACED_SIZE]
    height, width = rule.height or traced[0], rule.width or traced[1]
    shape = (batch, height, width, 3) if rule.pixels else (batch, 3, height, width)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    images = pixels if rule.pixels else (pixels.float() - 128) / 64
    sizes = torch.tensor([[height, width]] * batch)
    sizes[-1] = torch.tensor([max(1, height - 7), max(1, width - 9)])
    of_batch = {0: Dim("batch", min=1, max=MAX_BATCH)} if rule.batch is None else {}
    first = 1 if rule.pixels else 2
    of_size = {first: Dim.DYNAMIC, first + 1: Dim.DYNAMIC} if rule.height is None else {}
    shapes = {"images": {**of_batch, **of_size}, "image_sizes": of_batch}
    device = next(model.parameters()).device
    return ExampleInput(images.to(device), sizes.to(device), shapes)


def trace(model: CoDETR, metadata: ExportMetadata) -> ExportedProgram:
    """The program of a network, in evaluation mode and without gradients."""
    graph = DetectionGraph(cast_network(model, metadata.precision), metadata).eval()
    example = example_input(metadata, model)
    with torch.no_grad(), quick_shapes(), use_formulation(metadata.attention):
        return torch.export.export(
            graph, (example.images, example.image_sizes), dynamic_shapes=example.dynamic_shapes, strict=False
        )
