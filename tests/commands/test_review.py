"""`codetr review`: from a file, from a checkpoint, and with a model for each fold."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from codetr_cli.config.overrides import replace_settings, to_toml
from codetr_cli.config.schema import Settings
from tests.analysis.label_scenes import Scene
from tests.conftest import Ran
from tests.inference.fakes import write_run

FILES = {"review.html", "review.json", "proposals.json", "request.json", ".codetr_results"}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, the current one, with annotations.json and detections.json: a missing box and a wrong class."""
    monkeypatch.chdir(tmp_path)
    scene = Scene(tmp_path)
    scene.detect((300, 100, 50, 60), 3)
    scene.annotate((200, 100, 50, 60), 3)
    scene.detect((201, 100, 50, 60), 7)
    scene.inputs()
    (tmp_path / "detections.json").write_text(json.dumps(scene.records))
    return tmp_path


@pytest.fixture
def review(codetr: Callable[..., Ran], files: Path) -> Callable[..., Ran]:
    def run(*words: object) -> Ran:
        return codetr("review", "--detections", "detections.json", "--ann", "annotations.json", *words)

    return run


def test_findings_of_a_file(review: Callable[..., Ran], files: Path) -> None:
    ran = review()
    assert ran.code == 0, ran.err
    assert "2 suspected label errors in 41 annotations of 41 images." in ran.out
    assert "warning" not in ran.err
    for text in ("wrong class", "missing box", "41.jpg", "review/annotations/review.html"):
        assert text in ran.out
    assert {path.name for path in (files / "review/annotations").iterdir()} == FILES
    assert json.loads((files / "annotations.json").read_text())["annotations"][-1]["category_id"] == 3


def test_json(review: Callable[..., Ran]) -> None:
    answer = review("--json", "--format", "cvat,labelme", "--out", "out").json
    assert answer["counts"]["missing box"] == answer["counts"]["wrong class"] == 1
    assert answer["findings"][0]["number"] == 1
    assert answer["files"]["proposals"] == {"cvat": "out/proposals_cvat", "labelme": "out/proposals_labelme"}
    assert Path(answer["files"]["page"]).is_file()
    assert answer["trained_on"] is None


def test_no_detections(review: Callable[..., Ran], files: Path) -> None:
    (files / "detections.json").write_text("[]")
    ran = review()
    assert ran.code == 0, ran.err
    assert "there are no detections" in ran.err
    assert "surest" not in ran.err


def test_a_model_that_agrees_with_few_annotations_is_weak(review: Callable[..., Ran], files: Path) -> None:
    records = json.loads((files / "detections.json").read_text())
    alarms = [{**each, "bbox": [350, 350, 30, 30], "score": 0.99} for each in records[:12]]
    (files / "detections.json").write_text(json.dumps([*records, *alarms]))
    assert " % of the surest detections are annotated objects" in review().err


def test_kinds_and_limit(review: Callable[..., Ran]) -> None:
    answer = review("--json", "--kinds", "missing").json
    assert [finding["kind"] for finding in answer["findings"]] == ["missing box"]
    assert review("--json", "--suspicion", "0.99").json["findings_total"] == 0
    assert review("--json").json["findings_total"] == 2  # as the library lists them by default
    answer = review("--json", "--limit", "1").json
    assert answer["findings_total"] == 2
    assert len(answer["findings"]) == 1
    assert json.loads(Path(answer["files"]["table"]).read_text())["findings"] == answer["findings"]


def test_earlier_formats_follow_the_page(review: Callable[..., Ran], files: Path) -> None:
    assert review("--format", "coco,cvat", "--out", "out").code == 0
    before = (files / "out/proposals_cvat/annotations.xml").read_text()
    assert review("--out", "out", "--kinds", "class").code == 0
    after = (files / "out/proposals_cvat/annotations.xml").read_text()
    assert (before.count("proposed: "), after.count("proposed: ")) == (2, 1)


def test_another_request_gets_another_folder(review: Callable[..., Ran], files: Path) -> None:
    assert review().code == 0
    records = json.loads((files / "detections.json").read_text())[:-1]
    (files / "detections.json").write_text(json.dumps(records))
    os.utime(files / "detections.json", ns=(1, 1))
    ran = review("--json")
    assert ran.json["files"]["page"] == "review/annotations_2/review.html"
    assert ran.json["findings_total"] == 1


