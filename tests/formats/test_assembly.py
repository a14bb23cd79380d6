"""What several parsers share: splits by names of folders, classes, sizes, missing images."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetr_cli.annotations.survey import Survey
from codetr_cli.errors import DatasetError
from codetr_cli.formats.assembly import (
    AnnotatedImage,
    Content,
    NamedBox,
    assemble,
    check_corners,
    class_name,
    in_threads,
    refuse_absent,
)
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.intermediate import ParsedBox, to_coco
from tests.formats.labelling_exports import picture

BOX = NamedBox("cat", (1, 2, 3, 4))


def content(root: Path, *images: AnnotatedImage, **others) -> Content:
    return Content("Some tool", Survey.of(root), list(images), "the files", **others)


def test_images_in_no_split_are_named(tmp_path):
    images = [AnnotatedImage(name, "f", [BOX], (9, 9)) for name in ("train/a.jpg", "val/a.jpg", "b.jpg")]
    parsed = assemble(content(tmp_path, *images), ReadOptions())
    assert {split: [image.file_name for image in part] for split, part in parsed.splits.items()} == {
        "train": ["train/a.jpg"],
        "val": ["val/a.jpg"],
    }
    found = parsed.findings.get("outside_splits", "the files")
    assert found is not None
    assert found.first == ["b.jpg"]
    assert parsed.places == {"train": "the files (train)", "val": "the files (val)"}


def test_relative_boxes_are_in_pixels_of_the_size_that_is_read(tmp_path):
    picture(tmp_path / "a.jpg", 200, 100)
    relative = NamedBox("cat", (0.1, 0.2, 0.5, 0.9), True, (0.1, 0.2, 0.5, 0.9, 0.1, 0.9))
    parsed = assemble(content(tmp_path, AnnotatedImage("a.jpg", "f", [relative], relative=True)), ReadOptions())
    (image,) = parsed.splits["train"]
    assert (image.height, image.width) == (100, 200)
    box = ParsedBox(0, (20, 20, 100, 90), True, (20, 20, 100, 90, 20, 90))
    assert (list(image.boxes), image.boxes[0], image.boxes[:1], len(image.boxes)) == ([box], box, [box], 1)
    assert to_coco(parsed, "train")["annotations"][0]["bbox"] == [20, 20, 80, 70]


def test_images_that_cannot_be_read(tmp_path):
    for number in range(10):
        picture(tmp_path / f"{number}.jpg")
    (tmp_path / "0.jpg").write_bytes(b"")
    images = [AnnotatedImage(f"{number}.jpg", "f", [BOX]) for number in range(10)]
    with pytest.raises(DatasetError, match=r"1 of 10 images in .* cannot be used: 0.jpg \(the file has zero bytes\)"):
        assemble(content(tmp_path, *images), ReadOptions())
    parsed = assemble(content(tmp_path, *images), ReadOptions(skip_bad=True))
    assert len(parsed.splits["train"]) == 9
    assert parsed.skipped == ["0.jpg (the file has zero bytes)"]


def test_images_without_annotations_are_counted(tmp_path):
    for name in "abc":
        picture(tmp_path / f"{name}.jpg")
    parsed = assemble(content(tmp_path, AnnotatedImage("a.jpg", "f", [BOX])), ReadOptions())
    found = parsed.findings.get("image_without_annotation", "the files")
    assert found is not None
    assert (found.count, found.first) == (2, ["b.jpg", "c.jpg"])


def test_no_images_no_objects_too_many_classes(tmp_path):
    with pytest.raises(DatasetError, match=r"the files in .* has no annotated image"):
        assemble(content(tmp_path), ReadOptions())
    with pytest.raises(DatasetError, match=r"the files in .* has no object"):
        assemble(content(tmp_path, AnnotatedImage("a.jpg", "f", [], (9, 9))), ReadOptions())
    boxes = [NamedBox(f"{number}", (1, 2, 3, 4)) for number in range(50_001)]
    with pytest.raises(DatasetError, match="has 50,001 classes, the limit is 50,000"):
        assemble(content(tmp_path, AnnotatedImage("a.jpg", "f", boxes, (9, 9))), ReadOptions())


def test_missing_images_may_be_skipped_up_to_a_share(tmp_path):
    with pytest.raises(DatasetError, match=r"2 of 30 annotated images are not in .*: a, b. Do something"):
        refuse_absent(["a", "b"], 30, tmp_path, "Do something", skip_bad=False)
    assert refuse_absent(["a", "b"], 30, tmp_path, "", skip_bad=True) == ["a (no such image)", "b (no such image)"]
    with pytest.raises(DatasetError):
        refuse_absent(["a", "b"], 19, tmp_path, "", skip_bad=True)


def test_names_of_classes():
    assert (class_name(" cat ", "x"), class_name(7, "x")) == ("cat", "7")
    for value in ("", "  ", None, True, 1.5, []):
        with pytest.raises(DatasetError, match="row 3 has no class"):
            class_name(value, "row 3")
    with pytest.raises(DatasetError, match="row 3 has a name of 1,001 characters"):
        class_name("x" * 1001, "row 3")
    with pytest.raises(DatasetError, match=r"row 3 has the name .* which is not Unicode text. Rename"):
        class_name("\ud800", "row 3")


def test_corners():
    check_corners((0, -1e9, 1e9), "x")
    for value in (float("nan"), float("inf"), 1e10, 10**400):
        with pytest.raises(DatasetError, match="shape 1 has coordinates that are not finite"):
            check_corners((0, value), "shape 1")


def test_threads_keep_the_order():
    assert in_threads(str, range(100)) == [str(number) for number in range(100)]
