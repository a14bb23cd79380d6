"""One-to-many assignment of anchors and regions to objects, and sampling of a balanced subset.

Behaviour of mmdet's MaxIoUAssigner, ATSSAssigner and RandomSampler. Shape letters: A anchors or regions, B images,
G objects of the image with the most.
Assignments are (B, A) int64: the object's index, -1 for background, -2 for ignored anchors.
No tensor of size A x G is ever held: a large image has two million anchors, and some images a thousand objects. Nothing
here waits for the device: sizes are fixed, and what a fixed size has too much of is marked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from codetr_cli.boxes import Size, Targets, host_values, paired_iou
from codetr_cli.losses.random import RandomSource
from codetr_cli.models.aux_heads.anchors import AnchorGrid

BACKGROUND = -1
IGNORED = -2

CHUNK_PAIRS = {"cpu": 2**20}
"""Anchor-object pairs per chunk, by device type: their values fit into a CPU's cache."""

GPU_CHUNK_PAIRS = 2**24
"""The same on any other device: enough to keep it busy."""


@dataclass(frozen=True)
class PaddedObjects:
    """The objects of a batch, filled up to those of the image with the most, and to one at least.

    Attributes:
        boxes: (B, G, 4) xyxy pixels; all 0 where an image has fewer objects. Such boxes are never assigned.
        labels: (B, G) int64.
        counts: objects of each image.
    """

    boxes: Tensor
    labels: Tensor
    counts: list[int]

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """Images to be computed together, and their objects' boxes: on a CPU one by one, which saves the filling up."""
        if not _one_by_one(self.boxes.device):
            yield slice(None), self.boxes
            return
        for i, count in enumerate(self.counts):
            yield slice(i, i + 1), self.boxes[i : i + 1, : max(count, 1)]

    def present(self) -> Tensor:
        """Which rows are objects, as bool (B, G)."""
        counts = host_values(self.counts, self.labels)
        return torch.arange(self.boxes.shape[1], device=counts.device) < counts[:, None]


def pad_objects(targets: Targets, dtype: torch.dtype) -> PaddedObjects:
    """The objects of a batch.

    Args:
        targets: per image `boxes` (G_i, 4) xyxy pixels and `labels` (G_i,).
        dtype: of the boxes.
    """
    counts = [len(target["labels"]) for target in targets]
    missing = [max(1, *counts) - count for count in counts]
    boxes = [F.pad(target["boxes"], (0, 0, 0, more)) for target, more in zip(targets, missing, strict=True)]
    labels = [F.pad(target["labels"], (0, more)) for target, more in zip(targets, missing, strict=True)]
    return PaddedObjects(torch.stack(boxes).to(dtype), torch.stack(labels), counts)


@dataclass(frozen=True)
class SampledBoxes:
    """Boxes of one image that an auxiliary head is trained on; positive queries are selected from them.

    Attributes:
        boxes: (A, 4) xyxy pixels.
        labels: (A,) int64; K for background.
        objects: (A, 4) xyxy pixels of the assigned object; 0 for background.
        num_positives: how many are not background. They come first if images differ in their number of boxes.
    """

    boxes: Tensor
    labels: Tensor
    objects: Tensor
    num_positives: int


def _one_by_one(device: torch.device) -> bool:
    """Whether images are computed one after the other: on a CPU nothing is gained by fewer, larger operators."""
    return device.type == "cpu"


