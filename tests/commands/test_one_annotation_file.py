"""`--ann FILE --images DIR`: one annotation file with one folder of images, alike in all verbs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from codetr_cli.config.overrides import to_toml
from codetr_cli.config.schema import Settings
from tests.conftest import Ran
from tests.formats.coco_exports import table, write_json, write_set

NAMES = [f"photo {index}.jpg" for index in range(8)]
Command = Callable[..., Ran]


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    path = tmp_path / "my labels/boxes.json"
    write_set(path, tmp_path / "my pictures", NAMES)
    return path


@pytest.fixture
def train(codetr: Command, tiny_settings: Settings, tmp_path: Path) -> Command:
    preset = tmp_path / "tiny.toml"
    preset.write_text(to_toml(tiny_settings))
    settings = ["train.batch_size=1", "train.micro_batch=1", "train.memory_check=false", "train.max_steps=1"]
    options = [word for setting in settings for word in ("--set", setting)]

    def run(*words: object) -> Ran:
        return codetr("train", "--preset", preset, "--device", "cpu", *options, *words)

    return run


def folded(text: str) -> str:
    return " ".join(text.split())


def test_prepare_checks_the_file_and_shows_its_parts(codetr: Command, annotations: Path, tmp_path: Path) -> None:
    ran = codetr("prepare", "--ann", annotations, "--images", tmp_path / "my pictures", "--json")
    assert ran.code == 0, ran.err
    splits = ran.json["dataset"]["splits"]
    assert {name: split["images"] for name, split in splits.items()} == {"train": 6, "val": 2}
    assert ran.json["link"] is None
    assert "reserved for validation" in " ".join(ran.json["dataset"]["notes"])
    assert f"--ann '{annotations}' --images '{tmp_path}/my pictures'" in ran.json["next"]
    assert "--data" not in ran.json["next"]


def test_prepare_finds_the_images(codetr: Command, annotations: Path, tmp_path: Path) -> None:
    for words in (("--ann", annotations), (annotations,)):
        ran = codetr("prepare", *words, "--val-fraction", "0.5", "--json")
        assert ran.code == 0, ran.err
        assert ran.json["dataset"]["splits"]["val"]["images"] == 4
        assert f"the images of boxes.json are in {tmp_path}/my pictures" in " ".join(ran.json["dataset"]["notes"])
        assert "--val-fraction 0.5" in ran.json["next"]


def test_prepare_reports_broken_files(codetr: Command, annotations: Path) -> None:
    plain = json.loads(annotations.read_text())
    plain["annotations"][0]["bbox"][2] = -5
    write_json(annotations, plain)
    ran = codetr("prepare", "--ann", annotations, "--images", annotations.parent.with_name("my pictures"))
    assert ran.code == 3
    assert "negative width" in folded(ran.err)
    assert f"codetr prepare --ann '{annotations}'" in ran.out


def test_training_and_evaluation_use_the_same_part(
    codetr: Command, train: Command, annotations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = train("--ann", "my labels/boxes.json", "--val-fraction", "0.5", "--run", "run")
    assert ran.code == 0, ran.err
    assert "4 of the 8 images are reserved" in folded(ran.err)
    monkeypatch.chdir("/")
    reserved = codetr("eval", tmp_path / "run", "--ann", annotations, "--json")
    assert reserved.code == 0, reserved.err
    assert reserved.json["images"] == 4
    assert "only the images that were reserved for validation are evaluated" in folded(reserved.err)
    assert Path(reserved.json["detections"]).parent.name == "boxes_val"
    others = codetr("eval", tmp_path / "run", "--ann", annotations, "--split", "train", "--json").json
    assert others["images"] == 4
    assert ids(reserved.json["detections"]).isdisjoint(ids(others["detections"]))


def ids(detections: str) -> set[int]:
    return {entry["image_id"] for entry in json.loads(Path(detections).read_text())}


def test_training_on_the_folder_and_evaluation_of_its_file_agree(
    codetr: Command, train: Command, tmp_path: Path
) -> None:
    path = tmp_path / "set/all.json"
    write_set(path, tmp_path / "set/images", NAMES)
    assert train("--data", tmp_path / "set", "--run", tmp_path / "run").code == 0
    ran = codetr("eval", tmp_path / "run", "--ann", path, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["images"] == 2


def test_other_files_are_evaluated_as_a_whole(
    codetr: Command, train: Command, annotations: Path, tmp_path: Path
) -> None:
    assert train("--ann", annotations, "--run", tmp_path / "run").code == 0
    write_json(annotations.with_name("others.json"), table(NAMES[:5]))
    ran = codetr("eval", tmp_path / "run", "--ann", annotations.with_name("others.json"), "--json")
    assert ran.code == 0, ran.err
    assert ran.json["images"] == 5
    assert Path(ran.json["detections"]).parent.name == "others"


def test_a_file_without_reserved_images_is_not_evaluated_without_notice(
    codetr: Command, train: Command, annotations: Path, tmp_path: Path
) -> None:
    assert train("--ann", annotations, "--val-fraction", "0", "--no-eval", "--run", tmp_path / "run").code == 0
    ran = codetr("eval", tmp_path / "run", "--ann", annotations, "--json")
    assert ran.json["images"] == 8
    assert "scores are not representative" in folded(ran.err)


def test_other_annotations_for_validation(train: Command, annotations: Path, tmp_path: Path) -> None:
    write_set(tmp_path / "val/labels.json", tmp_path / "val", ["1.jpg"])
    words = ("--set", f"data.val_annotations={tmp_path}/val/labels.json", "--set", f"data.val_images={tmp_path}/val")
    ran = train("--ann", annotations, *words, "--dry-run")
    assert ran.code == 0, ran.err
    assert "reserved" not in ran.err
    assert "8 of" in folded(ran.out)


def test_the_data_pipeline_is_measured(codetr: Command, annotations: Path, tiny_settings: Settings, tmp_path: Path):
    preset = tmp_path / "tiny.toml"
    preset.write_text(to_toml(tiny_settings))
    words = ("--iterations", 1, "--workers", 1, "--device", "cpu", "--json")
    ran = codetr("bench", "data", "--preset", preset, "--ann", annotations, *words)
    assert ran.code == 0, ran.err
    assert ran.json["data"]["data_set_images"] == 6


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (("--ann", "no.json"), 3, "no such file: no.json"),
        (("--ann", "my labels"), 2, "--ann my labels is a folder"),
        (("--ann", "my labels/boxes.json", "--images", "my labels/boxes.json"), 2, "is a file: give the folder"),
        (("--ann", "my labels/boxes.json", "--images", "no"), 3, "no such folder: no"),
        (("--ann", "my labels/boxes.json", "--data", "my labels"), 2, "both --ann my labels/boxes.json and"),
        (("--data", "my labels", "--images", "my pictures"), 2, "give --ann FILE too"),
        (("--data", "set.zip"), 3, "set.zip is a file: unpack it"),
        (("--data", "notes.txt"), 3, "notes.txt is a file, but no annotation file of COCO's kind"),
    ],
)
@pytest.mark.parametrize("verb", ["prepare", "train"])
def test_wrong_paths(
    codetr: Command,
    train: Command,
    annotations: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    words: tuple[str, ...],
    code: int,
    part: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("set.zip", "notes.txt"):
        Path(name).write_text("text")
    ran = train(*words, "--dry-run") if verb == "train" else codetr("prepare", *words, "--no-link")
    assert ran.code == code, ran.err
    assert part in folded(ran.err).replace(f"{tmp_path}/", "")


def test_the_description_of_a_yolo_folder(codetr: Command, train: Command, tmp_path: Path) -> None:
    root = tmp_path / "yolo"
    write_set(root / "unused.txt", root / "images", NAMES)
    (root / "unused.txt").unlink()
    (root / "labels").mkdir()
    for name in NAMES:
        (root / "labels" / name).with_suffix(".txt").write_text("0 .5 .5 .4 .4\n")
    (root / "data.yaml").write_text("train: images\nval: images\nnames: [cat]\n")
    assert codetr("prepare", root / "data.yaml", "--no-link").code == 0
    ran = train("--data", root / "data.yaml", "--dry-run")
    assert ran.code == 0, ran.err


def test_it_is_converted(codetr: Command, annotations: Path, tmp_path: Path) -> None:
    words = ("--out", tmp_path / "out", "--split", "val", "--json")
    ran = codetr("convert-data", "--ann", annotations, "--images", tmp_path / "my pictures", *words)
    assert ran.code == 0, ran.err
    assert len(json.loads((tmp_path / "out/instances_val.json").read_text())["images"]) == 2
    assert codetr("convert-data", "--ann", annotations, "--data", tmp_path, "--out", tmp_path / "b").code == 2
