"""Folders of images with a box each, annotated in the layouts that know splits by the names of folders."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeAlias

from codetr_cli.annotations.objects import read_annotations
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.open import open_dataset
from tests.data.fakes import write_image

Layout: TypeAlias = Literal["voc", "cvat", "labelme", "csv", "yolo"]
LAYOUTS: tuple[Layout, ...] = ("voc", "cvat", "labelme", "csv", "yolo")
WIDTH, HEIGHT = 40, 30


def annotated(root: Path, layout: Layout, folders: Iterable[str], each: int = 1) -> Path:
    """A data set with some images in each folder, named after it, with an object of class a each."""
    rows = ["filename,xmin,ymin,xmax,ymax,class"]
    for folder in folders:
        names = [f"{folder.replace('/', '_')}_{number}" for number in range(each)]
        for name in names:
            place = root / folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            write_image(place.with_suffix(".png"), WIDTH, HEIGHT)
            rows.append(f"{folder}/{name}.png,1,2,20,25,a")
            if layout == "voc":
                place.with_suffix(".xml").write_text(
                    f"<annotation><filename>{name}.png</filename><size><width>{WIDTH}</width><height>{HEIGHT}</height>"
                    "</size><object><name>a</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>20</xmax><ymax>25</ymax>"
                    "</bndbox></object></annotation>"
                )
            if layout == "yolo":
                place.with_suffix(".txt").write_text("0 .5 .5 .2 .2\n")
            if layout == "labelme":
                shape = {"label": "a", "points": [[1, 2], [20, 25]], "shape_type": "rectangle"}
                content = {"version": "5.0.1", "flags": {}, "shapes": [shape], "imagePath": f"{name}.png"}
                place.with_suffix(".json").write_text(
                    json.dumps({**content, "imageData": None, "imageHeight": HEIGHT, "imageWidth": WIDTH})
                )
        if layout == "cvat":
            images = (
                f'<image id="{number}" name="{name}.png" width="{WIDTH}" height="{HEIGHT}"><box label="a" xtl="1" '
                'ytl="2" xbr="20" ybr="25" occluded="0" z_order="0"></box></image>'
                for number, name in enumerate(names)
            )
            (root / folder / "annotations.xml").write_text(
                f'<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>{"".join(images)}'
                "</annotations>"
            )
    if layout == "yolo":
        (root / "classes.txt").write_text("a\n")
    if layout == "csv":
        (root / "labels.csv").write_text("\n".join(rows))
    return root


def parts(root: Path, options: ReadOptions | None = None) -> dict[str, list[str]]:
    """The names of the images of each split, without folders, numbers and suffixes, each once."""
    found = open_dataset(root, options or ReadOptions(val_fraction=0))
    assert found is not None
    return {
        split: sorted({name.rpartition("/")[2].rpartition("_")[0] for name in names})
        for split, names in ((name, read_annotations(files.annotations_path).file_names)
                             for name, files in found.splits.items())
    }  # fmt: skip
