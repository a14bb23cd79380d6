"""A synthetic data set in COCO's layout that a tiny model learns in minutes: coloured shapes on varied backgrounds.

Only the outline distinguishes the classes: colour, texture, size and place are independent of it. Every picture is a
function of (seed, split, index). Boxes and masks are those of the visible pixels, as in COCO. Sizes are (height, width)
in pixels, colours are RGB in [0, 1], h w is a picture's height and width.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from codetr_cli import files
from codetr_cli.annotations.layouts import published_split
from codetr_cli.annotations.outlines import encode
from codetr_cli.errors import CodetrError, ResourceError
from codetr_cli.formats.list_files import write_list

INCOMPLETE_NAME = ".incomplete"
"""A file in a folder whose data set is not complete yet."""
MIN_VISIBLE = 0.6
"""Smallest visible share of an object."""
MIN_SIDE = 20
"""Smallest side of a visible box, in pixels."""
MAX_OBJECTS = 8
_SUPERSAMPLING = 4
_JPEG_QUALITY = 95

Rng = np.random.Generator


def write_demo(folder: Path, *, train: int = 400, val: int = 60, size: int = 256, seed: int = 0) -> None:
    """Writes the data set: images, annotations, list files. Files of the same name are overwritten.

    The long side of every image has `size` pixels, the short side between three quarters of it and all of it. A failure
    leaves nothing in a folder that was empty, a kill a folder that is marked as incomplete.

    Raises:
        ResourceError: no space left, or the folder cannot be written.
    """
    marker = folder / INCOMPLETE_NAME
    own = marker.exists() or not folder.exists() or not any(folder.iterdir())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        marker.touch()
        _write_splits(folder, {"train": train, "val": val}, size, seed)
        marker.unlink()
    except (CodetrError, OSError) as error:
        if own:
            _remove_splits(folder)
        if isinstance(error, CodetrError):
            raise
        raise ResourceError(f"cannot write {error.filename or folder}: {error.strerror or error}") from error


def is_incomplete_demo(folder: Path) -> bool:
    """Whether a folder is what a killed `write_demo` has left, and only that: without links to somewhere else."""
    return (folder / INCOMPLETE_NAME).is_file() and not any(path.is_symlink() for path in folder.iterdir())


def _write_splits(folder: Path, counts: dict[str, int], size: int, seed: int) -> None:
    contents = {}
    for number, (name, count) in enumerate(counts.items()):
        split = published_split(name, folder)
        split.images_dir.mkdir(parents=True, exist_ok=True)
        contents[name] = _write_images(split.images_dir, count, size, (seed, number))
    for name, content in contents.items():
        split = published_split(name, folder)
        write_list(split, [image["file_name"] for image in content["images"]])
        split.annotations_path.parent.mkdir(exist_ok=True)
        files.write_text(split.annotations_path, json.dumps(content))


def _remove_splits(folder: Path) -> None:
    for name in ("train", "val"):
        split = published_split(name, folder)
        files.make_way(split.images_dir, ignore_errors=True)
        for path in (split.list_path, split.annotations_path):
            path.unlink(missing_ok=True)
    for path in (folder / "annotations", folder):
        (folder / INCOMPLETE_NAME).unlink(missing_ok=True)
        with suppress(OSError):
            path.rmdir()


def _write_images(folder: Path, count: int, size: int, seed: tuple[int, int]) -> dict[str, list[dict[str, Any]]]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        picture, objects = draw_picture(np.random.default_rng([*seed, index]), size)
        height, width = picture.shape[:2]
        image = {"id": index + 1, "file_name": f"{index + 1:06d}.jpg", "height": height, "width": width}
        _write_jpeg(folder / image["file_name"], picture)
        images.append(image)
        for shape, mask in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": shape.label + 1,
                    "bbox": visible_box(mask),
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": encode(mask),
                }
            )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(OUTLINES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _write_jpeg(path: Path, picture: np.ndarray) -> None:
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    _, content = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    with files.replace_file(path, sync=False) as temporary:
        temporary.write_bytes(content.tobytes())


def visible_box(mask: np.ndarray) -> list[int]:
    """The tight box [x, y, width, height] of a bool mask (h, w)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [int(value) for value in (columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0])]


@dataclass(frozen=True)
class Shape:
    """One object: class index, corner points (n, 2) as x, y in pixels, and the radius of its circumscribed circle."""

    label: int
    points: np.ndarray
    radius: float


