"""CVAT's XML 1.1: shapes, labels, and broken and hostile files."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from codetr_cli.errors import DatasetError
from codetr_cli.formats import cvat_xml
from codetr_cli.formats.cvat_xml import CvatFile, Shape, is_cvat, read_file
from tests.formats.exported_xml import cvat_box, cvat_images, put

SIZE = {"width": 64, "height": 48}


def read(tmp_path: Path, text: str, encoding: str = "utf-8") -> CvatFile:
    return read_file(put(tmp_path / "annotations.xml", text, encoding))


def shapes(tmp_path: Path, text: str) -> list[Shape]:
    return read(tmp_path, cvat_images([({"name": "a.jpg", **SIZE}, text)])).images[0].shapes


def test_labels_and_images(tmp_path: Path) -> None:
    file = read(
        tmp_path,
        cvat_images(
            [
                ({"name": "a.jpg", "subset": "Train", "task_id": 7, **SIZE}, cvat_box("dog", 1, 2, 30.25, 20)),
                ({"name": "sub/b.png"}, ""),
            ],
            labels=[("dog", "rectangle"), ("cat", "any"), ("lane", "polyline")],
        ),
    )
    assert file.labels == ["dog", "cat", "lane"]
    assert file.boxless_labels == {"lane"}
    assert [(image.name, image.subset, image.size) for image in file.images] == [
        ("a.jpg", "Train", (48, 64)),
        ("sub/b.png", "", (0, 0)),
    ]
    assert file.images[0].shapes == [Shape("dog", (1, 2, 30.25, 20))]


SHAPES = {
    "turned box": (cvat_box("a", 10, 10, 20, 14, rotation="90.00"), (13, 7, 17, 17)),
    "polygon": ('<polygon label="a" points="1.00,2.00;30.50,4.00;5.00,20.00"/>', (1, 2, 30.5, 20)),
    "ellipse": ('<ellipse label="a" cx="10" cy="20" rx="4" ry="2"/>', (6, 18, 14, 22)),
    "turned ellipse": ('<ellipse label="a" cx="10" cy="20" rx="4" ry="2" rotation="90"/>', (8, 16, 12, 24)),
    "mask": ('<mask label="a" rle="3, 5, 4" left="7" top="8" width="4" height="3"/>', (7, 8, 11, 11)),
    "cuboid": (
        '<cuboid label="a" xtl1="5" ytl1="6" xbl1="5" ybl1="20" xtr1="15" ytr1="6" xbr1="15" ybr1="20" xtl2="18" '
        'ytl2="3" xbl2="18" ybl2="15" xtr2="9" ytr2="3" xbr2="9" ybr2="15"/>',
        (5, 3, 18, 20),
    ),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_the_box_of_a_shape(tmp_path: Path, kind: str) -> None:
    text, corners = SHAPES[kind]
    (shape,) = shapes(tmp_path, text)
    assert shape.corners == pytest.approx(corners)
    assert tuple(shape.outline) == ((1, 2, 30.5, 4, 5, 20) if kind == "polygon" else ())


def test_shapes_without_a_box_are_kept_by_name(tmp_path: Path) -> None:
    text = (
        '<polyline label="lane" points="1,2;3,4"/><points label="dot" points="1,2"/><tag label="night"/>'
        '<skeleton label="person"><points label="1" points="3,4" outside="0"/></skeleton>'
        '<mask label="a" rle="1, 1" left="1" top="1" width="1" height="2"/>'
    )
    image = read(tmp_path, cvat_images([({"name": "a.jpg"}, text)])).images[0]
    assert image.boxless == ["polyline of lane", "points of dot", "tag of night", "skeleton of person"]
    assert (len(image.shapes), image.masks) == (1, 1)


def test_the_mark_of_crowds(tmp_path: Path) -> None:
    def box(value: str, name: str = "is_crowd") -> str:
        return (
            '<box label="a" xtl="1" ytl="2" xbr="3" ybr="4">'
            f'<attribute name="colour">true</attribute><attribute name="{name}">{value}</attribute></box>'
        )

    text = (
        box("true") + box("false") + box("True") + box("true", "occluded") + '<tag label="a">' + box("true") + "</tag>"
    )
    found = shapes(tmp_path, text)
    assert [shape.is_crowd for shape in found] == [True, False, True, False]


def test_blanks_around_a_label_make_no_second_class(tmp_path: Path) -> None:
    labels = [(" red panda ", "any"), ("\n  cat\n", " polyline ")]
    shapes = cvat_box(" red panda", 1, 2, 3, 4) + cvat_box("red panda ", 1, 2, 3, 4)
    file = read(tmp_path, cvat_images([({"name": "a.jpg", **SIZE}, shapes)], labels=labels))
    assert file.labels == ["red panda", "cat"]
    assert file.boxless_labels == {"cat"}
    assert [shape.label for shape in file.images[0].shapes] == ["red panda", "red panda"]


def test_points_of_skeletons_are_no_labels(tmp_path: Path) -> None:
    text = cvat_images([({"name": "a.jpg"}, "")], labels=[("person", "skeleton"), ("1", "points")])
    text = text.replace("<type>points</type>", "<type>points</type><parent>person</parent>")
    file = read(tmp_path, text)
    assert (file.labels, file.boxless_labels) == (["person"], {"person"})


def test_labels_of_a_project(tmp_path: Path) -> None:
    text = cvat_images([({"name": "a.jpg"}, "")]).replace("<task>", "<project>").replace("</task>", "</project>")
    assert read(tmp_path, text).labels == ["cat", "dog"]


def test_other_encodings(tmp_path: Path) -> None:
    text = cvat_images([({"name": "\u732b.jpg"}, "")], labels=[("\u732b", "any")])
    for declared, encoding in (("utf-8", "utf-8-sig"), ("gbk", "gbk"), ("utf-16", "utf-16")):
        file = read(tmp_path, text.replace('"utf-8"', f'"{declared}"'), encoding)
        assert (file.labels, file.images[0].name) == (["\u732b"], "\u732b.jpg")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_large_files_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    monkeypatch.setattr(cvat_xml, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(cvat_xml, "PIECE_BYTES", 7)
    monkeypatch.setattr(cvat_xml, "MAX_TAG_BYTES", 400)
    text = cvat_images([({"name": f"{i}.jpg", **SIZE}, cvat_box("dog", i, 2, 30, 20)) for i in range(20)])
    text = text.replace('"utf-8"', f'"{encoding}"')
    file = read(tmp_path, text, encoding)
    assert [image.shapes[0].corners[0] for image in file.images] == list(range(20))
    with pytest.raises(DatasetError, match="a tag of more than 400 bytes"):
        read(tmp_path, text.replace("19.jpg", "x" * 3000), encoding)
    with pytest.raises(DatasetError, match="is not valid XML"):
        read(tmp_path, text[:-3], encoding)


BOX = cvat_box("a", 1, 2, 3, 4)
ENTITY = "<!DOCTYPE a [<!ENTITY a 'ha'>]><annotations>&a;</annotations>"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (cvat_images([({"name": "a.jpg"}, BOX.replace('"1.00"', '"x"'))]), r"a.jpg, shape 1 \(<box>\) lacks a number"),
        (cvat_images([({"name": "a.jpg"}, BOX.replace('xtl="1.00"', ""))]), "lacks a number: it is missing"),
        (cvat_images([({"name": "a.jpg"}, BOX.replace('"1.00"', '"nan"'))]), "lacks a number"),
        (cvat_images([({"name": "a.jpg"}, BOX.replace('"1.00"', '"1e300"'))]), "swapped corners|outside of any image"),
        (cvat_images([({"name": "a.jpg"}, cvat_box("a", 5, 2, 3, 4))]), "has swapped corners: 5, 2, 3, 4"),
        (cvat_images([({"name": "a.jpg"}, cvat_box("", 1, 2, 3, 4))]), "has no possible label"),
        (cvat_images([({"name": ""}, "")]), "image 1 has no possible name"),
        (cvat_images([({"name": "a.jpg"}, '<polygon label="a" points="1;2"/>')]), "lacks a number: points '1;2'"),
        (cvat_images([({"name": "a.jpg"}, BOX)])[:-20], "is not valid XML"),
        ("<annotations><track id='0' label='a'/></annotations>", "of CVAT's format for video.*CVAT for images 1.1"),
        (ENTITY, "declares entities"),
        ("<annotations>" + "<a>" * 200, "more than 100 levels"),
        ("<annotations><image name='a'>" + "<tag label='a'/>" * 100_001, "100,000 in one image"),
        ("<?xml version='1.0' encoding='zip'?><annotations/>", "encoding zip is not supported"),
    ],
    ids=lambda value: None,
)
def test_broken_and_hostile_files(tmp_path: Path, text: str, words: str) -> None:
    start = time.process_time()
    with pytest.raises(DatasetError, match=words) as caught:
        read(tmp_path, text)
    assert time.process_time() - start < 3
    assert len(str(caught.value)) < 1000


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot read"):
        read_file(tmp_path)


def test_which_files_are_cvats() -> None:
    assert is_cvat("<annotations><version>1.1</version>", "annotations")
    assert not is_cvat("<annotations><note/>", "annotations")
    assert not is_cvat("<annotation><image />", "annotation")
