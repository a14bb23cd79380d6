"""Hugging Face's parquet files and image folders."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from codetr_cli.annotations.cache import cache_entries, cache_folder, clear_cache
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.errors import DatasetError, ResourceError
from codetr_cli.formats.resolve import find_data
from tests.data.fakes import snapshot
from tests.formats.hub_exports import NAMES, cppe, encoded, features, newer_features, row, write_parquet
from tests.formats.labelling_exports import annotations, boxes, counts, names_of, opened, picture, write

needs_pyarrow = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("pyarrow") is None, reason="the extra parquet is not installed"
)


@needs_pyarrow
def test_rows_of_a_hub(tmp_path):
    root = cppe(tmp_path / "cppe-5")
    before = snapshot(root)
    assert boxes(root) == {
        "train/1.png": [("Coverall", [10, 20, 30, 40]), ("Gloves", [0, 0, 199.5, 100])],
        "train/2.png": [],
        "train/00000003.png": [("Face_Shield", [5, 6, 7, 8])],
    }
    assert boxes(root, "val") == {"val/00000001.png": [("Gloves", [5, 6, 7, 8])]}
    read = annotations(root)
    assert (read.class_names, read.category_ids) == (NAMES, [0, 1, 2])
    assert read.sizes.tolist() == [[100, 200]] * 3
    found = opened(root)
    assert (found.title, found.evidence) == ("Hugging Face", "data/train-00000-of-00002.parquet")
    assert counts(found) == {}
    assert any(note.startswith("the 4 images in the files (") and str(cache_folder()) in note for note in found.notes)
    assert any("boxes are read as x, y, width and height in pixels" in note for note in found.notes)
    assert snapshot(root) == before


@needs_pyarrow
def test_images_are_extracted_once_and_cleared_with_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))
    root = cppe(tmp_path / "set")
    paths = find_data(DataConfig(), str(root), "train")
    image = paths.images_dir / "train/1.png"
    assert image.read_bytes() == encoded(seed=1)
    assert paths.images_dir.is_relative_to(cache_folder())
    time = image.stat().st_mtime_ns
    assert find_data(DataConfig(val_fraction=0.5), str(root), "val").images_dir == paths.images_dir
    assert image.stat().st_mtime_ns == time
    image.unlink()
    assert boxes(root, val_fraction=0.4)["train/1.png"], "extracted again"
    assert image.exists()
    assert max(entry.size_bytes for entry in cache_entries()) > 4 * 50_000
    clear_cache()
    assert list(cache_folder().iterdir()) == []
    assert len(boxes(root)) == 3


@needs_pyarrow
@pytest.mark.parametrize("described", [newer_features(NAMES), features(NAMES)])
def test_objects_as_a_list_of_tables(tmp_path, described):
    rows = [
        row(1, objects=[{"bbox": [1, 2, 3, 4], "category": 2, "iscrowd": 1}, {"bbox": [5, 6, 7, 8], "category": 0}]),
        row(2, objects=[]),
    ]
    write_parquet(tmp_path / "train.parquet", rows, described)
    read = annotations(tmp_path, val_fraction=0)
    assert read.boxes_xywh.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert (read.class_names, read.labels.tolist(), read.iscrowd.tolist()) == (NAMES, [2, 0], [1, 0])


@needs_pyarrow
def test_names_as_text_and_numbers_without_names(tmp_path):
    write_parquet(tmp_path / "text/train.parquet", [row(1, ("dog", [1, 2, 3, 4]), ("cat", [1, 2, 3, 4]))], None)
    assert annotations(tmp_path / "text", val_fraction=0).class_names == ["cat", "dog"]
    write_parquet(tmp_path / "numbers/train.parquet", [row(1, (7, [1, 2, 3, 4]), (-1, [1, 2, 3, 4]))], features(None))
    assert annotations(tmp_path / "numbers", val_fraction=0).class_names == ["7"]
    assert counts(opened(tmp_path / "numbers", val_fraction=0)) == {"object_without_class": 1}


@needs_pyarrow
def test_lists_beside_the_image_and_bytes_without_a_table(tmp_path):
    rows = [{"image": encoded(suffix=".jpg"), "bbox": [[1.0, 2.0, 3.0, 4.0]], "label": ["cat"]}]
    write_parquet(tmp_path / "train.parquet", rows, None)
    assert boxes(tmp_path, val_fraction=0) == {"train/00000001.jpg": [("cat", [1, 2, 3, 4])]}


@needs_pyarrow
def test_images_beside_the_files(tmp_path):
    picture(tmp_path / "images" / "a.jpg")
    picture(tmp_path / "images" / "b.jpg")
    objects = {"bbox": [[1.0, 2.0, 3.0, 4.0]], "category": ["cat"]}
    write_parquet(tmp_path / "metadata.parquet", [{"file_name": "images/a.jpg", "objects": objects}], None)
    assert boxes(tmp_path, val_fraction=0) == {"images/a.jpg": [("cat", [1, 2, 3, 4])]}
    assert counts(opened(tmp_path, val_fraction=0)) == {"image_without_annotation": 1}


@needs_pyarrow
@pytest.mark.parametrize("path", ["../../evil.png", "/etc/evil.png", "C:\\evil.png", ".hidden.png", "x\0.png", "a.exe",
                                  "é" * 150 + ".png", "..", "a/../b.png", "summary.json"])  # fmt: skip
def test_names_in_rows_do_not_decide_where_images_are_written(tmp_path, path):
    write_parquet(tmp_path / "set/train.parquet", [row(1, ("cat", [1, 2, 3, 4]), path=path)], None)
    (name,) = boxes(tmp_path / "set", val_fraction=0)
    assert name in ("train/evil.png", "train/b.png", "train/00000001.png")
    written = [file for file in tmp_path.rglob("*.png") if "images" not in file.parts]
    assert written == []


@needs_pyarrow
def test_images_of_one_name_are_two(tmp_path):
    rows = [row(number, ("cat", [1, 2, 3, 4]), path=f"{number}/A.png") for number in (1, 2)]
    write_parquet(tmp_path / "train.parquet", [*rows, row(3, path="a.PNG")], None)
    assert list(boxes(tmp_path, val_fraction=0)) == ["train/A.png", "train/00000002.png", "train/00000003.png"]


@needs_pyarrow
def test_corners_are_not_taken_for_sizes(tmp_path):
    rows = [row(number, (0, [100, 50, 190, 90]), (1, [10, 10, 150, 80])) for number in range(3)]
    write_parquet(tmp_path / "train.parquet", rows, features(NAMES))
    with pytest.raises(DatasetError, match=r"3 of 6 boxes end outside .* fit as corners.*--set data.box_format=xyxy"):
        opened(tmp_path)
    expected = [("Coverall", [100, 40 + 10, 90, 40]), ("Face_Shield", [10, 10, 140, 70])]
    assert boxes(tmp_path, box_format="xyxy", val_fraction=0)["train/00000001.png"] == expected
    assert counts(opened(tmp_path, box_format="xywh"))["box_beyond_edge"] > 0


@needs_pyarrow
def test_relative_boxes_are_not_guessed(tmp_path):
    write_parquet(tmp_path / "train.parquet", [row(1, (0, [0.5, 0.5, 0.1, 0.2]))], features(NAMES))
    with pytest.raises(DatasetError, match=r"all numbers of boxes are between 0 and 1.*data.box_format=relative-xywh"):
        opened(tmp_path)
    assert boxes(tmp_path, box_format="relative-cxcywh", val_fraction=0)["train/00000001.png"] == [
        ("Coverall", [90, 40, 20, 20])
    ]


@needs_pyarrow
def test_several_data_sets(tmp_path):
    for name in ("full", "small"):
        write_parquet(tmp_path / name / "train/0000.parquet", [row(1, (0, [1, 2, 3, 4]))], features(NAMES))
    with pytest.raises(DatasetError, match=r"several data sets of parquet files, in full/, small/. Give the folder"):
        opened(tmp_path)
    assert len(boxes(tmp_path / "full", val_fraction=0)) == 1


@needs_pyarrow
@pytest.mark.parametrize(
    ("objects", "words"),
    [
        ({"bbox": [[1, 2, 3]], "category": [0]}, r"train.parquet: row 1: object 1 has the box \[1, 2, 3\] instead"),
        ({"bbox": [[1, 2, 3, None]], "category": [0]}, "row 1: object 1 has the box"),
        ({"bbox": [[1.0, 2, 3, float("nan")]], "category": [0]}, "row 1: object 1 has a box that is not finite"),
        ({"bbox": [[1, 2, 3, 4]], "category": [3]}, "row 1: object 1 has the class 3, but there are 3, from 0"),
        ({"bbox": [[1, 2, 3, 4]], "category": [0, 1]}, "row 1 has 1 boxes, but 2 classes"),
        ({"bbox": [[1, 2, -3, 4]], "category": [0]}, "row 1: object 1 has width -3 and height 4"),
        ({"bbox": [[1, 2, 3, 4]], "area": [1]}, "row 1 has boxes, but no classes"),
    ],
)
def test_broken_rows_are_named(tmp_path, objects, words):
    write_parquet(tmp_path / "train.parquet", [row(1, objects=objects)], features(NAMES))
    with pytest.raises(DatasetError, match=words) as error:
        opened(tmp_path)
    assert len(str(error.value)) < 2000


@needs_pyarrow
def test_damaged_files_are_named(tmp_path):
    path = write_parquet(tmp_path / "train.parquet", [row(1, (0, [1, 2, 3, 4]))], features(NAMES))
    sound = path.read_bytes()
    for at in range(0, len(sound) - 8, max(1, len(sound) // 40)):
        path.write_bytes(sound[:at] + bytes((sound[at] ^ 0x55,)) + sound[at + 1 :])
        try:
            opened(tmp_path)
        except (DatasetError, AssertionError) as error:
            assert len(str(error)) < 2000  # noqa: PT017
    path.write_bytes(sound[:4] + bytes(500) + sound[504:])
    with pytest.raises(DatasetError, match=r"train.parquet cannot be read as parquet: .*Download or write it again"):
        opened(tmp_path)


@needs_pyarrow
def test_images_that_are_none(tmp_path):
    rows = [row(1, (0, [1, 2, 3, 4])), row(2, (0, [1, 2, 3, 4]), image={"bytes": b"no image", "path": "x.png"})]
    write_parquet(tmp_path / "train.parquet", rows, features(NAMES))
    with pytest.raises(DatasetError, match=r"1 of 2 images in .* cannot be used: train/x.png"):
        opened(tmp_path)
    rows[1]["image"]["bytes"] = None
    write_parquet(tmp_path / "train.parquet", rows, features(NAMES))
    with pytest.raises(DatasetError, match=r"1 of 2 annotated images are not in .*train.parquet: row 2"):
        opened(tmp_path)


@needs_pyarrow
def test_other_parquet_files_are_no_data_set(tmp_path):
    write_parquet(tmp_path / "train.parquet", [{"text": "x", "label": 1}], None)
    (tmp_path / "other.parquet").write_bytes(b"PAR1bboximage")
    with pytest.raises(AssertionError):
        opened(tmp_path)


def test_without_pyarrow_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    footer = b"\x15\x04bbox\x15image\x15"
    (tmp_path / "train.parquet").write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ResourceError, match=r"pip install 'codetr-cli\[parquet\]'"):
        opened(tmp_path)


# --------------------------------------------------------------------------------------------------------- image folder


def image_folder(root: Path) -> Path:
    for split, count in (("train", 3), ("test", 1)):
        lines = []
        for number in range(count):
            picture(root / split / f"{number:04d}.png")
            lines.append({"file_name": f"{number:04d}.png", "objects": {"bbox": [[5, 6, 7, 8]] * number, "categories":
                          [number] * number}})  # fmt: skip
        write(root / split / "metadata.jsonl", "".join(json.dumps(line) + "\n" for line in lines[:2]))
    return root


def test_an_image_folder(tmp_path):
    root = image_folder(tmp_path)
    write(root / "test" / "metadata.jsonl", '{"file_name": "0000.png", "objects": "{\\"bbox\\": [[1, 2, 3, 4]], '
          '\\"categories\\": [1]}"}\n')  # fmt: skip
    assert boxes(root) == {"train/0000.png": [], "train/0001.png": [("1", [5, 6, 7, 8])]}
    assert boxes(root, "val") == {"test/0000.png": [("1", [1, 2, 3, 4])]}
    found = opened(root)
    assert (found.title, found.evidence, found.val_is_test) == ("Hugging Face", "test/metadata.jsonl", True)
    assert names_of(found, "image_without_annotation") == "train/0002.png"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "metadata.jsonl, line 2 is not JSON"),
        ("[1]", r"metadata.jsonl, line 2 is \[1\] instead of a table"),
        ('{"objects": {}}', "metadata.jsonl: line 2 has no name of an image"),
        ('{"file_name": "x.png", "objects": {}}', r"1 of 2 annotated images are not in .*line 2 \(x.png\)"),
        ('{"file_name": "a.png", "objects": 3}', "line 2 has the objects 3 instead of a table"),
        ('{"file_name": "a.png", "objects": {"bbox": 3, "label": 3}}', "line 2 has 3 instead of a list"),
        ('{"file_name": "a.png", "objects": ' + "[" * 400_000, "metadata.jsonl, line 2 is too long"),
        ('{"file_name": "a.png", "objects": ' + "[" * 100_000, "line 2 is not JSON: it is nested too deeply"),
    ],
)
def test_broken_lines_are_named(tmp_path, line, words):
    for name in "ab":
        picture(tmp_path / f"{name}.png")
    first = '{"file_name": "b.png", "objects": {"bbox": [[1, 2, 3, 4]], "label": [1]}}\n'
    write(tmp_path / "metadata.jsonl", first + line)
    with pytest.raises(DatasetError, match=words) as error:
        opened(tmp_path)
    assert len(str(error.value)) < 2000


def test_other_json_lines_are_no_data_set(tmp_path):
    picture(tmp_path / "a.png")
    for text in ('{"file_name": "a.png", "text": "a cat"}\n', "", "\n"):
        write(tmp_path / "metadata.jsonl", text)
        with pytest.raises(AssertionError):
            opened(tmp_path)


def test_a_missing_image_is_no_namesake_of_another_folder(tmp_path):
    for name in ("cats/2.jpg", "dogs/1.jpg"):
        picture(tmp_path / "train" / name)
    lines = [{"file_name": f"cats/{n}.jpg", "objects": {"bbox": [[1, 2, 3, 4]], "categories": ["cat"]}} for n in (1, 2)]
    write(tmp_path / "train" / "metadata.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))
    with pytest.raises(DatasetError, match=r"1 of 2 annotated images are not in .*cats/1.jpg"):
        opened(tmp_path)
