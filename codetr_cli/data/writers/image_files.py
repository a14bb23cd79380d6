"""Puts the images of a converted data set into its folder: copied byte for byte, linked, or cut into tiles.

Tiles are what codetr trains on: 8-bit RGB, upright. Those of a JPEG file are JPEG files of quality 95 without
subsampled colours; those of any other file are PNG files, which lose nothing. An image that is not cut is copied,
unless its EXIF orientation rotates it: its record is of the upright image.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from codetr_cli.data.writers.content import LayoutWriter, WrittenImage, WrittenObject
from codetr_cli.data.writers.names import NamePlan
from codetr_cli.data.writers.options import ImagesMode, WriteOptions
from codetr_cli.data.writers.slicing import ObjectCutter, SliceRule
from codetr_cli.data.writers.source import OutlineForm, SourceSplit
from codetr_cli.errors import ConfigError, DatasetError, listed
from codetr_cli.files import real_path
from codetr_cli.formats.intermediate import SHOWN, THREADS
from codetr_cli.images.decoder import BrokenImageError, read_image
from codetr_cli.images.headers import ImageFileError, ImageHeader, read_header
from codetr_cli.images.tile_grid import Tile
from codetr_cli.reading import open_file

CHUNK = 256
"""Images whose headers are read at once."""
JPEG_QUALITY = 95
BY_STEM = ("yolo", "voc", "labelme")
"""Layouts with a label file an image, whose name is that of the image without its suffix."""


class ImageWriter:
    """Writes images and their objects.

    Args:
        folder: of the result.
        writer: of its layout.
        options: how.
        counts: of `content.NOTES`.
        totals: images and objects of each split, which are added to.
    """

    def __init__(
        self,
        folder: Path,
        writer: LayoutWriter,
        options: WriteOptions,
        counts: Counter[str],
        totals: dict[str, tuple[int, int]],
    ) -> None:
        self._folder, self._writer, self._options = folder, writer, options
        self._counts, self._totals = counts, totals
        layout = options.layout
        self._names = NamePlan(by_stem=layout in BY_STEM, for_lists=layout == "voc")
        self.renamed: dict[str, str] = {}
        self.problems: list[str] = []
        self._pool = ThreadPoolExecutor(THREADS)

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(cancel_futures=True)

    def add(self, split: SourceSplit, rows: Sequence[int]) -> None:
        """Writes some images of a split."""
        paths = [split.files.images_dir / split.annotations.file_names[row] for row in rows]
        headers = [None] * len(paths) if self._options.images == "none" else list(self._pool.map(header_of, paths))
        jobs = []
        for row, path, header in zip(rows, paths, headers, strict=True):
            if isinstance(header, str):
                self.problems.append(f"{split.annotations.file_names[row]} ({header})")
                continue
            objects = list(split.objects(row, self._outline_form()))
            if not objects and self._options.keep_empty is False:
                self._counts["empty"] += 1
                continue
            size: tuple[int, int] = tuple(split.annotations.sizes[row].tolist())
            if header is not None:
                self._counts["rotated"] += header.orientation != 1 and self._options.slicing is None
                self._counts["size_differs"] += header.size != size and self._options.slicing is None
            if self._options.slicing is not None and header is not None:
                self._add_tiles(split, row, path, header, objects, self._options.slicing)
                continue
            name = split.annotations.file_names[row]
            target = self._written(split, name, size, objects, split.record(row), header)
            jobs.append((path, target))
        if self._options.images != "none":
            list(self._pool.map(self._place, jobs))

    def _outline_form(self) -> OutlineForm:
        if self._options.outlines or self._options.slicing is not None:
            return "values"
        return "text" if self._options.layout == "coco" else "presence"

    def _written(
        self,
        split: SourceSplit,
        name: str,
        size: tuple[int, int],
        objects: list[WrittenObject],
        record: dict[str, Any],
        header: ImageHeader | None,
    ) -> Path:
        """Writes the objects of an image; returns where its file belongs."""
        scope = "" if self._options.layout == "voc" else split.name
        given = self._names.assign(scope, name, header.format if header else "")
        place = self._writer.image_path(split.name, given)
        if given != name:
            self._counts["renamed"] += 1
            self.renamed[place] = name
        count = self._writer.add(WrittenImage(split.name, given, size[1], size[0], objects, record))
        images, boxes = self._totals.get(split.name, (0, 0))
        self._totals[split.name] = (images + 1, boxes + count)
        target = self._folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _place(self, job: tuple[Path, Path]) -> None:
        """Copies or links a file."""
        place_file(*job, self._options.images)

    def _add_tiles(
        self,
        split: SourceSplit,
        row: int,
        path: Path,
        header: ImageHeader,
        objects: list[WrittenObject],
        rule: SliceRule,
    ) -> None:
        height, width = header.size
        name = split.annotations.file_names[row]
        if (height, width) != tuple(split.annotations.sizes[row].tolist()):
            listed_height, listed_width = split.annotations.sizes[row].tolist()
            self.problems.append(f"{name} ({width} x {height} in the file, {listed_width} x {listed_height} listed)")
            return
        tiles = list(rule.tiles(width, height))
        image = None
        if len(tiles) > 1 or header.orientation != 1:
            try:
                image = read_image(path, max_pixels=self._options.max_pixels)
            except BrokenImageError as error:
                self.problems.append(f"{name} ({error.reason or error})")
                return
        stem, suffix = os.path.splitext(name)  # noqa: PTH122 (relative to a folder)
        suffix = suffix if image is None else ".jpg" if header.format == "jpeg" else ".png"
        cutter = ObjectCutter(objects, (height, width), rule, self._counts)
        seen: set[int] = set()
        jobs: list[tuple[Path, np.ndarray]] = []
        for tile in tiles:
            found = cutter.of(tile)
            seen.update(index for index, _ in found)
            if not found and self._options.keep_empty is False:
                self._counts["empty"] += 1
                continue
            record = {
                **split.record(row),
                "width": tile.width,
                "height": tile.height,
                "source_image_id": int(split.annotations.image_ids[row]),
                "source_file_name": name,
                "tile": list(tile),
            }
            tile_name = f"{stem}_{tile.left}_{tile.top}{suffix}"
            items = [item for _, item in found]
            target = self._written(split, tile_name, (tile.height, tile.width), items, record, header)
            if image is None:
                copy_file(path, target)
            else:
                jobs.append((target, _cropped(image, tile)))
        list(self._pool.map(_write_tile, jobs))
        self._counts["in_no_tile"] += len(objects) - len(seen)


def write_images(
    splits: Sequence[SourceSplit],
    folder: Path,
    writer: LayoutWriter,
    options: WriteOptions,
    counts: Counter[str],
    totals: dict[str, tuple[int, int]],
    advance: Callable[[int], None],
) -> dict[str, str]:
    """Writes all images of some splits; the arguments are those of `ImageWriter`.

    Returns:
        the images that were renamed: where each was written, and its name in the source.

    Raises:
        DatasetError: images cannot be read, which is not allowed.
    """
    images = ImageWriter(folder, writer, options, counts, totals)
    try:
        for split in splits:
            rows = split.rows.tolist()
            for start in range(0, len(rows), CHUNK):
                chunk = rows[start : start + CHUNK]
                images.add(split, chunk)
                if images.problems and not options.skip_bad:
                    raise DatasetError(
                        f"{split.files.images_dir}: {len(images.problems):,} of the first {start + len(chunk):,} "
                        f"images cannot be used: {listed(images.problems, SHOWN)}. Fix them, see `codetr prepare`, "
                        "or skip them with --set data.bad_files=skip"
                    )
                advance(len(chunk))
    finally:
        images.close()
    counts["unusable"] += len(images.problems)
    return images.renamed


def place_file(source: Path, target: Path, how: ImagesMode) -> None:
    """Copies or links a file; there must be none at the target.

    Raises:
        ConfigError: no link is possible.
        OSError: the file cannot be read or written.
    """
    if how == "copy":
        copy_file(source, target)
        return
    try:
        if how == "symlink":
            target.symlink_to(real_path(source))
        else:
            os.link(real_path(source), target)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise ConfigError(
                f"{source} cannot be linked into {target.parent}: {error.strerror}. Use --save-images copy, or, on "
                "another disk, --save-images symlink"
            ) from error
        raise


def copy_file(source: Path, target: Path) -> None:
    """Copies the bytes of a regular file; there must be none at the target.

    Raises:
        OSError: it cannot be read or written.
    """
    with open_file(source) as file, target.open("xb") as copy:
        shutil.copyfileobj(file, copy, 1 << 20)


def header_of(path: Path) -> ImageHeader | str:
    """The header of an image, or why it cannot be used."""
    try:
        return read_header(path)
    except ImageFileError as error:
        return str(error)


def _cropped(image: np.ndarray, tile: Tile) -> np.ndarray:
    return image[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width]


def _write_tile(job: tuple[Path, np.ndarray]) -> None:
    """Writes (h, w, 3) uint8 RGB."""
    target, pixels = job
    parameters: list[int] = []
    if target.suffix == ".jpg":
        parameters = [
            cv2.IMWRITE_JPEG_QUALITY,
            JPEG_QUALITY,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
        ]
    done, content = cv2.imencode(target.suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), parameters)
    if not done:
        raise OSError(errno.EIO, "the tile cannot be encoded", str(target))
    target.write_bytes(content.tobytes())
