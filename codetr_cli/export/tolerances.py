"""How much an exported file may differ from its checkpoint: the one place with these numbers.

Scores and boxes of the same arithmetic in another order differ by about 1e-5 and 1e-2 pixels (measured: ONNX Runtime
and OpenVINO against PyTorch, float32). The limits of fp32 are far above that and far below what any real fault does: a
wrong class order, normalisation, size or sampling moves scores by 0.01 and more. Half precision keeps 11 bits (fp16) or
8 bits (bf16), so that its limits are wider; int8 is judged by AP, and its limits only exclude nonsense.
"""

from __future__ import annotations

from dataclasses import dataclass

from codetr_cli.inference.exported.metadata import Precision

MIN_SCORE = 0.05
"""Detections with a lower score are compared only in images without better ones."""
BEST = 20
"""Detections that are compared of an image without any above `MIN_SCORE`."""
MIN_IOU = 0.5
"""Of a detection of the checkpoint and one of the file that are the same."""


@dataclass(frozen=True)
class Tolerance:
    """The limits of one precision.

    Attributes:
        score: largest difference of scores, as a share of the best score of the image or of `MIN_SCORE`, if that is
            more: an image without objects has scores, and differences, near zero.
        box_px: largest difference of a side of a box, in pixels of the network's input.
        share: of the detections of an input size and batch that may differ by more, or have no counterpart.
        mask_iou: smallest mean IoU of the masks of matched detections.
        ap: largest difference of AP, in points (100 is perfect).
        noise: relative change of the input that this precision cannot distinguish; an image whose detections change
            with it in the checkpoint itself has near ties, see `near_ties`.
    """

    score: float
    box_px: float
    share: float
    mask_iou: float
    ap: float
    noise: float


TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(score=1e-3, box_px=0.5, share=0.02, mask_iou=0.99, ap=0.1, noise=1e-6),
    "fp16": Tolerance(score=0.03, box_px=2.0, share=0.05, mask_iou=0.97, ap=0.3, noise=5e-4),
    "bf16": Tolerance(score=0.1, box_px=6.0, share=0.1, mask_iou=0.95, ap=0.5, noise=4e-3),
    "int8": Tolerance(score=0.3, box_px=12.0, share=0.3, mask_iou=0.85, ap=0.5, noise=1e-2),
}
