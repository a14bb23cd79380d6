"""Rows of CSV files that are wrong, too long or too many."""

from __future__ import annotations

import pytest

from codetr_cli.errors import DatasetError
from codetr_cli.formats import csv_rows, csv_table
from tests.formats.labelling_exports import boxes, opened, picture


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.jpg,1,2,3,4,cat\na.jpg,1,2,x,4,cat\n", r"t.csv, line 2: the box \['1', '2', 'x', '4'\] instead of four"),
        ("a.jpg,1,2,3,4,cat\na.jpg,1,2,,4,cat\n", "t.csv, line 2: the box"),
        ("a.jpg,1,2,3,4,cat\na.jpg,1,2,3\n", "t.csv, line 2: 4 columns, 6 are needed"),
        ("a.jpg,1,2,3,4,cat\n" * 30 + "a.jpg,9,2,3,4,cat\n", "t.csv, line 31: swapped corners: 9, 2, 3, 4"),
        ("image,x,y,w,h,class\na.jpg,1,2,-3,4,cat\n", "t.csv, line 2: width -3 and height 4, which cannot be negative"),
        ("image,x1,y1,x2,y2,class\na.jpg,1,2,3,4,\n", r"t.csv, line 2: has no class \(''\)"),
        ("a.jpg,1,2,3,4,cat\n" * 30 + "a.jpg,,,,,cat\n", "t.csv, line 31: the class 'cat', but no coordinates"),
        ("a.jpg,1,2,3,4,cat\n" * 30 + ",1,2,3,4,cat\n", "t.csv, line 31: no image"),
        ("a.jpg,1,2,3,nan,cat\n" + "a.jpg,1,2,3,4,cat\n", "t.csv, line 1|columns that are not understood"),
        ("a.jpg,1,2,3,1e300,cat\n", "t.csv, line 1: the box"),
        ("filename,class,xmin,ymin,xmax\na.jpg,cat,1,2,3\n", "t.csv has columns that are not understood: its columns"),
        ("a.jpg,1,2,3,4,cat\n" * 30 + "a" * 200_000, "t.csv has a line of more than 100,000 characters"),
        ("a.jpg,1,2,3,4,cat\n" * 30 + "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "no image|columns"),
    ],
)
def test_broken_rows_are_named(tmp_path, text, words):
    picture(tmp_path / "a.jpg")
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=words) as error:
        opened(tmp_path)
    assert len(str(error.value)) < 2000


def test_bytes_that_are_no_text(tmp_path):
    picture(tmp_path / "a.jpg")
    (tmp_path / "t.csv").write_bytes(b"a.jpg,1,2,3,4,cat\n" * 30 + b"\xff\n")
    with pytest.raises(DatasetError, match=r"t.csv: its text is not UTF-8 \(byte 540"):
        opened(tmp_path)


def test_large_files_are_read_in_pieces_up_to_a_limit(tmp_path, monkeypatch):
    picture(tmp_path / "a.jpg")
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + b"a.jpg,1,2,3,4,cat\n" * 50)
    expected = boxes(tmp_path, val_fraction=0)
    monkeypatch.setattr(csv_rows, "MAX_WHOLE_BYTES", 100)
    assert boxes(tmp_path, val_fraction=0.01) == expected
    monkeypatch.setattr(csv_table, "MAX_ROWS", 49)
    with pytest.raises(DatasetError, match="more than 49 boxes, the limit"):
        opened(tmp_path, val_fraction=0.02)
    (tmp_path / "t.csv").write_bytes(b"a.jpg,1,2,3,4,cat\n" * 50 + b"\xff,1,2,3,4,cat\n")
    with pytest.raises(DatasetError, match=r"t.csv is not UTF-8 after line \d+: save it as UTF-8"):
        opened(tmp_path)
