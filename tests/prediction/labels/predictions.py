"""Predictions for tests of labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from codetr_cli.inference.prediction import Prediction

Row = tuple[int, float, Sequence[float]]
"""Label, score and corners of a detection."""


def prediction_of(rows: Sequence[Row], names: Sequence[str], ids: Sequence[int], size: tuple[int, int]) -> Prediction:
    """The detections of an image of (height, width), of classes with these names and category ids."""
    labels = np.array([label for label, _, _ in rows], np.int64)
    return Prediction(
        boxes=np.array([box for _, _, box in rows], np.float32).reshape(-1, 4),
        scores=np.array([score for _, score, _ in rows], np.float32),
        labels=labels,
        category_ids=np.array(ids, np.int64)[labels],
        class_names=[names[label] for label in labels],
        image_size=size,
    )