def draw_picture(rng: Rng, size: int) -> tuple[np.ndarray, list[tuple[Shape, np.ndarray]]]:
    """Draws one picture whose long side has `size` pixels.

    Returns:
        The picture (h, w, 3) uint8 RGB, and each object with the mask (h, w) bool of its visible pixels, back to front.
    """
    short = int(rng.integers(size * 3 // 4, size + 1))
    height, width = (short, size) if rng.random() < 0.5 else (size, short)
    canvas = _background(rng, height, width)
    objects = _arrange(rng, height, width)
    for shape, _ in objects:
        _paint(rng, canvas, shape)
    grain = rng.uniform(0.0, 0.02) * (rng.random((height, width, 1)) - 0.5)
    return np.round(255 * np.clip(canvas + grain, 0, 1)).astype(np.uint8), objects


def _arrange(rng: Rng, height: int, width: int) -> list[tuple[Shape, np.ndarray]]:
    """Places 1 to MAX_OBJECTS shapes, later ones in front, so that enough of every one remains visible."""
    wanted = int(rng.integers(1, MAX_OBJECTS + 1))
    objects: list[tuple[Shape, np.ndarray]] = []
    for _ in range(20 * wanted):
        if len(objects) == wanted:
            break
        shape = _random_shape(rng, height, width)
        mask = _coverage(shape.points, height, width) > 0.5
        remaining = [(other, visible & ~mask) for other, visible in objects]
        if all(_is_visible_enough(*entry) for entry in [*remaining, (shape, mask)]):
            objects = [*remaining, (shape, mask)]
    return objects


def _is_visible_enough(shape: Shape, visible: np.ndarray) -> bool:
    whole = cv2.contourArea(shape.points.astype(np.float32))
    return visible.sum() >= MIN_VISIBLE * whole and min(visible_box(visible)[2:]) >= MIN_SIDE


def _random_shape(rng: Rng, height: int, width: int) -> Shape:
    """A shape of random class, size, rotation and place; up to about a quarter of it may be outside the picture."""
    label = int(rng.integers(len(OUTLINES)))
    outline, turn = OUTLINES[list(OUTLINES)[label]]
    smallest, largest = 0.075 * max(height, width), 0.28 * max(height, width)
    radius = smallest * (largest / smallest) ** rng.random()
    angle = rng.uniform(-turn, turn)
    stretch = np.array([1.0, rng.uniform(0.85, 1.0)])
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = [rng.uniform(0.7 * radius, side - 0.7 * radius) for side in (width, height)]
    return Shape(label=label, points=radius * (outline * stretch) @ rotation.T + centre, radius=radius)


def _coverage(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """The share of each pixel that a polygon covers, (h, w) float in [0, 1]."""
    coverage = np.zeros((height, width))
    left, top = np.floor(points.min(axis=0)).astype(int).clip(0)
    right, bottom = np.ceil(points.max(axis=0)).astype(int).clip(0, (width, height))
    if right > left and bottom > top:
        fine = np.zeros(((bottom - top) * _SUPERSAMPLING, (right - left) * _SUPERSAMPLING), np.uint8)
        cv2.fillPoly(fine, [np.round((points - (left, top)) * _SUPERSAMPLING).astype(np.int32)], 255)
        window = cv2.resize(fine, (int(right - left), int(bottom - top)), interpolation=cv2.INTER_AREA)
        coverage[top:bottom, left:right] = window / 255.0
    return coverage


def _paint(rng: Rng, canvas: np.ndarray, shape: Shape) -> None:
    """Draws one shape into `canvas` with a soft shadow, a texture, shading and, often, a rim."""
    # A window with space for the shadow.
    left, top = (np.floor(shape.points.min(axis=0)).astype(int) - 12).clip(0)
    right, bottom = (np.ceil(shape.points.max(axis=0)).astype(int) + 16).clip(0, canvas.shape[1::-1])
    window, points = canvas[top:bottom, left:right], shape.points - (left, top)
    height, width = window.shape[:2]
    coverage = _coverage(points, height, width)[..., None]
    shadow = cv2.GaussianBlur(_coverage(points + 3, height, width), (0, 0), 3)[..., None]
    window *= 1 - rng.uniform(0.15, 0.4) * shadow
    colour = _contrasting_colour(rng, (window * coverage).sum(axis=(0, 1)) / coverage.sum())
    centre = points.mean(axis=0)
    y, x = np.mgrid[:height, :width]
    x, y = (x - centre[0]) / shape.radius, (y - centre[1]) / shape.radius
    surface = np.clip(_texture(rng, x, y, colour) * (1 - 0.18 * (x + y))[..., None], 0, 1)
    if rng.random() < 0.6:
        inner = _coverage(centre + 0.86 * (points - centre), height, width)[..., None]
        surface = surface * inner + 0.55 * colour * (1 - inner)
    window += (surface - window) * coverage


def _polygon(corners: int, inner_radius: float = 1.0) -> np.ndarray:
    """Corners (n, 2) on the unit circle, the first one on top; every other one at `inner_radius`."""
    angles = 2 * np.pi * np.arange(corners) / corners - np.pi / 2
    radii = np.where(np.arange(corners) % 2, inner_radius, 1.0)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


OUTLINES: dict[str, tuple[np.ndarray, float]] = {
    "disc": (0.9 * _polygon(72), np.pi),
    "square": (np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]) * 0.8, np.pi / 7),
    "triangle": (1.1 * _polygon(3), np.pi / 6),
    "star": (1.15 * _polygon(10, inner_radius=0.45), np.pi / 5),
}
"""Outline around the origin and largest rotation to either side, by class."""


def _colour(rng: Rng, saturation: tuple[float, float], value: tuple[float, float]) -> np.ndarray:
    hue = np.array([rng.random()])
    # One channel of HSV at hue h is v - v s max(0, min(k, 4 - k, 1)), k = (n + 6 h) mod 6, n = 5, 3, 1 for R, G, B.
    k = (np.array([5.0, 3.0, 1.0]) + 6 * hue) % 6
    strength = rng.uniform(*value)
    rgb: np.ndarray = strength - strength * rng.uniform(*saturation) * np.clip(np.minimum(k, 4 - k), 0, 1)
    return rgb


def _contrasting_colour(rng: Rng, behind: np.ndarray) -> np.ndarray:
    """A vivid colour that differs clearly from the mean colour behind the object."""
    candidates = [_colour(rng, (0.5, 0.95), (0.45, 1.0)) for _ in range(12)]
    far = [colour for colour in candidates if np.linalg.norm(colour - behind) > 0.5]
    return far[0] if far else max(candidates, key=lambda colour: float(np.linalg.norm(colour - behind)))


def _texture(rng: Rng, x: np.ndarray, y: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """A surface (h, w, 3) in shades of `colour`; x and y (h, w) are 0 at the object's centre and 1 at its radius."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.35, 0.7)
    u = (np.cos(angle) * x + np.sin(angle) * y) / period
    v = (np.cos(angle) * y - np.sin(angle) * x) / period
    patterns: list[Callable[[], np.ndarray]] = [
        lambda: np.zeros_like(u),
        lambda: np.clip(0.5 + 0.5 * u * period, 0, 1),
        lambda: (np.sin(2 * np.pi * u) > 0.2).astype(float),
        lambda: ((u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.08).astype(float),
        lambda: ((np.floor(u) + np.floor(v)) % 2).astype(float),
    ]
    amount = patterns[int(rng.integers(len(patterns)))]()[..., None]
    second = colour * 0.62 if rng.random() < 0.5 else colour + 0.45 * (1 - colour)
    return colour * (1 - amount) + second * amount


def _background(rng: Rng, height: int, width: int) -> np.ndarray:
    """A background (h, w, 3) of low contrast: a gradient, with soft clouds, thin lines, tiles or nothing on it."""
    bright = rng.random() < 0.6
    value = (0.7, 0.97) if bright else (0.12, 0.45)
    first, second = _colour(rng, (0.05, 0.35), value), _colour(rng, (0.05, 0.35), value)
    y, x = np.mgrid[:height, :width] / max(height, width)
    angle = rng.uniform(0, 2 * np.pi)
    amount = np.clip(0.5 + (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle), 0, 1)[..., None]
    canvas = first * (1 - amount) + second * amount
    kind = int(rng.integers(4))
    if kind == 0:
        coarse = rng.random((int(rng.integers(4, 9)), int(rng.integers(4, 9)))).astype(np.float32)
        clouds = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        canvas = canvas + rng.uniform(0.08, 0.2) * (clouds[..., None] - 0.5)
    elif kind == 1:
        for _ in range(int(rng.integers(4, 14))):
            ends = rng.integers(-20, max(height, width) + 20, 4).tolist()
            line = np.zeros((height, width), np.uint8)
            cv2.line(line, (ends[0], ends[1]), (ends[2], ends[3]), 255, int(rng.integers(1, 3)), cv2.LINE_AA)
            canvas = canvas + rng.uniform(-0.2, 0.2) * (line / 255.0)[..., None]
    elif kind == 2:
        side = rng.uniform(0.08, 0.2)
        tiles = (np.floor(x / side) + np.floor(y / side)) % 2
        canvas = canvas + rng.uniform(0.03, 0.07) * (tiles[..., None] - 0.5)
    speckle = rng.uniform(0.0, 0.06) * (rng.random((height, width, 1)) - 0.5)
    return np.clip(canvas + speckle, 0, 1)
