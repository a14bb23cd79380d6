"""The text of files in the encodings that users' files have."""

from __future__ import annotations

import codecs

import pytest

from codetr_cli.annotations.encodings import decode_text

TEXT = "狗 dog 鸟\n"


@pytest.mark.parametrize(
    ("content", "declared"),
    [
        (TEXT.encode(), None),
        (codecs.BOM_UTF8 + TEXT.encode(), None),
        (TEXT.encode("utf-16"), None),
        (codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), None),
        (TEXT.encode("utf-32"), None),
        (TEXT.encode("gb18030"), None),
        (TEXT.encode("gb18030"), "GB2312"),
        (TEXT.encode("gbk"), "gbk"),
        (TEXT.encode(), "utf8"),
        (TEXT.encode(), "gb2312"),  # declared by the template, written as UTF-8
    ],
)
def test_marked_declared_and_recognised_encodings(content, declared):
    assert decode_text(content, declared) == TEXT


def test_gbk_whose_bytes_happen_to_be_utf8():
    assert decode_text("猫".encode("gbk"), "GBK") == "猫"
    assert decode_text("猫".encode("gbk")) == "è"  # nothing distinguishes them


def test_utf16_without_a_mark():
    assert decode_text("dog 猫".encode("utf-16-le")) == "dog 猫"
    assert decode_text("dog 猫".encode("utf-16-be")) == "dog 猫"


def test_latin_1_only_where_it_is_declared():
    content = "Köter".encode("latin-1")
    assert decode_text(content, "ISO-8859-1") == "Köter"
    with pytest.raises(ValueError, match=r"not UTF-8 \(byte 1 of 5\).*save it as UTF-8"):
        decode_text(content)


@pytest.mark.parametrize("declared", ["rot13", "base64", "no-such", "unicode_escape", "utf-7", "x" * 1000])
def test_other_codecs_of_python_are_none_of_text(declared):
    with pytest.raises(ValueError, match=r"encoding .{1,40} is not supported"):
        decode_text(b"k\xf6ter", declared)


def test_bytes_that_the_declared_encoding_does_not_have():
    with pytest.raises(ValueError, match="is not gb18030 at byte 1"):
        decode_text(b"k\xff\xff", "gbk")
