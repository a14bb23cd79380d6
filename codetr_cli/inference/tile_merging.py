"""Merges the detections of the views of one image, tiles and the whole image, so that every object is found once.

A detection that touches an inner border of its tile is a fragment, until another view shows otherwise. The image's own
edges are no borders, and the whole image has none. In this order, always within one class and between different views:

1. A fragment is dropped where another view has its object whole, or more of it: the part of that box inside the
   fragment's tile has an IoU of 0.5 with the fragment and reaches the same borders. A small object inside a large one
   has not, so neither swallows the other. The better box takes the higher score of the two: a confident fragment never
   beats its object, and the object is not lost with a low score of its own.
2. Fragments of one object that no view has whole are stitched: those of neighbouring tiles that continue into one
   another and agree where the tiles overlap, or, without overlap, along the border. The box is the one around all of
   them, the score the best one, and the mask the union. What nothing continues stays as it is.
3. A thin fragment, whose box says little of the object's width, is dropped if it is inside an object that crosses the
   same borders and no others, and as deep in the tile.
4. Of the same object in several views, an IoU of 0.5, one is kept: a whole one before a fragment, then the best score.
   Each takes at most one of every view, its best match: neighbours in a crowd stay apart.
5. NMS as in the settings, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from codetr_cli.images.image_header import Size
from codetr_cli.images.tile_grid import Tile
from codetr_cli.inference.rle import StitchedDetections
from codetr_cli.inference.tta import join
from codetr_cli.models.postprocess import Detections, PostProcess
from codetr_cli.ops.nms import batched_nms, batched_soft_nms

EDGE_PX = 2.0
EDGE_SHARE = 0.01
"""A box touches a border that is nearer than `EDGE_PX` pixels plus this share of its side."""
SAME_IOU = 0.5
"""Of boxes that may be of one object."""
CONTAINED = 0.9
"""Share of a fragment that a larger fragment of the same object has."""
INSIDE = 0.8
"""Share of a thin fragment that is inside of its object."""
CUT_PX = 0.5
"""Pixels within which the sides of two fragments are one, where the larger one is cut."""
THIN_SHARE = 0.25
"""Of an object's side: what a view shows of it is thin up to here. The box of what is left of a disc there, or of any
convex shape that narrows to a point, need not have an IoU of 0.5 with the part of the object's box."""
THIN_PX = 1.0
"""A thin fragment touches a border that is nearer than this."""
LARGER = 1.02
"""Factor of its area by which a fragment has more of an object than another."""
EXPLAINING_SHARE = 0.1
"""Share of a fragment's score that a whole object needs: the many weak boxes of a network explain nothing."""
STITCHED_SHARE = 0.25
"""The same for fragments that are stitched."""
OUTWARD = np.array([-1.0, -1.0, 1.0, 1.0])
"""Direction of each side of a box."""
PAIRS_AT_ONCE = 1 << 21
COLUMNS = ("boxes", "scores", "labels", "views", "frames", "cut")
"""Of `_Rows`, as arrays."""

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Frame:
    """What a view shows of an image.

    Attributes:
        corners: (left, top, right, bottom) in pixels of the image.
        inner: of each side, whether the image continues beyond it.
    """

    corners: tuple[int, int, int, int]
    inner: tuple[bool, bool, bool, bool]

    @classmethod
    def of_tile(cls, tile: Tile, size: Size) -> Frame:
        """The frame of a tile in an image of this (height, width)."""
        right, bottom = tile.left + tile.width, tile.top + tile.height
        inner = (tile.left > 0, tile.top > 0, right < size[1], bottom < size[0])
        return cls((tile.left, tile.top, right, bottom), inner)

    @classmethod
    def of_image(cls, size: Size) -> Frame:
        """The frame of the whole image."""
        return cls((0, 0, size[1], size[0]), (False, False, False, False))


