"""Parts of large files have the pixels of the whole image, and no more of it is decoded."""

from __future__ import annotations

import math
import struct
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from codetr_cli.errors import DatasetError
from codetr_cli.images import large_images
from codetr_cli.images.decoder import BrokenImageError, read_image
from codetr_cli.images.large_images import FileRegions, open_regions
from codetr_cli.images.regions import ArrayRegions

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")

HEIGHT, WIDTH = 90, 110
RNG = np.random.default_rng(0)
COLOURS = cv2.resize(RNG.integers(0, 256, (7, 9, 3)).astype(np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
TILES = {"tiled": True, "blockxsize": 32, "blockysize": 32}


def write(path: Path, pixels: np.ndarray, *, colormap: dict | None = None, orientation: int = 1, **options) -> Path:
    """A TIFF or JPEG 2000 of pixels (H, W) or (H, W, C)."""
    bands = np.moveaxis(np.atleast_3d(pixels), -1, 0)
    count, height, width = bands.shape
    driver = "JP2OpenJPEG" if path.suffix == ".jp2" else "GTiff"
    options |= {"count": count, "height": height, "width": width, "dtype": bands.dtype}
    with rasterio.open(path, "w", driver=driver, **options) as file:
        file.write(bands)
        if colormap is not None:
            file.write_colormap(1, colormap)
    if orientation != 1:
        add_orientation(path, orientation)
    return path


def add_orientation(path: Path, orientation: int) -> None:
    """Replaces the tag that says how pixels and bits are filled, which nobody needs, by that of the orientation."""
    content = bytearray(path.read_bytes())
    start = struct.unpack_from("<I", content, 4)[0]
    for entry in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", content, start)[0], 12):
        if struct.unpack_from("<H", content, entry)[0] == 284:  # the planes, contiguous by default
            struct.pack_into("<HHIHH", content, entry, 274, 3, 1, orientation, 0)
    path.write_bytes(content)


def deep(pixels: np.ndarray) -> np.ndarray:
    """16 bits whose upper 8 are these."""
    return pixels.astype(np.uint16) << 8 | RNG.integers(0, 256, pixels.shape).astype(np.uint16)


ALPHA = np.dstack([COLOURS, COLOURS[:, :, 0]])
GREY = COLOURS[:, :, 1]
FILES = {
    "tiles": (COLOURS, {**TILES, "compress": "lzw", "predictor": 2}),
    "strips": (COLOURS, {"tiled": False, "blockysize": 16, "compress": "deflate"}),
    "planes": (COLOURS, {**TILES, "interleave": "band"}),
    "planes_of_16_bits": (deep(COLOURS), {**TILES, "interleave": "band"}),
    "planes_of_floats": ((COLOURS / 255).astype(np.float32), {"interleave": "band", "photometric": "rgb"}),
    "inks": (ALPHA, {**TILES, "photometric": "cmyk"}),
    "big": (COLOURS, {**TILES, "BIGTIFF": "YES"}),
    "big_endian": (deep(COLOURS), {**TILES, "ENDIANNESS": "BIG", "photometric": "rgb"}),
    "sixteen_bits_marked_grey": (deep(COLOURS), TILES),
    "alpha": (ALPHA, TILES),
    "alpha_of_16_bits": (deep(ALPHA), {**TILES, "photometric": "rgb"}),
    "grey": (GREY, TILES),
    "grey_of_16_bits": (deep(GREY), TILES),
    "inverted": (GREY, {**TILES, "photometric": "miniswhite"}),
    "bits": (GREY // 128, {**TILES, "nbits": 1, "compress": "deflate"}),
    "floats": ((COLOURS / 255).astype(np.float32), {**TILES, "photometric": "rgb"}),
    "palette": (GREY // 4, {**TILES, "colormap": {i: (i, 255 - i, 7 * i % 256, 255) for i in range(256)}}),
    "jpeg": (COLOURS, {**TILES, "compress": "jpeg"}),
    "geographic": (
        COLOURS,
        {**TILES, "crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 5e5, 0, -0.5, 5e6)},
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_parts_of_a_tiff_are_those_of_the_whole(tmp_path, name):
    pixels, options = FILES[name]
    path = write(tmp_path / "a.tif", pixels, **options)
    whole, regions = read_image(path), open_regions(path, whole_pixels=0)
    assert isinstance(regions, FileRegions)
    assert regions.size == (HEIGHT, WIDTH)
    for left, top, width, height in ((0, 0, WIDTH, HEIGHT), (29, 31, 40, 35), (WIDTH - 1, HEIGHT - 1, 1, 1)):
        part = regions.read(left, top, width, height)
        assert part.dtype == np.uint8
        np.testing.assert_array_equal(part, whole[top : top + height, left : left + width])


@pytest.mark.parametrize("bits", [8, 16])
def test_parts_of_a_jpeg_2000_are_those_of_the_whole(tmp_path, bits):
    path = tmp_path / "a.jp2"
    cv2.imwrite(str(path), COLOURS if bits == 8 else deep(COLOURS))
    regions = open_regions(path, whole_pixels=0)
    assert isinstance(regions, FileRegions)
    np.testing.assert_array_equal(regions.read(20, 10, 70, 60), read_image(path)[10:70, 20:90])


@pytest.mark.parametrize("orientation", range(2, 9))
def test_images_are_turned(tmp_path, orientation):
    path = write(tmp_path / "a.tif", COLOURS, **TILES, orientation=orientation)
    whole, regions = read_image(path), open_regions(path, whole_pixels=0)
    turned = COLOURS.transpose(1, 0, 2) if orientation >= 5 else COLOURS
    turned = turned[::-1] if orientation in (3, 4, 7, 8) else turned
    turned = turned[:, ::-1] if orientation in (2, 3, 6, 7) else turned
    np.testing.assert_array_equal(whole, turned)
    assert regions.size == whole.shape[:2]
    np.testing.assert_array_equal(regions.read(31, 3, 50, 60), whole[3:63, 31:81])
    assert close(regions.reduced(40, 30), cv2.resize(whole, (30, 40)))


@pytest.mark.parametrize("orientation", [2, 3, 8])
def test_inks_that_are_turned_are_decoded_whole(tmp_path, orientation):
    """GDAL would mirror each tile."""
    path = write(tmp_path / "a.tif", ALPHA, **TILES, photometric="cmyk", orientation=orientation)
    assert isinstance(open_regions(path, whole_pixels=0), ArrayRegions)


def test_a_palette_of_8_bits(tmp_path):
    """As some writers make it: libtiff takes colours that are all below 256 as such."""
    path = write(tmp_path / "a.tif", GREY, **TILES, colormap={i: (i, 255 - i, 7 * i % 256, 255) for i in range(256)})
    content = bytearray(path.read_bytes())
    colours = struct.pack("<768H", *(i * 257 for i in range(256)), *((255 - i) * 257 for i in range(256)),
                          *(7 * i % 256 * 257 for i in range(256)))  # fmt: skip
    start = content.index(colours)
    content[start : start + len(colours)] = struct.pack("<768H", *(v // 257 for v in struct.unpack("<768H", colours)))
    path.write_bytes(content)
    regions = open_regions(path, whole_pixels=0)
    assert isinstance(regions, FileRegions)
    np.testing.assert_array_equal(regions.read(0, 0, WIDTH, HEIGHT), read_image(path))
    assert regions.read(0, 0, WIDTH, HEIGHT).max() > 200


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether no value differs by more than one."""
    return found.shape == expected.shape and int(np.abs(found.astype(int) - expected).max()) <= 1


@pytest.mark.parametrize("size", [(90, 110), (45, 55), (13, 17), (1, 1), (120, 200), (90, 40)])
@pytest.mark.parametrize("stripe_bytes", [1, 32 * 3 * WIDTH, 1 << 25])
def test_a_smaller_image_is_that_of_opencv(tmp_path, monkeypatch, size, stripe_bytes):
    monkeypatch.setattr(large_images, "STRIPE_BYTES", stripe_bytes)
    regions = open_regions(write(tmp_path / "a.tif", COLOURS, **TILES), whole_pixels=0)
    assert close(regions.reduced(*size), cv2.resize(COLOURS, size[::-1], interpolation=cv2.INTER_LINEAR))


def test_no_more_than_some_rows_are_decoded_at_once(tmp_path, monkeypatch):
    large = cv2.resize(COLOURS, (600, 500))
    path = write(tmp_path / "a.tif", large, **TILES)

    def refuse(*_args, **_options):
        raise AssertionError("decoded whole")

    monkeypatch.setattr(large_images, "read_image", refuse)
    monkeypatch.setattr(cv2, "imdecode", refuse)
    monkeypatch.setattr(large_images, "STRIPE_BYTES", 64 * 600 * 3)
    regions = open_regions(path, max_pixels=1000, whole_pixels=0)
    areas = []
    original = FileRegions._read_stored
    monkeypatch.setattr(FileRegions, "_read_stored", lambda self, *area: areas.append(area) or original(self, *area))
    assert close(regions.reduced(50, 60), cv2.resize(large, (60, 50)))
    np.testing.assert_array_equal(regions.read(500, 400, 100, 100), large[400:, 500:])
    assert max(width * height for _, _, width, height in areas) <= 64 * 600
    assert len(areas) == math.ceil(500 / 64) + 1


def test_the_cache_of_gdal_is_limited_where_its_size_is_decided(tmp_path, monkeypatch):
    """By the first block that is read, in whatever thread."""
    regions = open_regions(write(tmp_path / "a.tif", COLOURS, **TILES), whole_pixels=0)
    dataset, sizes = regions._dataset, []

    class Spy:
        def read(self, *arguments, **options):
            sizes.append(int(rasterio.env.getenv()["GDAL_CACHEMAX"]))
            return dataset.read(*arguments, **options)

    monkeypatch.setattr(regions, "_dataset", Spy())
    thread = threading.Thread(target=regions.read, args=(0, 0, 8, 8))
    thread.start()
    thread.join()
    assert sizes == [large_images.CACHE_BYTES]


def test_several_threads_read_one_image(tmp_path):
    regions = open_regions(write(tmp_path / "a.tif", COLOURS, **TILES), whole_pixels=0)
    found: list[bool] = []

    def read() -> None:
        for left in range(20):
            found.append(bool((regions.read(left, left, 64, 64) == COLOURS[left : left + 64, left : left + 64]).all()))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 80


def test_small_images_and_other_formats_are_decoded_whole(tmp_path):
    tiff = write(tmp_path / "a.tif", COLOURS, **TILES)
    assert isinstance(open_regions(tiff), ArrayRegions)
    cv2.imwrite(str(tmp_path / "a.png"), COLOURS)
    regions = open_regions(tmp_path / "a.png", whole_pixels=0)
    assert isinstance(regions, ArrayRegions)
    with pytest.raises(BrokenImageError, match=r"more than data\.max_pixels = 1000"):
        open_regions(tmp_path / "a.png", max_pixels=1000, whole_pixels=0)


def test_colours_that_gdal_would_not_convert_are_decoded_whole(tmp_path):
    """A JPEG 2000 of three channels that is marked as grey, as GDAL writes it without `photometric`."""
    path = write(tmp_path / "a.jp2", COLOURS, QUALITY="100", REVERSIBLE="YES")
    assert isinstance(open_regions(path, whole_pixels=0), ArrayRegions)


def test_without_the_extra_images_are_decoded_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(large_images, "_rasterio", lambda: None)
    path = write(tmp_path / "a.tif", COLOURS, **TILES)
    assert isinstance(open_regions(path, whole_pixels=0), ArrayRegions)
    with pytest.raises(BrokenImageError, match=r'pip install "codetr-cli\[large\]"') as caught:
        open_regions(path, max_pixels=1000, whole_pixels=0)
    assert "--set data.max_pixels=9900" in caught.value.advise("--set data.max_pixels={}")


def test_the_limit_of_parts(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tif", COLOURS, **TILES)
    monkeypatch.setattr(large_images, "MAX_PIXELS_IN_PARTS", 5000)
    with pytest.raises(BrokenImageError, match=r"110 x 90 pixels, more than data\.max_pixels = 5000"):
        open_regions(path, max_pixels=1000, whole_pixels=0)
    assert isinstance(open_regions(path, max_pixels=10_000, whole_pixels=0), FileRegions)


def test_a_small_file_cannot_claim_billions_of_pixels(tmp_path):
    """Its tiles do not exist, or are the same bytes."""
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", count=1, height=60_000, width=60_000, dtype="uint8", tiled=True,
        blockxsize=4096, blockysize=4096, sparse_ok=True, compress="deflate",
    ) as file:  # fmt: skip
        file.write(np.ones((1, 8, 8), np.uint8), window=rasterio.windows.Window(0, 0, 8, 8))
    with pytest.raises(BrokenImageError, match=r"60000 x 60000 pixels, more than .* for a file of [\d,]+ bytes"):
        open_regions(tmp_path / "a.tif")


def test_blocks_that_are_too_large(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tif", COLOURS, tiled=False, blockysize=HEIGHT, compress="deflate")
    monkeypatch.setattr(large_images, "MAX_BLOCK_BYTES", 1000)
    assert isinstance(open_regions(path, whole_pixels=0), ArrayRegions)
    with pytest.raises(BrokenImageError, match="strips or tiles in the file that are too large"):
        open_regions(path, max_pixels=1000, whole_pixels=0)


def test_damaged_files(tmp_path):
    path = write(tmp_path / "a.tif", COLOURS, **TILES, compress="deflate")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    path.write_bytes(content)
    regions = open_regions(path, whole_pixels=0)
    with pytest.raises(BrokenImageError, match=r"cannot decode image .*a\.tif: the file is damaged"):
        regions.read(0, 0, WIDTH, HEIGHT)
    with pytest.raises(BrokenImageError, match="the file is damaged"):
        regions.reduced(20, 20)
    path.write_bytes(content[:300])
    with pytest.raises(DatasetError, match="beyond the end of the file"):
        open_regions(path, whole_pixels=0)
    with pytest.raises(DatasetError, match="no such file"):
        open_regions(tmp_path / "none.tif")


def test_floats_outside_of_the_range(tmp_path):
    pixels = np.full((HEIGHT, WIDTH), 0.5, np.float32)
    pixels[80, 100] = 7
    regions = open_regions(write(tmp_path / "a.tif", pixels, **TILES), whole_pixels=0)
    assert regions.read(0, 0, 50, 50).max() == 128
    with pytest.raises(BrokenImageError, match=r"floating-point values are in \[0, 1\]"):
        regions.read(60, 60, 50, 30)


def test_gdal_reads_nothing_else(tmp_path):
    """Neither other formats under the name of one, nor files beside it, nor its own file systems."""
    path = tmp_path / "a.tif"
    path.write_text('<VRTDataset rasterXSize="9" rasterYSize="9"></VRTDataset>')
    with pytest.raises(DatasetError, match="text: "):
        open_regions(path, whole_pixels=0)
    path.unlink()
    write(path, COLOURS, **TILES)
    (tmp_path / "a.tif.aux.xml").write_text("<PAMDataset><Metadata><MDI key='a'>b</MDI></Metadata></PAMDataset>")
    (tmp_path / "a.tif.msk").write_bytes(path.read_bytes())
    (tmp_path / "a.tif.ovr").write_bytes(path.read_bytes())
    regions = open_regions(path, whole_pixels=0)
    assert isinstance(regions, FileRegions)
    assert regions._dataset.files == [str(path)]
    assert regions._dataset.tags().get("a") is None
    assert regions._dataset.overviews(1) == []
    header = large_images.read_header_and_start(path)[0]
    assert large_images._open(rasterio, Path("/vsizip/a.zip/a.tif"), header, None) is None
