"""XML files as annotation tools write them: labelImg, Roboflow, CVAT."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.data.fakes import write_image

Box = tuple[str, float, float, float, float]
"""Name, xmin, ymin, xmax, ymax."""
WIDTH, HEIGHT = 40, 30


def put(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def labelimg(path: str, *boxes: Box) -> str:
    """What labelImg writes: tabs, the path on the computer where it ran, pose Unspecified."""
    objects = "".join(
        f"\t<object>\n\t\t<name>{name}</name>\n\t\t<pose>Unspecified</pose>\n\t\t<truncated>0</truncated>\n"
        f"\t\t<difficult>0</difficult>\n\t\t<bndbox>\n\t\t\t<xmin>{x1}</xmin>\n\t\t\t<ymin>{y1}</ymin>\n"
        f"\t\t\t<xmax>{x2}</xmax>\n\t\t\t<ymax>{y2}</ymax>\n\t\t</bndbox>\n\t</object>\n"
        for name, x1, y1, x2, y2 in boxes
    )
    folder, _, name = path.replace("\\", "/").rpartition("/")
    return (
        f"<annotation>\n\t<folder>{folder.rpartition('/')[2]}</folder>\n\t<filename>{name}</filename>\n"
        f"\t<path>{path}</path>\n\t<source>\n\t\t<database>Unknown</database>\n\t</source>\n\t<size>\n"
        f"\t\t<width>{WIDTH}</width>\n\t\t<height>{HEIGHT}</height>\n\t\t<depth>3</depth>\n\t</size>\n"
        f"\t<segmented>0</segmented>\n{objects}</annotation>\n"
    )


def rolabelimg(name: str, label: str, cx: float, cy: float, w: float, h: float, angle: float) -> str:
    """What roLabelImg writes for a rotated box; angle in radians."""
    return (
        f'<annotation verified="no"><folder>i</folder><filename>{name}</filename><size><width>{WIDTH}</width>'
        f"<height>{HEIGHT}</height><depth>3</depth></size><object><type>robndbox</type><name>{label}</name>"
        f"<pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult><robndbox><cx>{cx}</cx><cy>{cy}</cy>"
        f"<w>{w}</w><h>{h}</h><angle>{angle}</angle></robndbox></object></annotation>"
    )


def roboflow(name: str, *boxes: Box, polygon: Iterable[tuple[float, float]] = ()) -> str:
    """What Roboflow writes: an empty folder, xmin and xmax first, a polygon if there is one."""
    points = "".join(f"<x{i}>{x}</x{i}><y{i}>{y}</y{i}>" for i, (x, y) in enumerate(polygon, 1))
    objects = "".join(
        f"\t<object>\n\t\t<name>{label}</name>\n\t\t<pose>Unspecified</pose>\n\t\t<truncated>0</truncated>\n"
        f"\t\t<difficult>0</difficult>\n\t\t<occluded>0</occluded>\n\t\t<bndbox>\n\t\t\t<xmin>{x1}</xmin>\n"
        f"\t\t\t<xmax>{x2}</xmax>\n\t\t\t<ymin>{y1}</ymin>\n\t\t\t<ymax>{y2}</ymax>\n\t\t</bndbox>\n"
        f"{f'<polygon>{points}</polygon>' if points else ''}\t</object>\n"
        for label, x1, y1, x2, y2 in boxes
    )
    return (
        f"<annotation>\n\t<folder></folder>\n\t<filename>{name}</filename>\n\t<path>{name}</path>\n\t<source>\n"
        f"\t\t<database>roboflow.com</database>\n\t</source>\n\t<size>\n\t\t<width>{WIDTH}</width>\n"
        f"\t\t<height>{HEIGHT}</height>\n\t\t<depth>3</depth>\n\t</size>\n\t<segmented>0</segmented>\n{objects}"
        "</annotation>\n"
    )


def write_cvat_voc(root: Path) -> Path:
    """CVAT's Pascal VOC export: one list named default, whose names with spaces have quotes, floats, attributes."""
    for stem, rotation in (("a b", 0.0), ("sub/c", 90.0)):
        write_image(root / "JPEGImages" / f"{stem}.jpg", WIDTH, HEIGHT)
        put(
            root / "Annotations" / f"{stem}.xml",
            f"<annotation>\n  <folder></folder>\n  <filename>{stem}.jpg</filename>\n  <source>\n"
            "    <database>Unknown</database>\n    <annotation>Unknown</annotation>\n    <image>Unknown</image>\n"
            f"  </source>\n  <size>\n    <width>{WIDTH}</width>\n    <height>{HEIGHT}</height>\n    <depth></depth>\n"
            "  </size>\n  <segmented>0</segmented>\n  <object>\n    <name>cat</name>\n    <truncated>0</truncated>\n"
            "    <difficult>0</difficult>\n    <occluded>0</occluded>\n    <bndbox>\n      <xmin>11.5</xmin>\n"
            "      <ymin>10.0</ymin>\n      <xmax>20.5</xmax>\n      <ymax>13.0</ymax>\n    </bndbox>\n"
            f"    <attributes>\n      <attribute>\n        <name>rotation</name>\n        <value>{rotation}</value>\n"
            "      </attribute>\n    </attributes>\n  </object>\n</annotation>\n",
        )
    put(root / "ImageSets" / "Main" / "default.txt", '"a b"\nsub/c\n')
    put(root / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:255,0,0::\n")
    return root


def cvat_images(
    images: Iterable[tuple[dict[str, Any], str]], labels: Iterable[tuple[str, str]] = (("cat", "any"), ("dog", "any"))
) -> str:
    """CVAT for images 1.1: attributes and shapes of each image; names and types of the labels."""
    named = "".join(
        f"        <label>\n          <name>{name}</name>\n          <color>#ff0000</color>\n"
        f"          <type>{kind}</type>\n          <attributes>\n            <attribute>\n"
        "              <name>colour</name>\n              <input_type>text</input_type>\n            </attribute>\n"
        "          </attributes>\n        </label>\n"
        for name, kind in labels
    )
    shown = "".join(
        f"  <image {_written({'id': number, **attributes})}>\n{shapes}\n  </image>\n"
        for number, (attributes, shapes) in enumerate(images)
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n  <meta>\n    <task>\n'
        "      <id>7</id>\n      <name>birds</name>\n      <size>3</size>\n      <mode>annotation</mode>\n"
        f"      <labels>\n{named}      </labels>\n      <owner>\n        <username>me</username>\n      </owner>\n"
        f"    </task>\n    <dumped>2024-01-01 00:00:00.000000+00:00</dumped>\n  </meta>\n{shown}</annotations>\n"
    )


def cvat_box(label: str, x1: float, y1: float, x2: float, y2: float, **more: Any) -> str:
    extra = "".join(f' {key}="{value}"' for key, value in more.items())
    return (
        f'    <box label="{label}" source="manual" occluded="0" xtl="{x1:.2f}" ytl="{y1:.2f}" xbr="{x2:.2f}" '
        f'ybr="{y2:.2f}"{extra} z_order="0">\n      <attribute name="colour">red</attribute>\n    </box>'
    )


def _written(attributes: dict[str, Any]) -> str:
    return " ".join(f'{key}="{value}"' for key, value in attributes.items())
