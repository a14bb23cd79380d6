from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from codetr_cli.config.overrides import apply_overrides
from tests.inference.fakes import write_run


@pytest.fixture
def run(tmp_path: Path, tiny_settings, monkeypatch) -> Path:
    """A run folder in the current directory."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/tiny/1", tiny_settings, "last")
    return Path("runs/tiny/1")


def test_a_folder_gives_drawn_images_and_coco_json(codetr, run, tiny_coco):
    ran = codetr("predict", tiny_coco / "train2017", "--score", 0.01, "--max-dets", 5)
    assert ran.code == 0, ran.err
    images = json.loads((tiny_coco / "annotations/instances_train2017.json").read_text())["images"]
    for image in images:
        assert image["file_name"] in ran.out
        with Image.open(Path("predictions") / image["file_name"]) as drawn:
            assert drawn.size == (image["width"], image["height"])
    records = json.loads(Path("predictions/predictions.json").read_text())
    assert len(records) == 5 * len(images)
    assert {record["image_id"] for record in records} == {image["id"] for image in images}
    assert {record["category_id"] for record in records} <= {2, 3, 7}
    assert {record["category_name"] for record in records} <= {"disc", "bar", "ring"}
    assert all(len(record["bbox"]) == 4 and record["score"] >= 0.01 for record in records)


def test_predictions_can_be_scored(codetr, run, tiny_coco):
    assert codetr("predict", tiny_coco / "val2017", "--score", 0, "--no-draw").code == 0
    predicted = codetr("eval", "--detections", "predictions/predictions.json", "--data", tiny_coco, "--json").json
    evaluated = codetr("eval", run, "--data", tiny_coco, "--json").json
    assert [predicted[name] for name in ("AP", "AR1000")] == [evaluated[name] for name in ("AP", "AR1000")]


def test_json(codetr, run, tiny_coco):
    photo = sorted((tiny_coco / "val2017").glob("*.jpg"))[0]
    ran = codetr("predict", photo, "--checkpoint", run, "--json", "--score", 0.01, "--nms", "none", "--no-draw")
    assert ran.code == 0, ran.err
    facts = ran.json
    assert facts["checkpoint"].endswith("runs/tiny/1/checkpoints/last/model.safetensors")
    (image,) = facts["images"]
    assert image["file_name"] == photo.name
    assert sum(image["objects"].values()) == len(facts["detections"]) > 0
    assert image["drawn"] is None
    assert facts["failed"] == []
    assert [path.name for path in Path("predictions").iterdir()] == ["predictions.json"]


def test_results_are_not_overwritten_unless_forced(codetr, run, tiny_coco):
    words = ("predict", tiny_coco / "val2017", "--no-draw", "--json")
    assert [codetr(*words).json["out"] for _ in range(2)] == ["predictions", "predictions_2"]
    assert codetr(*words, "--force").json["out"] == "predictions"
    assert codetr(*words, "--out", "a/b").json["out"] == "a/b"


def test_broken_images_are_named_and_the_others_done(codetr, run, tiny_coco):
    folder = tiny_coco / "val2017"
    good = sorted(path.name for path in folder.glob("*.jpg"))
    content = (folder / good[0]).read_bytes()
    (folder / "short.jpg").write_bytes(content[: len(content) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("hello")
    Image.new("1", (20000, 20000)).save(folder / "huge.png")
    ran = codetr("predict", folder)
    assert ran.code == 3
    assert "Traceback" not in ran.err
    assert "4 of 6 images" in ran.err
    for name in ("short.jpg", "empty.png", "text.jpg", "huge.png"):
        assert name in ran.err
    for name in good:
        assert (Path("predictions") / name).is_file()
    ran = codetr("predict", folder, "--json")
    assert ran.code == 3
    assert {Path(entry["file"]).name for entry in ran.json["failed"]} == {
        "short.jpg",
        "empty.png",
        "text.jpg",
        "huge.png",
    }
    assert len(ran.json["images"]) == 2


def test_subfolders_and_patterns(codetr, run, tiny_coco):
    ran = codetr("predict", tiny_coco, str(tiny_coco / "val2017/*.jpg"), "--json")
    assert ran.code == 0, ran.err
    assert {entry["file_name"].split("/")[0] for entry in ran.json["images"]} == {"train2017", "val2017"}
    assert len(ran.json["images"]) == 6
    assert all(Path(entry["drawn"]).is_file() for entry in ran.json["images"])


@pytest.mark.parametrize("head", ["roi", "atss"])
def test_auxiliary_heads(codetr, run, tiny_coco, head):
    assert codetr("predict", tiny_coco / "val2017", "--head", head, "--no-draw").code == 0


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["nothing.jpg"], 3, "nothing.jpg"),
        (["x/*.jpg"], 3, "x/*.jpg"),
        ([".", "--score", "2"], 2, "--score"),
        ([".", "--nms", "sofd"], 2, "sofd"),
        ([".", "--checkpoint", "gone.safetensors"], 4, "runs/tiny/1"),
    ],
)
def test_wrong_words(codetr, run, tiny_coco, words, code, part):
    ran = codetr("predict", *words)
    assert ran.code == code, ran.err
    assert part in ran.err
    assert "Traceback" not in ran.err


def test_without_any_checkpoint(codetr, tmp_path, tiny_coco, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = codetr("predict", tiny_coco)
    assert ran.code == 2
    assert "--checkpoint" in ran.err


def test_test_time_augmentation(codetr, run, tiny_coco):
    photo = sorted((tiny_coco / "val2017").glob("*.jpg"))[0]
    options = ("predict", photo, "--json", "--score", 0, "--no-draw", "--force")
    plain, views = codetr(*options), codetr(*options, "--tta")
    assert views.code == 0, views.err
    assert views.json["detections"] != plain.json["detections"]
    assert 0 < len(views.json["detections"]) <= 20
    one = ("--set", "test.tta_scales=[1.0]", "--set", "test.tta_flip=false")
    assert codetr(*options, "--tta", *one).json["detections"] == plain.json["detections"]


def test_masks_are_written_and_scored_like_those_of_an_evaluation(
    codetr, tiny_settings, tiny_coco, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    settings = apply_overrides(
        tiny_settings, ["model.mask.kind=refine", "model.mask.dim=16", "model.mask.iou_fc_dim=8"]
    )
    write_run(tmp_path / "runs/tiny/1", settings, "last")
    facts = codetr("predict", tiny_coco / "val2017", "--score", 0, "--json").json
    records = json.loads(Path(facts["predictions"]).read_text())
    assert facts["detections"] == records
    for record in records:
        assert isinstance(record["segmentation"]["counts"], str)
        assert 0 <= record["mask_score"] <= record["score"]
    predicted = codetr("eval", "--detections", facts["predictions"], "--data", tiny_coco, "--json").json
    evaluated = codetr("eval", "runs/tiny/1", "--data", tiny_coco, "--json").json
    names = ("AP", "mask_AP", "mask_AP50", "mask_AR1000")
    assert [predicted[name] for name in names] == [evaluated[name] for name in names]
