"""labelme's JSON files, as labelme, AnyLabeling and X-AnyLabeling write them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from codetr_cli.errors import DatasetError
from codetr_cli.formats.open import open_dataset
from tests.data.fakes import snapshot
from tests.formats.labelling_exports import (
    annotations,
    boxes,
    counts,
    labelme,
    names_of,
    opened,
    picture,
    shape,
    write,
)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two annotated images and one that is not, as labelme leaves them."""
    root = tmp_path / "set"
    for name in ("a", "b", "c"):
        picture(root / f"{name}.jpg")
    first = labelme(
        "a.jpg",
        shape("cat", [[60.5, 80], [10, 20.25]]),
        shape("dog", [[100, 10], [150, 30], [120, 60]], "polygon"),
        shape("cat", [[50, 50], [53, 54]], "circle"),
        shape("eye", [[5, 5]], "point"),
        shape("road", [[0, 0], [9, 9]], "line"),
        shape("road", [[0, 0], [9, 9], [12, 9]], "linestrip"),
        shape("dog", [[20, 30], [40, 50]], "mask", mask="iVBORw0KGgo="),
    )
    write(root / "a.json", first)
    write(root / "b.json", labelme("b.jpg", flags={"empty": True}))
    return root


def test_boxes_of_every_shape(folder):
    before = snapshot(folder)
    assert boxes(folder, val_fraction=0) == {
        "a.jpg": [
            ("cat", [10, 20.25, 50.5, 59.75]),
            ("dog", [100, 10, 50, 50]),
            ("cat", [45, 45, 10, 10]),
            ("dog", [20, 30, 20, 20]),
        ],
        "b.jpg": [],
    }
    assert annotations(folder, val_fraction=0).class_names == ["cat", "dog"]
    assert snapshot(folder) == before, "nothing may be written into the folder"


def test_what_is_not_used_is_counted_and_named(folder):
    write(folder / "settings.json", {"a": 1})
    found = opened(folder, val_fraction=0)
    assert (found.title, found.evidence) == ("labelme", "a.json")
    assert counts(found) == {"image_without_annotation": 1, "object_without_box": 3, "other_file": 1}
    assert names_of(found, "image_without_annotation") == "c.jpg"
    assert names_of(found, "object_without_box") == "a.json ('point') a.json ('line') a.json ('linestrip')"
    assert names_of(found, "other_file") == "settings.json"


def test_outlines_are_kept(folder):
    found = opened(folder, val_fraction=0)
    table = json.loads(found.splits["train"].annotations_path.read_text())
    outlines = [entry.get("segmentation") for entry in table["annotations"]]
    assert outlines == [None, [[100, 10, 150, 30, 120, 60]], None, None]
    assert table["images"][0] == {"id": 1, "file_name": "a.jpg", "width": 200, "height": 100}


@pytest.mark.parametrize("order", [("version", "flags", "shapes"), ("shapes",), ("shapes", "version")])
def test_files_whose_first_outline_is_long_are_recognised(tmp_path, order):
    picture(tmp_path / "a.jpg")
    circle = [[100 + 40 * math.cos(0.0005 * step), 50 + 40 * math.sin(0.0005 * step)] for step in range(12_000)]
    content = labelme("a.jpg", shape("cat", circle, "polygon"), pixels=None)
    write(tmp_path / "a.json", {key: content[key] for key in dict.fromkeys((*order, *content))})
    found = opened(tmp_path, val_fraction=0)
    assert (found.title, found.evidence) == ("labelme", "a.json")
    assert boxes(tmp_path, val_fraction=0)["a.jpg"][0][0] == "cat"


def test_other_files_with_shapes_are_none(tmp_path):
    picture(tmp_path / "a.jpg")
    write(tmp_path / "a.json", {"shapes": [{"label": "cat", "geometry": [[1, 2], [3, 4]]}], "version": 1})
    write(tmp_path / "b.json", {"drawing": {"shapes": [{"label": "cat", "points": [[1, 2], [3, 4]]}]}})
    assert open_dataset(tmp_path) is None


def test_shapes_of_one_group_are_one_object(tmp_path):
    picture(tmp_path / "a.jpg")
    parts = [shape("car", [[x, 10], [x + 20, 30]], group_id=group) for x, group in ((10, 1), (50, 1), (90, 2))]
    other = shape("dog", [[100, 50], [120, 60]], group_id=1)
    write(tmp_path / "a.json", labelme("a.jpg", *parts, other))
    assert boxes(tmp_path, val_fraction=0)["a.jpg"] == [
        ("car", [10, 10, 60, 20]),
        ("car", [90, 10, 20, 20]),
        ("dog", [100, 50, 20, 10]),
    ]
    assert (
        "2 shapes with the same group_id and class are parts of 1 objects" in opened(tmp_path, val_fraction=0).notes[0]
    )


