from __future__ import annotations

import struct

import pytest

from codetr_cli.images.headers import ImageFileError, header_of
from codetr_cli.images.image_header import FileBytes
from codetr_cli.images.tiff_header import ORIENTATION, STRIP_OFFSETS, WIDTH, Directory, exif_orientation
from tests.data.image_bombs import exif, tiff, tiff_tag_bomb


@pytest.mark.parametrize("big", [False, True])
def test_numbers_of_a_directory(big: bool) -> None:
    content = tiff([(274, 3, 1, 5), (40_000, 4, 3, 16)], body=bytes(20), big=big)
    directory = Directory(FileBytes.of_content(content).at, len(content))
    assert directory.first(WIDTH, 0) == 60
    assert directory.first(ORIENTATION, 0) == 5
    assert directory.first(40_000, -1) == -1  # not one of those that are needed
    assert directory.tags == 11
    assert directory.declared_bytes == 9 * 4 + 2 + 12


def test_arrays_are_read_to_a_limit() -> None:
    content = tiff([(273, 4, 6, 2408)], body=struct.pack("<6I", *range(6)))
    directory = Directory(FileBytes.of_content(content).at, len(content))
    assert list(directory.numbers(STRIP_OFFSETS)) == [0, 1, 2, 3, 4, 5]
    assert list(directory.numbers(STRIP_OFFSETS, 2)) == [0, 1]
    assert directory.count(STRIP_OFFSETS) == 6


def test_overlapping_tags_are_refused() -> None:
    assert header_of(tiff_tag_bomb(3, 100_000)).size == (40, 60)  # a few may share values
    with pytest.raises(ImageFileError, match=r"the TIFF's 2,009 tags declare 200,000,036 bytes, the file has 126,\d+"):
        header_of(tiff_tag_bomb(2000, 100_000))
    with pytest.raises(ImageFileError, match="tags declare"):
        header_of(tiff([(20_000 + i, 1, 1, 0) for i in range(5000)]))


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (exif(0, 0, orientation=8), 8),
        (exif(0, 0, orientation=9), 1),
        (exif(0, 0)[:14], 1),
        (exif(0, 0)[:7], None),
        (b"XX" + exif(0, 0), None),
        (b"II*\0\xff\xff\xff\xff" + bytes(20), None),
        (b"MM\0+" + b"\xff" * 100, None),
        (b"", None),
    ],
)
def test_orientation_of_exif_blocks(block: bytes, expected: int | None) -> None:
    assert exif_orientation(FileBytes.of_content(b"head" + block), 4, len(block)) == expected
    assert exif_orientation(FileBytes.of_content(b"head" + block), 4, 1 << 40) == expected
