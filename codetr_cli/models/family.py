"""The differences between the two families of Co-DETR; they share everything else.

Behaviour of Sense-X/Co-DETR, projects/models: co_dino_head.py and co_deformable_detr_head.py, transformer.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from codetr_cli.models.decoder import DeformableDecoder, DinoDecoder
from codetr_cli.models.queries import BoxAndFeatureQueries, BoxPosEncoding, BoxQueries


@dataclass(frozen=True, kw_only=True)
class Family:
    """The properties of one family.

    Attributes:
        decoder: class of the decoder.
        query_pos: computes the positional part of matching queries once; None: the decoder computes it in every layer.
        positive_queries: turns boxes of the auxiliary heads into queries.
        cell_temperature: base of the frequencies of the encoder's sine encoding.
        cell_offset: added to a cell's row and column before they are encoded.
        token_score: what tokens are selected by: their best class, or the first class, trained on objects of any class.
        proposal_targets: which proposals are matched to objects in training.
        class_loss: classification loss of all queries.
        mean_class_normalizer: whether the class loss is divided by the mean of positives over ranks or by those of
            the rank.
        denoising: whether denoising queries are decoded along with the matching queries.
    """

    decoder: type[DinoDecoder] | type[DeformableDecoder]
    query_pos: type[BoxPosEncoding] | None
    positive_queries: type[BoxQueries] | type[BoxAndFeatureQueries]
    cell_temperature: float
    cell_offset: float
    token_score: Literal["best_class", "first_class"]
    proposal_targets: Literal["selected", "all_tokens"]
    class_loss: Literal["quality_focal", "focal"]
    mean_class_normalizer: bool
    denoising: bool


FAMILIES = {
    "co_dino": Family(
        decoder=DinoDecoder,
        query_pos=None,
        positive_queries=BoxQueries,
        cell_temperature=20.0,
        cell_offset=0.0,
        token_score="best_class",
        proposal_targets="selected",
        class_loss="quality_focal",
        mean_class_normalizer=False,
        denoising=True,
    ),
    "co_deformable": Family(
        decoder=DeformableDecoder,
        query_pos=BoxPosEncoding,
        positive_queries=BoxAndFeatureQueries,
        cell_temperature=10000.0,
        cell_offset=-0.5,
        token_score="first_class",
        proposal_targets="all_tokens",
        class_loss="focal",
        mean_class_normalizer=True,
        denoising=False,
    ),
}
