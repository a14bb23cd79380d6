"""Files that are JSON in any encoding, and files that are none: what they are is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from codetr_cli.annotations.annotation_json import read_json_file, read_tables
from codetr_cli.annotations.json_text import UnusableFileError

VALUE = {"name": "K\u00e4se \u7dca\u6025", "numbers": [1, 2.5]}
CHINESE = {"name": "\u5b89\u5168\u5e3d", "numbers": [1, 2.5]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_text_of_any_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(VALUE, ensure_ascii=False), encoding=encoding)
    assert read_json_file(path) == VALUE


@pytest.mark.parametrize("with_outlines", [True, False])
def test_chinese_text_is_read_with_its_outlines(tmp_path: Path, with_outlines: bool) -> None:
    path = tmp_path / "a.json"
    table = {"images": [], "categories": [CHINESE], "annotations": [{"segmentation": [[1, 2, 3, 4, 5, 6]]}]}
    path.write_text(json.dumps(table, ensure_ascii=False), encoding="gb18030")
    tables = read_tables(path, with_outlines=with_outlines)
    assert tables.categories == [CHINESE]
    if with_outlines:
        assert tables.outlines is not None
        assert tables.outlines.parse(0) == [[1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": [1, 2,\n ]}', r"a trailing comma at byte 11 \(line 1, column 12\): remove it"),
        (b'{"a": 1,\n}', r"a trailing comma at byte 7 \(line 1, column 8\)"),
        (b'{"a": 1 // one\n}', "JSON has no comments"),
        (b'{"a": 1,\n# one\n"b": 2}', "line 2, column 1.*JSON has no comments"),
        (b"{'a': 1}", "Python's notation"),
        (b'{"a": True}', "Python's notation"),
        (b'{"a": 1}\n{"a": 2}\n', "several JSON values one after the other"),
        (b'{"a": 1} end', "text after the end"),
        (gzip.compress(b"{}", mtime=0), "compressed by gzip: unpack it"),
        (b"PK\x03\x04\0\0", "a ZIP archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>404</html>", "a web page"),
        (b"<HTML><body>", "a web page"),
        ('{"a": 1'.encode("utf-16"), "it ends at byte 7"),
        (b'{\0"\0a\0' + b"\0" * 20, "byte 5 is zero"),
        (b'{"a": "\xe4"}', "no UTF-8 text at byte 7 of 10: save it as UTF-8"),
    ],
)
def test_what_is_no_json_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UnusableFileError, match=words):
        read_json_file(path)
    with pytest.raises(UnusableFileError, match=words):
        read_tables(path, with_outlines=False)


def test_numbers_that_only_python_writes_are_values(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[Infinity, -Infinity]")
    assert read_json_file(path) == [float("inf"), float("-inf")]
