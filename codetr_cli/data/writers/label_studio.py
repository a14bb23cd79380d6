"""Label Studio: a JSON file of tasks a split, label_config.xml for the project, and the images in a folder a split.

Numbers are percent of the image's size. The address of an image is that of local storage whose root
(LOCAL_FILES_DOCUMENT_ROOT) is the folder. Objects that somebody answers for are the annotation of their task;
suggestions that nobody has checked are its prediction. There is no mark for crowd regions: they are skipped and
counted.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from codetr_cli.data.writers.content import (
    LayoutWriter,
    WrittenClasses,
    WrittenImage,
    WrittenObject,
    clipped_objects,
    one_polygon,
    place,
    xml_text,
)
from codetr_cli.data.writers.polygons import Corners

ADDRESS = "/data/local-files/?d="
DIGITS = 10
"""Decimals of per cent: 1e-6 pixels of the largest image."""
SCORE_DIGITS = 8


class LabelStudioWriter(LayoutWriter):
    """Writes the layout, see `content.LayoutWriter`.

    Attributes:
        model: the name of the model that suggestions are of.
    """

    def __init__(self, folder: Path, classes: WrittenClasses, counts: Counter[str], *, outlines: bool = False) -> None:
        super().__init__(folder, classes, counts, outlines=outlines)
        self.model = "codetr"
        self._labels = [xml_text(name) for name in classes.names]
        self._files: dict[str, IO[str]] = {}
        self._tasks = 0
        self._used: set[int] = set()
        self._has_outlines = False

    def image_path(self, split: str, name: str) -> str:
        """Where the file of an image is."""
        return place(split, name)

    def add(self, image: WrittenImage) -> int:
        """Writes the task of an image."""
        if image.split not in self._files:
            self._files[image.split] = (self.folder / f"{image.split or 'tasks'}.json").open("w", encoding="utf-8")
        file = self._files[image.split]
        file.write(",\n" if file.tell() else "[\n")
        self._tasks += 1
        regions: list[dict[str, Any]] = []
        for item, corners in clipped_objects(image, self.counts):
            if item.crowd:
                self.counts["crowd"] += 1
                continue
            self._used.add(item.label)
            polygon = one_polygon(item, image, self.counts, wanted=self.outlines)
            self._has_outlines = self._has_outlines or bool(polygon)
            regions.append(_region(f"{self._tasks}-{len(regions) + 1}", image, item, corners, polygon, self.classes))
        file.write(json.dumps(self._task(image, regions), ensure_ascii=False))
        return len(regions)

    def finish(self) -> None:
        """Completes the files of tasks and writes the configuration of the project."""
        for file in self._files.values():
            file.write("\n]\n")
            file.close()
        kinds = ["Rectangle", "Polygon"] if self._has_outlines else ["Rectangle"]
        lines = ["<View>", '  <Image name="image" value="$image"/>']
        for kind in kinds:
            lines.append(f'  <{kind}Labels name="{kind.lower()}" toName="image">')
            lines += [f'    <Label value="{name}"/>' for name in self._labels]
            lines.append(f"  </{kind}Labels>")
        (self.folder / "label_config.xml").write_text("\n".join((*lines, "</View>\n")), encoding="utf-8")
        self.counts["unused_classes"] += len(self._labels) - len(self._used)

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()

    def _task(self, image: WrittenImage, regions: list[dict[str, Any]]) -> dict[str, Any]:
        data = {"image": ADDRESS + quote(self.image_path(image.split, image.name))}
        if image.review:
            data["review"] = image.review
        if not image.is_suggestion:
            return {"id": self._tasks, "data": data, "annotations": [{"result": regions, "was_cancelled": False}]}
        scores = [region["score"] for region in regions if "score" in region]
        prediction: dict[str, Any] = {"model_version": self.model, "result": regions}
        if scores:
            prediction["score"] = min(scores)  # by which a project sorts its tasks: the least certain first
        return {"id": self._tasks, "data": data, "annotations": [], "predictions": [prediction]}


def _region(
    key: str, image: WrittenImage, item: WrittenObject, corners: Corners, polygon: list[float], classes: WrittenClasses
) -> dict[str, Any]:
    """The record of an object."""
    kind = "polygon" if polygon else "rectangle"
    if polygon:
        points = zip(polygon[::2], polygon[1::2], strict=True)
        value: dict[str, Any] = {
            "points": [[_percent(x, image.width), _percent(y, image.height)] for x, y in points],
            "closed": True,
        }
    else:
        x1, y1, x2, y2 = corners
        value = {
            "x": _percent(x1, image.width),
            "y": _percent(y1, image.height),
            "width": _percent(x2 - x1, image.width),
            "height": _percent(y2 - y1, image.height),
            "rotation": 0,
        }
    return {
        "id": key,
        "type": f"{kind}labels",
        "from_name": kind,
        "to_name": "image",
        "original_width": image.width,
        "original_height": image.height,
        "image_rotation": 0,
        "value": {**value, f"{kind}labels": [classes.names[item.label]]},
        **({} if item.score is None else {"score": round(item.score, SCORE_DIGITS)}),
    }


def _percent(value: float, side: int) -> float:
    return round(100 * value / side, DIGITS)
