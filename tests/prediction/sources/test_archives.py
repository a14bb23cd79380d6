from __future__ import annotations

import io
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from codetr_cli.errors import DatasetError
from codetr_cli.prediction.sources.archives import expand_braces, members, shown_name


def tar(path: Path, *names: str, form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    return path


def found(path: Path) -> list[tuple[str, str, bytes]]:
    content = path.read_bytes()
    with path.open("rb") as file:
        return [
            (each.name, each.shown, content[each.start : each.start + each.size]) for each in members(file, "a.tar")
        ]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_of_an_archive_are_ranges_of_its_bytes(tmp_path: Path, form: int):
    long = "a/" + "b" * 90 + "/c.jpg" if form == tarfile.USTAR_FORMAT else "a/" + "b" * 200 + "/c.jpg"
    path = tar(tmp_path / "a.tar", "0.jpg", "0.json", "0.cls", long, "._1.jpg", "x/.hidden.png", "2.PNG", form=form)
    assert found(path) == [(name, name, name.encode()) for name in ("0.jpg", long, "2.PNG")]


def test_names_that_lead_elsewhere_are_shortened_and_links_are_no_images(tmp_path: Path):
    path = tar(tmp_path / "a.tar", "../../etc/a.jpg", "/root/b.jpg", "./c/../d.jpg", "./e/f.jpg")
    with tarfile.open(path, "a") as archive:
        for name, kind in (("l.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE), ("p.jpg", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    assert [shown for _, shown, _ in found(path)] == ["a.jpg", "b.jpg", "d.jpg", "e/f.jpg"]


def test_a_header_that_claims_to_be_huge_is_not_read(tmp_path: Path):
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 1 << 33
    path = tmp_path / "a.tar"
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(DatasetError, match=r"a\.tar is not a whole tar archive"):
        found(path)


@pytest.mark.parametrize("content", [b"", b"hello" * 300, b"\x1f\x8b" + bytes(1000)])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="is not a whole tar archive"):
        found(path)


def damaged(path: Path, kind: str) -> bytes:
    """An archive of a.jpg, b.jpg and c.jpg that is not whole."""
    content = tar(path, "a.jpg", "b.jpg", "c.jpg", form=tarfile.GNU_FORMAT).read_bytes()
    if kind == "header":  # of b.jpg
        return content[:1024] + b"Z" + content[1025:]
    return {"cut between": content[:2048], "cut in a header": content[:1100], "joined": content * 2}[kind]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("header", "a damaged header at byte 1,024"),
        ("cut between", "cut off at byte 2,048"),
        ("cut in a header", "at byte 1,024"),
        ("joined", "another one follows its end"),
    ],
)
def test_no_member_is_lost_in_silence(tmp_path: Path, kind: str, words: str):
    path = tmp_path / "a.tar"
    path.write_bytes(damaged(path, kind))
    with pytest.raises(DatasetError, match=words):
        found(path)


@pytest.mark.parametrize("size", ["-5", "-512", "-1024", str(1 << 63), "abc"])
def test_members_of_impossible_sizes(tmp_path: Path, size: str):
    member = tarfile.TarInfo("a.jpg")
    member.pax_headers = {"size": size}
    path = tmp_path / "a.tar"
    path.write_bytes(member.tobuf(tarfile.PAX_FORMAT) + b"x" * 512 + bytes(1024))
    with pytest.raises(DatasetError, match="is not a whole tar archive"):
        found(path)


def hostile_header(kind: str) -> bytes:
    """A header that takes for ever, or the interpreter's stack."""
    member = tarfile.TarInfo("x")
    if kind == "names of names":
        member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1
        return (member.tobuf(tarfile.GNU_FORMAT) + b"a".ljust(512, b"\0")) * 3000
    content = b"1" * (1 << 19) if kind == "digits" else b"9" * 20
    if kind == "sparse":
        member = tarfile.TarInfo("a.jpg")
        member.size = len(content)
        member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
        return member.tobuf(tarfile.PAX_FORMAT) + content
    member.type, member.size = tarfile.XHDTYPE, len(content)
    return member.tobuf(tarfile.GNU_FORMAT) + content + bytes(1024)


@pytest.mark.parametrize("kind", ["names of names", "digits", "sparse"])
def test_a_header_costs_little(tmp_path: Path, kind: str):
    path = tmp_path / "a.tar"
    path.write_bytes(hostile_header(kind))
    with pytest.raises(DatasetError, match="is not a whole tar archive"):
        found(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("..", "image"),
        (".", "image"),
        ("", "image"),
        ("a/..", "image"),
        ("..\0.jpg", ".._.jpg"),
        ("a/./b.jpg", "a/b.jpg"),
    ],
)
def test_every_name_can_be_that_of_a_file(name: str, expected: str):
    assert shown_name(name) == expected


@pytest.mark.parametrize("name", ["ä" * 5000 + ".jpg", "a/" + "x" * 300 + ".jpg", "a." + "b" * 300])
def test_names_are_not_too_long(tmp_path: Path, name: str):
    (tmp_path / shown_name(name)).touch()
    assert shown_name(name).endswith(".jpg") == name.endswith(".jpg")


def test_many_members_take_no_memory(tmp_path: Path):
    path = tar(tmp_path / "a.tar", *(f"{number:06}.jpg" for number in range(1000)))
    with path.open("rb") as file:
        tracemalloc.start()
        try:
            assert sum(1 for _ in members(file, "a.tar")) == 1000
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 200_000


def test_braces():
    assert expand_braces("a{008..010}.tar") == ["a008.tar", "a009.tar", "a010.tar"]
    assert expand_braces("{2..1}{a,b}") == ["2a", "2b", "1a", "1b"]
    assert expand_braces("{x}{}.jpg") == ["{x}{}.jpg"]
    with pytest.raises(DatasetError, match="stands for 1,000,000,000 names"):
        expand_braces("{0..999999999}")
