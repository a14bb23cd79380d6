"""The page of suspected label errors, and its JSON."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from codetr_cli.report.review_report import counts_of, review_json, review_page
from tests.analysis.label_scenes import Scene

MARKUP = "<script>alert(1)</script>"


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    scene = Scene(tmp_path)
    scene.content["categories"][0]["name"] = MARKUP
    scene.annotate((200, 100, 50, 60), 3)
    scene.detect((201, 100, 50, 60), 7)
    scene.detect((300, 100, 50, 60), 3)
    return scene


def test_page_shows_annotation_beside_proposal(scene: Scene, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "41.jpg"), np.full((300, 400, 3), 90, np.uint8))
    errors = scene.errors()
    page = review_page(errors, scene.inputs(), {"Data": MARKUP}, total=7, warnings=["It has seen them."])
    assert MARKUP not in page
    assert page.count('<figure class="picture" id="finding-') == len(errors) == 2
    assert page.count('href="#finding-1"') == 1
    assert "It has seen them." in page
    assert "2 findings (of 7)" in page
    for text in ("Missing boxes", "Wrong classes", "proposed: plate", 'class="box suspected"'):
        assert text in page
    assert "Duplicates" not in page


def test_page_without_images(scene: Scene) -> None:
    page = review_page(scene.errors(), scene.inputs(), {}, total=2)
    assert "<figure" not in page
    assert "Images that could not be read: 1" in page


def test_page_without_findings(scene: Scene) -> None:
    page = review_page([], scene.inputs(), {}, total=0)
    assert "0 findings among 41 annotations of 41 images. Nothing was changed." in page


def test_json_has_everything(scene: Scene) -> None:
    errors = scene.errors()
    table = json.loads(json.dumps(review_json(errors, scene.inputs(), {"checkpoint": "a"}, total=2)))
    assert (
        table["counts"]
        == counts_of(errors)
        == {
            "missing box": 1,
            "wrong class": 1,
            "loose box": 0,
            "duplicate": 0,
            "crowd": 0,
            "spurious box": 0,
        }
    )
    assert (table["checkpoint"], table["images"], table["objects"], table["findings_total"]) == ("a", 41, 41, 2)
    wrong = next(each for each in table["findings"] if each["kind"] == "wrong class")
    assert wrong["annotated_class"] == MARKUP
    assert wrong["class"] == "plate"
    assert wrong["annotated_box_xyxy"] == wrong["box_xyxy"] == [200, 100, 250, 160]
    assert wrong["file_name"] == "41.jpg"


def test_spurious_box_is_gone_in_the_proposal(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.annotate((200, 100, 50, 60))
    cv2.imwrite(str(tmp_path / "41.jpg"), np.full((300, 400, 3), 90, np.uint8))
    page = review_page(scene.errors(listed_from=0.2), scene.inputs(), {}, total=1)
    assert "1 spurious box. Nothing was changed." in page
    assert "Spurious boxes" in page
    assert "proposed: remove it" in page
    assert page.count('class="box suspected"') == 2  # of the legend and the picture
    assert page.count('class="box proposed"') == 1  # of the legend
