"""What tells the two families of Co-DETR apart; everything that is not in this table they share.

Behaviour of Sense-X/Co-DETR, projects/models: co_dino_head.py and co_deformable_detr_head.py, transformer.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from codetr_cli.models.decoder import DeformableDecoder, DinoDecoder
from codetr_cli.models.queries import BoxAndFeatureQueries, BoxPositions, BoxQueries


@dataclass(frozen=True, kw_only=True)
class Family:
    """The choices of one family.

    Attributes:
        decoder: layers with the rule that gives their queries a position, and the norm of their outputs.
        positions: gives each matched query its position once, before the first layer; None: the decoder does, in every
            layer.
        positive_queries: turns boxes of the auxiliary heads into queries.
        cell_temperature: base of the frequencies of the encoder's sine encoding.
        cell_offset: added to a cell's row and column before they are encoded.
        token_score: what a token is selected by: its best class, or the first class, which then stands for all.
        supervises: the proposals that are matched to objects in training.
        class_loss: of every set of queries.
        mean_class_normaliser: whether the class loss is divided by the positives' mean over processes or by the
            process's own.
        denoising: whether noised objects are decoded beside the matched queries.
    """

    decoder: type[DinoDecoder] | type[DeformableDecoder]
    positions: type[BoxPositions] | None
    positive_queries: type[BoxQueries] | type[BoxAndFeatureQueries]
    cell_temperature: float
    cell_offset: float
    token_score: Literal["best_class", "first_class"]
    supervises: Literal["selected", "all_tokens"]
    class_loss: Literal["quality_focal", "focal"]
    mean_class_normaliser: bool
    denoising: bool


FAMILIES = {
    "co_dino": Family(
        decoder=DinoDecoder,
        positions=None,
        positive_queries=BoxQueries,
        cell_temperature=20.0,
        cell_offset=0.0,
        token_score="best_class",
        supervises="selected",
        class_loss="quality_focal",
        mean_class_normaliser=False,
        denoising=True,
    ),
    "co_deformable": Family(
        decoder=DeformableDecoder,
        positions=BoxPositions,
        positive_queries=BoxAndFeatureQueries,
        cell_temperature=10000.0,
        cell_offset=-0.5,
        token_score="first_class",
        supervises="all_tokens",
        class_loss="focal",
        mean_class_normaliser=True,
        denoising=False,
    ),
}
