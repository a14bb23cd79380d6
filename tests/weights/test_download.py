"""Downloads are resumed and verified, incomplete files never get the final name, and errors are one sentence."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import socket
from collections import namedtuple

import pytest

from codetr_cli.errors import CheckpointError, ConfigError, ResourceError, StoppedError
from codetr_cli.weights import download
from codetr_cli.weights.download import fetch
from codetr_cli.weights.remote import Remote, doubt, doubt_path
from tests.weights.server import serve

DATA = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def target(tmp_path):
    return tmp_path / "cache" / "weights.pth"


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(download, "CHUNK_BYTES", 50_000)


def remote(served, **known):
    return Remote.from_url(served.url, **{"bytes": len(DATA), "sha256": SHA256, **known})


def leftovers(target):
    """Names of the files beside the target, without its receipt."""
    names = (path.name for path in target.parent.iterdir()) if target.parent.is_dir() else ()
    return sorted(name for name in names if not name.endswith(".receipt"))


def leave_part(target, data, url, validator='"one"'):
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    part.write_bytes(data)
    if validator:
        part.with_name(part.name + ".json").write_text(
            json.dumps({"url_sha256": hashlib.sha256(url.encode()).hexdigest(), "validator": validator})
        )
    return part


def test_a_file_is_downloaded_once(target):
    reports = []
    with serve(DATA) as served:
        assert fetch(remote(served), target, progress=lambda done, total: reports.append((done, total))) == target
        assert target.read_bytes() == DATA
        assert reports[-1] == (len(DATA), len(DATA))
        assert [done for done, _ in reports] == sorted(done for done, _ in reports)
        fetch(remote(served), target)
        assert served.requests == [None]  # the second time it is there
        fetch(remote(served), target, force=True)
        assert served.requests == [None, None]
    assert leftovers(target) == ["weights.pth"]


@pytest.mark.parametrize("known", [{}, {"bytes": None, "sha256": None}])
def test_a_broken_connection_is_continued_where_it_broke(target, known):
    with serve(DATA, cut_at=[100_000, 70_001]) as served:
        fetch(remote(served, **known), target)
        assert served.requests == [None, "bytes=100000-", "bytes=170001-"]
    assert target.read_bytes() == DATA
    assert leftovers(target) == ["weights.pth"]


def test_a_later_call_continues_what_an_earlier_one_left(target):
    with serve(DATA, cut_at=[100_000, 0]) as served:
        with pytest.raises(ResourceError, match=r"0\.1 MB of 0\.3 MB.*run the same command again.*to .*weights"):
            fetch(remote(served), target)
        assert not target.exists()
        assert target.with_name("weights.pth.part").stat().st_size == 100_000
        fetch(remote(served), target)
        assert served.requests == [None, "bytes=100000-", "bytes=100000-"]
    assert target.read_bytes() == DATA


def test_a_moved_file_is_followed_and_continued(target):
    with serve(DATA, cut_at=[100_000]) as served:
        moved = served.url.replace("/weights.pth", "/moved/weights.pth")
        fetch(Remote.from_url(moved, bytes=len(DATA), sha256=SHA256), target)
        assert served.requests == [None, "bytes=100000-"]
    assert target.read_bytes() == DATA


def test_a_server_without_ranges_sends_the_whole_file_again(target):
    with serve(DATA, ranges=False, cut_at=[100_000]) as served:
        fetch(remote(served), target)
        assert served.requests == [None, "bytes=100000-"]
    assert target.read_bytes() == DATA


def test_a_download_without_progress_is_given_up(target):
    with serve(DATA, ranges=False, cut_at=[100_000, 50_000, 90_000, 120_000, 1, 2]) as served:
        with pytest.raises(ResourceError, match="the connection ended"):
            fetch(remote(served), target)
        assert len(served.requests) == 2
    assert not target.exists()


def test_a_file_that_changed_on_the_server_starts_again(target):
    with serve(DATA) as served:
        leave_part(target, b"x" * 1000, served.url, '"an older version"')
        fetch(remote(served), target)
        assert served.requests == ["bytes=1000-"]
    assert target.read_bytes() == DATA


def test_a_part_of_unknown_origin_is_not_continued(target):
    with serve(DATA) as served:
        leave_part(target, DATA[:1000], served.url, None)
        fetch(remote(served), target)
        leave_part(target, DATA[:1000], "http://elsewhere/weights.pth")
        fetch(remote(served), target, force=True)
        assert served.requests == [None, None]
    assert target.read_bytes() == DATA


def test_a_wrong_part_is_detected_and_downloaded_again(target):
    with serve(DATA) as served:
        leave_part(target, b"x" * 1000, served.url)
        fetch(remote(served), target)
        assert served.requests == ["bytes=1000-", None]
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("size", [len(DATA), len(DATA) + 5])
def test_a_part_as_long_as_the_file_or_longer(target, size):
    with serve(DATA) as served:
        leave_part(target, (DATA + b"12345")[:size], served.url)
        fetch(remote(served, bytes=None), target)
    assert target.read_bytes() == DATA
    assert leftovers(target) == ["weights.pth"]


def test_a_whole_part_of_known_size_needs_no_server(target):
    url = "http://127.0.0.1:9/weights.pth"
    leave_part(target, DATA, url)
    fetch(Remote.from_url(url, bytes=len(DATA), sha256=SHA256), target)
    assert target.read_bytes() == DATA


def test_without_a_length_the_hash_decides(target):
    with serve(DATA, tell_length=False, cut_at=[250_000]) as served, pytest.raises(CheckpointError, match="SHA-256"):
        fetch(remote(served, bytes=None), target)
    assert leftovers(target) == []


def test_wrong_size_is_refused_before_it_is_read(target):
    with serve(DATA) as served, pytest.raises(CheckpointError, match=r"has 300000 bytes.*published file has 299999"):
        fetch(remote(served, bytes=299_999), target)
    assert leftovers(target) == []


def test_wrong_hash_leaves_nothing_behind(target):
    with serve(DATA) as served, pytest.raises(CheckpointError, match=f"{SHA256}.*{'0' * 64}.*deleted"):
        fetch(remote(served, sha256="0" * 64), target)
    assert leftovers(target) == []


def test_the_hash_in_the_name_is_compared(target):
    with serve(DATA) as served:
        named = served.url.replace("weights.pth", f"weights-{SHA256[:8]}.pth")
        assert Remote.from_url(named).filename == f"weights-{SHA256[:8]}.pth"
        fetch(Remote.from_url(named), target)
        with pytest.raises(CheckpointError, match="deadbeef"):
            fetch(Remote.from_url(named.replace(SHA256[:8], "deadbeef")), target.with_name("other.pth"))


def test_an_existing_file_of_another_size_is_downloaded_again(target, caplog):
    target.parent.mkdir(parents=True)
    target.write_bytes(b"something else")
    with serve(DATA) as served:
        fetch(remote(served), target)
        assert len([text for text in caplog.messages if f"{target} has 14 bytes" in text]) == 1
        fetch(remote(served), target)
        assert served.requests == [None]
    assert target.read_bytes() == DATA


def test_a_failed_replacement_keeps_the_old_file(target):
    target.parent.mkdir(parents=True)
    target.write_bytes(b"old but whole")
    with serve(DATA) as served, pytest.raises(CheckpointError, match="SHA-256"):
        fetch(remote(served, sha256="0" * 64), target, force=True)
    assert target.read_bytes() == b"old but whole"
    assert leftovers(target) == ["weights.pth"]


@pytest.mark.parametrize(("status", "message"), [(404, "404 Not Found.*--url"), (403, "403"), (503, "Try again later")])
def test_status_codes_of_errors(target, status, message):
    with serve(DATA, status=status) as served, pytest.raises(ResourceError, match=message):
        fetch(remote(served), target)
    assert leftovers(target) == []


def test_a_web_page_is_refused(target):
    page = serve(b"<html>log in</html>", content_type="text/html; charset=utf-8")
    with page as served, pytest.raises(CheckpointError, match="web page instead of a file"):
        fetch(remote(served, bytes=None, sha256=None), target)
    assert leftovers(target) == []


def test_no_server(target):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refuses connections
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/weights.pth"
        with pytest.raises(ResourceError, match=r"cannot download .*refused.*to .*weights\.pth"):
            fetch(Remote.from_url(url), target)
    assert leftovers(target) == []


def test_too_little_space_is_reported_before_writing(target, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1, 1, (64 << 20) + 450_000))
    with serve(DATA) as served:
        with pytest.raises(ResourceError, match="CODETR_CACHE"):
            fetch(remote(served), target, copies=2)
        assert leftovers(target) == []
        fetch(remote(served), target)
    assert target.read_bytes() == DATA


def test_a_disk_that_fills_up_on_the_way(target, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with serve(DATA) as served:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match="no space left on the disk"):
            fetch(remote(served), target)
        assert not target.exists()
        monkeypatch.undo()
        fetch(remote(served), target)
    assert target.read_bytes() == DATA


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with serve(DATA) as served, pytest.raises(ResourceError, match=r"cannot write .*CODETR_CACHE"):
        fetch(remote(served), tmp_path / "file" / "weights.pth")


def test_an_interruption_keeps_the_part(target):
    def stop(done, total):
        if done >= 100_000:
            raise KeyboardInterrupt

    with serve(DATA) as served:
        with pytest.raises(StoppedError, match=r"0\.1 MB are kept.*again to continue") as caught:
            fetch(remote(served), target, progress=stop)
        assert caught.value.exit_code == 130
        assert leftovers(target) == ["weights.pth.part", "weights.pth.part.json"]
        fetch(remote(served), target)
        assert served.requests == [None, "bytes=100000-"]
    assert target.read_bytes() == DATA


def test_two_at_once(target, monkeypatch):
    monkeypatch.setattr(download.FileLock, "acquire", lambda self: False)
    leave_part(target, b"", "x", None)
    with serve(DATA) as served, pytest.raises(ResourceError, match="another codetr is downloading"):
        fetch(remote(served), target)


@pytest.mark.parametrize("url", ["ftp://host/x.pth", "file:///etc/passwd", "https:///x.pth", "https://host/"])
def test_invalid_urls(url):
    with pytest.raises(ConfigError):
        Remote.from_url(url)


@pytest.mark.parametrize(
    "url", ["https://[bad/x.pth", "https://host/x/..", "https://host/%2e%2e", "https://host/x%00.pth"]
)
def test_urls_without_a_file_name(url):
    with pytest.raises(ConfigError, match="URL"):
        Remote.from_url(url)


def test_a_url_may_have_letters_and_spaces(target):
    with serve(DATA) as served:
        named = Remote.from_url(served.url.replace("weights.pth", "Gewichte f\u00fcr alle.pth"))
        assert named.filename == "Gewichte f\u00fcr alle.pth"
        fetch(named, target)
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("name", ["{}.part", "{}.part.json", "{}.part.lock", ".{}.doubt"])
@pytest.mark.parametrize("kind", ["folder", "link"])
def test_what_is_in_the_place_of_a_file_of_a_download_is_deleted(target, tmp_path, name, kind):
    place = target.parent / name.format(target.name)
    place.parent.mkdir(parents=True)
    if kind == "folder":
        (place / "x").mkdir(parents=True)
    else:
        place.symlink_to(tmp_path)
    with serve(DATA) as served:
        fetch(remote(served), target)
    assert leftovers(target) == [target.name]
    if kind == "folder":
        (place / "x").mkdir(parents=True)
    assert fetch(remote(served), target) == target
    assert doubt(target)
    assert doubt_path(target).is_file()
