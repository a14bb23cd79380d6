"""Servers that are slow, endless or lie about what they send cost little time, memory and disk."""

from __future__ import annotations

import base64
import hashlib
import random
import threading
import time

import pytest

from codetr_cli.errors import CheckpointError, ResourceError
from codetr_cli.weights import connection, download
from codetr_cli.weights.download import fetch
from codetr_cli.weights.remote import Remote
from tests.weights.server import answer, serve, serve_raw, trickle

DATA = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
OK = "HTTP/1.1 200 OK"


@pytest.fixture
def target(tmp_path):
    return tmp_path / "cache" / "weights.pth"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


PATIENCE_S = 20.0  # of a busy machine; without a limit, what these servers send has no end


@pytest.fixture
def impatient(monkeypatch):
    """A window of 0.2 seconds instead of a minute."""
    monkeypatch.setattr(connection, "WINDOW_S", 0.2)
    monkeypatch.setattr(connection, "MIN_BYTES_PER_S", 2_000)


def length(size):
    return f"Content-Length: {size}"


def whole(body=DATA, *headers):
    return answer([OK, length(len(body)), *headers], body)


def moved(location, status="302 Found"):
    return answer([f"HTTP/1.1 {status}", f"Location: {location}", length(0)])


def fetched(url, target, **known):
    return fetch(Remote.from_url(url, **known), target)


def leftovers(target):
    return sorted(path.name for path in target.parent.iterdir() if not path.name.endswith(".receipt"))


# -------------------------------------------------------------------------------------------------------- slow, endless


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\n", b"a"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"\x80"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"\x80"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n"),
        (b"HTTP/1.1 302 Found\r\n", b"a"),
    ],
    ids=["status", "headers", "continue", "body", "endless", "chunk", "trailers", "redirect"],
)
def test_a_server_that_sends_a_byte_now_and_then_is_given_up(target, impatient, start, piece):
    before = time.monotonic()
    with (
        serve_raw(trickle(start, piece)) as (url, _),
        pytest.raises(ResourceError, match=r"sends less than 2 kB per second"),
    ):
        fetched(url, target)
    assert time.monotonic() - before < PATIENCE_S
    assert not target.exists()


def test_a_slow_download_keeps_what_came_and_is_continued(target, impatient):
    start = f'{OK}\r\n{length(len(DATA))}\r\nETag: "one"\r\n\r\n'.encode() + DATA[:100_000]
    rest = ["HTTP/1.1 206 Partial Content", length(len(DATA) - 100_000)]
    rest.append(f"Content-Range: bytes 100000-{len(DATA) - 1}/{len(DATA)}")
    # The byte that comes now and then is not counted: how many came depends on the clock.
    with serve_raw(trickle(start, b""), answer(rest, DATA[100_000:])) as (url, requests):
        with pytest.raises(ResourceError, match=r"0\.1 MB are kept: run the same command again"):
            fetched(url, target)
        fetched(url, target)
    assert "Range: bytes=100000-" in requests[1]
    assert target.read_bytes() == DATA


def test_a_download_that_takes_a_day_is_given_up(target, impatient, monkeypatch):
    monkeypatch.setattr(connection, "MAX_HOURS", 0)
    start = f"{OK}\r\n\r\n".encode()
    with (
        serve_raw(trickle(start, b"\x80" * 1000, pause_s=0.01)) as (url, _),
        pytest.raises(ResourceError, match="takes more than 0 hours"),
    ):
        fetched(url, target)


def test_a_fast_download_is_not_disturbed(target, monkeypatch):
    monkeypatch.setattr(connection, "WINDOW_S", 0.01)
    with serve(DATA) as served:
        monkeypatch.setattr(connection, "MIN_BYTES_PER_S", 0)
        fetched(served.url, target, sha256=SHA256)
    assert target.read_bytes() == DATA
    assert [thread.name for thread in threading.enumerate() if "watch" in thread.name] == []


@pytest.mark.parametrize("known", [None, 100_000])
def test_an_endless_file_ends_at_the_limit(target, monkeypatch, known):
    monkeypatch.setattr(download, "MAX_BYTES", 100_000)
    monkeypatch.setattr(download, "CHUNK_BYTES", 50_000)
    with (
        serve_raw(trickle(f"{OK}\r\n\r\n".encode(), b"\x80" * 50_000, pause_s=0)) as (url, _),
        pytest.raises(CheckpointError, match=r"more than 100,000 bytes.*Nothing was kept"),
    ):
        fetched(url, target, bytes=known)
    assert leftovers(target) == []


