"""Ultralytics' YOLO layout: data.yaml, images/SPLIT/ and labels/SPLIT/ with `class cx cy w h` a line.

Numbers are relative to the image's size, with ten decimals: 1e-4 pixels of the largest image. The file has no key
`path`: without it, names are relative to the file itself; Ultralytics takes `path: .` as the working directory. There
is no mark for crowd regions: they are skipped and counted. With outlines, the key `task` states that there are any, and
an object without one is a row of its box's four corners: Ultralytics takes all rows of such a file for outlines, those
of boxes as outlines of two points.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from codetr_cli.data.writers.content import (
    LayoutWriter,
    WrittenClasses,
    WrittenImage,
    clipped_objects,
    number,
    one_polygon,
    place,
)
from codetr_cli.data.writers.names import without_suffix

DIGITS = 10


class YoloWriter(LayoutWriter):
    """Writes the layout, see `content.LayoutWriter`."""

    def __init__(self, folder: Path, classes: WrittenClasses, counts: Counter[str], *, outlines: bool = False) -> None:
        super().__init__(folder, classes, counts, outlines=outlines)
        self._splits: dict[str, None] = {}
        self._has_rows = False

    def image_path(self, split: str, name: str) -> str:
        """Where the file of an image is."""
        return place("images", split, name)

    def add(self, image: WrittenImage) -> int:
        """Writes the labels of an image; an empty file for one without objects."""
        self._splits.setdefault(image.split)
        lines = []
        for item, (x1, y1, x2, y2) in clipped_objects(image, self.counts):
            if item.crowd:
                self.counts["crowd"] += 1
                continue
            polygon = one_polygon(item, image, self.counts, wanted=self.outlines)
            if self.outlines:
                values = polygon or [x1, y1, x2, y1, x2, y2, x1, y2]
            else:
                values = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
            sides = (image.width, image.height) * (len(values) // 2)
            relative = (min(max(value / side, 0.0), 1.0) for value, side in zip(values, sides, strict=True))
            lines.append(f"{item.label} {' '.join(number(value, DIGITS) for value in relative)}\n")
        path = self.folder / "labels" / image.split / f"{without_suffix(image.name)}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="utf-8")
        self._has_rows = self._has_rows or bool(lines)
        return len(lines)

    def finish(self) -> None:
        """Writes data.yaml."""
        lines = [f"{split or 'train'}: {place('images', split)}" for split in self._splits]
        if not {"", "train", "val"} & set(self._splits):  # readers need either
            lines += [f"val: images/{split}" for split in self._splits]
        if self.outlines and self._has_rows:
            lines.append("task: segment")  # rows of outlines may have the numbers of columns of keypoints
        lines.append("names:")
        lines += [f"  {label}: {_quoted(name)}" for label, name in enumerate(self.classes.names)]
        (self.folder / "data.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _quoted(name: str) -> str:
    """A text in YAML's double quotes: it does not join the two escapes that JSON has of a character above U+FFFF."""
    if name.isprintable():
        return json.dumps(name, ensure_ascii=False)
    return f'"{"".join(map(_escaped, name))}"'


def _escaped(letter: str) -> str:
    if letter in '"\\':
        return f"\\{letter}"
    if letter.isprintable():
        return letter
    code = ord(letter)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
