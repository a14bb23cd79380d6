"""What is in the folders of images and is not used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from PIL import Image

from codetr_cli.annotations.findings import Findings
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.data.checks.dataset import check_dataset
from codetr_cli.data.checks.leftovers import Leftovers
from tests.data.checks.fakes import check, found, silent

NEW = {"unreadable_format", "linked_folder", "own_drawing", "debris", "unlisted_file", "unlistable_folder"}


def test_a_folder_without_anything_else_has_no_findings(tiny_coco: Path) -> None:
    assert not NEW & set(found(check(tiny_coco)))


def test_files_that_are_not_used_are_counted_by_their_kind(tiny_coco: Path, tmp_path: Path) -> None:
    folder = tiny_coco / "train2017"
    for name in ("a.heic", "sub/b.svg", ".hidden.jpg", "Thumbs.db", "sub/.ipynb_checkpoints/c.jpg", "new.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    (tmp_path / "elsewhere").mkdir()
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    findings = found(check(tiny_coco))
    shown = {kind: (findings[kind].count, findings[kind].first) for kind in NEW & set(findings)}
    assert shown == {
        "unreadable_format": (2, ["a.heic", "sub/b.svg"]),
        "debris": (3, [".hidden.jpg", "Thumbs.db", "sub/.ipynb_checkpoints"]),
        "linked_folder": (1, ["more"]),
        "unlisted_file": (1, ["new.jpg"]),
    }
    assert findings["unreadable_format"].severity == "warning"
    assert not any(findings[kind].severity == "error" for kind in shown)


def test_links_whose_images_are_used_are_no_leftovers(tiny_coco: Path, tmp_path: Path) -> None:
    path = tiny_coco / "annotations/instances_train2017.json"
    table = json.loads(path.read_text())
    for image in table["images"]:
        image["file_name"] = f"part/{image['file_name']}"
    path.write_text(json.dumps(table))
    shutil.move(tiny_coco / "train2017", tmp_path / "part")
    (tiny_coco / "train2017").mkdir()
    (tiny_coco / "train2017/part").symlink_to(tmp_path / "part")
    report = check(tiny_coco)
    assert not report.errors
    assert not NEW & set(found(report))


def test_images_of_a_folder_that_splits_share(tmp_path: Path) -> None:
    """One file without a validation part: its images are divided, and both parts use the folder."""
    (tmp_path / "images").mkdir()
    images, objects = [], []
    for number in range(1, 21):
        Image.effect_noise((64, 48), number).convert("RGB").save(tmp_path / f"images/{number}.jpg")
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 64, "height": 48})
        objects.append({"id": number, "image_id": number, "category_id": 1, "bbox": [1, 1, 20, 20]})
    table = {"images": images[:-2], "annotations": objects[:-2], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "instances.json").write_text(json.dumps(table))
    report = check_dataset(tmp_path, config=DataConfig(), progress=silent)
    assert set(report.splits) == {"train", "val"}
    assert found(report)["unlisted_file"].first == ["19.jpg", "20.jpg"]


def test_folders_of_unread_splits_are_not_judged(tmp_path: Path) -> None:
    findings, leftovers = Findings(), Leftovers()
    (tmp_path / "new.jpg").write_bytes(b"x")
    leftovers.add(tmp_path, "images/", ["a.jpg"], is_complete=True)
    leftovers.add(tmp_path, "images/", [], is_complete=False)
    leftovers.add(tmp_path / "none", "none/", [], is_complete=True)
    leftovers.report(findings)
    assert findings.sorted() == []


def test_images_beside_the_folders_of_images(tiny_coco: Path) -> None:
    for name in ("extra/deep/1.jpg", "test2017/2.png", "loose.jpg", "extra/notes.txt", ".hidden/3.jpg"):
        path = tiny_coco / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    finding = found(check(tiny_coco))["unlisted_file"]
    assert (finding.where, finding.severity) == (f"{tiny_coco.name}/", "info")
    assert finding.first == ["extra/deep/1.jpg", "loose.jpg", "test2017/2.png"]
