"""Float32 gives the detections of float64: recorded synthetic weights of the R50, real images, before soft-NMS.

The network ranks its tokens and gives the learned content of row k to the token of rank k. Among 900 ranks some scores
always lie closer together than float32 can tell; two such tokens may change places, and then two queries start with
each other's content. That is no error of a computation, so the comparison has two parts: the ranking differs at
near-ties only, and with the same ranking labels are identical and boxes within a hundredth of a pixel.
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
from codetr_cli.data.images import read_image
from codetr_cli.data.transforms import ResizeChoices, ResizeShortLong, Sample
from codetr_cli.models.codetr import CoDETR, Encoded
from codetr_cli.models.postprocess import PostProcess
from codetr_cli.models.proposals import propose_boxes
from tests.golden.case import Case
from tests.golden.network_inputs import build_case_model, settings_of

CASE = Path(__file__).resolve().parents[1] / "golden" / "cases" / "co_dino_r50_sensex_eval"
PLAIN = PostProcess(max_detections=300, nms="none")


@dataclass(frozen=True)
class Ranked:
    """One precision's view of a batch: encoded images, every token's score, the tokens by rank."""

    model: CoDETR
    encoded: Encoded
    scores: Tensor
    ranking: Tensor

    @staticmethod
    def of(model: CoDETR, images: Tensor, mask: Tensor) -> Ranked:
        encoded = model.encode(images, mask)
        projected = model.proposals.project(encoded.memory, propose_boxes(encoded.layout))
        scores = model.class_heads[-1](projected).max(-1)[0]
        return Ranked(model, encoded, scores, model.select_queries(encoded).indices)

    def detect(self, ranking: Tensor, metas: Sequence[dict[str, Any]]) -> Any:
        """Detections before NMS when the tokens have the given ranking."""
        model, encoded = self.model, self.encoded
        candidates = propose_boxes(encoded.layout)
        projected = model.proposals.project(encoded.memory, candidates)
        chosen = torch.arange(len(ranking))[:, None], ranking
        references = (model.box_heads[-1](projected[chosen]) + candidates[chosen]).sigmoid()
        queries = model.query_embed.weight[None].expand(len(ranking), -1, -1)
        logits, boxes = model.predict_layers(model.decode(queries, references, encoded))
        return PLAIN(logits[-1], boxes[-1], metas)


@dataclass(frozen=True)
class Difference:
    """Largest differences between the precisions.

    Attributes:
        token_score: of the class logit that tokens are ranked by.
        swapped_ranks: ranks that hold another token.
        confused_score: between the two tokens of such a rank, in float64.
        same_labels: of all detections in order, given the same ranking; so for the next two.
        box_px: in pixels of the original image.
        score: of detections.
    """

    token_score: float
    swapped_ranks: int
    confused_score: float
    same_labels: bool
    box_px: float
    score: float


@pytest.fixture(scope="module")
def models() -> tuple[CoDETR, CoDETR]:
    """The same network in float64 and float32."""
    case = Case.load(CASE)
    precise = build_case_model(case, settings_of(case, case.shapes).model).eval()
    return precise, copy.deepcopy(precise).float()


def load(paths: Sequence[Path], short_side: int, long_side: int) -> tuple[Tensor, Tensor, list[dict[str, Any]]]:
    """Normalised images in float32, padding mask and targets, as evaluation prepares them."""
    resize = ResizeShortLong(short_sides=(short_side,), long_side=long_side)
    samples = []
    for index, path in enumerate(paths):
        original = read_image(path)
        sample = resize.apply(Sample.from_image(original), ResizeChoices(0))
        samples.append((sample.image, sample.to_target(image_id=index, orig_size=original.shape[:2], pad_divisor=1)))
    batch = collate(samples)
    images = normalize(batch.images, batch.padding_mask, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    return images, batch.padding_mask, batch.targets


@torch.no_grad()
def compare(models: tuple[CoDETR, CoDETR], inputs: tuple[Tensor, Tensor, list[dict[str, Any]]]) -> Difference:
    """Measures how far float32 is from float64."""
    images, mask, metas = inputs
    wanted, ours = Ranked.of(models[0], images.double(), mask), Ranked.of(models[1], images, mask)
    error = float((wanted.scores - ours.scores)[~wanted.encoded.layout.padding_mask].abs().max())
    confused = wanted.scores.gather(1, wanted.ranking) - wanted.scores.gather(1, ours.ranking)
    pairs = list(zip(wanted.detect(wanted.ranking, metas), ours.detect(wanted.ranking, metas), strict=True))
    return Difference(
        token_score=error,
        swapped_ranks=int((wanted.ranking != ours.ranking).sum()),
        confused_score=float(confused.abs().max()),
        same_labels=all(torch.equal(theirs.labels, mine.labels) for theirs, mine in pairs),
        box_px=max(float((theirs.boxes - mine.boxes).abs().max()) for theirs, mine in pairs),
        score=max(float((theirs.scores - mine.scores).abs().max()) for theirs, mine in pairs),
    )


def check(difference: Difference) -> None:
    assert difference.token_score < 1e-4
    assert difference.confused_score <= 2 * difference.token_score, "float32 does tell these tokens apart"
    assert difference.same_labels
    assert difference.box_px < 0.01
    assert difference.score < 2e-6


def coco_images(shared_dir: Path, count: int) -> list[Path]:
    paths = sorted((shared_dir / "data" / "coco_mini" / "val2017").glob("*.jpg"))[:count]
    if len(paths) < count:
        pytest.skip(f"no images below {shared_dir / 'data'}")
    return paths


@pytest.mark.parity
def test_float32_detections_equal_float64_ones(models: tuple[CoDETR, CoDETR], shared_dir: Path) -> None:
    check(compare(models, load(coco_images(shared_dir, 2), 256, 427)))


@pytest.mark.parity
@pytest.mark.slow
def test_float32_detections_equal_float64_ones_at_full_size(models: tuple[CoDETR, CoDETR], shared_dir: Path) -> None:
    check(compare(models, load(coco_images(shared_dir, 1), 800, 1333)))
