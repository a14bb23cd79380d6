"""Archives with tricks: each is refused as a bad checkpoint, without unpacking what they promise."""

from __future__ import annotations

import copy
import io
import os
import struct
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from codetr_cli.errors import CheckpointError
from codetr_cli.weights import zip_files
from codetr_cli.weights.pickles import forbidden_globals, read_pickle

PICKLE, DATA, NONE = "archive/data.pkl", "archive/data/0", b"\x80\x02N."
TENSOR = (
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    b"X\x03\x00\x00\x00cpuK\x04tQK\x00K\x04\x85K\x01\x85\x89NtR."
)  # of four numbers, in DATA


def archive(*, pickled: bytes = TENSOR, method: int = zipfile.ZIP_STORED, **more: bytes) -> bytes:
    """A checkpoint of one tensor, with further members; their names have a slash for each double underscore."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as target:
        for name, content in {PICKLE: pickled, DATA: bytes(16), **more}.items():
            target.writestr(name.replace("__", "/"), content)
    return file.getvalue()


def listed(change: Callable[[list[zipfile.ZipInfo]], None], **options) -> bytes:
    """An archive whose directory is changed before it is written."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        for name, content in {PICKLE: TENSOR, DATA: bytes(16), **options}.items():
            target.writestr(name, content)
        change(target.filelist)
    return file.getvalue()


def renamed(entry: zipfile.ZipInfo, name: str) -> zipfile.ZipInfo:
    entry = copy.copy(entry)
    entry.filename = name
    return entry


def patched(content: bytes, offset: int, value: bytes, *, last: bool = True) -> bytes:
    """Bytes of the directory's entry of the last member, or of the first."""
    at = (content.rindex if last else content.index)(b"PK\x01\x02") + offset
    return content[:at] + value + content[at + len(value) :]


def with_end(content: bytes, entries: int, size: int, offset: int) -> bytes:
    """Other numbers at the end of the archive."""
    at = content.rindex(b"PK\x05\x06")
    return content[:at] + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, entries, entries, size, offset, 0)


def zip64(content: bytes, entries: int, size: int, offset: int) -> bytes:
    """The same with 64-bit numbers."""
    at = content.rindex(b"PK\x05\x06")
    end = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, entries, entries, size, offset)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, at, 1)
    return with_end(content[:at] + end + locator + b"PK\x05\x06", 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)


