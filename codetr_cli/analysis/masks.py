"""How good masks are beside their boxes: AP of both, and IoU of the masks of objects whose boxes were found.

Shape letters: H hits, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from codetr_cli.analysis.classes import known
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.matches import Matches
from codetr_cli.analysis.pairs import object_codes
from codetr_cli.evaluation.scoring import MASK_PREFIX, Scores

BINS = 20
MAX_HITS = 20_000
"""Hits whose masks are compared: beyond that, those of a random sample of this size."""
WORST = 12


@dataclass(frozen=True)
class ClassMasks:
    """Boxes and masks of one class.

    Attributes:
        name: of the class.
        category_id: original id.
        box_ap: over IoU 0.50:0.95; None without an object to find.
        mask_ap: as `box_ap`.
        hits: detections whose masks were compared.
        median_iou: of their masks; None without hits.
    """

    name: str
    category_id: int
    box_ap: float | None
    mask_ap: float | None
    hits: int
    median_iou: float | None


@dataclass(frozen=True)
class MaskHit:
    """A box that is a hit whose mask is not.

    Attributes:
        image: number of the evaluated image.
        object_row: in the annotations.
        detection_row: in the detections.
        box_iou: of the boxes.
        mask_iou: of the masks.
    """

    image: int
    object_row: int
    detection_row: int
    box_iou: float
    mask_iou: float


@dataclass(frozen=True, eq=False)
class Masks:
    """Masks of the detections beside their boxes.

    Attributes:
        metrics: of masks, under the names of `Scores` without the prefix.
        box_metrics: of the boxes of the same detections, under the same names.
        classes: K rows.
        iou_edges: (BINS + 1,) float64 of the bins of IoU, from 0 to 1.
        iou_counts: (BINS,) int64 hits by the IoU of their masks.
        median_iou: of the masks of all hits; None without hits.
        hits: number of hits that were compared.
        of_hits: number of all hits at a box IoU of 0.50.
        worst: boxes that are hits, with the lowest mask IoU.
    """

    metrics: dict[str, float | None]
    box_metrics: dict[str, float | None]
    classes: list[ClassMasks]
    iou_edges: NDArray[np.float64]
    iou_counts: NDArray[np.int64]
    median_iou: float | None
    hits: int
    of_hits: int
    worst: list[MaskHit]


def masks_beside_boxes(inputs: AnalysisInputs, scores: Scores, matches: Matches, threshold: float) -> Masks | None:
    """The comparison; None unless masks were scored.

    Args:
        inputs: with masks and outlines.
        scores: of the same detections.
        matches: of boxes.
        threshold: score from which hits are compared.

    Raises:
        DatasetError: an object's outline is broken.
    """
    if f"{MASK_PREFIX}AP" not in scores.metrics or inputs.detections.masks is None:
        return None
    hits = np.flatnonzero(matches.hits() & (matches.scores >= threshold))
    chosen = hits
    if len(hits) > MAX_HITS:
        chosen = np.sort(np.random.default_rng(0).choice(hits, MAX_HITS, replace=False))
    objects = matches.object_rows[matches.objects[0][chosen]]
    iou = _mask_iou(inputs, matches.rows[chosen], objects)
    edges = np.linspace(0, 1, BINS + 1)
    names = [name for name in scores.metrics if f"{MASK_PREFIX}{name}" in scores.metrics]
    return Masks(
        metrics={name: known(scores.metrics[f"{MASK_PREFIX}{name}"]) for name in names},
        box_metrics={name: known(scores.metrics[name]) for name in names},
        classes=_by_class(scores, matches.labels[chosen], iou),
        iou_edges=edges,
        iou_counts=np.histogram(iou, edges)[0].astype(np.int64),
        median_iou=float(np.median(iou)) if len(iou) else None,
        hits=len(iou),
        of_hits=len(hits),
        worst=_worst(inputs, matches, chosen, objects, iou),
    )


def _mask_iou(inputs: AnalysisInputs, rows: NDArray[np.int64], objects: NDArray[np.int64]) -> NDArray[np.float64]:
    """(H,) IoU of the mask of each detection with the outline of its object."""
    masks = inputs.detections.masks
    assert masks is not None
    iou = np.zeros(len(rows))
    for number, (row, code) in enumerate(zip(rows.tolist(), object_codes(inputs, objects), strict=True)):
        iou[number] = mask_utils.iou([masks[row]], [code], [False])[0, 0]
    return iou


def _by_class(scores: Scores, labels: NDArray[np.int64], iou: NDArray[np.float64]) -> list[ClassMasks]:
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(len(scores.per_class) + 1)).tolist()
    rows = []
    for label, score in enumerate(scores.per_class):
        own = iou[order[bounds[label] : bounds[label + 1]]]
        median = float(np.median(own)) if len(own) else None
        rows.append(ClassMasks(score.name, score.category_id, known(score.AP), known(score.mask_AP), len(own), median))
    return rows


def _worst(
    inputs: AnalysisInputs,
    matches: Matches,
    hits: NDArray[np.int64],
    objects: NDArray[np.int64],
    iou: NDArray[np.float64],
) -> list[MaskHit]:
    """The hits with the lowest mask IoU, under 0.5."""
    order = np.argsort(iou, kind="stable")[:WORST]
    order = order[iou[order] < 0.5]
    found = []
    for place in order.tolist():
        row, object_row = int(matches.rows[hits[place]]), int(objects[place])
        box = inputs.detections.boxes_xywh[[row]]
        box_iou = float(mask_utils.iou(box, inputs.ground_truth.boxes_xywh[[object_row]], [False])[0, 0])
        found.append(MaskHit(int(matches.images[hits[place]]), object_row, row, box_iou, float(iou[place])))
    return found