def test_a_file_of_a_declared_size_beyond_the_limit_is_not_read(target):
    with (
        serve_raw(answer([OK, length(1 << 50)], b"\x80")) as (url, _),
        pytest.raises(CheckpointError, match=r"has 1,125,899,906,842,624 bytes, the limit for weights of unknown size"),
    ):
        fetched(url, target)


def test_an_endless_redirect_is_not_read(target):
    endless = trickle(b"HTTP/1.1 302 Found\r\nLocation: /next\r\n\r\n", b"\x80" * 100_000, pause_s=0)
    with serve_raw(endless, whole()) as (url, requests):
        fetched(url, target)
    assert len(requests) == 2
    assert target.read_bytes() == DATA


def test_a_server_that_ends_again_and_again_is_given_up(target, monkeypatch):
    monkeypatch.setattr(download, "MAX_SHORT_ATTEMPTS", 3)
    with serve(DATA, cut_at=[1000] * 300) as served:
        with pytest.raises(ResourceError, match="the connection ended"):
            fetched(served.url, target)
        assert len(served.requests) == 4


# ------------------------------------------------------------------------------------------------------------ redirects


@pytest.mark.parametrize(
    "location",
    [
        *(
            "ftp://127.0.0.1/x.pth",
            "file:///etc/passwd",
            "data:,x",
            "gopher://x/y",
            "http://[bad/x",
            "http://h:99999/x",
        ),
        *(
            "jar:http://x!/y",
            "javascript:x",
            "http://%ff%fe.invalid/x",
            "http://a..b.invalid/x",
            "http://me:SECRET@h:x/?token=SECRET",
        ),
    ],
)
def test_redirects_to_something_else_are_refused(target, location):
    with serve_raw(moved(location)) as (url, requests):
        with pytest.raises(ResourceError, match="which is not an http or https URL") as caught:
            fetched(url, target)
        assert len(requests) == 1
    assert "SECRET" not in str(caught.value)
    assert leftovers(target) == []


def test_a_redirect_without_a_target(target):
    with (
        serve_raw(answer(["HTTP/1.1 302 Found", length(0)])) as (url, _),
        pytest.raises(ResourceError, match="nowhere"),
    ):
        fetched(url, target)


def test_a_circle_of_redirects_ends(target):
    with serve_raw(moved("/again", "301 Moved")) as (url, requests):
        with pytest.raises(ResourceError, match="redirects more than 8 times"):
            fetched(url, target)
        assert len(requests) == 9


def test_a_redirect_from_https_to_http_is_refused(monkeypatch):
    start = connection.parse_url("https://example.org/weights.pth?token=SECRET")
    with pytest.raises(ResourceError, match="not encrypted") as caught:
        connection._redirected("https://example.org/weights.pth", start, "http://example.org/x?token=SECRET")
    assert "SECRET" not in str(caught.value)
    assert connection._redirected("https://e/x", start, "//other/x").url == "https://other/x"


# ---------------------------------------------------------------------------------------------------------- credentials


def test_credentials_are_sent_to_their_own_server_only(target):
    with serve_raw(whole()) as (other, others), serve_raw(moved("/again"), moved(other)) as (url, requests):
        fetched(url.replace("127", "me:SECRET@127", 1), target)
    expected = "Authorization: Basic " + base64.b64encode(b"me:SECRET").decode()
    assert all(expected in request for request in requests)
    assert len(requests) == 2
    assert "Authorization" not in others[0]
    assert "SECRET" not in others[0]


def test_credentials_are_not_printed_and_not_written(target, caplog):
    caplog.set_level("DEBUG")
    texts = []
    with serve_raw(
        answer([OK, length(9), 'ETag: "one"'], b"\x80"), answer(["HTTP/1.1 404 \x1b[2JSECRET\x85", length(0)])
    ) as (
        url,
        requests,
    ):
        secret = url.replace("127", "me:SECRET@127", 1) + "?token=SECRET"
        with pytest.raises(ResourceError) as caught:
            fetched(secret, target)
    assert "GET /weights.pth?token=SECRET " in requests[0]
    texts.append(str(caught.value))
    texts += [path.read_text("latin-1") for path in target.parent.rglob("*")]
    assert "404 Not Found" in texts[0]
    assert "weights.pth?token=***" in texts[0]
    assert not any("SECRET" in text or "\x1b" in text for text in [*texts, caplog.text])
    with serve_raw(whole()) as (url, _):
        fetched(url + "?token=SECRET", target)
    texts = [path.read_text("latin-1") for path in target.parent.rglob("*")]
    assert any("?token=***" in text for text in texts)
    assert not any("SECRET" in text for text in texts)


# ----------------------------------------------------------------------------------------------------- lies and proxies


