"""Pascal VOC: Annotations/NAME.xml, JPEGImages/NAME.jpg, ImageSets/Main/SPLIT.txt.

The upper left pixel is (1, 1), and xmax, ymax are inside the box, as in the published development kit: xmin = x1 + 1,
ymin = y1 + 1, xmax = x2, ymax = y2. Values that are not whole are written with decimals, so that reading them back
gives the same boxes; boxes narrower than a pixel cannot be written. Crowd regions are marked difficult.
There is no list of classes but labelmap.txt, which CVAT and Datumaro need for classes other than Pascal VOC's, and
there are no outlines.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import IO

from codetr_cli.data.writers.content import (
    LayoutWriter,
    WrittenClasses,
    WrittenImage,
    clipped_objects,
    number,
    one_polygon,
    xml_text,
)
from codetr_cli.data.writers.names import without_suffix


class VocWriter(LayoutWriter):
    """Writes the layout, see `content.LayoutWriter`."""

    def __init__(self, folder: Path, classes: WrittenClasses, counts: Counter[str], *, outlines: bool = False) -> None:
        super().__init__(folder, classes, counts, outlines=outlines)
        self._names = [xml_text(name) for name in classes.names]
        self._used: set[int] = set()
        self._lists: dict[str, IO[str]] = {}

    def image_path(self, split: str, name: str) -> str:
        """Where the file of an image is; all splits share a folder."""
        return f"JPEGImages/{name}"

    def add(self, image: WrittenImage) -> int:
        """Writes the file of an image."""
        path = self.folder / "Annotations" / f"{without_suffix(image.name)}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = [
            f"<annotation>\n  <filename>{xml_text(image.name)}</filename>\n"
            f"  <size><width>{image.width}</width><height>{image.height}</height><depth>3</depth></size>\n"
            "  <segmented>0</segmented>\n"
        ]
        for item, (x1, y1, x2, y2) in clipped_objects(image, self.counts):
            if min(x2 - x1, y2 - y1) < 1:
                self.counts["under_one_pixel"] += 1
                continue
            one_polygon(item, image, self.counts, wanted=False)
            self._used.add(item.label)
            corners = zip(("xmin", "ymin", "xmax", "ymax"), (x1 + 1, y1 + 1, x2, y2), strict=True)
            text.append(
                f"  <object>\n    <name>{self._names[item.label]}</name>\n    <pose>Unspecified</pose>\n"
                f"    <truncated>0</truncated>\n    <difficult>{int(item.crowd)}</difficult>\n    <bndbox>"
                f"{''.join(f'<{key}>{number(value)}</{key}>' for key, value in corners)}</bndbox>\n  </object>\n"
            )
        path.write_text("".join((*text, "</annotation>\n")), encoding="utf-8")
        if image.split not in self._lists:
            lists = self.folder / "ImageSets" / "Main"
            lists.mkdir(parents=True, exist_ok=True)
            self._lists[image.split] = (lists / f"{image.split or 'train'}.txt").open("w", encoding="utf-8")
        self._lists[image.split].write(f"{without_suffix(image.name)}\n")
        return len(text) - 1

    def finish(self) -> None:
        """Completes the lists and writes the names of the classes."""
        self.close()
        (self.folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        names = [name for name in self.classes.names if name != "background"]
        if not any(":" in name or name.splitlines() != [name] for name in names):  # the form has no way to write them
            lines = ["# label:color_rgb:parts:actions", "background:0,0,0::", *(f"{name}:::" for name in names)]
            (self.folder / "labelmap.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.counts["unused_classes"] += len(self._names) - len(self._used)

    def close(self) -> None:
        """Closes the lists."""
        for file in self._lists.values():
            file.close()
