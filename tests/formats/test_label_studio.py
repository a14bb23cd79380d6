"""Label Studio's exports JSON and JSON-MIN."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path

import pytest

from codetr_cli.errors import DatasetError
from tests.formats.labelling_exports import (
    annotated,
    annotations,
    boxes,
    counts,
    names_of,
    opened,
    picture,
    region,
    task,
    write,
)

CAT = region("rectanglelabels", ["cat"], x=10.0, y=20.0, width=30.0, height=40.0, rotation=0)


def export(root: Path, *tasks: dict, name: str = "project-1-at-2024-05-01-10-00-0a1b2c3d.json") -> Path:
    write(root / name, list(tasks))
    return root


def test_percent_of_the_image_and_every_kind_of_region(tmp_path):
    for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg"):
        picture(tmp_path / "images" / name)
    turned = region("rectanglelabels", ["dog"], 2, x=50.0, y=50.0, width=20.0, height=20.0, rotation=90)
    area = region("polygonlabels", ["dog"], 3, points=[[10, 10], [20, 10], [15, 30]], closed=True)
    oval = region("ellipselabels", ["cat"], 4, x=50, y=50, radiusX=10, radiusY=20, rotation=0)
    turned_oval = region("ellipselabels", ["cat"], 5, x=50, y=50, radiusX=10, radiusY=10, rotation=90)
    brush = region("brushlabels", ["cat"], 6, format="rle", rle=[0, 1, 2])
    point = region("keypointlabels", ["eye"], 7, x=1, y=2, width=0.5)
    choice = {"type": "choices", "value": {"choices": ["sharp"]}, "id": "x", "from_name": "c", "to_name": "image"}
    export(
        tmp_path,
        task(1, "/data/upload/1/0a1b2c3d-a.jpg", annotated(CAT, turned, area, oval, turned_oval, brush, point, choice)),
        task(2, "/data/upload/1/99887766-b.jpg", annotated()),
        task(3, "/data/upload/1/99887766-c.jpg"),
        task(4, "/data/upload/1/99887766-d.jpg", annotated(CAT, was_cancelled=True), predictions=[{"result": []}] * 2),
    )
    assert boxes(tmp_path, val_fraction=0) == {
        "images/a.jpg": [
            ("cat", [20, 20, 60, 40]),
            ("dog", [80, 50, 20, 40]),  # 40 x 20 pixels, turned about (100, 50) to the left of it
            ("dog", [20, 10, 20, 20]),
            ("cat", [80, 30, 40, 40]),
            ("cat", [90, 30, 20, 40]),
        ],
        "images/b.jpg": [],
    }
    found = opened(tmp_path, val_fraction=0)
    assert (found.title, counts(found)) == (
        "Label Studio",
        {"object_without_box": 2, "not_annotated": 2, "cancelled": 1, "predictions": 2, "image_without_annotation": 2},
    )
    assert names_of(found, "object_without_box").count("(brushlabels)") == 1
    assert "task 3" in names_of(found, "not_annotated")
    table = json.loads(found.splits["train"].annotations_path.read_text())
    assert table["annotations"][1]["segmentation"] == [[100, 50, 100, 90, 80, 90, 80, 50]]
    assert table["annotations"][2]["segmentation"] == [[20, 10, 40, 10, 30, 30]]


@pytest.mark.parametrize("degrees", [0, 30, 123.5, 270, 359])
def test_rectangles_are_turned_about_their_upper_left_corner(tmp_path, degrees):
    picture(tmp_path / "a.jpg", 400, 400)
    box = region("rectanglelabels", ["cat"], x=50, y=50, width=10, height=5, rotation=degrees)
    export(tmp_path, task(1, "a.jpg", annotated(box | {"original_width": 400, "original_height": 400})))
    angle = math.radians(degrees)
    xs = [200 + x * math.cos(angle) - y * math.sin(angle) for x in (0, 40) for y in (0, 20)]
    ys = [200 + x * math.sin(angle) + y * math.cos(angle) for x in (0, 40) for y in (0, 20)]
    expected = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    assert boxes(tmp_path, val_fraction=0)["a.jpg"][0][1] == pytest.approx(expected, abs=2e-3)


def test_one_annotation_of_a_task_counts(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        picture(tmp_path / name)
    other = region("rectanglelabels", ["dog"], x=0, y=0, width=50, height=50, rotation=0)
    export(
        tmp_path,
        task(1, "a.jpg", annotated(CAT, was_cancelled=True), annotated(other), annotated(CAT)),
        task(2, "b.jpg", annotated(other), annotated(CAT, ground_truth=True), annotated(other)),
        task(3, "b.jpg", annotated(other)),
    )
    assert boxes(tmp_path, val_fraction=0) == {
        "a.jpg": [("dog", [0, 0, 100, 50])],
        "b.jpg": [("cat", [20, 20, 60, 40])],
    }
    found = opened(tmp_path, val_fraction=0)
    assert counts(found) == {"second_annotation": 4, "cancelled": 1}


def test_predictions_count_where_nobody_has_annotated(tmp_path):
    """As a file is written to be imported; in a project with annotations they do not."""
    for name in ("a.jpg", "b.jpg"):
        picture(tmp_path / name)
    suggested = {"predictions": [{"result": [CAT], "score": 0.4, "model_version": "m"}, {"result": []}]}
    export(tmp_path, task(1, "a.jpg", **suggested), task(2, "b.jpg", predictions=[{"result": []}]))
    assert boxes(tmp_path, val_fraction=0) == {"a.jpg": [("cat", [20, 20, 60, 40])], "b.jpg": []}
    assert counts(opened(tmp_path, val_fraction=0)) == {"unchecked": 2}
    export(tmp_path, task(1, "a.jpg", **suggested), task(2, "b.jpg", annotated(CAT)))
    assert boxes(tmp_path, val_fraction=0) == {"b.jpg": [("cat", [20, 20, 60, 40])]}
    assert counts(opened(tmp_path, val_fraction=0)) == {
        "not_annotated": 1,
        "predictions": 2,
        "image_without_annotation": 1,
    }


def test_json_min(tmp_path):
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "b.jpg")
    picture(tmp_path / "c.jpg")
    sizes = {"original_width": 200, "original_height": 100}
    label = [
        {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0, "rectanglelabels": ["cat"]} | sizes,
        {"points": [[10, 10], [20, 10], [15, 30]], "closed": True, "polygonlabels": ["dog"]} | sizes,
        {"format": "rle", "rle": [1], "brushlabels": ["dog"]} | sizes,
    ]
    more = {"annotator": 1, "annotation_id": 4, "created_at": "2024", "updated_at": "2024", "lead_time": 3.4}
    records = [
        {"image": "/data/upload/1/0a1b2c3d-a.jpg", "id": 1, "label": label} | more,
        {"image": "/data/upload/1/0a1b2c3d-b.jpg", "id": 2} | more,
    ]
    write(tmp_path / "export.json", records)
    assert boxes(tmp_path, val_fraction=0) == {
        "a.jpg": [("cat", [20, 20, 60, 40]), ("dog", [20, 10, 20, 20])],
        "b.jpg": [],
    }
    assert counts(opened(tmp_path, val_fraction=0)) == {"object_without_box": 1, "image_without_annotation": 1}


@pytest.mark.parametrize(
    ("address", "file"),
    [
        ("/data/upload/12/0a1b2c3d-photo.jpg", "photo.jpg"),
        ("/data/upload/12/0a1b2c3d-photo.jpg", "0a1b2c3d-photo.jpg"),
        ("/data/upload/12/0a1b2c3d-my_photo_1.jpg", "my photo (1).jpg"),
        ("/data/local-files/?d=photos/day%201/photo.jpg", "day 1/photo.jpg"),
        ("/data/local-files/?d=photos\\\\day\\\\photo.jpg", "day/photo.jpg"),
        ("s3://bucket/some/where/photo.jpg", "photo.jpg"),
        ("gs://bucket/some/where/photo%20b.jpg", "photo b.jpg"),
        ("https://host:8080/media/photo.jpg?X-Amz-Signature=ab/c.png", "photo.jpg"),
        ("/tasks/4/resolve/?fileuri=" + base64.b64encode(b"s3://bucket/deep/photo.jpg").decode(), "photo.jpg"),
        ("C:\\photos\\photo.jpg", "photo.jpg"),
        ("photo?.jpg", "photo?.jpg"),
    ],
)
def test_addresses_of_images(tmp_path, address, file):
    picture(tmp_path / file)
    export(tmp_path, task(1, address.replace("\\\\", "\\"), annotated(CAT)))
    assert boxes(tmp_path, val_fraction=0) == {file: [("cat", [20, 20, 60, 40])]}


def test_an_upload_is_its_own_file_where_both_are_there(tmp_path):
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "0a1b2c3d-a.jpg")
    export(tmp_path, task(1, "/data/upload/1/0a1b2c3d-a.jpg", annotated(CAT)))
    assert list(boxes(tmp_path, val_fraction=0)) == ["0a1b2c3d-a.jpg"]


def test_other_names_of_the_image_and_older_exports(tmp_path):
    picture(tmp_path / "a.jpg")
    write(
        tmp_path / "e.json",
        [{"id": 1, "data": {"title": "x", "photo": "a.jpg"}, "completions": [{"result": [CAT], "skipped": False}]}],
    )
    assert list(boxes(tmp_path, val_fraction=0)) == ["a.jpg"]
    export(tmp_path, task(1, "a.jpg", annotated(CAT), data={"left": "a.jpg", "right": "b.jpg"}), name="e.json")
    with pytest.raises(DatasetError, match=r"e.json: task 1 has several images \(left, right\) in its data"):
        opened(tmp_path)


def test_labels_of_their_own_and_several_of_one_region(tmp_path):
    picture(tmp_path / "a.jpg")
    box = {"x": 10.0, "y": 20.0, "width": 30.0, "height": 40.0, "rotation": 0}
    shape = region("rectangle", [], 1, **box)
    named = region("labels", ["cat", "pet"], 1, **box)
    bare = region("rectangle", [], 2, **box)
    export(tmp_path, task(1, "a.jpg", annotated(shape, named, bare)))
    assert boxes(tmp_path, val_fraction=0)["a.jpg"] == [("cat", [20, 20, 60, 40]), ("pet", [20, 20, 60, 40])]
    assert counts(opened(tmp_path)) == {"object_without_class": 1}


def test_one_export_a_split(tmp_path):
    for split, folder in (("train", "train"), ("val", "validation")):
        picture(tmp_path / "images" / f"{split}.jpg")
        export(tmp_path, task(1, f"{split}.jpg", annotated(CAT)), name=f"{folder}.json")
    found = opened(tmp_path)
    assert {name: split.where for name, split in found.splits.items()} == {
        "train": "the exports (train)",
        "val": "the exports (val)",
    }
    assert list(boxes(tmp_path, "val")) == ["images/val.jpg"]


def test_the_name_of_a_single_export_is_no_split(tmp_path):
    picture(tmp_path / "a.jpg")
    export(tmp_path, task(1, "a.jpg", annotated(CAT)), name="test-project.json")
    assert list(opened(tmp_path).splits) == ["train"]


def test_tasks_without_an_image_are_refused_and_named(tmp_path):
    picture(tmp_path / "a.jpg")
    export(tmp_path, task(1, "a.jpg", annotated(CAT)), task(2, "/data/upload/1/0a1b2c3d-b.jpg", annotated(CAT)))
    with pytest.raises(
        DatasetError, match=r"1 of 2 annotated images are not in .*task 2 \(/data/upload/1/0a1b2c3d-b.jpg"
    ):
        opened(tmp_path)


def regions(*content):
    return [task(1, "a.jpg", annotated(*content))]


def damaged(**value):
    return regions(CAT | {"value": CAT["value"] | value})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"annotations": [{"result": [', "e.json cannot be read as JSON: .*Export it again"),
        ([*regions(CAT), 7], "e.json: task 2 is 7 instead of a table"),
        ([task(1, "a.jpg", annotations=[7])], r"task 1 has annotations = \[7\] instead of a list of tables"),
        ([task(1, "a.jpg", annotated(result="x"))], "task 1 has result = 'x' instead of a list of regions"),
        ([task(1, "a.jpg", annotated(CAT), data={"text": "hello"})], r"task 1 has no image \(text\) in its data"),
        (regions(CAT | {"value": 3}), "task 1, region 1 has value = 3 instead of a table"),
        (damaged(x="left"), "task 1, region 1 has x = 'left' instead of a number"),
        (damaged(x=math.inf), "task 1, region 1 has coordinates that are not finite"),
        (damaged(width=-3), "task 1, region 1 has width -0.03 .* cannot be negative"),
        (damaged(rotation="half"), "task 1, region 1 has rotation = 'half' instead of a number"),
        (damaged(points=[[1, 2, 3]]), r"task 1, region 1 has points = \[\[1, 2, 3\]\] instead of a list"),
        (damaged(rectanglelabels=[None]), r"task 1, region 1 has no class \(None\)"),
        (
            regions({key: value for key, value in CAT.items() if "original" not in key} | {"value": CAT["value"] | {
                "rotation": 5}}),
            "task 1, region 1 is rotated, but has no original_width",
        ),
        (regions(), "has no object: check that"),
        ([task(1, "a.jpg", meta=[[]] * 4_000_001)], "e.json has more than 4,000,000 lists and tables"),
        ('[{"annotations": [{"result": ' + "[" * 100_000, "e.json cannot be read as JSON: it is nested too deeply"),
    ],
)  # fmt: skip
def test_broken_exports_are_named(tmp_path, content, words):
    picture(tmp_path / "a.jpg")
    (tmp_path / "e.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DatasetError, match=words) as error:
        opened(tmp_path)
    assert len(str(error.value)) < 2000


def test_other_json_files_are_no_exports(tmp_path):
    picture(tmp_path / "a.jpg")
    for content in (
        {"annotations": []},
        [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}],
        [],
        [1],
    ):
        write(tmp_path / "x.json", content)
        with pytest.raises(AssertionError):
            opened(tmp_path)


def test_sizes_that_the_export_does_not_state_are_read(tmp_path):
    picture(tmp_path / "a.jpg", 64, 48)
    plain = {key: value for key, value in CAT.items() if "original" not in key}
    export(tmp_path, task(1, "a.jpg", annotated(plain)))
    read = annotations(tmp_path, val_fraction=0)
    assert (read.sizes.tolist(), read.boxes_xywh.tolist()) == ([[48, 64]], [[6.4, 9.6, 19.2, 19.2]])


def test_a_missing_image_is_no_namesake_of_another_folder(tmp_path):
    for name in ("cats/2.jpg", "dogs/1.jpg", "dogs/2.jpg"):
        picture(tmp_path / "images" / name)
    places = ("images/cats/1.jpg", "images/cats/2.jpg", "images/dogs/1.jpg")
    export(tmp_path, *(task(n, f"/data/local-files/?d={place}", annotated(CAT)) for n, place in enumerate(places)))
    with pytest.raises(DatasetError, match=r"1 of 3 annotated images are not in .*cats/1.jpg"):
        opened(tmp_path)
