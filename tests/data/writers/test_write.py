from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import cv2
import pytest

from codetr_cli.data.writers.content import NOTES, counted
from codetr_cli.errors import DatasetError
from codetr_cli.formats.open import PARSERS
from tests.data.writers.conversion import convert
from tests.data.writers.odd_sets import expected, pixels_of, reopened, write_odd_coco
from tests.formats import coco_exports, exported_xml, hub_exports, yolo_exports

CROWDS = {
    **{"coco": True, "yolo": False, "voc": True, "labelme": True, "cvat": True},
    **{"label-studio": False, "csv": True},
}
READABLE = [layout for layout in CROWDS if layout in {parser.KEY for parser in PARSERS}]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("layout", READABLE)
def test_what_is_written_is_read_back(tmp_path: Path, layout: str) -> None:
    """Odd names, classes and images, boxes at edges and of fractions, in two splits with images of the same names."""
    source = write_odd_coco(tmp_path / "source")
    written = convert(source, tmp_path / "out", layout)
    assert reopened(tmp_path / "out") == expected(reopened(source), crowds=CROWDS[layout])
    assert written.counts["rotated"] == 2
    assert written.counts["crowd"] == (0 if CROWDS[layout] else 14)
    assert written.splits == dict.fromkeys(("train", "val"), (8, 28 + 7 * CROWDS[layout]))
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        *((first, second) for first in READABLE[:5] for second in READABLE[:5]),
        *(("yolo", layout) for layout in READABLE[5:]),
        *((layout, "voc") for layout in READABLE[5:]),
    ],
)
def test_every_layout_becomes_every_other(tmp_path: Path, first: str, second: str) -> None:
    source = write_odd_coco(tmp_path / "source", crowd=False)
    convert(source, tmp_path / "first", first)
    convert(tmp_path / "first", tmp_path / "second", second)
    assert reopened(tmp_path / "second") == reopened(source)


def one_image(root: Path, *objects: dict, width: int = 64, height: int = 48) -> Path:
    """A data set of one image in either split, with objects of the class "thing"."""
    write_odd_coco(root)
    for split in ("train", "val"):
        path = root / "annotations" / f"instances_{split}2017.json"
        image = {"id": 1, "file_name": "plain.jpg", "width": width, "height": height}
        rows = [
            {"id": number, "image_id": 1, "category_id": 1, "area": 9, "iscrowd": 0, **item}
            for number, item in enumerate(objects, 1)
        ]
        categories = [{"id": 1, "name": "thing"}, {"id": 2, "name": "unused"}]
        path.write_text(json.dumps({"images": [image], "annotations": rows, "categories": categories}))
    return root


ODD_BOXES = (
    {"bbox": [-5, -5, 10, 10]},
    {"bbox": [60, 40, 10.5, 10]},
    {"bbox": [64, 10, 5, 5]},
    {"bbox": [-9, 10, 9, 5]},
    {"bbox": [5, 5, 0, 10]},
    {"bbox": [5.25, 5, 0.5, 10]},
    {"bbox": [7, 7, 2, 2], "ignore": 1},
)


