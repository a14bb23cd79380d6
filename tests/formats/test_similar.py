"""Groups of images that show nearly the same."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from codetr_cli.formats import similar
from codetr_cli.formats.similar import name_order, similar_groups


def scene(seed: int, size: int = 256) -> np.ndarray:
    """Smooth random shapes, as photos have."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    return cv2.cvtColor(cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC), cv2.COLOR_GRAY2BGR)


def write(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def copies_of(*paths: Path) -> list[int]:
    return similar_groups(paths).copies


def frames_of(*paths: Path) -> list[int]:
    return similar_groups(paths).frames


def test_different_photos_are_alone(tmp_path):
    assert frames_of(*(write(tmp_path / f"{i}.png", scene(i)) for i in range(40))) == list(range(40))


def test_frames_of_a_moving_camera_are_one_group(tmp_path):
    wide = scene(1, 1024)
    paths = [write(tmp_path / f"frame{i}.jpg", wide[300:700, 8 * i : 8 * i + 400]) for i in range(12)]
    assert frames_of(*paths[::-1]) == [0] * 12
    assert copies_of(*paths) == list(range(12))


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image,
        lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
        lambda image: np.clip(image * 0.7 + 20, 0, 255).astype(np.uint8),
        lambda image: cv2.GaussianBlur(image, (5, 5), 0),
    ],
    ids=["copy", "smaller", "paler", "blurred"],
)
def test_a_changed_copy_under_any_name(tmp_path, change):
    first, other = write(tmp_path / "a" / "x.png", scene(1)), write(tmp_path / "b.png", scene(2))
    copy = write(tmp_path / "b" / "y.jpg", change(scene(1)))
    assert copies_of(first, other, copy) == [0, 1, 0]


def test_augmented_copies_by_their_names(tmp_path):
    names = ["a_jpg.rf.0123456789abcdef0.jpg", "b_jpg.rf.0123456789abcdef0.jpg", "a_jpg.rf.ffffffffffffffff1.jpg"]
    assert copies_of(*(write(tmp_path / name, scene(i)) for i, name in enumerate(names))) == [0, 1, 0]


def test_what_cannot_be_read_is_alone(tmp_path):
    paths = [tmp_path / "none.jpg", tmp_path / "text.jpg", write(tmp_path / "a.jpg", scene(1)), tmp_path]
    paths[1].write_text("no image")
    assert copies_of(*paths) == [0, 1, 2, 3]


def test_of_too_many_images_only_the_names_are_compared(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("v_8.png", "v_9.png", "v_10.png", "v_12.png", "w_13.png", "a_jpg.rf.0.png")]
    monkeypatch.setattr(similar, "MAX_COMPARED", 1)
    assert similar_groups(paths) == ([0, 1, 2, 3, 4, 5], [0, 0, 0, 3, 4, 5], False, 0)


def picture_of(kind: str, random: np.random.Generator) -> np.ndarray:
    """A picture of a fixed view: another object each time before the same background."""
    y, x = np.mgrid[0:240, 0:320]
    image = {
        "dark": np.full((240, 320), 8.0),
        "sky": 200 + 55 * y / 240,
        "X-ray": 40 + 160 * np.exp(-(((x - 110) / 45) ** 2 + ((y - 120) / 75) ** 2)),
        "fixed camera": cv2.cvtColor(cv2.resize(scene(7), (320, 240)), cv2.COLOR_BGR2GRAY).astype(float),
    }[kind]
    image = image + random.normal(0, 2, image.shape)
    x0, y0, radius = random.integers(60, 260), random.integers(60, 180), random.integers(8, 20)
    cv2.circle(image, (int(x0), int(y0)), int(radius), 255.0 - 240 * (kind == "sky"), -1)
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", ["dark", "sky", "X-ray", "fixed camera"])
def test_different_pictures_of_one_view_are_no_copies(tmp_path, kind):
    random = np.random.default_rng(3)
    paths = [write(tmp_path / f"{random.integers(1 << 40):x}.jpg", picture_of(kind, random)) for _ in range(40)]
    assert len(set(copies_of(*paths))) >= 39


def test_the_same_bytes_are_copies_whatever_they_show(tmp_path):
    paths = [write(tmp_path / f"{name}.png", np.zeros((20, 20, 3), np.uint8)) for name in "abc"]
    assert copies_of(*paths, write(tmp_path / "d.png", np.ones((20, 20, 3), np.uint8))) == [0, 0, 0, 3]


def test_chunks_give_the_same(tmp_path):
    """More images than a chunk of the comparison has."""
    paths = [write(tmp_path / f"{i}.png", scene(i % 700)[:64, :64]) for i in range(1200)]
    groups = copies_of(*paths)
    assert all(groups[i] == groups[i - 700] for i in range(700, 1200))


def test_numbers_in_names_sort_as_people_count():
    names = ["a10.jpg", "a9.jpg", "b.jpg", "a9b.jpg", f"a{'9' * 40}.jpg", "²3.jpg"]
    assert sorted(map(Path, names), key=name_order)[:2] == [Path("a9.jpg"), Path("a9b.jpg")]