@pytest.mark.parametrize(
    "head",
    [
        ["\x1b[2J\x1b]0;x\x07"],
        ["HTTP/1.1 999999 x"],
        ["HTTP/1.1 200 OK", "a: " + "b" * 70_000],
        ["HTTP/1.1 200 OK", *["a: b"] * 200],
        ["HTTP/1.1 204 No Content"],
        ["HTTP/1.1 304 Not Modified"],
        ["HTTP/1.1 300 Multiple Choices", "Location: /x"],
        ["HTTP/1.1 401 \u009b2J", "WWW-Authenticate: Basic realm=x"],
        [OK, *[f"a{number}: {'b' * 60_000}" for number in range(50)]],
    ],
    ids=["noise", "status", "line", "count", "204", "304", "300", "401", "headers"],
)
def test_answers_that_are_no_file(target, head):
    before = time.monotonic()
    with serve_raw(answer(head)) as (url, _), pytest.raises(ResourceError) as caught:
        fetched(url, target)
    assert str(caught.value).isprintable()
    assert time.monotonic() - before < PATIENCE_S
    assert leftovers(target) == []


@pytest.mark.parametrize("size", ["-5", "9" * 5000, "\u00b2", "abc", "1e9", ""])
def test_a_length_that_is_no_number_counts_as_none(target, size):
    with serve_raw(answer([OK, f"Content-Length: {size}"], DATA)) as (url, _):
        fetched(url, target, sha256=SHA256)
    assert target.read_bytes() == DATA


def test_a_length_that_is_too_long_or_too_short(target):
    long = answer([OK, length(len(DATA) + 1)], DATA)
    with serve_raw(long) as (url, _), pytest.raises(ResourceError, match="the connection ended"):
        fetched(url, target)
    with serve_raw(answer([OK, length(1000)], DATA)) as (url, _), pytest.raises(CheckpointError, match="SHA-256"):
        fetched(url, target, sha256=SHA256)
    assert not target.exists()


def test_a_length_beside_chunks_does_not_count(target):
    chunks = b"493e0\r\n" + DATA + b"\r\n0\r\n\r\n"
    with serve_raw(answer([OK, length(5), "Transfer-Encoding: chunked"], chunks)) as (url, _):
        fetched(url, target)
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "GZIP"])
def test_a_compressed_answer_is_refused_unread(target, coding):
    packed = whole(DATA, f"Content-Encoding: {coding}")
    with serve_raw(packed) as (url, _), pytest.raises(CheckpointError, match="compressed on the way"):
        fetched(url, target)


@pytest.mark.parametrize(
    "span",
    [
        *("bytes 0-99/300000", "bytes 99-199999/300000", "bytes 100000-299999/200000", "bytes 100000-99999/300000"),
        *("bytes 100000-/300000", "bytes */300000", "bytes " + "9" * 5000 + "-1/2", "lines 1-2/3", ""),
    ],
)
def test_another_part_than_requested_is_not_appended(target, span):
    first = answer([OK, length(len(DATA)), 'ETag: "one"'], DATA[:100_000])
    second = answer(["HTTP/1.1 206 Partial Content", f"Content-Range: {span}", length(200_000)], b"\x80" * 200_000)
    with serve_raw(first, second) as (url, _), pytest.raises(ResourceError, match="another range"):
        fetched(url, target)
    assert not target.exists()
    assert target.with_name("weights.pth.part").read_bytes() == DATA[:100_000]


def test_a_part_that_was_not_requested_is_not_the_file(target):
    part = answer(["HTTP/1.1 206 Partial Content", f"Content-Range: bytes 0-99/{len(DATA)}", length(100)], DATA[:100])
    with serve_raw(part) as (url, _), pytest.raises(ResourceError, match=r"0\.0 MB of 0\.3 MB"):
        fetched(url, target)
    assert not target.exists()


def test_the_proxy_of_the_environment_is_used(target, monkeypatch):
    with serve_raw(whole()) as (proxy, requests):
        monkeypatch.setenv("http_proxy", proxy.replace("127", "me:secret@127", 1).removesuffix("/weights.pth"))
        fetched("http://nowhere.invalid/weights.pth", target)
        assert requests[0].startswith("GET http://nowhere.invalid/weights.pth ")
        assert "Proxy-Authorization: Basic" in requests[0]
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with serve(DATA) as served:
            fetched(served.url, target.with_name("direct.pth"))
        assert len(requests) == 1


def test_an_unknown_kind_of_proxy(target, monkeypatch):
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(ResourceError, match="unknown url type: socks5"):
        fetched("http://nowhere.invalid/weights.pth", target)


def test_a_proxy_without_a_name_is_no_connection(target, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://a..b:80")
    with pytest.raises(ResourceError, match="cannot download"):
        fetched("http://example.org/x.pth", target)
