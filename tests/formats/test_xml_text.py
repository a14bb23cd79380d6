"""The text of XML files, and their first element."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from codetr_cli.formats.xml_text import decode_xml, new_parser, root_of, root_of_file

HEAD = "<?xml version='1.0' encoding='{}'?>"
CAT = "\u732b"


@pytest.mark.parametrize(
    ("declared", "encoding", "letter"),
    [
        ("GB2312", "gb2312", CAT),
        ("gbk", "gbk", CAT),
        ("GB18030", "gb18030", "\U00020000"),
        ("utf-8", "gb2312", "\u72d7"),  # a wrong declaration: bytes that are no UTF-8, but GB2312
        ("gb2312", "utf-8", CAT),
        ("iso-8859-1", "latin-1", "é"),
        ("utf-16", "utf-16", CAT),
        ("utf-16", "utf-16-le", CAT),
        ("utf-8", "utf-8-sig", CAT),
        ("utf-16", "utf-8", "é"),  # written from a text in memory
        ("Shift_JIS", "shift_jis", CAT),
    ],
)
def test_encodings(declared: str, encoding: str, letter: str) -> None:
    text = f"{HEAD.format(declared)}<annotation><name>{letter}</name></annotation>"
    assert decode_xml(text.encode(encoding)) == text


@pytest.mark.parametrize("name", ["no-such", "utf-7", "zip", "unicode_escape", "", "x" * 50])
def test_other_encodings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"encoding .* is not supported, save it as UTF-8"):
        decode_xml(f"{HEAD.format(name)}<a/>".encode())


@pytest.mark.parametrize(
    ("text", "root"),
    [
        ("<annotation/>", "annotation"),
        (
            '<?xml version="1.0"?>\n<!-- <x> -->\n<!DOCTYPE a [<!ELEMENT b ANY>]>\n<annotation verified="yes">',
            "annotation",
        ),
        ("<annotations>", "annotations"),
        ("<annotation", ""),
        ("< annotation>", ""),
        ("plain text", ""),
        ("", ""),
        ("<!-- never closed <annotation>", ""),
    ],
)
def test_the_first_element(text: str, root: str, tmp_path: Path) -> None:
    assert root_of(text) == root
    path = tmp_path / "a.xml"
    path.write_text(text)
    assert root_of_file(path) == root
    assert root_of_file(tmp_path) == ""


def test_the_first_element_is_found_in_linear_time() -> None:
    start = time.process_time()
    for text in ("<?" * 40_000, "<!-- -->" * 20_000, "<!>" * 30_000, "<" * 90_000):
        assert root_of(text) == ""
    assert time.process_time() - start < 1


def test_entities_are_refused() -> None:
    parser = new_parser(lambda *_: None, lambda _: None)
    with pytest.raises(ValueError, match="declares entities"):
        parser.Parse("<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", True)
