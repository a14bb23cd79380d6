"""CSV and TSV files of boxes, simple ones and those of Open Images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from codetr_cli.config.data_settings import DataConfig
from codetr_cli.data.checks.dataset import check_dataset
from codetr_cli.errors import DatasetError
from codetr_cli.formats import csv_table
from tests.data.checks.fakes import silent
from tests.data.fakes import snapshot
from tests.formats.labelling_exports import annotations, boxes, counts, names_of, opened, picture, write

SIMPLE = "images/a.jpg,10,20,30,50,cat\nimages/a.jpg,0,0,199.5,100,dog\nimages/b.jpg,5,6,7,8,cat\nimages/c.jpg,,,,,\n"


@pytest.fixture
def simple(tmp_path) -> Path:
    """As keras-retinanet's users write it: no header, an image without objects, a file of the classes."""
    root = tmp_path / "set"
    for name in "abcd":
        picture(root / "images" / f"{name}.jpg")
    write(root / "annotations.csv", SIMPLE)
    write(root / "classes.csv", "dog,0\ncat,1\nbird,2\n")
    return root


def test_rows_without_a_header_and_a_list_of_classes(simple):
    before = snapshot(simple)
    assert boxes(simple, val_fraction=0) == {
        "images/a.jpg": [("cat", [10, 20, 20, 30]), ("dog", [0, 0, 199.5, 100])],
        "images/b.jpg": [("cat", [5, 6, 2, 2])],
        "images/c.jpg": [],
    }
    assert annotations(simple, val_fraction=0).class_names == ["dog", "cat", "bird"]
    found = opened(simple, val_fraction=0)
    assert (found.title, found.evidence, counts(found)) == ("CSV", "annotations.csv", {"image_without_annotation": 1})
    assert names_of(found, "image_without_annotation") == "images/d.jpg"
    assert snapshot(simple) == before


