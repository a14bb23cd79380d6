"""CVAT for images 1.1: annotations.xml with all labels and images, and images/SPLIT/.

Coordinates are in pixels, edges without width, as CVAT's. The name of an image is relative to images/, and its subset
is its split. Crowd regions have the attribute `is_crowd`, and objects to be reviewed have the attribute `review`.
"""

from __future__ import annotations

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
    xml_text,
)
from codetr_cli.formats.cvat_xml import CROWD

REVIEW = "review"
"""Attribute that says why an object is to be reviewed."""


class CvatWriter(LayoutWriter):
    """Writes the layout, see `content.LayoutWriter`."""

    def __init__(self, folder: Path, classes: WrittenClasses, counts: Counter[str], *, outlines: bool = False) -> None:
        super().__init__(folder, classes, counts, outlines=outlines)
        self._names = [xml_text(name) for name in classes.names]
        self._splits: dict[str, None] = {}
        self._images = 0
        self._has_notes = False
        self._body = (folder / "annotations.xml.part").open("w", encoding="utf-8")  # the header has the counts

    def image_path(self, split: str, name: str) -> str:
        """Where the file of an image is."""
        return place("images", split, name)

    def add(self, image: WrittenImage) -> int:
        """Writes the element of an image."""
        self._splits.setdefault(image.split)
        shapes = []
        source = "file" if not image.is_suggestion else "auto"
        for item, (x1, y1, x2, y2) in clipped_objects(image, self.counts):
            polygon = one_polygon(item, image, self.counts, wanted=self.outlines)
            if polygon:
                points = zip(polygon[::2], polygon[1::2], strict=True)
                where = f'points="{";".join(f"{number(x)},{number(y)}" for x, y in points)}"'
            else:
                corners = zip(("xtl", "ytl", "xbr", "ybr"), (x1, y1, x2, y2), strict=True)
                where = " ".join(f'{key}="{number(value)}"' for key, value in corners)
            tag = "polygon" if polygon else "box"
            attributes = f'<attribute name="{CROWD}">true</attribute>' if item.crowd else ""
            if item.note:
                self._has_notes = True
                attributes += f'<attribute name="{REVIEW}">{xml_text(item.note)}</attribute>'
            made_by = "auto" if item.is_proposed else source
            shapes.append(
                f'    <{tag} label="{self._names[item.label]}" source="{made_by}" occluded="0" {where} z_order="0">'
                f"{attributes}</{tag}>\n"
            )
        subset = f'subset="{image.split}" ' if image.split else ""
        self._body.write(
            f'  <image id="{self._images}" name="{xml_text(place(image.split, image.name))}" {subset}'
            f'width="{image.width}" height="{image.height}">\n{"".join(shapes)}  </image>\n'
        )
        self._images += 1
        return len(shapes)

    def close(self) -> None:
        """Closes the part that was written."""
        self._body.close()

    def finish(self) -> None:
        """Joins header and images."""
        self._body.close()
        attribute = (
            f"<attribute><name>{CROWD}</name><mutable>False</mutable><input_type>checkbox</input_type>"
            "<default_value>false</default_value><values></values></attribute>"
        )
        if self._has_notes:
            attribute += (
                f"<attribute><name>{REVIEW}</name><mutable>True</mutable><input_type>text</input_type>"
                "<default_value></default_value><values></values></attribute>"
            )
        labels = "".join(
            f"        <label><name>{name}</name><type>any</type><attributes>{attribute}</attributes></label>\n"
            for name in self._names
        )
        part = self.folder / "annotations.xml.part"
        with (self.folder / "annotations.xml").open("w", encoding="utf-8") as file:
            file.write(
                '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
                "  <meta>\n    <task>\n"
                f"      <name>dataset</name>\n      <size>{self._images}</size>\n      <mode>annotation</mode>\n"
                f"      <subsets>{','.join(self._splits)}</subsets>\n      <labels>\n{labels}      </labels>\n"
                "    </task>\n  </meta>\n"
            )
            with part.open(encoding="utf-8") as body:
                for line in body:
                    file.write(line)
            file.write("</annotations>\n")
        part.unlink()
