"""Options of a server: what is refused, and what the user is warned of."""

from __future__ import annotations

import pytest

from codetr_cli.errors import ConfigError
from codetr_cli.serving.options import ServeOptions

KEY = "0123456789abcdef"


def test_a_request_that_the_queue_cannot_hold_is_refused_at_once():
    with pytest.raises(ConfigError, match="--max-images 9 is more than --queue 8"):
        ServeOptions(max_images=9, queue=8)


@pytest.mark.parametrize("key", ["", "with\nnewline", "schlüssel", " spaces "])
def test_keys_that_no_header_can_have(key: str):
    with pytest.raises(ConfigError, match="--api-key"):
        ServeOptions(api_key=key)


def test_the_key_is_in_no_text_of_the_options():
    assert KEY not in repr(ServeOptions(api_key=KEY))


@pytest.mark.parametrize(
    "origin", ["example.org", "https://example.org/", "https://a.b/path", "ftp://a.b", "null", "http://["]
)
def test_origins_that_no_browser_sends(origin: str):
    with pytest.raises(ConfigError, match="--cors-origin"):
        ServeOptions(cors_origins=(origin,))


def test_origins():
    ServeOptions(cors_origins=("*", "https://example.org", "http://localhost:3000"))


@pytest.mark.parametrize(
    ("host", "is_local", "shown"),
    [
        ("127.0.0.1", True, "127.0.0.1"),
        ("127.0.0.2", True, "127.0.0.2"),
        ("::1", True, "[::1]"),
        ("localhost", True, "localhost"),
        ("0.0.0.0", False, "127.0.0.1"),
        ("::", False, "[::1]"),
        ("192.168.1.2", False, "192.168.1.2"),
        ("gpu7.example.org", False, "gpu7.example.org"),
    ],
)
def test_hosts(host: str, is_local: bool, shown: str):
    options = ServeOptions(host=host)
    assert (options.is_local, options.url_host) == (is_local, shown)
    assert any("everybody" in sentence for sentence in options.warnings()) is not is_local


def test_warnings():
    assert ServeOptions().warnings() == []
    assert ServeOptions(api_key=KEY).warnings() == []
    assert "not encrypted" in ServeOptions(host="0.0.0.0", api_key=KEY).warnings()[0]
    assert "can be guessed" in ServeOptions(api_key="secret").warnings()[0]
    assert "every web page" in ServeOptions(cors_origins=("*",)).warnings()[0]
