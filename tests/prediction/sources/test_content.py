from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codetr_cli.images.decoder import BrokenImageError
from codetr_cli.prediction.sources.content import read_content, read_pixels
from codetr_cli.prediction.sources.input_list import InputImage


@pytest.fixture
def archive(tmp_path: Path) -> InputImage:
    """An image in an archive."""
    content = io.BytesIO()
    Image.new("RGB", (5, 3), (1, 2, 3)).save(content, "PNG")
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        member = tarfile.TarInfo("b/c.png")
        member.size = len(content.getvalue())
        content.seek(0)
        file.addfile(member, content)
    return InputImage(tmp_path / "a.tar", "a.tar/b/c.png", 1, "", "b/c.png", 512, member.size)


def test_a_member_has_the_pixels_of_the_file(archive: InputImage):
    assert np.array_equal(read_pixels(archive, max_pixels=15), np.full((3, 5, 3), (1, 2, 3)))


def test_members_that_cannot_be_read_have_reasons(archive: InputImage):
    with pytest.raises(BrokenImageError) as caught:
        read_pixels(archive, max_pixels=14)
    assert caught.value.advise("--set x={}", archive.file) == (
        f"cannot read image {archive.file}: it has 5 x 3 pixels, more than data.max_pixels = 14. Use a smaller one, or "
        "allow it with --set x=15"
    )
    archive.path.write_bytes(archive.path.read_bytes()[:530])
    with pytest.raises(BrokenImageError, match=r"a\.tar/b/c\.png: the archive ends before its last byte"):
        read_content(archive, max_pixels=15)
    archive.path.unlink()
    with pytest.raises(BrokenImageError, match="No such file"):
        read_content(archive, max_pixels=15)
    with pytest.raises(BrokenImageError, match="and the limit is"):
        read_content(InputImage(archive.path, "x", 1, "", "x", 0, 1 << 40), max_pixels=15)
    with pytest.raises(BrokenImageError, match=r"s3://\*\*\*@b/x\.jpg"):
        read_content(
            InputImage(Path("x.jpg"), "x.jpg", 1, "nowhere://u:p@b/x.jpg".replace("nowhere", "s3")), max_pixels=1
        )
