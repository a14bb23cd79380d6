from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from codetr_cli.config.data_settings import DataConfig
from codetr_cli.data.checks.dataset import check_dataset
from tests.data.checks.fakes import check, found, silent
from tests.data.fakes import write_image
from tests.formats.annotated_folders import annotated


def test_a_good_folder(tiny_coco: Path) -> None:
    report = check(tiny_coco)
    assert report.errors == 0
    assert report.splits["train"].as_json() == {
        "images": 4,
        "annotations": 7,
        "crowd": 1,
        "usable": 6,
        "categories": 3,
        "used_categories": 3,
        "images_without_objects": 1,
        "most_objects_in_an_image": 4,
        "masks": 7,
    }
    assert report.lists == {"train": "present", "val": "present"}
    assert set(found(report)) == {"category_id_holes", "no_objects_image", "crowd", "crowd_without_rle"}
    assert found(report)["category_id_holes"].first == ["4-6"]
    assert json.loads(json.dumps(report.as_json()))["ok"] is True


def test_real_images_and_counts(shared_dir: Path) -> None:
    report = check(shared_dir / "data" / "coco_mini")
    counts = [
        (len(facts.images), facts.annotations, facts.crowd) for facts in (report.splits["train"], report.splits["val"])
    ]
    assert counts == [(80, 739, 8), (79, 624, 5)]
    assert {finding.severity for finding in report.findings} <= {"info"}
    assert not (shared_dir / "data" / "coco_mini" / "train2017.txt").exists()


def test_missing_lists_are_written_in_the_order_of_the_file(tiny_coco: Path) -> None:
    (tiny_coco / "train2017.txt").unlink()
    report = check(tiny_coco)
    assert report.lists == {"train": "written", "val": "present"}
    names = [f"train2017/{name}" for name, _, _ in report.splits["train"].images]
    assert (tiny_coco / "train2017.txt").read_text().splitlines() == names


def test_a_list_that_disagrees(tiny_coco: Path) -> None:
    (tiny_coco / "val2017.txt").write_text("val2017/other.jpg\n")
    report = check(tiny_coco)
    assert report.lists["val"] == "differs"
    assert found(report)["list_differs"].first == ["2 images not in it, 1 more in it"]


# -------------------------------------------------------------------------------------------------------- image files


def test_missing_parts(tiny_coco: Path) -> None:
    shutil.rmtree(tiny_coco / "val2017")
    assert found(check(tiny_coco))["no_image_folder"].where == "val2017/"
    (tiny_coco / "annotations" / "instances_val2017.json").unlink()
    report = check(tiny_coco)
    assert report.errors == 0
    assert {name: len(split.images) for name, split in report.splits.items()} == {"train": 3, "val": 1}
    report = check_dataset(tiny_coco, config=DataConfig(val_fraction=0), progress=silent)
    assert found(report)["no_validation"].severity == "warning"


def test_images_without_their_annotation_file(tiny_coco: Path) -> None:
    (tiny_coco / "annotations" / "instances_val2017.json").unlink()
    finding = found(check(tiny_coco))["no_annotations"]
    assert (finding.severity, finding.where) == ("error", "annotations/instances_val2017.json")


def test_a_set_for_evaluation_alone_cannot_train(tiny_coco: Path) -> None:
    shutil.rmtree(tiny_coco / "train2017")
    (tiny_coco / "annotations" / "instances_train2017.json").unlink()
    assert found(check(tiny_coco))["no_training"].severity == "error"


def test_progress_counts_every_file(tiny_coco: Path) -> None:
    steps_of: dict[str, tuple[int | None, list[int]]] = {}

    @contextmanager
    def progress(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
        steps_of[description] = (total, [])
        yield steps_of[description][1].append

    check_dataset(tiny_coco, config=DataConfig(), progress=progress)
    assert {name: (total, sum(steps)) for name, (total, steps) in steps_of.items()} == {
        "reading annotations/instances_train2017.json": (1, 1),
        "reading headers of train2017/": (4, 4),
        "reading annotations/instances_val2017.json": (1, 1),
        "reading headers of val2017/": (2, 2),
    }


# ---------------------------------------------------------------------------------------------------------- the words


def test_the_check_needs_no_torch() -> None:
    code = "import sys, codetr_cli.data.checks.dataset, codetr_cli.images.decoder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -------------------------------------------------------------------------------------------------------- test images


def test_test_images_are_checked_like_the_others(tmp_path: Path) -> None:
    root = annotated(tmp_path, "csv", ("train", "val", "test"), 2)
    (root / "test" / "test_0.png").write_bytes(b"no image")
    table = (root / "labels.csv").read_text().splitlines()
    sizes = [f"{line},{'width,height' if not index else '40,30'}" for index, line in enumerate(table)]
    (root / "labels.csv").write_text("\n".join(sizes))
    report = check(root)
    assert {name: len(split.images) for name, split in report.splits.items()} == {"train": 2, "val": 2, "test": 2}
    assert found(report)["not_an_image"].first[0].startswith("test/test_0.png")
    assert "leaked_image" in found(report)  # all pictures are the same


def test_a_list_of_test_images_without_annotations_is_counted(tiny_coco: Path) -> None:
    folder = tiny_coco / "annotations"
    (folder / "instances_train2017.json").rename(folder / "my_train.json")
    (folder / "instances_val2017.json").rename(folder / "my_val.json")
    write_image(tiny_coco / "test" / "1.jpg")
    image = {"id": 1, "file_name": "1.jpg", "width": 40, "height": 30}
    categories = json.loads((folder / "my_val.json").read_text())["categories"]
    content = {"images": [image], "annotations": [], "categories": categories}
    (folder / "image_info_test.json").write_text(json.dumps(content))
    report = check(tiny_coco)
    assert set(report.splits) == {"train", "val"}
    assert any("image_info_test.json: a list of 1 test image without" in note for note in report.notes)
    assert report.errors == 0
