"""Copies of images: equal files and pictures that look the same, within a split and across splits."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from codetr_cli.analysis.data.image_copies import Copy, find_copies


def picture(path: Path, seed: int, *, quality: int = 95) -> Path:
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = cv2.resize(small, (320, 240), interpolation=cv2.INTER_CUBIC)
    assert cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return path


def test_copies_are_found_within_and_across_splits(tmp_path: Path) -> None:
    train = [picture(tmp_path / f"t{seed}.jpg", seed) for seed in range(4)]
    train.append(picture(tmp_path / "again.jpg", 0, quality=60))
    val = [picture(tmp_path / "v.jpg", 9), picture(tmp_path / "leaked.jpg", 2), tmp_path / "absent.jpg"]
    read: list[int] = []
    found = find_copies(
        [("train", [path.name for path in train], train), ("val", [path.name for path in val], val)], read.append
    )
    assert (found.images, found.unreadable, found.is_compared, found.within, found.across) == (7, 1, True, 1, 1)
    assert found.examples == [
        Copy("val", "leaked.jpg", "train", "t2.jpg"),
        Copy("train", "again.jpg", "train", "t0.jpg"),
    ]
    assert sum(read) == 8


def test_one_file_of_two_splits_is_a_copy(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.jpg", 1)
    found = find_copies([("train", ["a.jpg"], [path]), ("val", ["a.jpg"], [path])])
    assert (found.within, found.across) == (0, 1)


def test_no_images() -> None:
    found = find_copies([])
    assert (found.images, found.within, found.across, found.examples) == (0, 0, 0, [])
