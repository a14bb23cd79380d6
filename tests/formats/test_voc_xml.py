"""Annotation files of Pascal VOC, whole, broken and hostile."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from codetr_cli.errors import DatasetError
from codetr_cli.formats import voc_xml
from codetr_cli.formats.voc_xml import VocObject, read_file
from tests.formats.exported_xml import labelimg, roboflow, rolabelimg

BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>20</ymax></bndbox>"
THING = f"<object><name>a</name>{BOX}</object>"
SIZE = "<size><width>{}</width><height>{}</height><depth>3</depth></size>"


def read(tmp_path: Path, text: str | bytes) -> voc_xml.VocFile:
    path = tmp_path / "a.xml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_file(path)


def test_only_the_elements_of_the_layout_count(tmp_path: Path) -> None:
    part = f"<part><name>head</name>{BOX.replace('>1<', '>9<')}</part>"
    more = (
        f"<object>{part}<!-- c --><name> b<!-- c -->c </name><difficult>1</difficult>{BOX}{BOX}<name>x</name></object>"
    )
    found = read(
        tmp_path, f"<annotation><name>n</name><xmin>4</xmin>{SIZE.format(40, '30.0')}{THING}{more}</annotation>"
    )
    corners = (0.0, 1.0, 30.0, 20.0)
    assert found.size == (30, 40)
    assert found.objects == [VocObject("a", corners, False), VocObject("bc", corners, True)]


@pytest.mark.parametrize(
    "sides", [("nan", 9), ("inf", 9), (9, "1e999"), ("-1e999", 9), (0, 0), (1e30, 9), ("x", 9), ("9" * 10**6, 9)]
)
def test_a_size_that_is_none_is_ignored(tmp_path: Path, sides: tuple[object, object]) -> None:
    assert read(tmp_path, f"<annotation>{SIZE.format(*sides)}{THING}</annotation>").size == (0, 0)


@pytest.mark.parametrize("name", ["utf-8", "UTF-16", "iso-8859-1", "windows-1252", "latin1", "Latin-1", "macintosh"])
def test_encodings(tmp_path: Path, name: str) -> None:
    text = f"<?xml version='1.0' encoding='{name}'?><annotation>{THING.replace('>a<', '>é<')}</annotation>"
    assert read(tmp_path, text.encode(name)).objects[0].name == "é"


@pytest.mark.parametrize(("declared", "name"), [("GB2312", "gb2312"), ("gbk", "gbk"), ("utf-8", "gb18030")])
def test_chinese_names(tmp_path: Path, declared: str, name: str) -> None:
    dog = "\u72d7"
    text = f"<?xml version='1.0' encoding='{declared}'?><annotation>{THING.replace('>a<', f'>{dog}<')}</annotation>"
    assert read(tmp_path, text.encode(name)).objects[0].name == dog
    path = tmp_path / "b.xml"
    path.write_bytes(text.replace(declared, "no-such").encode(name))
    with pytest.raises(DatasetError, match=r"b.xml is not valid XML: its encoding no-such is not supported"):
        read_file(path)


def test_rotated_boxes(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(rolabelimg("a.jpg", "ship", 20, 10, 8, 4, math.pi / 2))
    (item,) = read_file(path).objects
    assert item.corners == pytest.approx((18, 6, 22, 14))  # the coordinates of rotated boxes count from 0
    path.write_text(rolabelimg("a.jpg", "ship", 20, 10, 8, 4, 0).replace("angle>", "x>"))
    assert read_file(path).boxless == ("ship",)


def test_polygons(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    outline = (1.5, 2.0, 10.0, 2.0, 10.0, 12.5)
    points = list(zip(outline[::2], outline[1::2], strict=True))
    path.write_text(roboflow("a.jpg", ("ant", 2, 3, 10, 12), polygon=points))
    (item,) = read_file(path).objects
    assert (item.corners, item.outline) == ((1, 2, 10, 12), outline)  # the box is that of the file
    pts = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in points)
    found = read(
        tmp_path,
        "<annotation><object><name>ant</name><deleted>0</deleted><polygon><username>me</username>"
        f"{pts}</polygon></object><object><name>bee</name><deleted>1</deleted><polygon/></object></annotation>",
    )  # LabelMe
    assert found.objects == [VocObject("ant", (1.5, 2, 10, 12.5), False, outline, counts_from_one=False)]
    assert found.deleted == 1


def test_objects_without_a_box_and_names_of_the_image(tmp_path: Path) -> None:
    text = labelimg("C:\\me\\photos\\a.jpg", ("ant", 1, 2, 3, 4)).replace(
        "</annotation>", "<object><name>dot</name><point><x>1</x><y>2</y></point></object></annotation>"
    )
    found = read(tmp_path, text)
    assert found.names == ("a.jpg", "C:\\me\\photos\\a.jpg")
    assert found.boxless == ("dot",)
    assert [item.corners for item in found.objects] == [(0, 1, 3, 4)]


def test_numbers_with_fractions(tmp_path: Path) -> None:
    found = read(tmp_path, f"<annotation>{THING.replace('>30<', '>30.75<')}</annotation>")
    assert found.objects[0].corners == (0, 1, 30.75, 20)


def test_xml_of_another_kind_is_not_parsed(tmp_path: Path) -> None:
    for text in ("<urlset><url></broken>", "<!DOCTYPE html><html><p>", f"<annotations>{'<a>' * 10_000_000}"):
        found = read(tmp_path, text)
        assert not found.is_annotation
        assert found.objects == []


ODD_ENCODINGS = ("nonsense", "utf-7", "zip", "idna", "unicode_escape", "x" * 40)
HEAD = "<?xml version='1.0' encoding='{}'?><annotation/>"
LAUGHS = (
    "<!DOCTYPE a [<!ENTITY a 'ha'>"
    + "".join(f"<!ENTITY {b} '&{a};&{a};'>" for a, b in zip("abcd", "bcde", strict=True))
    + "]>"
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        *((HEAD.format(name), f"encoding {name} is not supported") for name in ODD_ENCODINGS),
        (f"{LAUGHS}<annotation>&e;</annotation>", "it declares entities or attributes in its DOCTYPE"),
        ("<!DOCTYPE a [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><annotation>&e;</annotation>", "it declares entities"),
        ("<!DOCTYPE a [<!ENTITY % e SYSTEM 'http://localhost/x'>%e;]><annotation/>", "it declares entities"),
        ("<!DOCTYPE a [<!ATTLIST annotation x CDATA 'y'>]><annotation/>", "it declares entities or attributes"),
        ("<annotation>&e;</annotation>", "undefined entity"),
        ("<annotation>" * 200_000, "it has more than 100 levels"),
        (f"<annotation>{'<a/>' * 150_000}</annotation>", "150,000 elements"),
        (f"<annotation>{'<object/>' * 100_002}</annotation>", "100,000 objects"),
        (f"<annotation><x>{'y' * (8 << 20)}</x></annotation>", "more than 8,388,608 bytes"),
        (f"<annotation>{THING.replace('>a<', '>' + 'a' * 10**6 + '<')}</annotation>", "a <name> of 1,000,000 letters"),
        (f"<annotation>{THING.replace('>30<', '>1e300<')}</annotation>", "corners outside of any image"),
        (f"<annotation>{THING.replace('>30<', '>' + '9' * 10**6 + '<')}</annotation>", "lacks a number of <bndbox>"),
        (f"<annotation>{THING.replace('>30<', '>nan<')}</annotation>", "lacks a number of <bndbox>"),
        (f"<annotation>{THING.replace('name', 'nam')}</annotation>", "object 1 has no <name>"),
        ("<annotation>\0</annotation>", "is not valid XML"),
        (b"<annotation>\xff\xfe</annotation>", "is not valid XML"),
        (b"", "no element found"),
        (bytes(range(256)), "is not valid XML"),
    ],
    ids=lambda value: None,
)  # fmt: skip
def test_hostile_files_are_errors_at_once(
    tmp_path: Path, text: str | bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(voc_xml, "MAX_ELEMENTS", 150_000)
    start = time.process_time()
    with pytest.raises(DatasetError, match=words) as caught:
        read(tmp_path, text)
    assert time.process_time() - start < 5
    assert len(str(caught.value)) < 1000


def test_a_document_type_without_entities_is_harmless(tmp_path: Path) -> None:
    for declared in ("SYSTEM 'http://localhost:9/x.dtd'", "[<!ELEMENT annotation (object*)><!ELEMENT object ANY>]"):
        text = f"<!DOCTYPE annotation {declared}><annotation>{THING}</annotation>"
        assert len(read(tmp_path, text).objects) == 1
