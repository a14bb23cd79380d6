"""Splits as hotcoco's objects: the same images, classes, boxes and outlines, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codetr_cli.analysis.data.splits import DataSplit, read_splits
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.errors import DatasetError
from codetr_cli.inference.detections import DetectionTable
from codetr_cli.serving.browse_data import browse_data, shown_class


def read(root: Path, change: Any = None, **settings: Any) -> DataSplit:
    file = root / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    if change is not None:
        change(content)
    file.write_text(json.dumps(content))
    return read_splits(DataConfig(root=str(root), **settings), only="val", with_outlines=True)[0]


def test_everything_of_the_annotations_is_there(tiny_coco: Path) -> None:
    split = read(tiny_coco)
    found = browse_data(split)
    assert found.split == "val"
    assert sorted(found.coco.get_img_ids()) == sorted(split.annotations.image_ids.tolist())
    assert [each["name"] for each in found.coco.load_cats(found.coco.get_cat_ids())] == split.annotations.class_names
    boxes = [each["bbox"] for each in found.coco.load_anns(found.coco.get_ann_ids())]
    np.testing.assert_allclose(boxes, split.annotations.boxes_xywh)
    assert set(found.images) == set(split.annotations.file_names)
    assert found.detections is found.evaluation is None


def test_outlines_are_shown_and_broken_ones_are_not(tiny_coco: Path) -> None:
    def outline(content: dict[str, Any]) -> None:
        first, second, third = content["annotations"][:3]
        first["segmentation"] = [[1, 1, 20, 1, 20, 20]]
        second["segmentation"] = [[1, "x"]]
        third["segmentation"] = {"size": [1, 1], "counts": [1]}

    found = browse_data(read(tiny_coco, outline)).coco
    shown = [each.get("segmentation") for each in found.load_anns(found.get_ann_ids())][:3]
    assert shown[0] == [[1, 1, 20, 1, 20, 20]]
    assert not shown[1]
    assert not shown[2]


def test_detections_are_matched(tiny_coco: Path) -> None:
    split = read(tiny_coco)
    objects = split.annotations
    ids = np.array(objects.category_ids)[objects.labels]
    table = DetectionTable(objects.image_ids[objects.image_rows], ids, objects.boxes_xywh, np.full(len(ids), 0.5))
    found = browse_data(split, table)
    assert found.evaluation is not None
    assert found.detections is not None
    assert len(found.detections.get_ann_ids()) == len(ids)
    summary = found.evaluation.image_diagnostics(iou_thr=0.5)["img_summary"]
    assert sum(each["fp"] + each["fn"] for each in summary.values()) == 0
    assert browse_data(split, DetectionTable.empty()).evaluation is not None


def test_lvis_is_scored_by_its_rules(lvis: Path) -> None:
    split = read_splits(DataConfig(root=str(lvis), dataset="lvis"), only="val")[0]
    objects = split.annotations
    assert objects.is_lvis
    ids = np.array(objects.category_ids)[objects.labels]
    table = DetectionTable(objects.image_ids[objects.image_rows], ids, objects.boxes_xywh, np.full(len(ids), 0.5))
    found = browse_data(split, table).evaluation
    assert found is not None
    found.accumulate()
    found.summary_lines()
    assert found.get_results()["AP"] == pytest.approx(1.0)


def test_names_have_no_markup_and_no_separators() -> None:
    assert shown_class("<b>a,b & \"c'`</b>\\") == "\u2039b\u203aa\u201ab \uff06 \u201dc\u2019\u2035\u2039/b\u203a\uff3c"
    assert shown_class("a\x1b[31m") == "a\uff3cx1b[31m"
    assert shown_class("犬") == "犬"


def test_negative_ids_are_moved(tiny_coco: Path) -> None:
    def negative(content: dict[str, Any]) -> None:
        for image in content["images"]:
            image["id"] -= 10**6
        for each in content["annotations"]:
            each["image_id"] -= 10**6

    split = read(tiny_coco, negative)
    found = browse_data(split).coco
    assert min(found.get_img_ids()) == 1
    assert len(found.get_img_ids()) == len(split.annotations.image_ids)


def test_names_that_lead_out_are_refused_unless_the_command_allows_them(tiny_coco: Path) -> None:
    outside = tiny_coco.parent / "outside.jpg"
    outside.write_bytes(b"x")

    def lead_out(content: dict[str, Any]) -> None:
        content["images"][0]["file_name"] = str(outside)

    with pytest.raises(DatasetError, match="out of the data set's folder"):
        browse_data(read(tiny_coco, lead_out))
    assert str(outside) in browse_data(read(tiny_coco, allow_outside=True)).images


def test_a_pipe_is_no_image(tiny_coco: Path) -> None:
    split = read(tiny_coco)
    file = split.paths.images_dir / split.annotations.file_names[0]
    file.unlink()
    assert browse_data(split).images  # an image that is not there is shown as such
    os.mkfifo(file)
    with pytest.raises(DatasetError, match="no regular file"):
        browse_data(split)


def test_names_that_addresses_cannot_hold_are_counted(tiny_coco: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        content["images"][0]["file_name"] = "a#b.jpg"

    assert browse_data(read(tiny_coco, rename)).notes == [
        "1 image has a name with #, ? or %, which the app shows small, but not large."
    ]
