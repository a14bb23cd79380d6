"""Control characters become visible, everything else stays."""

from __future__ import annotations

import sys
import time
import unicodedata
from collections.abc import Callable

import pytest

from codetr_cli.escaping import visible, without_credentials
from tests.conftest import Ran


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\nerror: b\r\tc", "a\\nerror: b\\r\\tc"),
        ("\x9b31m\x7f\0", "\\x9b31m\\x7f\\x00"),
        ("gpj.\u202etxt", "gpj.\\u202etxt"),
        ("a\u2028b", "a\\u2028b"),
        (b"caf\xe9".decode(errors="surrogateescape"), "caf\\xe9"),
        ("\ud800", "\\ud800"),
        ("C:\\new\\table [bold]é 狗 👩\u200d🚒", "C:\\new\\table [bold]é 狗 👩\u200d🚒"),
    ],
)
def test_visible(text: str, shown: str):
    assert visible(text) == shown


def test_no_control_character_is_left():
    shown = visible("".join(map(chr, range(sys.maxunicode + 1))))
    assert {unicodedata.category(character) for character in shown}.isdisjoint({"Cc", "Cs", "Zl", "Zp"})
    assert not [character for character in shown if unicodedata.bidirectional(character) in
                ("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI")]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no folder http:/me:SECRET@host/x?a=1.", "no folder http:/***@host/x?a=1."),
        ("'https://SECRET@host/x?X-Amz-Signature=SECRET&b=2'", "'https://***@host/x?X-Amz-Signature=***&b=2'"),
        ("x?auth_token=SECRET or y", "x?auth_token=*** or y"),
        ("runs/me@home: a/b@c.pth, key=1", "runs/me@home: a/b@c.pth, key=1"),
    ],
)
def test_credentials_are_hidden(text: str, shown: str):
    assert without_credentials(text) == shown


def test_hiding_takes_time_linear_in_the_text():
    before = time.process_time()
    for piece in (":/", ":/a", "?token", "&a", "?key" * 10, "=", "@"):
        without_credentials(piece * 20_000)
    assert time.process_time() - before < 3


def test_credentials_are_not_printed_where_a_path_is_expected(codetr: Callable[..., Ran]):
    url = "https://me:SECRET@host/x.pth?token=SECRET"
    for words in (("prepare", url), ("runs", url), ("presets", url)):
        ran = codetr(*words)
        assert ran.code in (2, 3, 4)
        assert "SECRET" not in ran.out + ran.err