def tar(name: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as target:
        entry = tarfile.TarInfo(name)
        entry.size = len(NONE)
        target.addfile(entry, io.BytesIO(NONE))
    return file.getvalue()


TRICKS: dict[str, Callable[[], bytes]] = {
    "two pickles of one name": lambda: listed(lambda entries: entries.append(copy.copy(entries[0]))),
    "two storages of one name": lambda: listed(lambda entries: entries.append(copy.copy(entries[1]))),
    "two pickles in two folders": lambda: archive(other__data=b"", **{"other/data.pkl": NONE}),
    "names that differ behind a zero byte": lambda: listed(lambda e: e.append(renamed(e[1], DATA + "\0x"))),
    "no pickle": lambda: archive().replace(b"data.pkl", b"data.txt"),
    "a pickle at the top": lambda: archive().replace(PICKLE.encode(), b"archive_data.pkl"),
    "a pickle above the archive": lambda: archive().replace(b"archive/data.pkl", b"../chive/data.pk"),
    "a storage above the archive": lambda: archive().replace(b"archive/data/0", b"../hive/data/0"),
    "an absolute storage": lambda: archive().replace(b"archive/data/0", b"/rchive/data/0"),
    "members that overlap": lambda: listed(lambda e: e.append(renamed(e[1], "archive/data/1"))),
    "a member inside another": lambda: patched(archive(), 42, struct.pack("<I", 40)),
    "a member behind the file": lambda: patched(archive(), 42, struct.pack("<I", 1 << 30)),
    "a member larger than the file": lambda: patched(archive(), 20, struct.pack("<II", 1 << 30, 1 << 30)),
    "a stored member of two sizes": lambda: patched(archive(), 24, struct.pack("<I", 8)),
    "a member of another name": lambda: archive().replace(DATA.encode(), b"archive/data/1", 1),
    "a member that starts elsewhere": lambda: patched(archive(), 42, struct.pack("<I", 1)),
    "an encrypted storage": lambda: patched(archive(), 8, struct.pack("<H", 1)),
    "an encrypted pickle": lambda: patched(archive(), 8, struct.pack("<H", 1), last=False),
    "strong encryption": lambda: patched(archive(), 8, struct.pack("<H", 0x41)),
    "a hidden directory": lambda: patched(archive(), 8, struct.pack("<H", 0x2000)),
    "patched data": lambda: patched(archive(), 8, struct.pack("<H", 0x20)),
    "bzip2": lambda: archive(method=zipfile.ZIP_BZIP2),
    "lzma": lambda: archive(method=zipfile.ZIP_LZMA),
    "an unknown method": lambda: patched(archive(), 10, struct.pack("<H", 97)),
    "deflate64": lambda: patched(archive(), 10, struct.pack("<H", 9)),
    "no deflated data": lambda: patched(archive(), 10, struct.pack("<H", 8)),
    "a wrong checksum": lambda: patched(archive(), 16, b"\1\2\3\4"),
    "a bomb": lambda: archive(method=zipfile.ZIP_DEFLATED, pickled=NONE, bomb=bytes(1 << 24)),
    "a padded bomb": lambda: archive(method=zipfile.ZIP_DEFLATED, pad=os.urandom(1 << 20), bomb=bytes(80 << 20)),
    "a pickle that is a bomb": lambda: archive(method=zipfile.ZIP_DEFLATED, pickled=b"\x80\x02" + b"(" * (1 << 23)),
    "a deflated member shorter than declared": lambda: patched(
        archive(method=zipfile.ZIP_DEFLATED), 24, struct.pack("<I", 64)
    ),
    "a directory of impossible size": lambda: with_end(archive(), 2, 1 << 30, 0),
    "a directory before the file": lambda: with_end(archive(), 2, 0xFFFF, 0xFFFF),
    "a directory elsewhere": lambda: with_end(archive(), 2, 100, 5),
    "no members": lambda: archive()[:60] + b"PK\x05\x06" + bytes(18),
    "a 64-bit directory of impossible size": lambda: zip64(archive(), 2, 1 << 62, 0),
    "a 64-bit directory at an impossible place": lambda: zip64(archive(), 2, 110, 1 << 63),
    "64-bit sizes that are missing": lambda: patched(archive(), 20, b"\xff" * 8),
    "a wrong header": lambda: patched(archive(), 0, b"PK\x09\x09"),
    "an archive in an archive": lambda: archive(pickled=archive()),
    "an archive in a folder": lambda: archive().replace(b"archive/", b"arc/ive/"),
    "a legacy file with an archive behind it": lambda: b"\x80\x02N." + archive(),
    "an old tar file": lambda: tar("sys_info"),
    "a tar file with a name that leaves it": lambda: tar("../pickle"),
    "the other byte order": lambda: archive(**{"archive/byteorder": b"big"}),
    "a long byte order": lambda: archive(**{"archive/byteorder": b"little" * 100_000}),
    "TorchScript": lambda: archive(**{"archive/constants.pkl": NONE}).replace(b"data.pkl", b"code.pkl"),
}  # fmt: skip


@pytest.mark.parametrize("name", TRICKS)
def test_tricks_are_bad_checkpoints(tmp_path: Path, name: str):
    path = tmp_path / "x.pth"
    content = TRICKS[name]()
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(CheckpointError) as caught:
        read_pickle(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.exit_code == 4
    assert peak < (16 << 20) + 2 * len(content)
    assert list(tmp_path.iterdir()) == [path]


def test_archives_without_tricks_are_read(tmp_path: Path):
    """The tests above would pass with an archive that nothing reads."""
    for content in (archive(), archive(method=zipfile.ZIP_DEFLATED), listed(lambda entries: None), zip64_of_torch()):
        (tmp_path / "x.pth").write_bytes(content)
        assert torch.equal(read_pickle(tmp_path / "x.pth"), torch.zeros(4))


def zip64_of_torch() -> bytes:
    content = archive()
    at = content.index(b"PK\x01\x02")
    return zip64(content, 2, content.rindex(b"PK\x05\x06") - at, at)


def test_thousands_of_members_are_read_and_more_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.pth"
    path.write_bytes(archive(**{f"archive/data/{number}": b"" for number in range(1, 3_000)}))
    assert torch.equal(read_pickle(path), torch.zeros(4))
    monkeypatch.setattr(zip_files, "MAX_DIRECTORY_BYTES", 100_000)
    with pytest.raises(CheckpointError):
        read_pickle(path)
    with path.open("rb") as file, pytest.raises(zipfile.BadZipFile, match="directory is too large"):
        zip_files.open_zip(file)


def test_names_are_listed_for_as_long_as_that_is_quick(tmp_path: Path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"\x80\x02" + b"cos\nsystem\n0" * 200_000 + b"csubprocess\nPopen\n.")
    assert forbidden_globals(path) == ["os.system"]
    path.write_bytes(archive(pickled=b"\x80\x02cos\nsystem\n."))
    assert forbidden_globals(path) == ["os.system"]


def test_long_names_are_listed_shortened_and_only_some(tmp_path: Path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"\x80\x04" + 2 * (b"X\x40\x42\x0f\x00" + b"a" * 1_000_000) + b"\x93" * 1_000 + b".")
    start = time.process_time()
    assert forbidden_globals(path) == ["a" * 256]
    assert time.process_time() - start < 0.5  # 1000 names of 2 MB took two seconds
    path.write_bytes(b"\x80\x02" + b"".join(b"ca\nb%d\n0" % number for number in range(1_000)))
    assert len(forbidden_globals(path)) == 100


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_the_limit_of_the_directory_is_not_one_of_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: int):
    monkeypatch.setattr(zip_files, "MAX_DIRECTORY_BYTES", 10_000)
    path, noise = tmp_path / "x.pth", os.urandom(40_000)
    with zipfile.ZipFile(path, "w", method) as target:
        target.writestr(PICKLE, TENSOR.replace(b"K\x04", b"M\x10\x27"))  # of 10,000 numbers
        target.writestr(DATA, noise)
    assert read_pickle(path).numpy().tobytes() == noise
    path.write_bytes(
        archive(pickled=b"\x80\x02B" + struct.pack("<I", 40_000) + noise + b"0cos\nsystem\n.", method=method)
    )
    assert forbidden_globals(path) == ["os.system"]


def test_pipes_and_devices_are_not_opened(tmp_path: Path):
    os.mkfifo(tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="pipe"):
        read_pickle(tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="device"):
        read_pickle(Path("/dev/zero"))