def _objects_at_once(images: int, anchors: int, device: torch.device) -> int:
    return max(1, CHUNK_PAIRS.get(device.type, GPU_CHUNK_PAIRS) // max(1, images * anchors))


@torch.no_grad()
def assign_by_iou(
    boxes: Tensor,
    objects: PaddedObjects,
    valid: Tensor,
    *,
    positive_iou: float,
    negative_iou: float,
    min_best_iou: float | None,
) -> Tensor:
    """Assigns each box to the object with the highest IoU.

    Args:
        boxes: (B, A, 4) xyxy pixels, or (1, A, 4) for all images.
        objects: of the batch.
        valid: bool (B, A); other boxes are ignored.
        positive_iou: minimum IoU of positive boxes.
        negative_iou: boxes with a lower IoU are background; boxes between the two thresholds are ignored.
        min_best_iou: each object is also assigned to all boxes that share its highest IoU, if that is at least this
            value; later objects overwrite earlier ones. None: no such rule.
    """
    one_by_one = _one_by_one(boxes.device)
    assigned = []
    for images, own in objects.parts():
        inside, candidates = valid[images], boxes if len(boxes) == 1 else boxes[images]
        # No boolean indexing on a device: it would wait. Boxes of zeros overlap nothing.
        candidates = candidates[:, inside[0]] if one_by_one else torch.where(inside[..., None], candidates, 0)
        best_iou, best_object, last_sharing = _best_objects(candidates, own, min_best_iou)
        found = torch.where(best_iou < negative_iou, BACKGROUND, IGNORED)
        found = torch.where(best_iou >= positive_iou, best_object, found)
        found = found if last_sharing is None else torch.where(last_sharing >= 0, last_sharing, found)
        ignored = torch.full(inside.shape, IGNORED, device=inside.device)
        assigned.append(ignored.masked_scatter(inside, found) if one_by_one else torch.where(inside, found, ignored))
    return torch.cat(assigned)


def _best_objects(boxes: Tensor, objects: Tensor, min_best_iou: float | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Each box's highest IoU and its object, and the last object whose highest IoU it has, -1 for none; all (B, A)."""
    boxes = boxes.transpose(1, 2).contiguous().transpose(1, 2)  # column-major, as IoUs are computed
    at_once = _objects_at_once(len(boxes), boxes.shape[1], boxes.device)
    best_iou: Tensor | None = None
    best_object: Tensor | None = None
    last_sharing: Tensor | None = None
    first = 0
    for some in torch.split(objects, at_once, 1):
        iou = paired_iou(some[:, :, None], boxes[:, None])  # (B, some of G, A)
        chunk_iou, chunk_object = iou.max(1)
        if best_iou is None or best_object is None:
            best_iou, best_object = chunk_iou, chunk_object
        else:
            best_object = torch.where(chunk_iou > best_iou, chunk_object + first, best_object)
            best_iou = torch.maximum(best_iou, chunk_iou)
        if min_best_iou is not None:
            best_of_object = iou.amax(2, keepdim=True)
            shared = (iou == best_of_object) & (best_of_object >= min_best_iou)
            index = torch.arange(first, first + some.shape[1], device=boxes.device)[:, None]
            chunk_last = torch.where(shared, index, -1).amax(1)
            last_sharing = chunk_last if last_sharing is None else torch.maximum(last_sharing, chunk_last)
        first += some.shape[1]
    assert best_iou is not None  # there is one object at least
    assert best_object is not None
    return best_iou, best_object, last_sharing


# -------------------------------------------------------------------------------------------------------------- ATSS


@dataclass(frozen=True)
class AtssAssignment:
    """Which anchors are positive, and once more as a list of few candidates that holds every positive anchor once.

    Attributes:
        assigned: (B, M).
        rows: (N,) rows of the candidates among the B * M anchors of the batch.
        objects: (N, 4) xyxy pixels of the object that each is a candidate of.
        chosen: bool (N,): the anchor is assigned to this object.
    """

    assigned: Tensor
    rows: Tensor
    objects: Tensor
    chosen: Tensor


@torch.no_grad()
def assign_atss(
    grid: AnchorGrid,
    shapes: Sequence[Size],
    pad_sizes: Sequence[Size],
    objects: PaddedObjects,
    top_k: int = 9,
) -> AtssAssignment:
    """Adaptive training sample selection, section 3.2 of arXiv 1912.02424.

    The candidates of an object are the closest anchors of each level; those whose IoU is at least the mean plus the
    standard deviation of the candidates' IoUs are positive.

    Args:
        grid: one anchor per cell.
        shapes: (H, W) of each level.
        pad_sizes: padded size (h, w) of each image: anchors of cells that start beyond it take no part.
        objects: of the batch.
        top_k: candidates per level and object.
    """
    anchors = grid.boxes(shapes, objects.boxes)
    rows, numbers, boxes, ious, positives = [], [], [], [], []
    for images, own in _of_equal_size(objects, pad_sizes):
        cells = grid.valid_cells(shapes, pad_sizes[images[0]])
        index = _closest(anchors, shapes, cells, own, top_k)  # (candidates, images, G)
        candidates = anchors[index]
        iou = paired_iou(candidates, own)
        threshold = iou.mean(0) + iou.std(0)
        centres = (candidates[..., :2] + candidates[..., 2:]) / 2
        margins = torch.cat([centres - own[..., :2], own[..., 2:] - centres], -1).amin(-1)
        positives.append(((iou >= threshold) & (margins > 0.01)).flatten())
        ious.append(iou.flatten())
        starts = host_values([[len(anchors) * image] for image in images], index)
        rows.append((index + starts).flatten())
        numbers.append(torch.arange(own.shape[1], device=index.device).expand_as(index).flatten())
        boxes.append(own.expand(len(index), -1, -1, -1).flatten(0, 2))
    return _resolve(
        torch.cat(rows), torch.cat(numbers), torch.cat(boxes), torch.cat(ious), torch.cat(positives), objects, anchors
    )


def _of_equal_size(objects: PaddedObjects, pad_sizes: Sequence[Size]) -> Iterator[tuple[list[int], Tensor]]:
    """The images with the same valid anchors, and their objects' boxes; on a CPU image by image."""
    if _one_by_one(objects.boxes.device):
        for i, (_, own) in enumerate(objects.parts()):
            yield [i], own
        return
    for size in dict.fromkeys(pad_sizes):
        images = [i for i, other in enumerate(pad_sizes) if other == size]
        alike = len(images) == len(pad_sizes)
        yield images, objects.boxes if alike else torch.stack([objects.boxes[i] for i in images])


def _closest(anchors: Tensor, shapes: Sequence[Size], cells: Sequence[Size], objects: Tensor, top_k: int) -> Tensor:
    """Rows (candidates, B, G) of the `top_k` anchors of each level with the closest centres.

    Args:
        anchors: (M, 4) of all levels.
        shapes: (H, W) of each level.
        cells: (rows, columns) of each level that take part.
        objects: (B, G, 4) xyxy pixels.
        top_k: anchors per level and object.
    """
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    levels = zip(torch.split(centres, [height * width for height, width in shapes]), shapes, cells, strict=True)
    inside = [part.view(*shape, 2)[:rows, :columns].flatten(0, 1) for part, shape, (rows, columns) in levels]
    counts = [len(part) for part in inside]
    x, y = torch.cat(inside).t().contiguous()
    object_centres = ((objects[..., :2] + objects[..., 2:]) / 2).unsqueeze(-1)  # (B, G, 2, 1)
    parts = []
    for some in torch.split(object_centres, _objects_at_once(len(objects), len(x), x.device), 1):
        distances = (x - some[:, :, 0]).square_().add_((y - some[:, :, 1]).square_()).sqrt_()  # (B, some of G, cells)
        of_levels, start = [], 0
        for part, (height, width), (_, columns) in zip(torch.split(distances, counts, -1), shapes, cells, strict=True):
            if part.shape[-1]:
                index = part.topk(min(top_k, part.shape[-1]), largest=False)[1]
                of_levels.append((index // columns * width + index % columns if columns != width else index) + start)
            start += height * width
        parts.append(torch.cat(of_levels, -1))
    return torch.cat(parts, 1).permute(2, 0, 1).contiguous()


def _resolve(
    rows: Tensor,
    numbers: Tensor,
    boxes: Tensor,
    ious: Tensor,
    positive: Tensor,
    objects: PaddedObjects,
    anchors: Tensor,
) -> AtssAssignment:
    """Assigns an anchor to the object with the highest IoU among those it is a positive candidate of, or the first."""
    total = len(objects.counts) * len(anchors)
    ious = torch.where(positive, ious, -torch.inf)
    best_iou = anchors.new_full((total,), -torch.inf).scatter_reduce(0, rows, ious, "amax")
    is_best = positive & (ious == best_iou[rows])
    no_object = objects.boxes.shape[1]
    best_object = rows.new_full((total,), no_object).scatter_reduce(
        0, rows, torch.where(is_best, numbers, no_object), "amin"
    )
    chosen = is_best & (best_object[rows] == numbers)
    assigned = torch.where(best_object < no_object, best_object, BACKGROUND)
    return AtssAssignment(assigned.view(len(objects.counts), -1), rows, boxes, chosen)


# ---------------------------------------------------------------------------------------------------------- sampling


@torch.no_grad()
def sample_balanced(
    assigned: Tensor, *, count: int, positive_fraction: float, random: RandomSource
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Samples a subset of every image with at most the given share of positives.

    Args:
        assigned: (B, A).
        count: size of the subset.
        positive_fraction: maximum share of positives.
        random: random numbers: on a CPU for one image after the other, first for the positives and then for the
            negatives, where there are more than needed; else one permutation of all boxes, which needs no numbers of
            candidates and so does not wait for the device.

    Returns:
        Indices (B, P) of boxes and whether each is a sampled positive, bool (B, P); indices (B, N) and whether each is
        a sampled negative, likewise. Sampled ones come first.
    """
    most = int(count * positive_fraction)
    if _one_by_one(assigned.device):
        chosen: tuple[list[Tensor], list[Tensor]] = [], []
        for of_image in assigned:
            chosen[0].append(_draw((of_image >= 0).nonzero()[:, 0], most, random))
            chosen[1].append(_draw((of_image == BACKGROUND).nonzero()[:, 0], count - len(chosen[0][-1]), random))
        return *_padded(chosen[0], min(most, assigned.shape[1])), *_padded(chosen[1], min(count, assigned.shape[1]))
    order = random.permutation(assigned.numel(), assigned).view(assigned.shape)
    positives, is_positive = _choose(order, assigned >= 0, most)
    negatives, is_negative = _choose(order, assigned == BACKGROUND, count)
    wanted = count - is_positive.sum(1, keepdim=True)
    places = torch.arange(negatives.shape[1], device=wanted.device)
    return positives, is_positive, negatives, is_negative & (places < wanted)


def _draw(candidates: Tensor, count: int, random: RandomSource) -> Tensor:
    """At most `count` of the candidates (N,), ascending."""
    if len(candidates) <= count:
        return candidates
    return candidates[random.permutation(len(candidates), candidates)[:count]].sort()[0]


def _padded(chosen: Sequence[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Indices of each image as rows of one tensor (B, length), and which of its entries are some."""
    index = chosen[0].new_zeros(len(chosen), length)
    is_chosen = torch.zeros_like(index, dtype=torch.bool)
    for row, flags, of_image in zip(index, is_chosen, chosen, strict=True):
        row[: len(of_image)] = of_image
        flags[: len(of_image)] = True
    return index, is_chosen


def _choose(order: Tensor, candidates: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The candidates (B, A) that come first in a random order (B, A), and which of the indices are candidates."""
    none = order.numel()
    places, index = torch.where(candidates, order, none).topk(min(count, order.shape[1]), largest=False)
    return index, places < none
