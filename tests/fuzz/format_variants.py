"""Broken variants of Pascal VOC and YOLO folders, and files made to need much time or memory."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.data.fakes import write_image, write_voc

VALUES = (
    "", " ", "nan", "inf", "-inf", "1e999", "1e308", "-1e308", "-1", "0", "0.0", "5e-324", "9" * 400, "9" * 5000,
    "0x10", "1_0", "\u0661", "²", "é", "a" * 2000, "..", "../../x", "/", "/dev/zero", "C:\\x", "~", "$HOME", "%s%n",
    "{0}", "true", "null", "-", "--", "#", "'", '"', "''", "'a", '"\\u0000"', '"\\ud800"', "[", "]", "[]", "{}",
    "{a: [b]}", "&a", "*a", "!!python/name:os.system", "|", ">", "? a", ": :", "a: b: c", "<a/>", "&e;", "&amp;", "]]>",
    "<![CDATA[x]]>", "<!--", "\u2028", "\x0b", "\x1b[2J", "\x7f", "\u202e", "\ufeff", "\x00",
)  # fmt: skip
ENCODINGS = (
    "utf-8", "utf-16", "utf-32", "utf-7", "utf8", "ascii", "latin-1", "cp037", "cp1252", "koi8-r", "gbk", "big5",
    "shift_jis", "idna", "punycode", "unicode_escape", "raw_unicode_escape", "rot13", "hex", "zip", "bz2", "uu",
    "undefined", "mbcs", "nonsense", "", "é", "u" * 5000,
)  # fmt: skip
XML_FILE = "Annotations/a.xml"
OBJECT = (
    "<object><name>ant</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax>"
    "<ymax>20</ymax></bndbox></object>"
)
XML = (
    "<?xml version='1.0' encoding='utf-8'?>\n<annotation><size><width>40</width><height>30</height></size>"
    f"{OBJECT}</annotation>\n"
)
CVAT_FILE = "annotations.xml"
CVAT_XML = (
    "<?xml version='1.0' encoding='utf-8'?>\n<annotations><version>1.1</version><meta><task><labels><label><name>ant"
    "</name><type>any</type></label></labels></task></meta><image id='0' name='a.jpg' width='40' height='30' "
    "subset='Train'><box label='ant' xtl='1.50' ytl='2' xbr='30' ybr='20' rotation='5'/><polygon label='ant' "
    "points='1,2;9,9;3,8'/></image><image id='1' name='b.jpg' width='40' height='30' subset='Validation'><box "
    "label='ant' xtl='1' ytl='2' xbr='30' ybr='20'/></image></annotations>\n"
)
YAML = "path: .\ntrain: train.txt\nval: images/val\nnames:\n  0: ant\n  1: bee\n"
LABEL = "0 0.5 0.5 0.5 0.5\n1 0.1 0.1 0.4 0.1 0.4 0.3\n"
Variant = tuple[str, bytes]
"""A file below the folder, and its content."""


def write_sound_voc(root: Path) -> Path:
    """A Pascal VOC folder of four images."""
    return write_voc(root, dict.fromkeys("abcd", XML), {"train": "a\nb\nc\n", "val": "d 1\n"})


def write_sound_yolo(root: Path) -> Path:
    """A YOLO folder of four images."""
    for name in ("train/a", "train/b", "train/c", "val/d"):
        write_image(root / "images" / f"{name}.jpg")
        (root / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "labels" / f"{name}.txt").write_text(LABEL)
    (root / "data.yaml").write_text(YAML)
    (root / "train.txt").write_text("images/train/a.jpg\nimages/train/b.jpg\nimages/train/c.jpg\n")
    return root


def write_sound_cvat(root: Path) -> Path:
    """A folder of two images with CVAT's XML."""
    for name in ("a", "b"):
        write_image(root / "images" / f"{name}.jpg")
    (root / CVAT_FILE).write_text(CVAT_XML)
    return root


def voc_variants() -> Iterator[Variant]:
    """Broken annotation files and lists of `write_sound_voc`."""
    path = XML_FILE
    for tag in ("name", "difficult", "xmin", "ymin", "xmax", "ymax", "width", "height"):
        head, _, rest = XML.partition(f"<{tag}>")
        tail = rest.partition(f"</{tag}>")[2]
        for value in VALUES:
            yield path, f"{head}<{tag}>{value}</{tag}>{tail}".encode()
        yield path, f"{head}{tail}".encode()
        yield path, f"{head}<{tag}><{tag}>1</{tag}></{tag}>{tail}".encode()
    for encoding in ENCODINGS:
        yield path, XML.replace("utf-8", encoding).encode()
    for name in ("utf-16", "utf-16-be", "utf-32", "utf-7", "cp037", "latin-1"):
        yield path, XML.encode(name)
        yield path, XML.replace("utf-8", name).encode(name)
    yield from _damaged(path, XML)
    for line in VALUES:
        yield "ImageSets/Main/train.txt", f"a\n{line}\n".encode()
        yield "ImageSets/Main/val.txt", f"d\n{line}/d\n{line} -1\n".encode()
    yield from _damaged("ImageSets/Main/train.txt", "a\nb\nc\n")


