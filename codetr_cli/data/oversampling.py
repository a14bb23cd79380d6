"""Repetition of images of rare classes (LVIS, arXiv 1908.03195, section 4), as mmdet's ClassBalancedDataset."""

from __future__ import annotations

import numpy as np


def repeated_images(
    image_rows: np.ndarray, labels: np.ndarray, rows: np.ndarray, threshold: float, *, count_empty: bool
) -> np.ndarray:
    """The images of an epoch, those of rare classes repeated.

    A class that occurs in the share f of the images gets the factor max(1, sqrt(threshold / f)); an image gets the
    largest factor of its classes, rounded up.

    Args:
        image_rows: (N,) row of each object's image. Parity: crowds and ignored objects count.
        labels: (N,) class of each object.
        rows: (M,) rows of the used images.
        threshold: share of images, in (0, 1].
        count_empty: images without objects count as a class, which may be rare.

    Returns:
        Indices into `rows`, int64, ascending, each at least once.
    """
    index_of_row = np.full(int(max(image_rows.max(initial=-1), rows.max(initial=-1))) + 1, -1)
    index_of_row[rows] = np.arange(len(rows))
    images = index_of_row[image_rows]
    pairs = np.unique(np.stack([images, labels], axis=1)[images >= 0], axis=0)
    if count_empty:
        empty = np.setdiff1d(np.arange(len(rows)), pairs[:, 0])
        background = labels.max(initial=-1) + 1
        pairs = np.concatenate([pairs, np.stack([empty, np.full(len(empty), background)], axis=1)])
    shares = np.bincount(pairs[:, 1]) / max(len(rows), 1)
    factors = np.sqrt(threshold / np.maximum(shares, np.finfo(np.float64).tiny)).clip(min=1)
    of_image = np.ones(len(rows))
    np.maximum.at(of_image, pairs[:, 0], factors[pairs[:, 1]])
    return np.repeat(np.arange(len(rows)), np.ceil(of_image).astype(np.int64))
