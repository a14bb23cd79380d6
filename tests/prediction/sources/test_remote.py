from __future__ import annotations

import sys

import pytest

from codetr_cli.errors import ConfigError, DatasetError, ResourceError
from codetr_cli.prediction.sources import remote
from codetr_cli.prediction.sources.remote import (
    RemoteError,
    check_package,
    file_name_of,
    filesystem,
    images_below,
    opened,
    read_url,
)
from tests.prediction.sources.image_server import serving

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote, "WAIT_S", 0.001)


@pytest.fixture
def memory():
    """An object store in memory."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


def test_bytes_and_ranges_of_an_object_store(memory):
    memory.pipe("/b/a.jpg", b"0123456789")
    assert read_url("memory://b/a.jpg", limit=10) == b"0123456789"
    assert read_url("memory://b/a.jpg", limit=10, start=2, size=3) == b"234"
    with pytest.raises(RemoteError, match="more than 9 bytes"):
        read_url("memory://b/a.jpg", limit=9)
    with pytest.raises(RemoteError, match="3 bytes came where 9 should be"):
        read_url("memory://b/a.jpg", limit=10, start=7, size=9)
    with pytest.raises(RemoteError, match="no such file"):
        read_url("memory://b/gone.jpg", limit=10)
    with opened("memory://b/a.jpg") as file:
        assert file.read(4) == b"0123"
    with pytest.raises(DatasetError, match=r"memory://b/gone\.txt: no such file"), opened("memory://b/gone.txt"):
        pass


def test_folders_and_patterns_of_an_object_store(memory):
    for name in ("/b/c/1.jpg", "/b/0.png", "/b/notes.txt"):
        memory.pipe(name, b"x")
    assert images_below("memory://b/") == ["memory://b/0.png", "memory://b/c/1.jpg"]
    assert images_below("memory://b/*.png") == ["memory://b/0.png"]
    with pytest.raises(DatasetError, match="there are no images at memory://b/x"):
        images_below("memory://b/x*")


@pytest.mark.parametrize("ranges", [True, False])
def test_a_web_server(ranges: bool):
    pytest.importorskip("aiohttp", reason="aiohttp is not installed")
    failures: list[int] = []
    with serving({"/a.jpg": b"0123456789", "/l.txt": b"a.jpg\n"}, failures, ranges) as url:
        assert read_url(f"{url}/a.jpg?token=secret", limit=10) == b"0123456789"
        failures += [503, 503]
        assert read_url(f"{url}/a.jpg", limit=10) == b"0123456789"
        with pytest.raises(RemoteError, match="more than 4 bytes"):
            read_url(f"{url}/a.jpg", limit=4)
        with pytest.raises(RemoteError, match="no such file"):
            read_url(f"{url}/gone.jpg", limit=4)
        failures += [500] * 2 * remote.TRIES  # the size is asked for first
        with pytest.raises(RemoteError) as caught:
            read_url(f"{url}/a.jpg?token=secret", limit=10)
        assert str(caught.value) == "the server answers with status 500"
        assert not failures
        with opened(f"{url}/l.txt") as file:
            assert file.read() == b"a.jpg\n"
        if ranges:
            assert read_url(f"{url}/a.jpg", limit=10, start=2, size=3) == b"234"
        else:
            with pytest.raises(RemoteError):
                read_url(f"{url}/a.jpg", limit=10, start=2, size=3)
    # Not "no such file": the image may be there tomorrow.
    with pytest.raises(RemoteError, match="no connection to the server"):
        read_url(f"{url}/a.jpg", limit=10)


@pytest.mark.parametrize(
    "url",
    ["s4://b/a.jpg", "file:///etc/passwd", "zip://a.jpg::s3://b/c.zip", "github://a:b@c/d.jpg", "s3://" + "a" * 9000],
)
def test_only_addresses_of_files_are_read(url: str):
    with pytest.raises(ConfigError, match="is no address of images that can be read"):
        filesystem(url)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ResourceError, match=r"pip install 'codetr-cli\[fs\]' s3fs"):
        filesystem("s3://b/a.jpg")
    with pytest.raises(ResourceError, match=r"pip install 'codetr-cli\[fs\]' s3fs"):
        check_package("s3")
    for protocol in ("memory", "unknown"):
        check_package(protocol)


def test_names_of_addresses():
    assert file_name_of("https://u:p@h/a/b%20c.jpg?x=1#y") == "b c.jpg"
    assert file_name_of("s3://bucket/") == ""