def test_rotated_rectangles_and_difficult_objects(tmp_path):
    """As X-AnyLabeling writes them: no pixels, four corners of rectangles, numbers and scores."""
    picture(tmp_path / "a.jpg")
    corners = [[30, 10], [50, 30], [40, 40], [20, 20]]
    more = {"score": None, "difficult": False, "attributes": {}, "kie_linking": []}
    shapes = [
        shape("ship", corners, "rotation", direction=0.7853981633974483, **more),
        shape("ship", [[1, 2], [11, 2], [11, 7], [1, 7]], **(more | {"difficult": True})),
        shape(7, [[10, 20], [30, 40]], **more),
    ]
    write(tmp_path / "a.json", labelme("a.jpg", *shapes, pixels=None, version="2.4.4"))
    read = annotations(tmp_path, val_fraction=0)
    assert read.boxes_xywh.tolist() == [[20, 10, 30, 30], [1, 2, 10, 5], [10, 20, 20, 20]]
    assert (read.class_names, read.iscrowd.tolist()) == (["7", "ship"], [0, 1, 0])
    outline = json.loads(opened(tmp_path, val_fraction=0).splits["train"].annotations_path.read_text())["annotations"]
    assert outline[0]["segmentation"] == [[30, 10, 50, 30, 40, 40, 20, 20]]


def test_first_versions_have_polygons_without_a_type_and_no_size(tmp_path):
    picture(tmp_path / "a.jpg", 64, 48)
    table = labelme("a.jpg", {"label": "cat", "points": [[1, 2], [9, 2], [9, 8]], "line_color": None})
    for key in ("imageHeight", "imageWidth", "version"):
        del table[key]
    write(tmp_path / "a.json", table)
    read = annotations(tmp_path, val_fraction=0)
    assert (read.boxes_xywh.tolist(), read.sizes.tolist()) == ([[1, 2, 8, 6]], [[48, 64]])


def test_folders_beside_the_images_and_names_of_other_systems(tmp_path):
    for split in ("train", "val", "test"):
        for name in ("1.jpg", "猫 2.JPG"):
            picture(tmp_path / "images" / split / name)
        for name, path in (("1", f"..\\..\\images\\{split}\\1.jpg"), ("猫 2", "C:\\Users\\me\\猫 2.JPG")):
            file = labelme(path, shape("cat", [[1, 2], [9, 8]]))
            (tmp_path / f"labels/{split}").mkdir(parents=True, exist_ok=True)
            (tmp_path / f"labels/{split}/{name}.json").write_text(json.dumps(file, ensure_ascii=False), "gb18030")
    for split in ("train", "val", "test"):
        assert sorted(boxes(tmp_path, split)) == [f"images/{split}/1.jpg", f"images/{split}/猫 2.JPG"]
    assert counts(opened(tmp_path)) == {}


def test_a_renamed_image_is_found_by_the_name_of_its_file(tmp_path):
    picture(tmp_path / "new.jpg")
    picture(tmp_path / "other.jpg")
    write(tmp_path / "new.json", labelme("old.jpg", shape("cat", [[1, 2], [9, 8]])))
    assert list(boxes(tmp_path, val_fraction=0)) == ["new.jpg"]


def test_a_file_without_an_image_is_an_error_even_with_its_pixels(folder):
    (folder / "a.jpg").unlink()
    with pytest.raises(
        DatasetError, match=r"1 of 2 annotated images are not in .*: a.json \('a.jpg'\). Copy the images"
    ):
        opened(folder)
    for number in range(20):
        picture(folder / f"x{number}.jpg")
        write(folder / f"x{number}.json", labelme(f"x{number}.jpg", shape("cat", [[1, 2], [9, 8]])))
    assert opened(folder, skip_bad=True).skipped == ["a.json ('a.jpg') (no such image)"]