def test_without_a_list_classes_are_in_order_of_the_alphabet(simple):
    (simple / "classes.csv").unlink()
    assert annotations(simple, val_fraction=0).class_names == ["cat", "dog"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters_quotes_and_encodings(tmp_path, delimiter, encoding):
    name = f"照片 1{delimiter if delimiter != '|' else ''}x.jpg"
    picture(tmp_path / name)
    rows = [["Label", "Y Min", "X Min", "X Max", "Y Max", "File Name"], ["狗", "20", "10", "30", "50", f'"{name}"']]
    text = "\r\n".join(delimiter.join(row) for row in rows) + "\r\n\r\n"
    (tmp_path / ("boxes.tsv" if delimiter == "\t" else "boxes.csv")).write_bytes(text.encode(encoding))
    assert boxes(tmp_path, val_fraction=0) == {name: [("狗", [10, 20, 20, 30])]}


def test_a_file_a_split_as_roboflow_exports_for_tensorflow(tmp_path):
    for split in ("train", "valid", "test"):
        picture(tmp_path / split / f"{split}_jpg.rf.0a1b.jpg")
        picture(tmp_path / split / "same.jpg")
        write(
            tmp_path / split / "_annotations.csv",
            "filename,width,height,class,xmin,ymin,xmax,ymax\n"
            f"{split}_jpg.rf.0a1b.jpg,200,100,cat,10,20,30,50\nsame.jpg,200,100,dog,1,2,3,4\n",
        )
    found = opened(tmp_path)
    assert {name: split.where for name, split in found.splits.items()} == {
        "train": "the CSV files (train)",
        "val": "the CSV files (val)",
        "test": "the CSV files (test)",
    }
    assert (counts(found), found.notes) == ({}, [])
    assert boxes(tmp_path, "val") == {
        "valid/valid_jpg.rf.0a1b.jpg": [("cat", [10, 20, 20, 30])],
        "valid/same.jpg": [("dog", [1, 2, 2, 2])],
    }


def test_a_column_of_splits(tmp_path):
    for name in "abc":
        picture(tmp_path / f"{name}.jpg")
    rows = ["split,filename,xmin,ymin,xmax,ymax,class", "TRAIN,a.jpg,1,2,3,4,x", "Valid,b.jpg,1,2,3,4,x"]
    write(tmp_path / "all.csv", "\n".join([*rows, "test,c.jpg,1,2,3,4,x"]))
    assert {split: list(boxes(tmp_path, split)) for split in ("train", "val", "test")} == {  # type: ignore[arg-type]
        "train": ["a.jpg"],
        "val": ["b.jpg"],
        "test": ["c.jpg"],
    }
    write(tmp_path / "all.csv", "\n".join([*rows, "mine,c.jpg,1,2,3,4,x"]))
    with pytest.raises(DatasetError, match=r"all.csv, line 4: split = 'mine' instead of train, val or test"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("header", "row", "box"),
    [
        ("image,label,x,y,w,h", "a.jpg,cat,10,20,30,40", [10, 20, 30, 40]),
        ("image,label,x,y,width,height", "a.jpg,cat,10,20,30,40", [10, 20, 30, 40]),
        ("image,label,x_center,y_center,width,height", "a.jpg,cat,25,40,30,40", [10, 20, 30, 40]),
        ("image,label,xmin_norm,ymin_norm,xmax_norm,ymax_norm", "a.jpg,cat,0.05,0.2,0.2,0.6", [10, 20, 30, 40]),
        ("width,height,xmax,xmin,ymax,ymin,class,image_id", "200,100,40,10,60,20,cat,a", [10, 20, 30, 40]),
    ],
)
def test_forms_of_boxes(tmp_path, header, row, box):
    picture(tmp_path / "a.jpg")
    write(tmp_path / "boxes.csv", f"{header}\n{row}\n")
    assert boxes(tmp_path, val_fraction=0) == {"a.jpg": [("cat", box)]}


@pytest.mark.parametrize(
    ("box_format", "numbers", "box"),
    [
        ("xywh", "[10.0, 20, 30, 40]", [10, 20, 30, 40]),
        ("xyxy", "10 20 30 40", [10, 20, 20, 20]),
        ("relative-cxcywh", "(0.5, 0.5, 0.1, 0.2)", [90, 40, 20, 20]),
    ],
)
def test_boxes_in_one_column_need_a_setting(tmp_path, box_format, numbers, box):
    picture(tmp_path / "a.jpg")
    write(tmp_path / "train.csv", f'image_id,width,height,bbox,class\na,200,100,"{numbers}",wheat\n')
    with pytest.raises(DatasetError, match=r"train.csv has boxes in one column, bbox, .*--set data.box_format=xyxy"):
        opened(tmp_path)
    assert boxes(tmp_path, box_format=box_format, val_fraction=0) == {"a.jpg": [("wheat", box)]}


def test_coordinates_below_one_are_not_guessed(tmp_path):
    picture(tmp_path / "a.jpg")
    write(tmp_path / "boxes.csv", "a.jpg,0.1,0.2,0.3,1,cat\n")
    with pytest.raises(
        DatasetError, match=r"between 0 and 1, .*--set data.box_format=relative-xyxy; if they are pixels"
    ):
        opened(tmp_path)
    assert boxes(tmp_path, box_format="relative-xyxy", val_fraction=0)["a.jpg"] == [("cat", [20, 20, 40, 80])]
    assert boxes(tmp_path, box_format="xyxy", val_fraction=0)["a.jpg"] == [("cat", [0.1, 0.2, 0.2, 0.8])]  # as stated
    report = check_dataset(tmp_path, config=DataConfig(box_format="xyxy"), progress=silent)
    assert "box_normalised" not in {finding.kind for finding in report.findings}
    with pytest.raises(DatasetError, match=r"data.box_format is xywh, but the columns of .* are xyxy"):
        opened(tmp_path, box_format="xywh")


def test_class_numbers_with_and_without_names(tmp_path):
    picture(tmp_path / "a.jpg")
    write(tmp_path / "boxes.csv", "image,class_id,xmin,ymin,xmax,ymax\na.jpg,2,1,2,3,4\na.jpg,0.0,1,2,3,4\n")
    assert annotations(tmp_path, val_fraction=0).class_names == ["0", "2"]
    write(tmp_path / "labels.csv", "name,id\ncat,0\ndog,1\nbird,2\n")
    assert boxes(tmp_path, val_fraction=0)["a.jpg"] == [("bird", [1, 2, 2, 2]), ("cat", [1, 2, 2, 2])]
    assert annotations(tmp_path, val_fraction=0).class_names == ["cat", "dog", "bird"]


OPEN_IMAGES = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
)


