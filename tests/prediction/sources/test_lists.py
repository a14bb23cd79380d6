from __future__ import annotations

import io

import pytest

from codetr_cli.errors import ConfigError, DatasetError
from codetr_cli.prediction.sources.lists import MAX_LINE, entries


def read(text: str | bytes, name: str = "a.txt", column: str | None = None) -> list[str]:
    content = text.encode() if isinstance(text, str) else text
    return list(entries(io.BytesIO(content), name, column))


def test_a_text_has_an_image_a_line():
    assert read("\ufeffa.jpg\r\n\n  b c.jpg \n#1.jpg") == ["a.jpg", "b c.jpg", "#1.jpg"]
    assert read(b"caf\xe9.jpg\n") == ["caf\udce9.jpg"]


def test_tables():
    assert read('id,path\n1,a.jpg\n2,"b, c.jpg"\n3\n4,\n', "a.csv") == ["a.jpg", "b, c.jpg"]
    assert read("Image_URL;label\ns3://a/b.jpg;cat\n", "a.csv") == ["s3://a/b.jpg"]
    assert read("x\tfile_name\n1\ta.jpg\n", "a.tsv") == ["a.jpg"]
    assert read("path,mine\na.jpg,b.jpg\n", "a.csv", "mine") == ["b.jpg"]


@pytest.mark.parametrize(
    ("name", "text", "column", "words"),
    [
        ("a.csv", "x,y\n1,2\n", None, "which column of a.csv names the images.*x, y"),
        ("a.csv", "path,y\n1,2\n", "pat", "no column 'pat': did you mean 'path'"),
        ("a.txt", "a.jpg\n", "path", "a text list, without columns"),
    ],
)
def test_columns_that_are_not_there(name: str, text: str, column: str | None, words: str):
    with pytest.raises(ConfigError, match=words):
        read(text, name, column)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"\x89PNG\r\n\0\0"),
        ("a.txt", b"x" * (MAX_LINE + 1)),
        ("a.csv", b'path\n"' + b"x\n" * 200_000),
        ("a.csv", b'path,x\n"a.jpg,1\nb.jpg,2\n'),  # images would be lost in a quote that is not closed
        ("a.csv", b'path,x\n"a.jpg,1\nb.jpg,"2"\nc.jpg,"3\n'),
        ("a.txt", "a.jpg\n".encode("utf-16")),
        ("a.txt", b"a.jpg\n..\n"),
        ("a.txt", b"sub/\n"),
        ("a.parquet", b"PAR1" + b"x" * 100 + b"PAR1"),
        ("a.parquet", b""),
    ],
)
def test_what_is_no_list_is_refused(name: str, content: bytes):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    with pytest.raises(DatasetError, match=name):
        read(content, name)


def test_columns_of_parquet_that_are_text_and_not():
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

    def of(table) -> bytes:
        file = io.BytesIO()
        parquet.write_table(table, file)
        return file.getvalue()

    categories = arrow.array(["a.jpg", None, "a.jpg"]).dictionary_encode()
    assert read(of(arrow.table({"path": categories})), "a.parquet") == ["a.jpg", "a.jpg"]
    assert read(of(arrow.table({"path": arrow.array(["a.jpg"], arrow.string_view())})), "a.parquet") == ["a.jpg"]
    twice = arrow.Table.from_arrays([arrow.array(["a"]), arrow.array(["b"])], names=["path", "path"])
    for table, words in (
        (twice, "several columns 'path'"),
        (arrow.table({"path": ["a\0.jpg"]}), "that no name can be"),
        (arrow.table({"path": ["x" * (MAX_LINE + 1)]}), "that no name can be"),
    ):
        with pytest.raises(DatasetError, match=words):
            read(of(table), "a.parquet")
    with pytest.raises(ConfigError, match="is of type list"):
        read(of(arrow.table({"path": [["a.jpg"]]})), "a.parquet")


def test_a_column_of_parquet():
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    file = io.BytesIO()
    parquet.write_table(arrow.table({"id": [1, 2, 3], "url": ["s3://a/b.jpg", None, "c.jpg"]}), file)
    assert read(file.getvalue(), "a.parquet") == ["s3://a/b.jpg", "c.jpg"]
    with pytest.raises(ConfigError, match=r"column 'id' of a\.parquet is of type int64"):
        read(file.getvalue(), "a.parquet", "id")