def cvat_variants() -> Iterator[Variant]:
    """Broken files of CVAT's XML of `write_sound_cvat`."""
    for name in ("a.jpg", "40", "Train", "ant", "1.50", "any"):
        head, _, tail = CVAT_XML.partition(name)
        for value in VALUES:
            yield CVAT_FILE, f"{head}{value}{tail}".encode()
    for encoding in ENCODINGS:
        yield CVAT_FILE, CVAT_XML.replace("utf-8", encoding).encode()
    for name in ("utf-16", "utf-16-be", "utf-32", "utf-7", "cp037", "latin-1"):
        yield CVAT_FILE, CVAT_XML.encode(name)
        yield CVAT_FILE, CVAT_XML.replace("utf-8", name).encode(name)
    yield from _damaged(CVAT_FILE, CVAT_XML)


def yolo_variants() -> Iterator[Variant]:
    """Broken descriptions, labels and lists of `write_sound_yolo`."""
    for value in VALUES:
        for line in YAML.splitlines():
            key, _, _ = line.partition(":")
            yield "data.yaml", YAML.replace(line, f"{key}: {value}").encode()
            yield "data.yaml", YAML.replace(line, f"{key}: [a, {value}]").encode()
            yield "data.yaml", YAML.replace(line, f"{value}: ant").encode()
        for column in range(6):
            words = LABEL.split()[:5]
            words[column : column + 1] = [value]
            yield "labels/train/a.txt", " ".join(words).encode()
        for line in (value, f"images/train/a.jpg\n{value}", f"{value}/a.jpg", f"images/{value}/a.jpg"):
            yield "train.txt", f"{line}\n".encode()
    for name in ("utf-16", "utf-16-be", "utf-32", "utf-7", "cp037"):
        for path, text in (("data.yaml", YAML), ("labels/train/a.txt", LABEL), ("train.txt", "images/train/a.jpg\n")):
            yield path, text.encode(name)
    yield from _damaged("data.yaml", YAML)
    yield from _damaged("labels/train/a.txt", LABEL)
    yield from _damaged("train.txt", "images/train/a.jpg\nimages/train/b.jpg\n")


def _damaged(path: str, text: str) -> Iterator[Variant]:
    """Cut, repeated, and with some bytes replaced, inserted or exchanged."""
    content = text.encode()
    generator = random.Random(path)
    for end in range(0, len(content), 7):
        yield path, content[:end]
    yield path, content * 2
    yield path, b"\xef\xbb\xbf" * 2 + content
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(generator.randint(1, 4)):
            start, end = sorted(generator.randrange(len(damaged) + 1) for _ in range(2))
            kind = generator.randrange(4)
            if kind == 0:
                damaged[start : start + 1] = bytes([generator.randrange(256)])
            elif kind == 1:
                damaged[start:end] = b""
            elif kind == 2:
                damaged[start:start] = damaged[start:end]
            else:
                damaged[start:start] = generator.choice(VALUES).encode()
        yield path, bytes(damaged)


# --------------------------------------------------------------------------------------------------------------- bombs


class Bomb(NamedTuple):
    """A file that is made to need much: a unit, repeated; %d in it is the number of the repetition."""

    name: str
    head: str
    unit: str
    count: int
    tail: str = ""

    def write(self, root: Path) -> Path:
        """Writes the file into a folder."""
        path = root / self.name
        with path.open("w", encoding="utf-8") as file:
            file.write(self.head)
            for start in range(0, self.count, 100_000):
                stop = min(start + 100_000, self.count)
                if "%d" in self.unit:
                    file.write("".join(self.unit % number for number in range(start, stop)))
                else:
                    file.write(self.unit * (stop - start))
            file.write(self.tail)
        return path