def open_images(root: Path, *, described: bool = True) -> Path:
    """As the published files are, with two of the images that they list."""
    for split, word in (("train", "oidv6-train"), ("validation", "validation")):
        picture(root / split / f"0001eeaf4aed83{split[:2]}.jpg")
        rows = [
            f"0001eeaf4aed83{split[:2]},xclick,/m/0cmf2,1,0.1,0.6,0.2,0.8,0,0,0,0,0",
            f"0001eeaf4aed83{split[:2]},xclick,/m/01yrx,1,0.0,0.5,0.5,1,0,1,1,0,-1",
            f"0001eeaf4aed83{split[:2]},activemil,/m/01yrx,0,0.0,0.5,0.5,1,0,1,1,0,-1",
            f"ffffffffffffff{split[:2]},xclick,/m/09b5t,1,0.1,0.6,0.2,0.8,0,0,0,0,0",
        ]
        write(root / f"{word}-annotations-bbox.csv", OPEN_IMAGES + "\n".join(rows) + "\n")
    if described:
        write(root / "class-descriptions-boxable.csv", "/m/0cmf2,Airplane\n/m/01yrx,Cat\n/m/09b5t,Chicken\n")
    return root


def test_open_images(tmp_path):
    root = open_images(tmp_path)
    assert boxes(root) == {"train/0001eeaf4aed83tr.jpg": [("Airplane", [20, 20, 100, 60]), ("Cat", [0, 50, 100, 50])]}
    assert boxes(root, "val") == {"validation/0001eeaf4aed83va.jpg": boxes(root)["train/0001eeaf4aed83tr.jpg"]}
    read = annotations(root)
    assert (read.class_names, read.iscrowd.tolist()) == (["Airplane", "Cat"], [0, 1])
    found = opened(root)
    assert counts(found)["row_without_image"] == 2
    assert counts(found)["absent_class"] == 2
    assert "other_file" not in counts(found)


def test_open_images_without_names_of_classes(tmp_path):
    assert annotations(open_images(tmp_path, described=False)).class_names == ["/m/01yrx", "/m/0cmf2"]


def test_images_of_rows_have_to_be_there(simple):
    (simple / "images" / "b.jpg").unlink()
    with pytest.raises(
        DatasetError, match=r"1 of 3 annotated images are not in .*: images/b.jpg \(annotations.csv, line 3"
    ):
        opened(simple)


def test_an_image_in_two_tables(tmp_path):
    for name in ("train/a.jpg", "val/b.jpg"):
        picture(tmp_path / name)
    for file, name in (("all", "a"), ("train", "a"), ("val", "b")):
        write(tmp_path / f"{file}.csv", f"{name}.jpg,1,2,3,4,{file}\n")
    assert boxes(tmp_path) == {"train/a.jpg": [("train", [1, 2, 2, 2])]}
    assert names_of(opened(tmp_path), "second_annotation") == "all.csv (train/a.jpg)"
    assert list(boxes(tmp_path, "val")) == ["val/b.jpg"]


@pytest.mark.parametrize(
    "text",
    [
        "epoch,train/box_loss,metrics/mAP50\n1,0.5,0.3\n",
        "filename,label\na.jpg,cat\n",
        "image,x1,y1,x2,y2,class\nelsewhere.jpg,1,2,3,4,cat\n",
        "image_id,image,class\n1,a.jpg,3\n",
    ],
)
def test_other_csv_files_are_no_data_set(tmp_path, text):
    picture(tmp_path / "a.jpg")
    write(tmp_path / "results.csv", text)
    with pytest.raises(AssertionError):
        opened(tmp_path)