def test_files_of_others_are_kept(review: Callable[..., Ran], files: Path) -> None:
    assert review("--out", "out").code == 0
    (files / "out/review.html").write_text("mine")
    for words in ((), ("--force",)):
        ran = review("--out", "out", *words)
        assert ran.code == 2
        assert "is never replaced" in ran.err
    assert (files / "out/review.html").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give a checkpoint"),
        (("a.safetensors", "--detections", "b.json"), "not both"),
        (("--detections", "b.json", "--folds", "3"), "no model to train"),
        (("a.safetensors", "--weights", "b"), "--folds"),
        (("--detections", "b.json", "--kinds", "mising"), "missing"),
        (("--detections", "b.json", "--format", "cvta"), "cvat"),
        (("co_dino_tiny", "--data", "coco"), "preset without weights"),
    ],
)
def test_wrong_usage(
    codetr: Callable[..., Ran], tiny_coco: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tiny_coco.parent)
    ran = codetr("review", *words, *(("--json",) if not words else ()))
    assert ran.code == 2
    assert message in ran.err
    assert not Path("review").exists()


def test_what_cannot_be_used_leaves_no_folder(
    codetr: Callable[..., Ran], tiny_coco: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_coco.parent)
    Path("no.json").write_text('{"a": 1}')
    Path("x.onnx").touch()
    for words, code, message in (
        (("--detections", "no.json"), 3, "is not a list of COCO detections"),
        (("x.onnx", "--folds", "2"), 4, "is an exported file"),
        (("absent.safetensors",), 4, "there is no checkpoint"),
    ):
        ran = codetr("review", *words, "--data", tiny_coco)
        assert ran.code == code
        assert message in ran.err
        assert not Path("review").exists()


def test_checkpoint_that_has_seen_the_images(
    codetr: Callable[..., Ran],
    tmp_path: Path,
    tiny_settings: Settings,
    tiny_coco: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", replace_settings(tiny_settings, {"data.root": str(tiny_coco)}), "last")
    words = ("review", "run", "--data", tiny_coco, "--split", "train", "--device", "cpu")
    ran = codetr(*words, "--json")
    assert ran.code == 0, ran.err
    assert "run was trained on 4 of these 4 images" in ran.err
    assert "--folds 5" in ran.err
    assert ran.json["trained_on"] == 4
    assert "was trained on 4 of these" in (tmp_path / "review/train/review.html").read_text()
    assert "finds few of their errors" in ran.err  # its weights are random
    again = codetr(*words)
    assert "detections are there already" in again.out
    assert again.code == 0


def test_each_fold_has_its_model(
    codetr: Callable[..., Ran],
    tmp_path: Path,
    tiny_settings: Settings,
    tiny_coco: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(to_toml(tiny_settings))
    words = (
        "review",
        "tiny.toml",
        "--data",
        tiny_coco,
        "--folds",
        "2",
        "--device",
        "cpu",
        "--set",
        "train.max_steps=1",
    )
    ran = codetr(*words)
    assert ran.code == 0, ran.err
    folds = tmp_path / "review/train/folds"
    held_out = [json.loads((folds / f"{number}/held_out.json").read_text()) for number in (1, 2)]
    found = [json.loads((folds / f"{number}/eval/detections.json").read_text()) for number in (1, 2)]
    for part, detections in zip(held_out, found, strict=True):
        assert {record["image_id"] for record in detections} <= {image["id"] for image in part["images"]}
        assert detections
    weights = [folds / f"{number}/run/checkpoints/last/model.safetensors" for number in (1, 2)]
    times = [path.stat().st_mtime_ns for path in weights]
    # What a stop would have left: the second fold without its detections is detected again, nothing is trained again.
    (folds / "2/eval/metrics.json").unlink()
    ran = codetr(*words, "--json")
    assert ran.code == 0, ran.err
    assert "training" not in ran.err
    assert "fold 2 of 2: detecting" in ran.err
    assert "fold 1 of 2: detecting" not in ran.err
    assert [path.stat().st_mtime_ns for path in weights] == times
    assert ran.json["folds"] == 2


def test_names_that_a_format_cannot_have_are_refused_first(review: Callable[..., Ran], files: Path) -> None:
    content = json.loads((files / "annotations.json").read_text())
    content["categories"][0]["name"] = "a\x01b"
    (files / "annotations.json").write_text(json.dumps(content))
    ran = review("--format", "cvat")
    assert ran.code == 3
    assert "XML cannot have" in ran.err
    assert not (files / "review").exists()
    assert review().code == 0
