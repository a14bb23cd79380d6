"""URLs are accepted or refused, what is a secret in them is not shown, and local names are harmless."""

from __future__ import annotations

import base64

import pytest

from codetr_cli.config.overrides import replace_settings
from codetr_cli.config.presets import load_preset
from codetr_cli.errors import ConfigError
from codetr_cli.weights.checkpoint import read_metadata, save_checkpoint
from codetr_cli.weights.remote import Remote
from codetr_cli.weights.urls import has_secrets, is_url, local_name, parse_url, public_settings, shown_url
from tests.weights.published_states import raw_state, small_settings

SECRETS = {
    "https://me:SECRET@host/x.pth": "https://***@host/x.pth",
    "https://SECRET@host:8443/x.pth": "https://***@host:8443/x.pth",
    "https://me:SE/CRET@host/x.pth": "https://***@host/x.pth",
    "https://me:p@SECRET@host/x.pth": "https://***@host/x.pth",
    "https://host/x.pth?token=SECRET": "https://host/x.pth?token=***",
    "https://host/x.pth?X-Amz-Signature=SECRET&download=true": "https://host/x.pth?X-Amz-Signature=***&download=true",
    "https://host/x.pth?SECRET": "https://host/x.pth?***",
    "https://host/x.pth?id=123&a=;SECRET": "https://host/x.pth?id=***&a=***",
    "https://host/x.pth#SECRET": "https://host/x.pth",
    "https://[bad/x.pth?SECRET": "https://[bad/x.pth",
    "https://me:SECRET@[bad/x.pth": "https://***@[bad/x.pth",
    "ftp://me:SECRET@host/x.pth": "ftp://***@host/x.pth",
}


@pytest.mark.parametrize("url", SECRETS)
def test_secrets_are_not_shown(url):
    assert shown_url(url) == SECRETS[url]
    assert has_secrets(url) == ("***" in SECRETS[url])


@pytest.mark.parametrize(
    "url", ["https://host/a%20b.pth", "https://host/x.pth?download=true&raw=1", "http://h:80/@a/b"]
)
def test_other_urls_are_shown_as_they_are(url):
    assert shown_url(url) == url
    assert not has_secrets(url)


def test_control_characters_are_escaped():
    assert shown_url("https://host/\x1b[2J.pth?\x1b[2J") == "https://host/%1B[2J.pth?***"
    assert has_secrets("https://host/***") is True  # rather too often than too seldom
    assert not has_secrets("runs/a?b")


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "ftp://host/x.pth", "data://text/x.pth", "https:///x.pth", "https://host:x/x.pth"),
        *("https://host:99999/x.pth", "https://[bad/x.pth", "https://" + "a" * 70 + ".org/x.pth", "HTTPS:x.pth"),
        *("https://" + "a." * 130 + "org/x.pth", "https://ü" + "u" * 70 + "/x.pth", "https://me:SECRET@/x.pth"),
        *("https://host/" + "x" * 9000, "https://\u2100/x.pth", "http://%ff%fe.invalid/x.pth", "http://a..b.invalid/x"),
        *("http://.a/x", "http://a%00b/x", "http://a%2fb/x", "http://a%20b/x", "http://a%40b/x", "http://a%3a80/x"),
        *("http://%c3%bc..b/x", "http://./x", "http://[::1%25a%2fb]/x"),
    ],
)
def test_what_is_no_url_of_a_file_is_refused_without_its_secrets(url):
    with pytest.raises(ConfigError) as caught:
        Remote.from_url(url.replace("host", "me:SECRET@host"))
    assert "SECRET" not in str(caught.value)


def test_credentials_become_a_header():
    address = parse_url("https://me:p%40ss@host:8443/a b.pth?token=1")
    assert address.url == "https://host:8443/a%20b.pth?token=1"
    assert address.origin == ("https", "host", 8443)
    assert address.authorization == "Basic " + base64.b64encode(b"me:p@ss").decode()
    assert address.is_encrypted
    assert "p@ss" not in repr(address)
    assert "p%40ss" not in repr(Remote.from_url("https://me:p%40ss@host/x.pth"))
    plain = parse_url("HTTP://Bücher.example")
    assert (plain.url, plain.authorization) == ("http://xn--bcher-kva.example/", None)
    assert parse_url("http://[::1]:80/x").url == "http://[::1]:80/x"


@pytest.mark.parametrize(
    ("name", "local"),
    [
        *[("x.pth", "x.pth"), (".bashrc", "bashrc"), ("..", "weights"), ("", "weights"), ("...pth", "pth")],
        *[("../../etc/passwd", "passwd"), ("a\\..\\b.pth", "b.pth"), ("c:x.pth", "c_x.pth"), ("x.pth. ", "x.pth")],
        *[("NUL", "_NUL"), ("com1.pth", "_com1.pth"), ("a\x1b\n\u202eb", "a___b"), ("console.pth", "console.pth")],
    ],
)
def test_local_names(name, local):
    assert local_name(name) == local


@pytest.mark.parametrize("name", ["a" * 5000 + ".pth", "ü" * 5000 + ".pth", "a." + "b" * 5000, "\ud800" * 900])
def test_local_names_are_short(name):
    local = local_name(name)
    assert 0 < len(local.encode()) <= 150
    assert local.endswith(".pth") == name.endswith(".pth")


def test_what_is_a_url():
    assert is_url("https://host/x.pth")
    assert is_url("ftp://host/x.pth")
    assert not is_url("runs/co_dino_r50/1")
    assert not is_url("co_dino_r50")
    assert not is_url(r"C:\weights\x.pth")


def test_settings_in_files_have_no_secrets(tmp_path):
    secret = {"train.backbone_weights": "https://me:SECRET@host/x.pth", "source.url": "https://host/y.pth?sig=SECRET"}
    settings = replace_settings(small_settings(), secret)
    assert public_settings(settings).train.backbone_weights == "https://***@host/x.pth"
    save_checkpoint(
        tmp_path / "x.safetensors", raw_state(), settings=settings, class_names=list("abc"), category_ids=[1, 2, 3]
    )
    assert "SECRET" not in str(read_metadata(tmp_path / "x.safetensors"))
    plain = load_preset("co_dino_r50")
    assert public_settings(plain) is plain


@pytest.mark.parametrize(
    ("host", "looked_up"),
    [
        *(("EXAMPLE.org", "example.org"), ("ex%61mple.org", "example.org"), ("example.org.", "example.org.")),
        *(("b%C3%BCcher.de", "xn--bcher-kva.de"), ("a_b.org", "a_b.org"), ("[::1]", "::1"), ("127.0.0.1", "127.0.0.1")),
    ],
)
def test_hosts_as_they_are_looked_up(host, looked_up):
    assert parse_url(f"https://{host}/x.pth").origin[1] == looked_up
