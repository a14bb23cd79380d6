"""Files of proposals: annotations as they are, proposals marked, in each layout."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.label_errors import LabelError
from codetr_cli.errors import ConfigError
from codetr_cli.report.review_files import write_review
from tests.analysis.label_scenes import Scene


def write_proposals(
    folder: Path,
    layout: Any,
    errors: list[LabelError],
    inputs: AnalysisInputs,
    *,
    request: str = "",
    force: bool = False,
) -> Path:
    """The proposals of a review."""
    how: dict[str, Any] = {"facts": {}, "shown_facts": {}, "warnings": [], "total": len(errors)}
    return write_review(
        folder, errors, inputs, formats=[layout], request=request, force=force or not request, **how
    ).proposals[layout]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """An image with a missing box, a wrong class, a loose box, a duplicate and a crowd of one."""
    scene = Scene(tmp_path)
    scene.detect((10, 10, 40, 40), 7)
    scene.annotate((100, 10, 40, 40), 3)
    scene.detect((100, 10, 40, 40), 7)
    scene.annotate((200, 10, 60, 40), 3)
    scene.detect((200, 10, 40, 40), 3)
    scene.annotate((300, 10, 40, 40), 7)
    scene.annotate((301, 10, 40, 40), 7)
    scene.detect((300, 10, 40, 40), 7)
    scene.annotate((100, 200, 40, 40), 7, crowd=1)
    scene.detect((100, 200, 40, 40), 7)
    return scene


def test_coco_has_annotations_and_marked_proposals(scene: Scene, tmp_path: Path) -> None:
    errors, out = scene.errors(), tmp_path / "out"
    out.mkdir()
    assert sorted(error.kind for error in errors) == [
        "crowd",
        "duplicate",
        "loose box",
        "missing box",
        "wrong class",
    ]
    table = json.loads(write_proposals(out, "coco", errors, scene.inputs()).read_text())
    assert [image["id"] for image in table["images"]] == [41]
    assert table["categories"] == scene.content["categories"]
    added = [record for record in table["annotations"] if "proposed" in record]
    kept = [record for record in table["annotations"] if "proposed" not in record]
    before = [record for record in scene.content["annotations"] if record["image_id"] == 41]
    assert [{key: record[key] for key in before[0]} for record in kept] == before
    assert {record["proposed"]: (record["category_id"], record["replaces"]) for record in added} == {
        "missing box": (7, None),
        "wrong class": (7, before[0]["id"]),
        "loose box": (3, before[1]["id"]),
        "crowd": (7, before[4]["id"]),
    }
    assert {record["id"]: record["suspected"] for record in kept if "suspected" in record} == {
        before[0]["id"]: "wrong class",
        before[1]["id"]: "loose box",
        before[3]["id"]: "duplicate",
        before[4]["id"]: "crowd",
    }
    assert len({record["id"] for record in table["annotations"]}) == len(table["annotations"])
    assert next(record["bbox"] for record in added if record["proposed"] == "loose box") == [200, 10, 40, 40]


def test_proposals_have_outlines_where_annotations_have(scene: Scene, tmp_path: Path) -> None:
    mask = pytest.importorskip("pycocotools.mask")
    for outline in ([], [[100, 10, 140, 10, 140, 50, 100, 50]]):
        out = tmp_path / f"out{len(outline)}"
        out.mkdir()
        for record in scene.content["annotations"]:
            record["segmentation"] = outline
        table = json.loads(write_proposals(out, "coco", scene.errors(), scene.inputs()).read_text())
        added = [record for record in table["annotations"] if "proposed" in record]
        if not outline:
            assert {str(record["segmentation"]) for record in added} == {"[]"}
            continue
        for record in added:  # as pycocotools' annToRLE does
            (code,) = mask.frPyObjects(record["segmentation"], 300, 400)
            assert mask.toBbox(code).tolist() == record["bbox"]
            assert mask.area(code) == record["area"]


def test_parts_of_a_box_around_several_objects(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.annotate((200, 100, 150, 60))
    scene.detect((200, 100, 70, 60))
    scene.detect((280, 100, 70, 60))
    table = json.loads(write_proposals(tmp_path, "coco", scene.errors(), scene.inputs()).read_text())
    added = [record["bbox"] for record in table["annotations"] if "proposed" in record]
    assert added == [[200, 100, 70, 60], [280, 100, 70, 60]]


def test_cvat_asks_in_an_attribute(scene: Scene, tmp_path: Path) -> None:
    folder = write_proposals(tmp_path, "cvat", scene.errors(), scene.inputs())
    root = ET.parse(folder / "annotations.xml").getroot()
    assert {each.text for each in root.iterfind("meta/task/labels/label/attributes/attribute/name")} == {
        "is_crowd",
        "review",
    }
    boxes = root.findall("image/box")
    proposed = [box for box in boxes if box.get("source") == "auto"]
    assert len(boxes) == 5 + 4
    assert len(proposed) == 4
    notes = [box.findtext("attribute[@name='review']") for box in proposed]
    assert all(note is not None and note.startswith("proposed: ") for note in notes)
    questions = {
        note.split("?")[0]
        for box in boxes
        if box not in proposed and (note := box.findtext("attribute[@name='review']")) is not None
    }
    assert questions == {"wrong class", "loose box", "duplicate", "one object, no crowd"}


def test_labelme_marks_proposals_and_finds_the_image(scene: Scene, tmp_path: Path) -> None:
    folder = write_proposals(tmp_path, "labelme", scene.errors(), scene.inputs())
    (path,) = [path for path in folder.iterdir() if path.suffix == ".json" and not path.name.startswith(".")]
    table = json.loads(path.read_text())
    assert (folder / table["imagePath"]).resolve() == (tmp_path / "41.jpg").resolve()
    proposed = [shape for shape in table["shapes"] if shape["flags"] == {"proposed": True}]
    assert [shape["label"] for shape in proposed].count("plate") == 3
    assert len(table["shapes"]) == 5 + 4
    assert all("suspicion" in shape["description"] for shape in proposed)


@pytest.mark.parametrize("layout", ["coco", "cvat", "labelme"])
def test_files_of_others_are_kept(scene: Scene, tmp_path: Path, layout: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    inputs, errors = scene.inputs(), scene.errors()
    path = write_proposals(out, layout, errors, inputs, request="one")
    write_proposals(out, layout, errors, inputs, request="one")  # the same request again
    with pytest.raises(ConfigError):
        write_proposals(out, layout, errors, inputs, request="another")
    target = path if path.is_file() else next(each for each in path.iterdir() if not each.name.startswith("."))
    target.write_text("mine")
    for request in ("one", "another"):
        with pytest.raises(ConfigError):
            write_proposals(out, layout, errors, inputs, request=request, force=True)
    assert target.read_text() == "mine"


def test_proposals_are_of_the_review_beside_them(scene: Scene, tmp_path: Path) -> None:
    errors, inputs = scene.errors(), scene.inputs()
    path = write_proposals(tmp_path / "out", "coco", errors, inputs, request="one")
    before = path.read_text()
    path.with_name("review.json").write_text("mine")
    with pytest.raises(ConfigError, match=r"review\.json"):
        write_proposals(tmp_path / "out", "coco", errors[:1], inputs, request="one")
    assert path.read_text() == before


def test_removal_of_a_spurious_box_is_a_mark(tmp_path: Path) -> None:
    """The annotation stays and says what is asked; no box is proposed in its place."""
    scene = Scene(tmp_path)
    row = scene.annotate((200, 100, 50, 60))
    errors, inputs = scene.errors(listed_from=0.2), scene.inputs()
    table = json.loads(write_proposals(tmp_path, "coco", errors, inputs).read_text())
    (record,) = table["annotations"]
    assert (record["id"], record["suspected"], record["action"]) == (row + 1, "spurious box", "remove")
    (box,) = ET.parse(write_proposals(tmp_path, "cvat", errors, inputs) / "annotations.xml").getroot().iter("box")
    assert (box.findtext("attribute[@name='review']") or "").startswith("spurious box? finding 1, suspicion 0.26: ")
    (shape,) = json.loads((write_proposals(tmp_path, "labelme", errors, inputs) / "41.json").read_text())["shapes"]
    assert shape["description"].startswith("spurious box? finding 1")
    assert "proposed" not in shape["flags"]
