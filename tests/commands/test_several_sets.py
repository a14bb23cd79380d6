"""Several data sets in one command, and data that changes between two commands of one run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from codetr_cli.config.overrides import to_toml
from codetr_cli.config.schema import Settings
from tests.conftest import Ran
from tests.data.fakes import write_voc, xml


@pytest.fixture
def train(codetr: Callable[..., Ran], tiny_settings: Settings, tmp_path: Path) -> Callable[..., Ran]:
    preset = tmp_path / "tiny.toml"
    preset.write_text(to_toml(tiny_settings))
    settings = ["train.batch_size=1", "train.micro_batch=1", "train.memory_check=false"]
    options = [word for setting in settings for word in ("--set", setting)]

    def run(steps: int, *words: object) -> Ran:
        length = f"train.max_steps={steps}"
        return codetr("train", "--preset", preset, "--device", "cpu", *options, "--set", length, *words)

    return run


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    files = {name: xml(("disc", 1, 1, 25, 25), ("cube", 11, 6, 30, 28)) for name in "abc"}
    return write_voc(tmp_path / "voc", files, {"train": "a\nb\n", "test": "c\n"})


def test_two_sets_are_trained_and_evaluated_as_one(
    train: Callable[..., Ran], codetr: Callable[..., Ran], tiny_coco: Path, voc: Path, tmp_path: Path
) -> None:
    ran = train(2, "--data", tiny_coco, "--data", voc, "--run", tmp_path / "run")
    assert ran.code == 0, ran.err
    assert "train: 6 images with 4 classes, merged from 2 data sets" in ran.err
    assert f"{voc} annotates no object of 2 classes" in " ".join(ran.err.split())
    assert "3 images" in ran.err  # of the evaluation: two of one, one of the other
    ran = codetr("eval", tmp_path / "run", "--data", tiny_coco, "--data", voc, "--split", "test", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["images"] == 1
    ran = codetr("eval", tmp_path / "run", "--data", tiny_coco, "--data", voc, "--json", "--per-class")
    assert ran.json["images"] == 3
    assert [score["name"] for score in ran.json["per_class"]] == ["disc", "bar", "ring", "cube"]
    ran = codetr("eval", tmp_path / "run", "--data", tiny_coco)
    assert ran.code == 4
    assert "Only in the model: cube" in " ".join(ran.err.split())
    # Other data sets are another run.
    ran = train(3, "--data", tiny_coco, "--run", tmp_path / "run", "--no-eval")
    assert ran.code == 2
    assert f"data.extra_roots: ['{voc}'] there, [] now" in " ".join(ran.err.split())


def test_a_run_notices_that_its_data_changed(train: Callable[..., Ran], voc: Path, tmp_path: Path) -> None:
    words = ("--data", voc, "--no-eval", "--run", tmp_path / "run")
    assert train(1, *words).code == 0
    for path in (voc / "Annotations").iterdir():
        os.utime(path, ns=(1, 1))  # touched, not changed
    ran = train(2, *words)
    assert ran.code == 0, ran.err
    assert "resumed after step 1 of 2" in ran.err
    (voc / "Annotations" / "b.xml").write_text(xml(("disc", 1, 1, 20, 20)))
    ran = train(3, *words)
    assert ran.code == 2
    shown = " ".join(ran.err.split())
    assert f"the content of train_annotations ({voc} (Pascal VOC, ImageSets/Main/train.txt)) has changed" in shown
    assert "--restart" in shown


def test_a_numbered_run_is_not_continued_on_other_data_and_says_so(
    train: Callable[..., Ran], tiny_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(1, "--data", tiny_coco, "--no-eval").code == 0
    metrics = tmp_path / "runs" / "tiny" / "1" / "metrics.jsonl"
    lines = [line for line in metrics.read_text().splitlines() if json.loads(line)["kind"] != "end"]
    metrics.write_text("".join(line + "\n" for line in lines))  # as if it had been interrupted
    path = tiny_coco / "annotations" / "instances_train2017.json"
    table = json.loads(path.read_text())
    table["annotations"][0]["bbox"][2] += 1
    path.write_text(json.dumps(table))
    ran = train(1, "--data", tiny_coco, "--no-eval")
    assert ran.code == 0, ran.err
    assert "new run in runs/tiny/2; the interrupted one in runs/tiny/1 is not continued" in " ".join(ran.err.split())
