from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from codetr_cli.annotations.objects import Annotations, read_annotations
from codetr_cli.config.overrides import apply_overrides, to_toml
from codetr_cli.config.schema import Settings
from codetr_cli.data.coco import CocoDataset, build_dataset
from codetr_cli.inference.detections import DetectionTable
from codetr_cli.runs.folder import RunFolder
from codetr_cli.runs.plot_files import plot_files
from codetr_cli.training import val_pictures
from codetr_cli.training.val_pictures import ValPictures, chosen_rows, kept_steps
from tests.conftest import Ran


@pytest.fixture
def dataset(tiny_settings: Settings, tiny_coco: Path) -> CocoDataset:
    settings = apply_overrides(tiny_settings, [f"data.root={tiny_coco}"])
    return build_dataset(settings, split="val", training=False)


@pytest.fixture
def truth(dataset: CocoDataset) -> Annotations:
    return read_annotations(dataset.annotations_path)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.plots_dir.mkdir(parents=True)
    return folder


def perfect(truth: Annotations, score: float = 0.9) -> DetectionTable:
    """Detections that are the annotated objects."""
    return DetectionTable(
        image_ids=truth.image_ids[truth.image_rows],
        category_ids=np.array(truth.category_ids)[truth.labels],
        boxes_xywh=truth.boxes_xywh,
        scores=np.full(len(truth.labels), score),
    )


def share_of(path: Path, rgb: tuple[int, int, int]) -> float:
    """The share of the pixels of a picture below its header that have about a colour."""
    pixels = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB).astype(int)
    return float((np.abs(pixels[40:] - np.array(rgb)).max(axis=2) < 60).mean())


def test_pictures_show_hits_misses_and_false_alarms(dataset: CocoDataset, truth: Annotations, folder: RunFolder):
    ours = ValPictures(dataset, truth, folder, 6)
    missed = ours.draw(5, perfect(truth, score=0.1))  # below the threshold
    found = ours.draw(10, perfect(truth))
    assert [path.name for path in missed] == ["0_00000005.webp", "1_00000005.webp"]
    assert [path.name for path in found] == ["0_00000010.webp", "1_00000010.webp"]
    blue, yellow, red = (0, 170, 235), (255, 205, 0), (225, 50, 10)
    assert share_of(missed[1], yellow) > 0.002 > share_of(found[1], yellow)
    assert share_of(found[1], blue) > 0.002 > share_of(missed[1], blue)
    wrong = perfect(truth)
    moved = replace(wrong, boxes_xywh=wrong.boxes_xywh + np.array([40.0, 40.0, 0, 0]))
    before = share_of(found[0], red)
    assert share_of(ours.draw(15, moved)[0], red) > before


def test_a_sheet_has_a_row_for_each_image_and_a_column_for_each_step(
    dataset: CocoDataset, truth: Annotations, folder: RunFolder
):
    ours = ValPictures(dataset, truth, folder, 6)
    widths = []
    for step in range(1, 8):
        ours.draw(step, perfect(truth))
        sheet = cv2.imread(str(folder.plots_dir / "val_images.webp"))
        widths.append(sheet.shape[1])
    assert widths == sorted(widths)
    assert len(set(widths)) == val_pictures.SHEET_COLUMNS
    assert widths[3:] == [widths[3]] * 4
    (folder.plots_dir / "val_images" / "1_00000007.webp").write_bytes(b"RIFF damaged")
    ours.draw(8, perfect(truth))  # one that is damaged hides no other


def test_equal_inputs_give_equal_files(dataset: CocoDataset, truth: Annotations, folder: RunFolder, tmp_path: Path):
    other = RunFolder(tmp_path / "other")
    other.plots_dir.mkdir(parents=True)
    first = ValPictures(dataset, truth, folder, 6)
    first.draw(5, perfect(truth))
    first.draw(10, perfect(truth, 0.5))
    ValPictures(dataset, truth, other, 6).draw(5, perfect(truth))
    ValPictures(dataset, truth, other, 6).draw(10, perfect(truth, 0.5))  # as a run that was continued
    contents = [
        {path.relative_to(run.path): path.read_bytes() for path in run.path.rglob("*.webp")} for run in (folder, other)
    ]
    assert contents[0] == contents[1]
    assert len(contents[0]) == 5


def test_drawing_uses_no_randomness(dataset: CocoDataset, truth: Annotations, folder: RunFolder):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    ValPictures(dataset, truth, folder, 6).draw(5, perfect(truth))
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


def test_without_detections_and_without_images(dataset: CocoDataset, truth: Annotations, folder: RunFolder):
    assert len(ValPictures(dataset, truth, folder, 6).draw(5, DetectionTable.empty())) == 2
    assert ValPictures(dataset, truth, folder, 0).draw(10, perfect(truth)) == []
    assert [each.step for each in plot_files(folder.path).val_pictures] == [5, 5]


