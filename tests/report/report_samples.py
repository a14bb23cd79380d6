"""Evaluations with names of every kind, any number of classes, and pictures, for tests of reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import html5lib
import numpy as np

from codetr_cli.analysis.analysis import Analysis, analyse
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.objects import read_annotations
from codetr_cli.evaluation.scoring import score_detections
from codetr_cli.formats.resolve import DataPaths
from codetr_cli.inference.detections import DetectionTable
from codetr_cli.report.facts import ReportFacts

HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(2)'>",
    "</title></style><svg/onload=alert(3)>",
    "javascript:alert(4)",
    "{{ 7 * 7 }}{% raw %}",
    "a\x00b\x1b[31mc\u202ed",
    "قطة صغيرة",
    "猫と犬",
    "👩‍🚀🏳️‍🌈",
    "x" * 300,
    "&amp; ]]> -->",
)
"""Names that a page must show as they are."""


def sample_inputs(
    folder: Path,
    names: Sequence[str],
    *,
    images: int = 12,
    objects: int = 5,
    seed: int = 0,
    is_lvis: bool = False,
    with_pictures: bool = True,
    file_name: str = "{}.png",
) -> AnalysisInputs:
    """Images with objects of random classes; most are found, some as another class, some twice, some not at all."""
    generator = np.random.default_rng(seed)
    paths = DataPaths(folder / "val", folder / "val.json", NameRule.of(folder / "val"))
    paths.images_dir.mkdir(exist_ok=True)
    entries, annotations, tables = [], [], []
    for image in range(images):
        name = file_name.format(image)
        entries.append({"id": image + 1, "file_name": name, "height": 120, "width": 160})
        if with_pictures:
            cv2.imwrite(str(paths.images_dir / name), generator.integers(0, 255, (120, 160, 3), np.uint8))
        boxes, labels, scores = [], [], []
        for _ in range(objects):
            label = int(generator.integers(len(names)))
            x, y, width, height = (float(v) for v in (*generator.uniform(0, 90, 2), *generator.uniform(8, 60, 2)))
            box = {"bbox": [x, y, width, height], "area": width * height, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": image + 1, "category_id": label + 1, **box})
            for _ in range(int(generator.integers(0, 3))):
                shift = generator.normal(0, 2, 4)
                boxes.append(np.array([x, y, x + width, y + height]) + shift)
                labels.append(int(generator.integers(len(names))) + 1 if generator.random() < 0.2 else label + 1)
                scores.append(generator.random())
        tables.append(DetectionTable.of_image(image + 1, np.array(boxes).reshape(-1, 4), np.array(scores), labels))
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(names)]
    if is_lvis:
        categories = [{**each, "frequency": "rcf"[number % 3]} for number, each in enumerate(categories)]
        every = [number + 1 for number in range(len(names))]
        entries = [{**each, "neg_category_ids": every, "not_exhaustive_category_ids": []} for each in entries]
    table = {"images": entries, "annotations": annotations, "categories": categories}
    paths.annotations_path.write_text(json.dumps(table))
    return AnalysisInputs.of(read_annotations(paths.annotations_path), DetectionTable.join(tables), paths)


def analysed(inputs: AnalysisInputs, **more: Any) -> tuple[Analysis, ReportFacts]:
    """An analysis of inputs, and the facts of its report."""
    scores = score_detections(inputs.ground_truth, inputs.detections, inputs.image_ids.tolist(), where="val.json")
    facts = ReportFacts(
        **{
            "title": "a report",
            "protocol": "single scale",
            "metrics": scores.metrics,
            "per_class": [score.as_dict() for score in scores.per_class],
            "images": scores.images,
            "objects": scores.objects,
            "annotations": str(inputs.paths.annotations_path),
            "images_dir": str(inputs.paths.images_dir),
            "data": "0123",
            "command": "codetr eval x --report",
            **more,
        }
    )
    return analyse(inputs, scores), facts


class _Page(HTMLParser):
    """Elements, ids, addresses and ARIA references of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.labelled: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.links += [found[name] or "" for name in ("href", "src") if name in found]
        self.labelled += (found.get("aria-labelledby") or "").split()
        self.handlers += [name for name in found if name.startswith("on") or name in ("style", "action", "srcset")]


def check_page(text: str, *, is_large: bool = False) -> _Page:
    """Valid HTML5 whose ids are unique, whose addresses are all inside, and which has one script and one style.

    A large page is not parsed by html5lib, which needs seconds for a megabyte.
    """
    if not is_large:
        parser = html5lib.HTMLParser(strict=False)
        parser.parse(text)
        assert parser.errors == []
    page = _Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert all(link.startswith(("#", "data:image/webp;base64,")) for link in page.links)
    assert set(page.labelled) <= set(page.ids)
    assert page.handlers == []
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert not {"iframe", "object", "embed", "form", "base", "link"} & set(page.tags)
    return page
