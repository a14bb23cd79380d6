"""Float32 gives the detections of float64: recorded synthetic weights of the R50, real images, before soft-NMS.

The network ranks its tokens and gives the learned content of row k to the token of rank k. Among 900 ranks some scores
always lie closer together than float32 can tell; two such tokens may change places, and then two queries start with
each other's content. That is no error of a computation, so the comparison has two parts: the ranking differs at
near-ties only, and with float64's ranking given to both, labels are identical, detection by detection, and boxes within
a hundredth of a pixel. Detections are ranked too: boxes are compared query by query and class by class.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from codetr_cli.data.batch import collate, normalize
from codetr_cli.data.sample import Sample
from codetr_cli.data.transforms import ResizeParams, ResizeShortLong
from codetr_cli.images.decoder import read_image
from codetr_cli.models.codetr import CoDETR
from codetr_cli.models.postprocess import Detections
from codetr_cli.models.proposals import Proposals, propose_boxes
from tests.golden.case import Case
from tests.golden.network_inputs import build_case_model, settings_of
from tests.postprocessing import post_process

CASE = Path(__file__).resolve().parents[1] / "golden" / "cases" / "co_dino_r50_sensex_eval"
PLAIN = post_process(max_detections=300, nms="none")

Inputs = tuple[Tensor, Tensor, list[dict[str, Any]]]


@dataclass(frozen=True)
class Difference:
    """Largest differences between the precisions.

    Attributes:
        token_score: of the class logit that tokens are ranked by.
        swapped_tokens: ranks that hold another token.
        confused_tokens: float64's score difference of the two tokens at such a rank.
        score: of detections, given the same ranking of tokens; so for the rest.
        swapped_detections: ranks that hold another query or class.
        confused_detections: float64's score difference of the two detections at such a rank.
        same_labels: whether all labels are identical in order.
        box_px: of detections of one query and class, in pixels of the original image.
    """

    token_score: float
    swapped_tokens: int
    confused_tokens: float
    score: float
    swapped_detections: int
    confused_detections: float
    same_labels: bool
    box_px: float


@pytest.fixture(scope="module")
def models() -> tuple[CoDETR, CoDETR]:
    """The same network in float64 and float32."""
    case = Case.load(CASE)
    precise = build_case_model(case, settings_of(case, case.shapes).model).eval()
    return precise, copy.deepcopy(precise).float()


def load(paths: Sequence[Path], short_side: int, long_side: int) -> Inputs:
    """Normalised images in float32, padding mask and targets, as evaluation prepares them."""
    resize = ResizeShortLong(short_sides=(short_side,), long_side=long_side)
    samples = []
    for index, path in enumerate(paths):
        original = read_image(path)
        sample = resize.apply(Sample.from_image(original), ResizeParams(0))
        samples.append((sample.image, sample.to_target(image_id=index, orig_size=original.shape[:2], pad_divisor=1)))
    batch = collate(samples)
    images = normalize(batch.images, batch.padding_mask, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    return images, batch.padding_mask, batch.targets


class Tokens:
    """Every token of a batch: its score, its box, its rank."""

    def __init__(self, model: CoDETR, images: Tensor, mask: Tensor) -> None:
        self.model, self.encoded = model, model.encode(images, mask)
        candidates = propose_boxes(self.encoded.layout)
        projected = model.proposals.project(self.encoded.memory, candidates)
        self.boxes = (model.box_heads[-1](projected) + candidates).sigmoid()
        self.scores = model.class_heads[-1](projected).max(-1)[0]
        self.ranking = model.select_queries(self.encoded).indices

    def decode(self, ranking: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, Q, K) and boxes (B, Q, 4) when the tokens have the given ranking."""
        boxes = self.boxes.gather(1, ranking[..., None].expand(-1, -1, 4))
        queries = self.model.matching_queries(Proposals(ranking, self.scores, boxes))
        logits, boxes = self.model.predict_layers(self.model.decode(queries, self.encoded))
        return logits[-1], boxes[-1]


def swaps(scores: Tensor, ranking: Tensor, other: Tensor) -> tuple[int, float]:
    """How many ranks hold another item, and the largest score difference between the two items of a rank."""
    return int((ranking != other).sum()), float((scores[ranking] - scores[other]).abs().max())


@torch.no_grad()
def compare(models: tuple[CoDETR, CoDETR], inputs: Inputs) -> list[Difference]:
    """Measures for each image how far float32 is from float64."""
    images, mask, metas = inputs
    precise, single = Tokens(models[0], images.double(), mask), Tokens(models[1], images, mask)
    outputs = precise.decode(precise.ranking), single.decode(precise.ranking)
    found = [PLAIN(*outputs[0], metas), PLAIN(*outputs[1], metas)]
    differences = []
    for i in range(len(images)):
        inside = ~precise.encoded.layout.padding_mask[i]
        scores = outputs[0][0][i].sigmoid().flatten()
        # A number for each query and class, in the order of the detections.
        pairs = [logits[i].sigmoid().flatten().topk(PLAIN.max_detections)[1] for logits, _ in outputs]
        token_swaps = swaps(precise.scores[i], precise.ranking[i], single.ranking[i])
        detection_swaps = swaps(scores, *pairs)
        differences.append(
            Difference(
                token_score=float((precise.scores - single.scores)[i, inside].abs().max()),
                swapped_tokens=token_swaps[0],
                confused_tokens=token_swaps[1],
                score=float((found[0][i].scores - found[1][i].scores).abs().max()),
                swapped_detections=detection_swaps[0],
                confused_detections=detection_swaps[1],
                same_labels=torch.equal(found[0][i].labels, found[1][i].labels),
                box_px=box_difference(found[0][i], found[1][i], *pairs),
            )
        )
    return differences


def box_difference(wanted: Detections, ours: Detections, pairs: Tensor, our_pairs: Tensor) -> float:
    """The largest difference of a coordinate over the detections of the same query and class."""
    rank = {int(pair): i for i, pair in enumerate(our_pairs)}
    both = [(i, rank[int(pair)]) for i, pair in enumerate(pairs) if int(pair) in rank]
    theirs, mine = torch.tensor(both).unbind(-1)
    return float((wanted.boxes[theirs] - ours.boxes[mine]).abs().max())


def check(difference: Difference) -> None:
    assert difference.token_score < 1e-4
    assert difference.confused_tokens <= 2 * difference.token_score, "float32 does tell these tokens apart"
    assert difference.score < 2e-6
    assert difference.confused_detections <= 2 * difference.score, "float32 does tell these detections apart"
    assert difference.same_labels or difference.swapped_detections, "labels may differ at such near-ties only"
    assert difference.box_px < 0.01


def coco_images(shared_dir: Path, count: int) -> list[Path]:
    paths = sorted((shared_dir / "data" / "coco_mini" / "val2017").glob("*.jpg"))[:count]
    if len(paths) < count:
        pytest.skip(f"no images below {shared_dir / 'data'}")
    return paths


@pytest.mark.parity
def test_float32_detections_equal_float64_ones(models: tuple[CoDETR, CoDETR], shared_dir: Path) -> None:
    for difference in compare(models, load(coco_images(shared_dir, 1), 160, 267)):
        check(difference)


@pytest.mark.parity
@pytest.mark.slow
def test_float32_detections_equal_float64_ones_at_full_size(models: tuple[CoDETR, CoDETR], shared_dir: Path) -> None:
    for difference in compare(models, load(coco_images(shared_dir, 1), 800, 1333)):
        check(difference)
