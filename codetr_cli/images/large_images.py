"""Parts of image files that are too large to decode whole: TIFF and JPEG 2000, read by GDAL (extra `large`).

A file's own header decides whether it can be read so. GDAL gets a regular file, one of two of its drivers, no file
beside it and no network; its memory is bounded by the size of a block of pixels and by its cache. Pixels are those of
`decoder.read_image`, except for TIFF with JPEG inside whose colours have a lower resolution: GDAL interpolates them.
"""

from __future__ import annotations

import os
import threading
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from codetr_cli.images.decoder import MAX_PIXELS, broken_image, read_image, too_large, upright
from codetr_cli.images.headers import ImageFileError, ImageHeader, read_header_and_start
from codetr_cli.images.image_header import FileBytes, Size
from codetr_cli.images.pixels import PixelError, to_rgb
from codetr_cli.images.regions import ArrayRegions, ImageRegions
from codetr_cli.images.tiff_header import colour_table
from codetr_cli.reading import open_descriptor

WHOLE_PIXELS = 25_000_000
"""Images up to here are decoded whole, which is faster: 75 MB of RGB."""
MAX_PIXELS_IN_PARTS = 4_000_000_000
"""Limit of height times width of an image that is read in parts: 63,000 x 63,000."""
MAX_PIXELS_PER_BYTE = 400
"""Of the file: more than a TIFF of one colour has. A file can name the same bytes for all of its tiles."""
MAX_BLOCK_BYTES = 64 << 20
"""Of the pixels that a file can only decode together, such as a strip or a tile."""
CACHE_BYTES = 128 << 20
"""Of decoded blocks, for all images of the process."""
STRIPE_BYTES = 32 << 20
"""Of RGB: rows that are read at once for a smaller image."""
MISSING = '; with the extra large (pip install "codetr-cli[large]"), tiles are read one by one, and this is no limit'
LARGE_BLOCKS = ", and strips or tiles in the file that are too large to be read one by one"

_DRIVERS = {"tiff": "GTiff", "jpeg2000": "JP2OpenJPEG"}
_OPTIONS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": "{noext}",
    "PROJ_NETWORK": "OFF",
    "GDAL_CACHEMAX": CACHE_BYTES,
}
"""Of GDAL: no files beside the image, none elsewhere, bounded memory."""
_OPENING = threading.Lock()


def open_regions(
    path: str | Path, *, max_pixels: int = MAX_PIXELS, check: str | None = None, whole_pixels: int | None = None
) -> ImageRegions:
    """An image file, of which parts are read: from the file if it is large and its format allows it.

    Args:
        path: the file.
        max_pixels: larger images are not decoded whole. Those that are read in parts have the limits
            `MAX_PIXELS_IN_PARTS` and `MAX_PIXELS_PER_BYTE`, or this one if it is larger.
        check: as of `decoder.read_image`.
        whole_pixels: images up to here are decoded whole; None: `WHOLE_PIXELS`.

    Raises:
        BrokenImageError: as of `decoder.read_image`; of an image that is too large it says what else could help.
        ResourceError: the error is not the file's.
    """
    path = Path(path)
    try:
        header, size, _ = read_header_and_start(path)
    except ImageFileError:
        return ArrayRegions(read_image(path, max_pixels=max_pixels, check=check))  # which raises its own error
    whole_pixels = WHOLE_PIXELS if whole_pixels is None else whole_pixels
    if header.in_parts and header.stored_size[0] * header.stored_size[1] > whole_pixels:
        limit = max(max_pixels, min(MAX_PIXELS_IN_PARTS, MAX_PIXELS_PER_BYTE * size))
        if header.limit_needed > limit:
            raise too_large(path, header, limit, f" for a file of {size:,} bytes")
        rasterio = _rasterio()
        regions = None if rasterio is None else _open(rasterio, path, header, check)
        if regions is not None:
            return regions
        if header.limit_needed > max_pixels:
            raise too_large(path, header, max_pixels, MISSING if rasterio is None else LARGE_BLOCKS)
    return ArrayRegions(read_image(path, max_pixels=max_pixels, check=check))