@pytest.mark.parametrize("layout", ["yolo", "voc", "labelme", "cvat", "label-studio", "csv"])
def test_what_a_layout_cannot_hold_is_counted(tmp_path: Path, layout: str) -> None:
    written = convert(one_image(tmp_path / "source", *ODD_BOXES), tmp_path / "out", layout)
    counts = {kind: number // 2 for kind, number in written.counts.items() if number}
    assert (counts["clipped"], counts["outside"], counts["no_extent"]) == (2, 2, 1)
    assert counts.get("crowd", 0) == (layout in ("yolo", "label-studio"))
    assert counts.get("under_one_pixel", 0) == (layout == "voc")
    assert written.counts["unused_classes"] == (layout in ("voc", "labelme", "label-studio"))
    if layout in READABLE:
        corners = {box for _, box, _ in reopened(tmp_path / "out")["train"][0].objects}
        whole = {(0.0, 0.0, 5.0, 5.0), (60.0, 40.0, 4.0, 8.0)}
        assert corners == whole | ({(5.25, 5.0, 0.5, 10.0)} if layout != "voc" else set()) | (
            set() if layout in ("yolo", "label-studio") else {(7.0, 7.0, 2.0, 2.0)}
        )


def test_notes_agree_with_their_number() -> None:
    assert counted("clipped", 1) == "1 box is clipped to its image"
    assert counted("clipped", 1234) == "1,234 boxes are clipped to their image"
    for kind in NOTES:
        for number in (1, 2):
            assert not set("[|]") & set(counted(kind, number))
        assert counted(kind, 1)[2:] != counted(kind, 2)[2:], kind


def outlined() -> tuple[dict, ...]:
    polygon = [[1.5, 2.0, 30.25, 4.0, 20.0, 33.0]]
    return (
        {"bbox": [1.5, 2, 28.75, 31], "segmentation": polygon},
        {"bbox": [1, 2, 30, 31], "segmentation": [[1, 2, 9, 9, 1, 9], [20, 20, 31, 20, 31, 33]]},
        {"bbox": [0, 0, 1, 2], "segmentation": {"size": [48, 64], "counts": [0, 2, 3070]}},
    )


@pytest.mark.parametrize("layout", ["yolo", "labelme", "cvat", "label-studio"])
def test_outlines_are_written_on_request(tmp_path: Path, layout: str) -> None:
    source = one_image(tmp_path / "source", *outlined())
    without = convert(source, tmp_path / "boxes", layout)
    assert without.counts["outlines"] == 6
    written = convert(source, tmp_path / "out", layout, outlines=True)
    assert written.counts["complex_outlines"] == 4
    if layout == "yolo":
        lines = (tmp_path / "out" / "labels" / "train" / "plain.txt").read_text().splitlines()
        assert [len(line.split()) for line in lines] == [7, 9, 9]  # a tool takes a file's rows for one kind
    elif layout == "labelme":
        shapes = json.loads((tmp_path / "out" / "train" / "plain.json").read_text())["shapes"]
        assert [shape["shape_type"] for shape in shapes] == ["polygon", "rectangle", "rectangle"]
        assert shapes[0]["points"] == [[1.5, 2], [30.25, 4], [20, 33]]
    elif layout == "label-studio":
        (task,) = json.loads((tmp_path / "out" / "train.json").read_text())
        regions = task["annotations"][0]["result"]
        assert [region["type"] for region in regions] == ["polygonlabels", "rectanglelabels", "rectanglelabels"]
        config = ElementTree.parse(tmp_path / "out" / "label_config.xml").getroot()
        kinds = {element.get("name"): element.tag for element in config if element.get("toName") == "image"}
        assert {region["from_name"] for region in regions} == set(kinds) == {"polygon", "rectangle"}
        assert [label.get("value") for label in config.iter("Label")] == ["thing", "unused"] * 2
    else:
        image = ElementTree.parse(tmp_path / "out" / "annotations.xml").findall("image")[0]
        assert [shape.tag for shape in image] == ["polygon", "box", "box"]
        assert image[0].get("points") == "1.5,2;30.25,4;20,33"
    if layout in READABLE:
        assert [item[1] for item in reopened(tmp_path / "out")["val"][0].objects] == [
            tuple(map(float, item["bbox"])) for item in sorted(outlined(), key=lambda item: item["bbox"])
        ]


@pytest.mark.parametrize("layout", ["yolo", "labelme", "cvat"])
def test_outlines_are_cut_at_the_edges_of_their_image(tmp_path: Path, layout: str) -> None:
    source = one_image(
        tmp_path / "source",
        {"bbox": [-10, 0, 20, 40], "segmentation": [[-10, 0, 10, 20, -10, 40]]},
        {"bbox": [40, 10, 30, 10], "segmentation": [[70, 10, 80, 20, 70, 20]]},
        {"bbox": [20, 20, 44.0004, 9], "segmentation": [[20, 20, 64.0004, 20, 64, 29]]},
    )
    written = convert(source, tmp_path / "out", layout, outlines=True)
    assert (written.counts["cut_outlines"], written.counts["outlines_outside"]) == (2, 2)
    triangle = [0, 10, 10, 20, 0, 30]
    if layout == "yolo":
        lines = (tmp_path / "out" / "labels" / "train" / "plain.txt").read_text().splitlines()
        assert "\ntask: segment\n" in (tmp_path / "out" / "data.yaml").read_text()
        rows = [[float(value) for value in line.split()[1:]] for line in lines]
        points = [value * (64, 48)[index % 2] for index, value in enumerate(rows[0])]
        lengths = [len(row) for row in rows]
    elif layout == "labelme":
        shapes = json.loads((tmp_path / "out" / "train" / "plain.json").read_text())["shapes"]
        points = [value for point in shapes[0]["points"] for value in point]
        lengths = [6 if shape["shape_type"] == "polygon" else 4 for shape in shapes]
    else:
        elements = list(ElementTree.parse(tmp_path / "out" / "annotations.xml").findall("image")[0])
        points = [float(value) for value in elements[0].get("points", "").replace(";", ",").split(",")]
        lengths = [6 if element.tag == "polygon" else 4 for element in elements]
    pairs = set(zip(points[::2], points[1::2], strict=True))
    assert {(round(x, 3), round(y, 3)) for x, y in pairs} == set(zip(triangle[::2], triangle[1::2], strict=True))
    assert lengths == [6, 8 if layout == "yolo" else 4, 6]
    boxes = sorted(box for _, box, _ in reopened(tmp_path / "out")["val"][0].objects)
    assert boxes[0] == pytest.approx((0, 10, 10, 20), abs=1e-3)
    assert boxes[1] == pytest.approx((20, 20, 44, 9), abs=1e-3)


@pytest.mark.parametrize("layout", ["labelme", "cvat"])
def test_long_outlines_are_read_back(tmp_path: Path, layout: str) -> None:
    angles = [step / 2000 for step in range(12_000)]
    circle = [value for each in angles for value in (30 + 20 * math.cos(each), 24 + 20 * math.sin(each))]
    source = one_image(tmp_path / "source", {"bbox": [10, 4, 40, 40], "segmentation": [circle]})
    assert convert(source, tmp_path / "out", layout, outlines=True).counts["complex_outlines"] == 0
    ((name, box, _),) = reopened(tmp_path / "out")["val"][0].objects
    assert (name, box) == ("thing", pytest.approx((10, 4, 40, 40), abs=0.01))


def test_coco_with_images_keeps_records_and_ids(tmp_path: Path) -> None:
    source = write_odd_coco(tmp_path / "source")
    convert(source, tmp_path / "out", "coco")
    before = json.loads((source / "annotations" / "instances_val2017.json").read_text())
    after = json.loads((tmp_path / "out" / "instances_val.json").read_text())
    assert after["annotations"] == before["annotations"]
    assert after["categories"] == before["categories"]
    assert after["info"] == before["info"]
    names = [image.pop("file_name") for image in after["images"]]
    assert [name.removeprefix("val/").replace("_images", "images") for name in names] == [
        image.pop("file_name") for image in before["images"]
    ]
    assert after["images"] == before["images"]


def test_lvis_and_objects365_get_the_names_of_their_files(tmp_path: Path) -> None:
    """Of COCO's URL, and of what the archives unpack to; the other keys stay."""
    image = {"id": 1, "width": 64, "height": 48, "neg_category_ids": [2, 3], "not_exhaustive_category_ids": [1]}
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "segmentation": []}
    categories = [{"id": number, "name": f"c{number}", "frequency": "r"} for number in (1, 2, 3)]
    for split in ("train", "val"):
        path = tmp_path / "lvis" / f"{split}2017" / "7.png"
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), pixels_of(1))
        images = [{**image, "coco_url": f"http://host/{split}2017/7.png"}]
        table = {"images": images, "annotations": [entry], "categories": categories}
        (tmp_path / "lvis" / f"lvis_v1_{split}.json").write_text(json.dumps(table))
    convert(tmp_path / "lvis", tmp_path / "out", "coco", classes=["c1,c2"])
    after = json.loads((tmp_path / "out" / "instances_val.json").read_text())
    assert after["images"] == [
        {**image, "coco_url": "http://host/val2017/7.png", "file_name": "val/val2017/7.png", "neg_category_ids": [2]}
    ]
    assert after["annotations"] == [entry]
    assert after["categories"] == categories[:2]

    for split in ("train", "val"):
        path = tmp_path / "objects" / split / "patch8" / "objects365_v1_00000007.jpg"
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), pixels_of(1))
        images = [{"id": 1, "width": 64, "height": 48, "file_name": "images/v1/patch8/objects365_v1_00000007.jpg"}]
        table = {"images": images, "annotations": [entry], "categories": categories}
        (tmp_path / "objects" / f"zhiyuan_objv2_{split}.json").write_text(json.dumps(table))
    convert(tmp_path / "objects", tmp_path / "yolo", "yolo")
    assert (
        (tmp_path / "yolo" / "labels" / "train" / "patch8" / "objects365_v1_00000007.txt")
        .read_text()
        .startswith("0 0.0390625 ")
    )


