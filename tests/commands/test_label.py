"""`codetr label`: from a folder of images to a data set."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from codetr_cli.prediction.labels import dataset
from codetr_cli.prediction.outputs import write_outputs
from tests.conftest import REPOSITORY
from tests.inference.fakes import write_run
from tests.prediction.labels.random_labels import read_labels


@pytest.fixture
def run(tmp_path: Path, tiny_settings, monkeypatch) -> Path:
    """A run folder in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))
    write_run(tmp_path / "runs/tiny/1", tiny_settings, "last")
    return Path("runs/tiny/1")


OPTIONS = ("--score", 0.01, "--max-dets", 4)


def test_the_labels_are_those_of_predict(codetr, run, tiny_coco):
    photos = tiny_coco / "train2017"
    predicted = codetr("predict", photos, *OPTIONS, "--no-draw", "--json").json
    expected: dict[bytes, list] = {Path(image["file"]).read_bytes(): [] for image in predicted["images"]}
    sizes = {image["file_name"]: (image["width"], image["height"]) for image in predicted["images"]}
    for record in predicted["detections"]:
        x, y, w, h = record["bbox"]
        width, height = sizes[record["file_name"]]
        box = (max(x, 0), max(y, 0), min(x + w, width), min(y + h, height))
        if box[2] - box[0] >= 1 and box[3] - box[1] >= 1:
            expected[(photos / record["file_name"]).read_bytes()].append((record["category_name"], box))
    assert sum(map(len, expected.values()))
    ran = codetr("label", photos, *OPTIONS, "--format", "yolo", "--out", "new", "--json", "--review", "0:1")
    assert ran.code == 0, ran.err
    found = read_labels(Path("new"))
    assert {content: [name for name, _ in labels] for content, labels in found.items()} == {
        content: [name for name, _ in labels] for content, labels in expected.items()
    }
    for content, labels in found.items():
        for (_, box), (_, other) in zip(labels, expected[content], strict=True):
            assert box == pytest.approx(other, abs=2e-3)
    assert ran.json["splits"]["train"]["images"] == 3
    assert ran.json["splits"]["val"]["images"] == 1
    assert sum(ran.json["classes"].values()) == sum(map(len, expected.values()))
    assert len(Path("new/review.txt").read_text().splitlines()) == ran.json["images_to_review"] > 0
    assert not Path("new/.parts").exists()
    checked = codetr("prepare", "new", "--no-link", "--json").json
    kinds = {finding["kind"]: finding["severity"] for finding in checked["dataset"]["findings"]}
    # Classes of one image and one class without objects are in the labels of this network, not in their files.
    assert "error" not in kinds.values()
    assert not {"debris", "other_file", "unlisted_file", "own_drawing"} & set(kinds), kinds


def test_a_command_that_ended_while_writing_does_no_image_again(codetr, run, tiny_coco, monkeypatch):
    words = ("label", tiny_coco / "train2017", *OPTIONS, "--out", "new", "--json", "--quiet")
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "_move", lambda folder, out: (_ for _ in ()).throw(KeyboardInterrupt))
        assert codetr(*words).code == 130
    assert not Path("new/README.md").exists()
    other = codetr(*words, "--nms", "none")
    assert other.code == 2
    assert "stopped command" in other.err
    ran = codetr(*words)
    assert ran.code == 0, ran.err
    assert ran.json["summary"]["done_before"] == 4
    again = codetr(*words)
    assert again.code == 2
    assert "--force" in again.err
    assert codetr(*words, "--nms", "none", "--force").code == 0
    assert json.loads(Path("new/.codetr.json").read_text())["model"]["settings"]["nms"] == "none"


def test_the_card_is_of_the_weights_that_were_loaded(codetr, run, tiny_coco, monkeypatch):
    """A run in training replaces its checkpoint while images are labelled."""
    weights = next(run.rglob("*.safetensors"))
    expected = hashlib.sha256(weights.read_bytes()).hexdigest()

    def replaced(*words, **options):
        weights.write_bytes(b"others")
        write_outputs(*words, **options)

    monkeypatch.setattr("codetr_cli.prediction.job.write_outputs", replaced)
    assert codetr("label", tiny_coco / "train2017", *OPTIONS, "--out", "new").code == 0
    assert json.loads(Path("new/.codetr.json").read_text())["model"]["sha256"] == expected


def test_images_that_cannot_be_read_are_listed(codetr, run, tiny_coco):
    (tiny_coco / "train2017" / "broken.jpg").write_bytes(b"no image")
    ran = codetr("label", tiny_coco / "train2017", "--score", 1, "--format", "csv", "--out", "new", "--images", "link")
    assert ran.code == 3
    assert "broken.jpg" in ran.err
    assert "Lower --score" in ran.err
    assert "broken.jpg" in Path("new/failed.jsonl").read_text()
    receipt = json.loads(Path("new/.codetr.json").read_text())
    assert (receipt["contents"]["failed"], receipt["contents"]["images_without_objects"]) == (1, 4)
    assert codetr("label", tiny_coco / "train2017", "--out", "new", "--force", "--score", 1).code == 3


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["."], 2, "--out"),
        (["nowhere", "--out", "new"], 3, "there is no folder nowhere"),
        (["coco/train2017.txt", "--out", "new"], 3, "coco/train2017.txt is no folder"),
        (["coco/train2017", "--out", "coco/train2017/new"], 2, "beside it"),
        (["coco/train2017", "--out", "coco"], 2, "other files"),
        (["coco/train2017", "--out", "new", "--format", "parquet"], 2, "--format"),
        (["coco/train2017", "--out", "new", "--review", "0.5"], 2, "--review 0.2:0.5"),
        (["coco/train2017", "--out", "new", "--class-map", "dics=a"], 2, "did you mean 'disc'"),
        (["coco/train2017", "--out", "new", "--class-map", "disc=a\x07", "--format", "voc"], 3, "XML cannot have"),
    ],
)
def test_wrong_words(codetr, run, tiny_coco, words, code, part):
    ran = codetr("label", *words)
    assert ran.code == code, ran.err
    assert part in " ".join(ran.err.split())
    assert not Path("new").exists() or list(Path("new").iterdir()) == []


def test_the_commands_of_the_documentation_run(codetr, run, tiny_coco, tiny_settings):
    text = (REPOSITORY / "docs" / "predict.md").read_text(encoding="utf-8")
    section = text.partition("\n## Labels\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```bash\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
    commands = "".join(blocks).replace("\\\n", " ").splitlines()
    assert len(commands) == 5
    write_run(Path("runs/co_dino_r50/1"), tiny_settings, "last")
    shutil.copytree(tiny_coco / "train2017", "photos")
    Path("map.txt").write_text("disc=person\n")
    for command in commands:
        words = shlex.split(command.replace("person=", "disc="))[1:]
        quick = [] if words[0] == "prepare" else ["--score", "ring=0.02", "--max-dets", 3]
        ran = codetr(*words, *quick)
        # The classes of a network that was not trained are not all found.
        assert ran.code == (3 if words[0] == "prepare" and "would stop training" in ran.err else 0), ran.err