class FileRegions:
    """The regions of an image file.

    Args:
        dataset: of rasterio.
        path: of the file, for messages.
        header: its header.
        colours: (N, 3) uint8 RGB by the numbers in the file; N = 0: they are colours.
        check: as of `decoder.read_image`.
    """

    def __init__(
        self, dataset: Any, path: Path, header: ImageHeader, colours: NDArray[np.uint8], check: str | None
    ) -> None:
        self._dataset, self._path, self._header = dataset, path, header
        self._colours, self._check = colours, check
        self._bands = [1, 2, 3] if dataset.count >= 3 else [1]
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Of pixels in memory, about: those of a tile or of a stripe."""
        return STRIPE_BYTES

    @property
    def size(self) -> Size:
        """(height, width) in pixels, upright."""
        return self._header.size

    def read(self, left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
        """A part of the image, (height, width, 3) uint8 RGB, which is inside of it.

        Raises:
            BrokenImageError: these pixels of the file are damaged.
        """
        orientation = self._header.orientation
        stored = self._read_stored(*_stored_area((left, top, width, height), self.size, orientation))
        return np.ascontiguousarray(upright(stored, orientation))

    def reduced(self, height: int, width: int) -> NDArray[np.uint8]:
        """The whole image resized to (height, width, 3) uint8 RGB: bilinear, without antialiasing.

        Pixels differ by at most one from those of OpenCV for the whole image, which rounds weights to 11 bits. Reads
        some rows at a time.

        Raises:
            BrokenImageError: pixels of the file are damaged.
        """
        orientation = self._header.orientation
        size = (height, width) if orientation < 5 else (width, height)
        return np.ascontiguousarray(upright(self._reduce_stored(*size), orientation))

    def _reduce_stored(self, height: int, width: int) -> NDArray[np.uint8]:
        full_height, full_width = self._header.stored_size
        upper, share = _rows_and_weights(height, full_height)
        lower = np.minimum(upper + 1, full_height - 1)
        wanted = np.union1d(upper, lower)
        step = _stripe_rows(full_width, self._dataset.block_shapes[0][0])
        reduced = np.empty((height, width, 3), np.uint8)
        rows, lines = wanted[:0], np.empty((0, width, 3), np.float32)
        done = 0
        for start in range(0, full_height, step):
            here = wanted[(wanted >= start) & (wanted < start + step)]
            if not here.size:
                continue
            pixels = self._read_stored(0, int(here[0]), full_width, int(here[-1] - here[0]) + 1)[here - here[0]]
            narrow = cv2.resize(pixels.astype(np.float32), (width, len(here)), interpolation=cv2.INTER_LINEAR)
            rows, lines = np.concatenate([rows, here]), np.concatenate([lines, narrow])
            end = int(np.searchsorted(lower, start + step))
            above, below = (lines[np.searchsorted(rows, index[done:end])] for index in (upper, lower))
            reduced[done:end] = np.rint(above + (below - above) * share[done:end, None, None])
            done = end
            kept = rows >= (upper[done] if done < height else full_height)
            rows, lines = rows[kept], lines[kept]
        return reduced

    def _read_stored(self, left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
        """A part of the image before its rotation, (height, width, 3) uint8 RGB."""
        from rasterio import Env
        from rasterio.errors import RasterioError
        from rasterio.windows import Window

        try:
            with self._lock, Env(**_OPTIONS):  # a thread's own; the first block that is read sets the size of the cache
                numbers = self._dataset.read(self._bands, window=Window(left, top, width, height))
            return to_rgb(np.moveaxis(numbers, 0, -1)) if not len(self._colours) else self._colours[numbers[0]]
        except PixelError as error:
            raise broken_image(self._path, str(error), self._check, "decode") from error
        except (RasterioError, IndexError) as error:  # a number without a colour
            raise broken_image(self._path, "the file is damaged", self._check, "decode") from error


def _rasterio() -> ModuleType | None:
    """The library, if it is installed and can be used."""
    try:
        import rasterio
    except ImportError:
        return None
    return rasterio


def _open(rasterio: ModuleType, path: Path, header: ImageHeader, check: str | None) -> FileRegions | None:
    """The regions of a file; None where they would not be smaller than the image, or not the same pixels."""
    from rasterio.errors import RasterioError

    name = os.path.abspath(path)  # noqa: PTH100 (links stay)
    if name.startswith("/vsi"):  # a file system of GDAL's own
        return None
    try:
        with _OPENING, rasterio.Env(**_OPTIONS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has no geographic place
            dataset = rasterio.open(name, driver=_DRIVERS[header.format], sharing=False)
        colours = np.array(_colours(path, header), np.uint8).reshape(-1, 3)
    except (RasterioError, OSError) as error:
        raise broken_image(path, "the file is damaged", check, "decode") from error
    if (dataset.height, dataset.width) != header.stored_size or not 1 <= dataset.count <= 4:
        raise broken_image(path, "its size differs from that in its header", check, "decode")
    largest = max(rows * columns for rows, columns in dataset.block_shapes)
    if largest * dataset.count * np.dtype(dataset.dtypes[0]).itemsize > MAX_BLOCK_BYTES:
        return None
    return FileRegions(dataset, path, header, colours, check)


def _colours(path: Path, header: ImageHeader) -> list[tuple[int, int, int]]:
    if header.format != "tiff":
        return []
    descriptor, size = open_descriptor(path)
    try:
        return colour_table(FileBytes.of_file(descriptor, size), header)
    finally:
        os.close(descriptor)


def _stored_area(area: tuple[int, int, int, int], size: Size, orientation: int) -> tuple[int, int, int, int]:
    """Where an area (left, top, width, height) of the upright image of a (height, width) is before its rotation."""
    left, top, width, height = area
    if orientation in (2, 3, 6, 7):
        left = size[1] - left - width
    if orientation in (3, 4, 7, 8):
        top = size[0] - top - height
    return (left, top, width, height) if orientation < 5 else (top, left, height, width)


def _rows_and_weights(height: int, full_height: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For every row of a resized image: the upper of the two rows that it is between, and the weight of the lower."""
    places = ((np.arange(height) + 0.5) * (full_height / height) - 0.5).clip(0, full_height - 1)
    upper = np.floor(places).astype(np.int64)
    return upper, (places - upper).astype(np.float32)


def _stripe_rows(width: int, block_rows: int) -> int:
    """Rows that are read at once: whole blocks, as far as they are not too large."""
    rows = max(1, STRIPE_BYTES // (3 * width))
    return rows // block_rows * block_rows if rows >= block_rows else rows
