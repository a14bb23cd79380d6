"""COCO's tables: instances_SPLIT.json in the folder, and SPLIT/ beside it if images are written.

Records keep all keys that they have, and their ids. Names of images are relative to the folder of the source's images
or, if images are written, to the folder of the JSON files.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from codetr_cli.data.writers.content import LayoutWriter, WrittenClasses, WrittenImage, WrittenObject
from codetr_cli.data.writers.polygons import Corners


class CocoWriter(LayoutWriter):
    """Writes the layout, see `content.LayoutWriter`.

    Args:
        targets: the file of each split.
        classes: of all splits.
        others: COCO's other tables (info, licenses) of each split.
        prefixed: whether the name of an image starts with its split.
        renumbered: whether images and objects get new ids, because they are parts of those of the source.
    """

    def __init__(
        self,
        targets: Mapping[str, Path],
        classes: WrittenClasses,
        others: Mapping[str, Mapping[str, Any]],
        *,
        prefixed: bool = False,
        renumbered: bool = False,
    ) -> None:
        super().__init__(Path(), classes, Counter())
        self._others, self._prefixed, self._renumbered = others, prefixed, renumbered
        self._files: dict[str, tuple[IO[str], IO[str]]] = {}
        self._targets = targets
        self._images = self._objects = 0

    @staticmethod
    def of_folder(
        folder: Path, classes: WrittenClasses, others: Mapping[str, Mapping[str, Any]], *, renumbered: bool
    ) -> CocoWriter:
        """For a folder with images."""
        targets = {split: folder / f"instances_{split}.json" for split in others}
        return CocoWriter(targets, classes, others, prefixed=True, renumbered=renumbered)

    def image_path(self, split: str, name: str) -> str:
        """Where the file of an image is."""
        return f"{split}/{name}"

    def add(self, image: WrittenImage) -> int:
        """Writes the records of an image."""
        images, annotations = self._opened(image.split)
        self._images += 1
        name = f"{image.split}/{image.name}" if self._prefixed else image.name
        record = {**image.record, "file_name": name}
        if self._renumbered or "id" not in record:
            record["id"] = self._images
        images.write(f", {json.dumps(record)}")
        for item in image.objects:
            self._objects += 1
            annotations.write(f", {self._entry(item, record['id'])}")
        return len(image.objects)

    def finish(self) -> None:
        """Joins the tables of each split."""
        for split, path in self._targets.items():
            images, annotations = self._opened(split)
            with path.open("w", encoding="utf-8") as file:
                file.write('{"images": [')
                _append(images, file)
                file.write('], "annotations": [')
                _append(annotations, file)
                records = self.classes.records.get(split) or []
                file.write(f'], "categories": {json.dumps(records)}')
                for key, value in self._others.get(split, {}).items():
                    file.write(f", {json.dumps(key)}: {json.dumps(value)}")
                file.write("}")

    def close(self) -> None:
        """Closes the temporary files."""
        for files in self._files.values():
            for file in files:
                file.close()

    def _opened(self, split: str) -> tuple[IO[str], IO[str]]:
        """The tables of images and annotations of a split, in temporary files."""
        if split not in self._files:
            folder = self._targets[split].parent
            images, annotations = (
                tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder)  # noqa: SIM115 (`finish` closes it)
                for _ in range(2)
            )
            self._files[split] = (images, annotations)
        return self._files[split]

    def _entry(self, item: WrittenObject, image_id: Any) -> str:
        """COCO's record of an object: as in the source or, of a part, with its box, outline and new ids."""
        entry = dict(item.entry)
        if not isinstance(item.outline, bytes) and (item.outline or entry.get("segmentation", 0) is None):
            entry["segmentation"] = item.outline or []
        if self._renumbered:
            entry |= {"id": self._objects, "image_id": image_id, "bbox": _xywh(item.box)}
        if not isinstance(item.outline, bytes):
            return json.dumps(entry)
        entry.pop("segmentation", None)
        return f'{json.dumps(entry)[:-1]}, "segmentation": {item.outline.decode("ascii")}}}'


def _append(part: IO[str], file: IO[str]) -> None:
    """Copies what was written, without the comma at its start."""
    part.seek(0)
    part.read(2)
    while text := part.read(1 << 20):
        file.write(text)
    part.close()


def _xywh(box: Corners) -> list[float]:
    x1, y1, x2, y2 = box
    values = [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)]
    return [int(value) if value == int(value) else value for value in values]
