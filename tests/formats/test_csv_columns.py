"""Which columns of CSV files are image, class and box."""

from __future__ import annotations

import re

import pytest

from codetr_cli.formats.csv_columns import find_columns, first_rows, is_image_name, number

ROW = "a.jpg,1,2,3,4,cat"


@pytest.mark.parametrize(
    ("head", "image", "label", "box", "form", "more"),
    [
        # keras-retinanet, with and without a header
        ("a.jpg,1,2,3,4,cat\n", 0, 5, (1, 2, 3, 4), "xyxy", {"has_header": False}),
        ("a.jpg,1,2,3,4,cat\nb.jpg,,,,,\n", 0, 5, (1, 2, 3, 4), "xyxy", {"has_header": False}),
        ("image,x1,y1,x2,y2,class\na.jpg,1,2,3,4,cat\n", 0, 5, (1, 2, 3, 4), "xyxy", {"has_header": True}),
        # TensorFlow's object detection, Roboflow: width and height are the image's
        ("filename,width,height,class,xmin,ymin,xmax,ymax\n", 0, 3, (4, 5, 6, 7), "xyxy", {"size": (2, 1)}),
        # Open Images: xmin, xmax, ymin, ymax in this order
        (
            "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction\n",
            0,
            2,
            (4, 6, 5, 7),
            "xyxy",
            {"open_images": True, "relative": True, "group": 10, "score": 3},
        ),
        # MakeSense
        ("cat,1,2,3,4,a.jpg,640,480\n", 5, 0, (1, 2, 3, 4), "xywh", {"size": (7, 6), "has_header": False}),
        (
            "label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width,image_height\n",
            5,
            0,
            (1, 2, 3, 4),
            "xywh",
            {"size": (7, 6)},
        ),
        # other orders and names
        ("class;x2;y2;x1;y1;file\n", 5, 0, (3, 4, 1, 2), "xyxy", {"delimiter": ";"}),
        ("Image Name\tLeft\tTop\tRight\tBottom\tLabel\n", 0, 5, (1, 2, 3, 4), "xyxy", {"delimiter": "\t"}),
        ("file|category|x_center|y_center|width|height\n", 0, 1, (2, 3, 4, 5), "cxcywh", {"delimiter": "|"}),
        ("image_id,label,x,y,w,h,width,height\n", 0, 1, (2, 3, 4, 5), "xywh", {"size": (7, 6)}),
        ("image_id,label,x,y,width,height\n", 0, 1, (2, 3, 4, 5), "xywh", {"size": None}),
        ("image,xmin_norm,ymin_norm,xmax_norm,ymax_norm,label\n", 0, 5, (1, 2, 3, 4), "xyxy", {"relative": True}),
        ("path,split,label,xmin,ymin,xmax,ymax\n", 0, 2, (3, 4, 5, 6), "xyxy", {"split": 1}),
        ("image_id,filename,class_id,xmin,ymin,xmax,ymax\n", 1, 2, (3, 4, 5, 6), "xyxy", {"label_is_id": True}),
        ("image_id,width,height,bbox,source,class\n", 0, 5, (3,), None, {"size": (2, 1)}),
        ('"filename","class","xmin","ymin","xmax","ymax"\n', 0, 1, (2, 3, 4, 5), "xyxy", {}),
        ("filename, class, xmin, ymin, xmax, ymax\n", 0, 1, (2, 3, 4, 5), "xyxy", {}),
    ],
)
def test_columns_that_are_understood(head, image, label, box, form, more):
    columns = find_columns(head)
    assert columns is not None
    assert columns.problem == ""
    assert (columns.image, columns.label, columns.box, columns.form) == (image, label, box, form)
    assert {key: getattr(columns, key) for key in more} == more


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("filename,class,xmin,ymin,xmax\n", "its columns are filename, class, xmin, ymin, xmax; understood are"),
        ("filename,xmin,ymin,xmax,ymax\n", "its columns are .*; understood are"),
        ("image,x1,y1,x1,y2,class\n", "the columns x1, x1 are there twice; understood"),
        ("bild,links,oben,rechts,unten,art\na.jpg,1,2,3,4,cat\n", "its first row is bild, links, .* a header"),
        ("a.jpg,cat,1,2,3,4\n", "its first row is a.jpg, cat, .*image,x1,y1,x2,y2,class without a header"),
        ("a.jpg,1,2,3,4,cat,9\n", "its first row is"),
    ],
)
def test_columns_of_boxes_that_are_not_understood(head, words):
    columns = find_columns(head)
    assert columns is not None
    assert re.search(words, columns.problem)


@pytest.mark.parametrize(
    "head",
    [
        "",
        "\n\n",
        "epoch,train/box_loss,metrics/mAP50,x1,y1\n1,0.5,0.3,1,2\n",
        "epoch,step,loss\n1,2,3\n",
        "filename,label\na.jpg,cat\n",
        "image,cat,dog\na.jpg,1,0\n",
        "id,image_id,class\n1,2,3\n",
        "cat,0\ndog,1\n",
        "/m/011k07,Tortoise\n/m/011q46kg,Container\n",
        "a.jpg,0.1,0.2\n",
        "\0\1\2",
        "ImageID,Source,LabelName,Confidence\n",
        "ImageID,Subset,OriginalURL,Rotation\n",
    ],
)
def test_other_files_are_no_boxes(head):
    assert find_columns(head) is None


def test_cells():
    assert (number("1.5"), number("1e3")) == (1.5, 1000)
    assert number("1,5") != number("1,5"), "NaN"
    assert number("9" * 200) != number("9" * 200)
    assert (is_image_name("a/b.JPG"), is_image_name("a.csv"), is_image_name("jpg")) == (True, False, False)
    assert first_rows(ROW + "\n\n" + ROW, ",") == [ROW.split(",")] * 2
    assert len(first_rows((ROW + "\n") * 50, ",")) == 20