def test_two_files_of_one_image(folder):
    write(folder / "copy of a.json", labelme("a.jpg", shape("cat", [[1, 2], [9, 8]])))
    found = opened(folder, val_fraction=0)
    assert counts(found)["second_annotation"] == 1
    assert names_of(found, "second_annotation") == "copy of a.json (a.jpg has a.json)"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"imagePath": "a.jpg", "shapes": [', r"a.json cannot be read as JSON: .*line 1.*Save it again"),
        (labelme("a.jpg", shape("cat", [[1, "x"], [2, 3]])), r"a.json: shape 1 has the point \[1, 'x'\] instead of"),
        (
            labelme("a.jpg", shape("cat", [[1, math.nan], [2, 3]])),
            "a.json: shape 1 has coordinates that are not finite",
        ),
        (labelme("a.jpg", shape("cat", [[1, 10**400], [2, 3]])), "a.json: shape 1 has coordinates that are not finite"),
        (labelme("a.jpg", shape("cat", None)), "a.json: shape 1 has points = None instead of a list"),
        (labelme("a.jpg", shape("", [[1, 2], [2, 3]])), r"a.json: shape 1 has no class \(''\)"),
        (labelme("a.jpg", shape(None, [[1, 2], [2, 3]])), r"a.json: shape 1 has no class \(None\)"),
        (labelme("a.jpg", shape("x" * 2000, [[1, 2], [2, 3]])), "a.json: shape 1 has a name of 2,000 characters"),
        (labelme("a.jpg", shapes=[7]), "a.json: shape 1 is 7 instead of a table"),
        (
            labelme("a.jpg", shapes=[{"shape_type": "point"}] * 100_001),
            "a.json has 100,001 shapes, 100,000 are possible",
        ),
        (labelme("a.jpg", mask=[[]] * 1_000_001), "a.json has more than 16 MB or 1,000,000 lists besides its image"),
        ('{"imageData":"","shapes":' + "[" * 100_000, "a.json cannot be read as JSON: it is nested too deeply"),
        (labelme("a.jpg", imageHeight=0), "has no object: check that"),
    ],
)
def test_broken_files_are_named(tmp_path, content, words):
    picture(tmp_path / "a.jpg")
    write(tmp_path / "a.json", content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DatasetError, match=words) as error:
        opened(tmp_path)
    assert len(str(error.value)) < 2000


def test_names_that_lead_out_of_the_folder_find_nothing(tmp_path):
    picture(tmp_path / "secret.jpg")
    picture(tmp_path / "set" / "a.jpg")
    write(tmp_path / "set" / "b.json", labelme("../secret.jpg", shape("cat", [[1, 2], [9, 8]])))
    with pytest.raises(DatasetError, match=r"b.json \('../secret.jpg'\)"):
        opened(tmp_path / "set")


def test_linked_folders_and_pictures_that_cannot_be_read(tmp_path):
    root = tmp_path / "set"
    picture(tmp_path / "elsewhere" / "a.jpg")
    write(root / "labels" / "a.json", labelme("a.jpg", shape("cat", [[1, 2], [9, 8]])))
    (root / "images").symlink_to(tmp_path / "elsewhere")
    (root / "backup").symlink_to(tmp_path / "elsewhere")
    (root / "photo.cr2").write_bytes(b"raw")
    assert list(boxes(root, val_fraction=0)) == ["images/a.jpg"]
    found = opened(root, val_fraction=0)
    assert names_of(found, "linked_folder") == "backup"
    assert "1 file is of formats that cannot be read (.cr2 1), first: photo.cr2" in found.notes[0]


def test_the_pixels_inside_files_are_not_parsed(tmp_path):
    """A file with an image of 20 MB, more than its text may have."""
    picture(tmp_path / "a.jpg")
    write(tmp_path / "a.json", labelme("a.jpg", shape("cat", [[1, 2], [9, 8]]), pixels=b"x" * (20 << 20)))
    assert boxes(tmp_path, val_fraction=0) == {"a.jpg": [("cat", [1, 2, 8, 6])]}


@pytest.mark.parametrize("others", [("0", "1"), ("1",)])
def test_a_missing_image_is_no_namesake_of_another_folder(tmp_path, others):
    """B/0.jpg has its own file or none; A/0.json is not of it."""
    picture(tmp_path / "A" / "1.jpg")
    for name in ("0", "1"):
        write(tmp_path / "A" / f"{name}.json", labelme(f"{name}.jpg", shape("a", [[1, 2], [30, 40]])))
        picture(tmp_path / "B" / f"{name}.jpg")
    for name in others:
        write(tmp_path / "B" / f"{name}.json", labelme(f"{name}.jpg", shape("b", [[1, 2], [30, 40]])))
    with pytest.raises(DatasetError, match=r"1 of \d annotated images are not in .*: A/0.json"):
        opened(tmp_path)


def test_an_image_with_a_file_of_its_own_is_of_no_other(tmp_path):
    write(tmp_path / "A" / "0.json", labelme("0.jpg", shape("a", [[1, 2], [30, 40]])))
    picture(tmp_path / "B" / "0.jpg")
    write(tmp_path / "B" / "0.json", labelme("0.jpg", shape("b", [[1, 2], [30, 40]])))
    with pytest.raises(DatasetError, match=r"1 of 2 annotated images are not in .*: A/0.json"):
        opened(tmp_path)