def test_files_that_are_not_used_are_counted(simple):
    write(simple / "results.csv", "epoch,loss\n1,2\n")
    write(simple / "detections.csv", "image,score,x1,y1,x2,y2,class\nimages/d.jpg,0.5,1,2,3,4,cat\n")
    found = opened(simple, val_fraction=0)
    assert names_of(found, "other_file") == "detections.csv results.csv"
    write(simple / "annotations.csv", "image,confidence,x1,y1,x2,y2,class\nimages/a.jpg,1.0,1,2,3,4,cat\n")
    assert boxes(simple, val_fraction=0) == {"images/a.jpg": [("cat", [1, 2, 2, 2])]}


def test_a_class_that_the_list_does_not_have(simple):
    write(simple / "classes.csv", "dog,0\nbird,1\n")
    with pytest.raises(
        DatasetError, match=r"annotations.csv has the class cat, which the list of classes does not have"
    ):
        opened(simple)


def test_boxes_are_made_when_they_are_used(tmp_path):
    """A table of 20,000 rows as numbers, 41 bytes each."""
    from codetr_cli.annotations.survey import Survey
    from codetr_cli.formats.assembly import Content
    from codetr_cli.formats.csv_columns import find_columns
    from codetr_cli.formats.csv_images import RowImages
    from codetr_cli.formats.found import ReadOptions

    picture(tmp_path / "a.jpg")
    write(tmp_path / "t.csv", "a.jpg,1,2,3,4,cat\n" * 20_000)
    survey = Survey.of(tmp_path)
    rows = csv_table._Rows(Content("CSV", survey, [], "t.csv"), RowImages(survey.images))
    columns = find_columns(survey.head("t.csv"))
    assert columns is not None
    rows.read("t.csv", columns, ReadOptions())
    assert sum(len(column) * getattr(column, "itemsize", 1) for column in rows._table) == 41 * 20_000
    image = rows.images()[0]
    assert len(image.boxes) == 20_000
    assert image.boxes[19_999].corners == (1, 2, 3, 4)
    assert [box.name for box in image.boxes[:2]] == ["cat", "cat"]


def test_images_in_a_linked_folder(tmp_path):
    picture(tmp_path / "elsewhere" / "a.jpg")
    write(tmp_path / "set" / "t.csv", "a.jpg,1,2,3,4,cat\n")
    (tmp_path / "set" / "images").symlink_to(tmp_path / "elsewhere")
    assert list(boxes(tmp_path / "set", val_fraction=0)) == ["images/a.jpg"]


def test_sizes_of_the_table_are_used(tmp_path):
    picture(tmp_path / "a.jpg")
    write(tmp_path / "t.csv", "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,200,100,cat,1,2,3,4\n")
    table = json.loads(opened(tmp_path, val_fraction=0).splits["train"].annotations_path.read_text())
    assert table["images"] == [{"id": 1, "file_name": "a.jpg", "width": 200, "height": 100}]


def test_relative_boxes_a_little_beyond_the_edge_are_not_guessed(tmp_path):
    picture(tmp_path / "a.jpg")
    write(tmp_path / "boxes.csv", "a.jpg,0.1,0.2,1.001,1,cat\n")
    with pytest.raises(DatasetError, match=r"are about between 0 and 1, .*--set data.box_format=relative-xyxy"):
        opened(tmp_path)


def test_boxes_of_zeros_are_no_sign_of_relative_ones(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        picture(tmp_path / name)
    header = "filename,xmin,ymin,xmax,ymax,class\n"
    write(tmp_path / "train.csv", f"{header}a.jpg,0,0,0,0,background\n")
    write(tmp_path / "val.csv", f"{header}b.jpg,1,2,30,40,c\n")
    report = check_dataset(tmp_path, config=DataConfig(), progress=silent)
    assert "box_normalised" not in {finding.kind for finding in report.findings}


def test_every_part_may_have_the_list_of_classes(tmp_path):
    """As Roboflow exports for RetinaNet."""
    for part in ("train", "valid"):
        picture(tmp_path / part / f"{part}.jpg")
        write(tmp_path / part / "_annotations.csv", f"{part}.jpg,1,2,30,40,cat\n")
        write(tmp_path / part / "_classes.csv", "cat,0\n")
    assert counts(opened(tmp_path)) == {}