@pytest.mark.parametrize("layout", ["yolo", "voc", "cvat"])
def test_names_that_xml_cannot_have_are_refused_and_nothing_is_left(tmp_path: Path, layout: str) -> None:
    source = one_image(tmp_path / "source", {"bbox": [1, 1, 9, 9]})
    for split in ("train", "val"):
        path = source / "annotations" / f"instances_{split}2017.json"
        path.write_text(path.read_text().replace('"thing"', r'"thi\u0007ng"'))
    if layout == "yolo":
        convert(source, tmp_path / "out", layout)
        assert reopened(tmp_path / "out")["val"][0].objects[0][0] == "thi\ang"
        return
    with pytest.raises(DatasetError, match="which XML cannot have"):
        convert(source, tmp_path / "out", layout)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


EXPORTS: dict[str, Callable[[Path], Path]] = {
    "Roboflow's COCO": coco_exports.roboflow,
    "CVAT's COCO": coco_exports.cvat,
    "FiftyOne's COCO": coco_exports.fiftyone,
    "Label Studio's COCO": coco_exports.label_studio,
    "Ultralytics": yolo_exports.ultralytics,
    "Roboflow's YOLO": yolo_exports.roboflow,
    "CVAT's YOLO 1.1": yolo_exports.cvat_yolo_11,
    "Darknet": yolo_exports.darknet,
    "labelImg's YOLO": yolo_exports.labelimg,
    "CVAT's VOC": exported_xml.write_cvat_voc,
    "parquet": hub_exports.cppe,
}


@pytest.mark.parametrize("export", EXPORTS)
def test_what_exporters_write_becomes_every_layout(tmp_path: Path, export: str) -> None:
    if export == "parquet":
        pytest.importorskip("pyarrow", exc_type=ImportError)
    root = tmp_path / "source"
    root.mkdir()
    EXPORTS[export](root)
    source = reopened(root)
    assert sum(len(image.objects) for images in source.values() for image in images)
    for layout in READABLE:
        convert(root, tmp_path / layout, layout)
        assert reopened(tmp_path / layout) == expected(source, crowds=CROWDS[layout]), layout