def merge_views(found: Sequence[Detections], frames: Sequence[Frame], postprocess: PostProcess) -> Detections:
    """The detections of one image, best score first.

    Args:
        found: of each view, before NMS, in pixels of the image and in host memory; at least one view.
        frames: of each view.
        postprocess: its NMS and its number of detections.
    """
    union = join(found)
    if not len(union):
        return union
    rows = _Rows.of(union, np.repeat(np.arange(len(found)), [len(each) for each in found]), frames)
    rows = _without_fragments(rows)
    rows = _stitched(rows)
    rows = _without_fragments(rows)
    rows = _without_fragments(rows, thin=True)
    return _suppressed(_without_repeats(rows), union, postprocess)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Objects so far: N rows, each of one detection or of the fragments that it is stitched from.

    Attributes:
        boxes: (N, 4) xyxy in pixels of the image.
        scores: (N,).
        labels: (N,).
        views: (N,) numbers of the views; stitched rows have numbers of their own.
        frames: (N, 4) corners of the views, of stitched rows around all of them.
        cut: (N, 4) whether a box touches an inner border of its view at its left, top, right and bottom.
        members: of each row, its detections, best first, and their views.
    """

    boxes: Floats
    scores: Floats
    labels: Indices
    views: Indices
    frames: Floats
    cut: NDArray[np.bool_]
    members: list[list[tuple[int, int]]]

    @classmethod
    def of(cls, union: Detections, views: Indices, frames: Sequence[Frame]) -> _Rows:
        """Rows of one detection each."""
        boxes = union.boxes.numpy().astype(np.float64)
        corners = np.array([frame.corners for frame in frames], np.float64)[views]
        inner = np.array([frame.inner for frame in frames], bool)[views]
        return cls(
            boxes=boxes,
            scores=union.scores.numpy().astype(np.float64),
            labels=union.labels.numpy(),
            views=views,
            frames=corners,
            cut=inner & (_beyond(boxes, corners) >= -_tolerance(boxes)),
            members=[[(row, view)] for row, view in enumerate(views.tolist())],
        )

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, keep: NDArray[np.bool_]) -> _Rows:
        """The rows where `keep` (N,) is true."""
        members = [self.members[row] for row in np.flatnonzero(keep).tolist()]
        return _Rows(**{name: getattr(self, name)[keep] for name in COLUMNS}, members=members)

    def pairs(self) -> tuple[Indices, Indices]:
        """Rows of one class and of different views whose boxes overlap or nearly touch; each pair once."""
        first, second = near_pairs(self.boxes, self.labels, _tolerance(self.boxes).max(1))
        apart = self.views[first] != self.views[second]
        return first[apart], second[apart]


def near_pairs(boxes: Floats, labels: Indices, margins: Floats) -> tuple[Indices, Indices]:
    """The pairs of boxes of one label that overlap when each is grown by its margin, each pair once.

    Args:
        boxes: (N, 4) xyxy.
        labels: (N,), not negative.
        margins: (N,) in pixels.

    Returns:
        (P,) and (P,) rows of the pairs.
    """
    grown = boxes + margins[:, None] * OUTWARD
    # Along one line, class after class, from left to right: those that overlap there follow one another.
    line = labels * (grown[:, 2].max() - grown[:, 0].min() + 1)
    order = np.lexsort((grown[:, 0], labels))
    starts, ends = (grown[:, 0] + line)[order], (grown[:, 2] + line)[order]
    counts = np.searchsorted(starts, ends, side="right") - np.arange(len(order)) - 1
    found = []
    chunks = np.searchsorted(np.cumsum(counts), np.arange(0, max(counts.sum(), 1), PAIRS_AT_ONCE), side="right")
    for low, high in zip(chunks.tolist(), [*chunks[1:].tolist(), len(order)], strict=True):
        rows = np.arange(low, high)
        first = np.repeat(rows, counts[low:high])
        within = np.arange(len(first)) - np.repeat(np.cumsum(counts[low:high]) - counts[low:high], counts[low:high])
        a, b = order[first], order[first + 1 + within]
        meet = (grown[a, 1] <= grown[b, 3]) & (grown[b, 1] <= grown[a, 3])
        found.append((a[meet], b[meet]))
    return np.concatenate([a for a, _ in found]), np.concatenate([b for _, b in found])


def _without_fragments(rows: _Rows, *, thin: bool = False) -> _Rows:
    """Drops fragments of objects that other views have whole, or more of; thin ones by the rule for them."""
    first, second = rows.pairs()
    part, whole = np.concatenate([first, second]), np.concatenate([second, first])
    is_part = rows.cut[part].any(1) & (rows.scores[whole] >= EXPLAINING_SHARE * rows.scores[part])
    part, whole = part[is_part], whole[is_part]
    similarity = _iou(_common(rows.boxes[whole], rows.frames[part]), rows.boxes[part])
    explained = _has_more(rows, whole, part)
    explained &= _is_thin_part(rows, part, whole) if thin else similarity >= SAME_IOU
    part, whole, similarity = part[explained], whole[explained], similarity[explained]
    cut = rows.cut.copy()
    if not thin:  # where only the larger one is cut, the fragment shows the object's own side
        np.logical_and.at(cut, whole, rows.cut[part])
    best = np.lexsort((-similarity * rows.scores[whole], part))
    part, chosen = np.unique(part[best], return_index=True)
    whole = whole[best][chosen]
    scores, keep = rows.scores.copy(), np.ones(len(rows), bool)
    keep[part] = False
    if not thin:
        # From small to large: a fragment that has more of an object may be dropped itself.
        for row in np.argsort(_area(rows.boxes[part]), kind="stable").tolist():
            scores[whole[row]] = max(scores[whole[row]], scores[part[row]])
    return replace(rows, scores=scores, cut=cut).select(keep)


def _has_more(rows: _Rows, whole: Indices, part: Indices) -> NDArray[np.bool_]:
    """Whether boxes may have all of an object, or more of it, of which fragments are a part: they reach its borders."""
    boxes, larger, cut = rows.boxes[part], rows.boxes[whole], rows.cut[part]
    seen = _common(larger, rows.frames[part])
    reaches = (~cut | (_beyond(seen, rows.frames[part]) >= -2 * _tolerance(boxes))).all(1)
    contains = _area(_common(larger, boxes)) >= CONTAINED * _area(boxes)
    # Where only the larger fragment is cut, its object continues and the other's ends.
    apart = _beyond(boxes, larger)
    agrees = (~rows.cut[whole] | ((apart <= CUT_PX) & (cut | (apart >= -CUT_PX)))).all(1)
    is_larger = contains & agrees & (_area(larger) > LARGER * _area(boxes))
    fits: NDArray[np.bool_] = reaches & (is_larger | ~rows.cut[whole].any(1))
    return fits


def _is_thin_part(rows: _Rows, part: Indices, whole: Indices) -> NDArray[np.bool_]:
    """Whether fragments may be the thin ends of whole objects."""
    boxes, larger, frames, cut = rows.boxes[part], rows.boxes[whole], rows.frames[part], rows.cut[part]
    crosses = ((_beyond(larger, frames) > _tolerance(boxes)) == cut).all(1)
    crosses &= (~cut | (_beyond(boxes, frames) >= -THIN_PX)).all(1)
    seen, noise = _common(larger, frames), _tolerance(larger)
    grown = larger + noise * OUTWARD
    inside = _area(_common(grown, boxes)) >= INSIDE * _area(boxes)
    # Each column is an axis, x and y.
    is_cut, depth = cut[:, :2] | cut[:, 2:], _sides(seen)
    is_thin = depth <= np.maximum(THIN_SHARE * _sides(larger), noise[:, 2:])
    as_deep = (_iou_along_axes(seen, boxes) >= SAME_IOU) | (np.abs(depth - _sides(boxes)) <= noise[:, 2:])
    fits: NDArray[np.bool_] = crosses & inside & (as_deep | ~is_cut).all(1) & (is_thin & is_cut).any(1)
    return fits


def _stitched(rows: _Rows) -> _Rows:
    """Replaces fragments of one object in neighbouring tiles by one row."""
    first, second = rows.pairs()
    agreement = np.zeros(len(first))
    for axis in (0, 1):
        swapped = rows.frames[first, axis] > rows.frames[second, axis]
        before, after = np.where(swapped, second, first), np.where(swapped, first, second)
        agreement = np.maximum(agreement, _continuation(rows, before, after, axis))
    low, high = np.sort(rows.scores[np.stack([first, second])], axis=0)
    matched = (agreement >= SAME_IOU) & (low >= STITCHED_SHARE * high)
    groups = _grouped(rows, first[matched], second[matched], (agreement * low)[matched])
    keep = np.ones(len(rows), bool)
    keep[[row for group in groups for row in group]] = False
    return _joined([rows.select(keep), *(_stitch(rows, group, -1 - number) for number, group in enumerate(groups))])


def _continuation(rows: _Rows, before: Indices, after: Indices, axis: int) -> Floats:
    """How well fragments agree with fragments of the next tile of their row (axis 0) or column (axis 1), in [0, 1]."""
    other = 1 - axis
    a, b, frame_a, frame_b = rows.boxes[before], rows.boxes[after], rows.frames[before], rows.frames[after]
    in_line = (frame_a[:, [other, other + 2]] == frame_b[:, [other, other + 2]]).all(1)
    follows = (frame_a[:, axis] < frame_b[:, axis]) & (frame_a[:, axis + 2] >= frame_b[:, axis])
    continues = in_line & follows & rows.cut[before, axis + 2] & rows.cut[after, axis]
    shared = _common(frame_a, frame_b)
    agreement = _iou(_common(a, shared), _common(b, shared))
    tolerance = np.maximum(_tolerance(a)[:, axis], _tolerance(b)[:, axis])
    # Too narrow for areas: the extents along the border decide.
    is_narrow = shared[:, axis + 2] - shared[:, axis] <= 2 * tolerance
    agreement = np.where(is_narrow, _iou_along_axes(a, b)[:, other], agreement)
    return np.where(continues, agreement, 0.0)


def _stitch(rows: _Rows, group: list[int], view: int) -> _Rows:
    """One row of several fragments."""
    boxes = rows.boxes[group]
    around = _around(boxes)
    is_inside = np.abs(boxes - around) > _tolerance(boxes)
    members = sorted((pair for row in group for pair in rows.members[row]), key=lambda pair: pair[0])
    best = group[int(rows.scores[group].argmax())]
    members.sort(key=lambda pair: pair not in rows.members[best])
    return _Rows(
        boxes=around[None],
        scores=rows.scores[group].max(keepdims=True),
        labels=rows.labels[group[:1]],
        views=np.array([view]),
        frames=_around(rows.frames[group])[None],
        cut=(is_inside | rows.cut[group]).min(0, keepdims=True),  # where no fragment shows the object's own side
        members=[members],
    )


def _joined(parts: Sequence[_Rows]) -> _Rows:
    columns = {name: np.concatenate([getattr(rows, name) for rows in parts]) for name in COLUMNS}
    return _Rows(**columns, members=[member for rows in parts for member in rows.members])


def _without_repeats(rows: _Rows) -> _Rows:
    """Keeps one row of each object that several views have."""
    first, second = rows.pairs()
    iou = _iou(rows.boxes[first], rows.boxes[second])
    same = iou >= SAME_IOU
    first, second = first[same], second[same]
    scores = rows.scores.copy()
    groups = _grouped(rows, first, second, iou[same] * np.sqrt(scores[first] * scores[second]))
    keep = np.ones(len(rows), bool)
    is_cut, areas = rows.cut.max(1).tolist(), _area(rows.frames).tolist()
    for group in groups:
        best = min(group, key=lambda row: (is_cut[row], -rows.scores[row], areas[row], row))
        scores[best] = rows.scores[group].max()
        keep[group] = False
        keep[best] = True
    return replace(rows, scores=scores).select(keep)


def _grouped(rows: _Rows, first: Indices, second: Indices, weights: Floats) -> list[list[int]]:
    """Groups of two rows or more: pairs are joined, heaviest first, unless a group would have two rows of one view."""
    group_of = {row: [row] for row in np.unique(np.concatenate([first, second])).tolist()}
    views_of = {row: {view for _, view in rows.members[row]} for row in group_of}
    order = np.argsort(-weights, kind="stable")
    for a, b in zip(first[order].tolist(), second[order].tolist(), strict=True):
        one, other = group_of[a], group_of[b]
        if one is other or not views_of[one[0]].isdisjoint(views_of[other[0]]):
            continue
        views_of[one[0]] |= views_of[other[0]]
        one.extend(other)
        for row in other:
            group_of[row] = one
    return [group for group in {id(each): each for each in group_of.values()}.values() if len(group) > 1]


def _suppressed(rows: _Rows, union: Detections, postprocess: PostProcess) -> Detections:
    """The detections of rows after NMS."""
    # In float64: in a large image the shift between classes would cost float32 the pixels of small boxes.
    boxes, scores, labels = map(torch.from_numpy, (rows.boxes, rows.scores, rows.labels))
    if postprocess.nms == "soft":
        keep, scores = batched_soft_nms(
            boxes,
            scores,
            labels,
            iou_threshold=postprocess.nms_iou,
            min_score=postprocess.nms_min_score,
            max_detections=postprocess.max_detections,
        )
    else:
        if postprocess.nms == "hard":
            keep = batched_nms(boxes, scores, labels, postprocess.nms_iou)
        else:
            keep = scores.argsort(descending=True, stable=True)
        keep = keep[: postprocess.max_detections]
        scores = scores[keep]
    members = [[index for index, _ in rows.members[row]] for row in keep.tolist()]
    kept = union[torch.tensor([own[0] for own in members], dtype=torch.int64)]
    scores = scores.to(kept.scores.dtype)
    mask_scores = kept.mask_scores
    if mask_scores is not None:
        factor = scores / kept.scores.clamp(min=torch.finfo(scores.dtype).tiny)
        mask_scores = (mask_scores * factor).clamp(max=1)
    boxes = boxes[keep].to(kept.boxes.dtype)
    fragments = {row: union[torch.tensor(own)] for row, own in enumerate(members) if len(own) > 1}
    if kept.masks is None or not fragments:
        return replace(kept, boxes=boxes, scores=scores, mask_scores=mask_scores)
    return StitchedDetections(boxes, scores, kept.labels, kept.masks, mask_scores, fragments)


# ------------------------------------------------------------------------------------------- boxes (N, 4), row by row


def _tolerance(boxes: Floats) -> Floats:
    """(N, 4) pixels within which each side of a box touches a border."""
    return EDGE_PX + EDGE_SHARE * np.tile(np.maximum(_sides(boxes), 0), 2)


def _beyond(boxes: Floats, frames: Floats) -> Floats:
    """(N, 4) pixels by which each side of a box is outside of a frame; negative inside."""
    return (boxes - frames) * OUTWARD


def _common(a: Floats, b: Floats) -> Floats:
    return np.concatenate([np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])], axis=1)


def _around(boxes: Floats) -> Floats:
    """(4,) the smallest box around all."""
    return np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])


def _sides(boxes: Floats) -> Floats:
    """(N, 2) width and height; negative where a box ends before it begins."""
    return boxes[:, 2:] - boxes[:, :2]


def _area(boxes: Floats) -> Floats:
    area: Floats = np.maximum(_sides(boxes), 0).prod(1)
    return area


def _iou(a: Floats, b: Floats) -> Floats:
    common = _area(_common(a, b))
    iou: Floats = common / np.maximum(_area(a) + _area(b) - common, 1e-9)
    return iou


def _iou_along_axes(a: Floats, b: Floats) -> Floats:
    """(N, 2) IoU of the extents of boxes along x and y."""
    common = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0)
    whole = np.maximum(a[:, 2:], b[:, 2:]) - np.minimum(a[:, :2], b[:, :2])
    iou: Floats = common / np.maximum(whole, 1e-9)
    return iou