def test_an_image_that_cannot_be_read_is_passed_over(dataset: CocoDataset, truth: Annotations, folder: RunFolder):
    dataset.image_path(0).write_bytes(b"damaged")
    dataset.image_path(1).unlink()
    ours = ValPictures(dataset, truth, folder, 6)
    assert ours.draw(5, perfect(truth)) == []
    assert not (folder.plots_dir / "val_images.webp").exists()


def test_pictures_are_bounded_in_number_and_later_ones_go(
    dataset: CocoDataset, truth: Annotations, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(val_pictures, "KEPT_STEPS", 4)
    ours = ValPictures(dataset, truth, folder, 1)
    for step in range(1, 9):
        ours.draw(step, DetectionTable.empty())
    steps = [each.step for each in plot_files(folder.path).val_pictures]
    assert len(steps) == 4
    assert (steps[0], steps[-1]) == (1, 8)
    note = folder.plots_dir / "val_images" / "note.webp"
    note.touch()
    ours.draw(5, DetectionTable.empty())  # the run went back
    assert max(each.step for each in plot_files(folder.path).val_pictures) == 5
    assert note.exists()


def test_no_link_is_followed(dataset: CocoDataset, truth: Annotations, folder: RunFolder, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (folder.plots_dir / "val_images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="is a link"):
        ValPictures(dataset, truth, folder, 1).draw(5, DetectionTable.empty())
    assert list((tmp_path / "elsewhere").iterdir()) == []


def annotations_of(truth: Annotations, ids: list[int], objects_in: list[int]) -> Annotations:
    """Images of some ids, some of which have an object."""
    rows = np.array([ids.index(image_id) for image_id in objects_in], np.int64)
    return replace(truth, image_ids=np.array(ids), image_rows=rows, iscrowd=np.zeros(len(rows), np.int64))


def test_the_images_are_chosen_from_those_with_objects(truth: Annotations):
    ids = [9, 7, 5, 3, 1, 2, 4, 6, 8, 10]
    having = [1, 2, 3, 4, 5, 6, 7, 8]
    found = chosen_rows(annotations_of(truth, ids, having), 4)
    assert [ids[row] for row in found] == [2, 4, 6, 8]
    assert [ids[row] for row in chosen_rows(annotations_of(truth, ids, [7, 3]), 4)] == [3, 7]
    assert [ids[row] for row in chosen_rows(annotations_of(truth, ids, []), 2)] == [3, 8]
    assert chosen_rows(annotations_of(truth, [], []), 4) == []
    crowds = replace(annotations_of(truth, ids, [7, 3]), iscrowd=np.array([1, 0]))
    assert [ids[row] for row in chosen_rows(crowds, 4)] == [3]


def test_steps_are_spread():
    assert kept_steps([3, 1, 1, 2], 3) == {1, 2, 3}
    kept: list[int] = []
    for step in range(1, 1001):
        kept = sorted(kept_steps([*kept, step], 16))
    assert len(kept) == 16
    assert (kept[0], kept[-1]) == (1, 1000)
    gaps = np.diff(kept)
    assert gaps.max() <= 6 * max(gaps.min(), 20)


@pytest.mark.parametrize("count", [0, 2])
def test_a_training_draws_at_each_evaluation(
    tmp_path: Path, tiny_coco: Path, tiny_settings: Settings, codetr: Callable[..., Ran], count: int
):
    (tmp_path / "tiny.toml").write_text(to_toml(tiny_settings))
    run = tmp_path / "run"
    words = ("train", "--preset", tmp_path / "tiny.toml", "--data", tiny_coco, "--run", run, "--device", "cpu", "-q")
    ran = codetr(*words, "--set", "train.epochs=2", "--set", f"train.val_pictures={count}")
    assert ran.code == 0, ran.err
    found = plot_files(run)
    assert [(each.image, each.step) for each in found.val_pictures] == [(i, s) for i in range(count) for s in (3, 6)]
    names = {"ap.png", "learning_rate.png", "losses.png", "pr_curves.png"} | ({"val_images.webp"} if count else set())
    assert {path.name for path in found.plots} == names
    assert "could not be drawn" not in (run / "events.log").read_text()


def test_an_error_stops_no_training(
    tmp_path: Path,
    tiny_coco: Path,
    tiny_settings: Settings,
    codetr: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
):
    def fail(*args: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(ValPictures, "draw", fail)
    (tmp_path / "tiny.toml").write_text(to_toml(tiny_settings))
    run = tmp_path / "run"
    words = ("train", "--preset", tmp_path / "tiny.toml", "--data", tiny_coco, "--run", run, "--device", "cpu", "-q")
    assert codetr(*words).code == 0
    assert "validation images could not be drawn: OSError: [Errno 28]" in (run / "events.log").read_text()
    assert RunFolder(run).status() == "finished"