ENTITIES = "".join(f"<!ENTITY l{i} '{f'&l{i - 1};' * 10}'>" for i in range(1, 12))
VOC_BOMBS = {
    "entities": Bomb(XML_FILE, f"<!DOCTYPE a [<!ENTITY l0 'ha'>{ENTITIES}]><annotation>", "&l11;", 1, "</annotation>"),
    "deep": Bomb(XML_FILE, "<annotation>", "<a>", 2_500_000),
    "elements": Bomb(XML_FILE, "<annotation>", "<a/>", 2_000_000, "</annotation>"),
    "objects": Bomb(XML_FILE, "<annotation>", "<object/>", 900_000, "</annotation>"),
    "attributes": Bomb(XML_FILE, "<annotation", " a%d=''", 600_000, "/>"),
    "attribute": Bomb(XML_FILE, "<annotation a='", "x", 8_000_000, "'/>"),
    "tag": Bomb(XML_FILE, "<", "x", 8_000_000, "/>"),
    "name": Bomb(XML_FILE, XML.partition("ant<")[0], "ant", 2_500_000, "<" + XML.partition("ant<")[2]),
    "digits": Bomb(XML_FILE, XML.partition("30<")[0], "9", 8_000_000, "<" + XML.partition("30<")[2]),
    "comments": Bomb(XML_FILE, "<annotation>", "<!-- -->", 1_000_000, "</annotation>"),
    "sound": Bomb(XML_FILE, "<annotation>", OBJECT, 55_000, "</annotation>"),
    "large file": Bomb(XML_FILE, "<annotation>", "<a>", 40_000_000),
}
CVAT_HEAD = "<annotations><image name='a.jpg'>"
CVAT_BOMBS = {
    "deep": Bomb(CVAT_FILE, "<annotations>", "<a>", 25_000_000),
    "name": Bomb(CVAT_FILE, "<annotations><image name='", "x", 250_000_000, "'/></annotations>"),
    "comment": Bomb(CVAT_FILE, "<annotations><!-- ", "x", 250_000_000),
    "points": Bomb(CVAT_FILE, f"{CVAT_HEAD}<polygon label='a' points='", "1,2;", 10_000_000, "1,2'/>"),
    "polygons": Bomb(CVAT_FILE, CVAT_HEAD, f"<polygon label='a' points='{'1,2;' * 999}1,2'/>", 6_000, "</image>"),
    "tags": Bomb(CVAT_FILE, CVAT_HEAD, "<tag label='a'/>", 5_000_000),
    "images": Bomb(CVAT_FILE, "<annotations>", "<image name='%d'/>", 400_000, "</annotations>"),
    "labels": Bomb(CVAT_FILE, "<annotations><meta><labels>", "<label><name>%d</name></label>", 1_000_000),
    "entities": Bomb(CVAT_FILE, f"<!DOCTYPE a [<!ENTITY l0 'ha'>{ENTITIES}]><annotations>", "&l11;", 1),
}
NAMES = "train: train.txt\nnames: "
YOLO_BOMBS = {
    "spaces": Bomb("data.yaml", NAMES + "[", " ", 1_000_000, "a]\n"),
    "commas": Bomb("data.yaml", NAMES + "[", ",", 1_000_000, "\n"),
    "quotes": Bomb("data.yaml", NAMES + "[", 'a"', 500_000, "]\n"),
    "escapes": Bomb("data.yaml", NAMES + '["', '\\"', 500_000, "]\n"),
    "names": Bomb("data.yaml", NAMES + "[", "a,", 500_000, "]\n"),
    "entries": Bomb("data.yaml", NAMES + "\n", "- a\n", 250_000),
    "digits of a key": Bomb("data.yaml", NAMES + "\n  ", "9", 1_000_000, ": a\n"),
    "large description": Bomb("data.yaml", NAMES + "[a]\n", "#", 120_000_000),
    "missing images": Bomb("train.txt", "", "%d.jpg\n", 1_900_000),
    "one image": Bomb("train.txt", "", "images/train/a.jpg\n", 1_900_000),
    "empty lines": Bomb("train.txt", "", "\n", 100_000_000),
    "names outside": Bomb("train.txt", "", "/%d\n", 1_900_000),
    "large list": Bomb("train.txt", "", "a", 120_000_000),
    "objects": Bomb("labels/train/a.txt", "", "0 .1 .1 .1 .1\n", 10_000_000),
    "many objects": Bomb("labels/train/a.txt", "", "0 .1 .1 .1 .1\n", 99_000),
    "columns": Bomb("labels/train/a.txt", "", "0 ", 4_000_000),
    "outlines": Bomb("labels/train/a.txt", "", "0" + " .5" * 340_000 + "\n", 8),
    "digits": Bomb("labels/train/a.txt", "", "9", 8_000_000),
    "large label": Bomb("labels/train/a.txt", "", "0 ", 60_000_000),
}
