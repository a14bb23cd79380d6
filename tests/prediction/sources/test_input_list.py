from __future__ import annotations

import copy
import tracemalloc
from pathlib import Path

from codetr_cli.prediction.sources.input_list import InputImage, InputList, TextTable, digest_of


def test_images_of_all_kinds_come_back():
    images = InputList()
    images.append("file", "a/", "b/c.jpg")
    images.append("file", "", "d.jpg", name="e.jpg")
    images.append("url", "s3://u:p@bucket/", "x.jpg?sig=1234", name="x.jpg")
    images.append("archive", "t/0.tar", "m.jpg", start=512, size=7)
    images.append("url archive", "s3://b/1.tar", "../n.jpg", name="1.tar/n.jpg", start=1024, size=8)
    images.number([5, 6, 7, 8, 9])
    assert list(images) == [
        InputImage(Path("a/b/c.jpg"), "b/c.jpg", 5),
        InputImage(Path("d.jpg"), "e.jpg", 6),
        InputImage(Path("x.jpg"), "x.jpg", 7, "s3://u:p@bucket/x.jpg?sig=1234"),
        InputImage(Path("t/0.tar"), "0.tar/m.jpg", 8, "", "m.jpg", 512, 7),
        InputImage(Path("1.tar/n.jpg"), "1.tar/n.jpg", 9, "s3://b/1.tar", "../n.jpg", 1024, 8),
    ]
    assert images[-1] == images[4]
    assert images[1:3] == [images[1], images[2]]
    assert [image.file for image in images] == [
        *("a/b/c.jpg", "d.jpg", "s3://***@bucket/x.jpg?sig=***", "t/0.tar/m.jpg", "s3://b/1.tar/../n.jpg")
    ]
    assert [image.is_file for image in images] == [True, True, False, False, False]
    assert images[3].local_files == [Path("t/0.tar")]
    assert images[4].local_files == []
    assert list(copy.deepcopy(images)) == list(images)  # as for another process
    images.rename(["1", "2", "3", "4", "5"])
    assert [image.name for image in images] == ["1", "2", "3", "4", "5"]


def test_texts_of_any_characters_come_back():
    table = TextTable()
    texts = ["", "caf\u00e9", "\udcff\n", "\ud800", "\U0001f600"]
    for text in texts:
        table.append(text)
    assert list(table) == texts
    assert table[-1] == texts[-1]


def test_a_name_of_images_depends_on_places_names_and_ids():
    images = InputList()
    images.append("file", "a/", "b.jpg")
    before = digest_of(images)
    assert digest_of([InputImage(Path("a/b.jpg").absolute(), "b.jpg", 1)]) == before
    for other in (InputImage(Path("a/c.jpg"), "b.jpg", 1), InputImage(Path("a/b.jpg"), "c.jpg", 1)):
        assert digest_of([other]) != before
    assert digest_of([InputImage(Path("a/b.jpg"), "b.jpg", 2)]) != before


def test_a_long_list_has_little_more_than_its_names():
    tracemalloc.start()
    try:
        images = InputList()
        for number in range(20_000):
            images.append("file", "/data/images/", f"train/{number:012}.jpg")
        size = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert size / len(images) < 60  # 22 bytes of name
