from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from codetr_cli.config.overrides import apply_overrides, to_toml
from codetr_cli.config.schema import Settings
from codetr_cli.data.bad_files import BadFile
from codetr_cli.data.coco import build_dataset
from codetr_cli.data.loading.loader import build_train_loader
from codetr_cli.errors import DatasetError
from codetr_cli.runs.folder import RunFolder
from codetr_cli.training import bad_images
from codetr_cli.training.bad_images import BadFiles, log_summary, read_list
from tests.conftest import Ran
from tests.data.fakes import write_png_header

SKIP = ("--set", "data.bad_files=skip")


@pytest.fixture
def many(tiny_coco: Path) -> Path:
    """`tiny_coco` with its images several times: 32 to train on, a step takes one, and 12 to evaluate with."""
    for split, copies in (("train", 8), ("val", 6)):
        path = tiny_coco / "annotations" / f"instances_{split}2017.json"
        table = json.loads(path.read_text())
        images, objects = list(table["images"]), list(table["annotations"])
        for copy in range(1, copies):
            for image in images:
                name = f"{copy}-{image['file_name']}"
                shutil.copy(tiny_coco / f"{split}2017" / image["file_name"], tiny_coco / f"{split}2017" / name)
                table["images"].append({**image, "id": image["id"] + 1000 * copy, "file_name": name})
            table["annotations"] += [
                {**entry, "id": entry["id"] + 100 * copy, "image_id": entry["image_id"] + 1000 * copy}
                for entry in objects
            ]
        path.write_text(json.dumps(table))
    return tiny_coco


@pytest.fixture
def train(codetr: Callable[..., Ran], tiny_settings: Settings, many: Path, tmp_path: Path) -> Callable[..., Ran]:
    preset = tmp_path / "tiny.toml"
    preset.write_text(to_toml(tiny_settings))

    def run(folder: str, steps: int, *words: object, data: Path = many) -> Ran:
        settings = [f"train.max_steps={steps}", "train.batch_size=1", "train.micro_batch=1", "train.memory_check=false"]
        options = [word for setting in settings for word in ("--set", setting)]
        return codetr("train", "--preset", preset, "--data", data, "--device", "cpu", "--run", tmp_path / folder,
                      *options, *words)  # fmt: skip

    return run


@pytest.fixture
def order(tiny_settings: Settings, many: Path) -> Callable[..., list[Path]]:
    """The image files in the order of the first epoch, without those that are skipped."""

    def files(*skipped: Path) -> list[Path]:
        settings = apply_overrides(tiny_settings, [f'data.root="{many}"'])
        dataset = build_dataset(settings, split="train", training=True, skip_files=[str(path) for path in skipped])
        loader = build_train_loader(
            dataset,
            micro_batch=1,
            workers=0,
            seed=settings.train.seed,
            rank=0,
            world_size=1,
            aspect_grouping=settings.data.aspect_grouping,
        )
        return [dataset.image_path(index) for ((_, index),) in loader.sampler]

    return files


def hollow(path: Path) -> Path:
    """Damage that only decoding shows."""
    write_png_header(path, 128, 96)
    return path


def cut(path: Path) -> Path:
    """Damage that the header shows."""
    path.write_bytes(path.read_bytes()[:-50])
    return path


def of(many: Path, split: str, number: int) -> Path:
    return sorted((many / f"{split}2017").iterdir())[number]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "last" / "model.safetensors")


def assert_same(ours: Path, theirs: Path) -> None:
    a, b = weights(ours), weights(theirs)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


Order = Callable[..., list[Path]]


def test_a_training_goes_on_without_bad_files_and_names_them(
    train: Callable[..., Ran], order: Order, many: Path, tmp_path: Path
) -> None:
    early, other = cut(of(many, "train", 3)), hollow(of(many, "val", 2))
    late = hollow(order(early)[1])
    ran = train("run", 3, *SKIP)
    assert ran.code == 0, ran.err
    known = read_list(tmp_path / "run" / "bad_files.txt")
    assert {key: what for key, (what, _) in known.items()} == {
        ("train", str(early)): "skipped",
        ("train", str(late)): "replaced",
        ("val", str(other)): "not counted",
    }
    for part in (
        f"train: 1 image files cannot be read and are skipped: {early} (the JPEG has no end marker",
        f"{late} (the file is damaged) cannot be read: another image replaces it",
        f"{other} (the file is damaged) cannot be read: the evaluation skips it",
        "3 image files could not be read (1 skipped, 1 replaced, 1 not counted)",
        "11 images (1 of 12 skipped: their files cannot be read)",
    ):
        assert part in " ".join((ran.out + ran.err).split())
    events = (tmp_path / "run" / "events.log").read_text()
    assert str(early) in events
    assert str(late) in events


def test_continuing_is_exact_even_when_files_change(
    train: Callable[..., Ran], order: Order, many: Path, tmp_path: Path
) -> None:
    early = of(many, "train", 3)
    whole = early.read_bytes()
    cut(early)
    for number in (1, 4):  # that makes three of 32, of which two are met: one before, one after the break
        hollow(order(early)[number])
    words = ("--no-eval", *SKIP)
    assert train("straight", 6, *words).code == 0
    assert train("halves", 3, *words, "--set", "data.workers=1").code == 0
    early.write_bytes(whole)  # what was skipped at the start stays skipped: other images would come otherwise
    ran = train("halves", 6, *words, data=many.rename(many.with_name("moved")))
    assert ran.code == 0, ran.err
    assert "1 image files cannot be read and are skipped" in " ".join(ran.err.split())
    assert_same(tmp_path / "straight", tmp_path / "halves")


def test_a_run_that_a_bad_file_stopped_goes_on_with_skip(
    train: Callable[..., Ran], order: Order, tmp_path: Path
) -> None:
    bad = hollow(order()[2])
    words = ("--no-eval", "--set", "train.checkpoint_every=1")
    ran = train("run", 4, *words)
    assert ran.code == 3
    assert bad.name in ran.err
    assert "Traceback" not in ran.err
    ran = train("run", 4, *words, *SKIP)
    assert ran.code == 0, ran.err
    assert "resumed after step 2 of 4" in ran.err
    assert train("straight", 4, *words, *SKIP).code == 0
    assert_same(tmp_path / "run", tmp_path / "straight")


def test_too_many_bad_files_end_it_before_the_first_step(train: Callable[..., Ran], many: Path, tmp_path: Path) -> None:
    for number in range(4):
        cut(of(many, "train", number))
    ran = train("run", 3, "--no-eval", *SKIP)
    assert ran.code == 3
    assert "4 of 32 images" in " ".join(ran.err.split())
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_too_many_that_are_met_end_it_too(train: Callable[..., Ran], order: Order) -> None:
    for path in order()[:4]:
        hollow(path)
    ran = train("run", 5, "--no-eval", *SKIP)
    assert ran.code == 3
    assert "4 of 32 images of the train split cannot be read" in " ".join(ran.err.split())


def test_a_dry_run_counts_them(train: Callable[..., Ran], many: Path) -> None:
    cut(of(many, "train", 3))
    ran = train("run", 3, *SKIP, "--dry-run", "--json")
    assert (ran.json["images"], ran.json["bad_files"]) == (31, 1)
    assert "31 of" in train("run", 3, *SKIP, "--dry-run").out + train("run", 3, *SKIP, "--dry-run").err


def test_an_evaluation_says_of_how_many_images_it_is(
    train: Callable[..., Ran], codetr: Callable[..., Ran], many: Path, tmp_path: Path
) -> None:
    assert train("run", 1, "--no-eval").code == 0
    bad = hollow(of(many, "val", 2))
    arguments = ("eval", tmp_path / "run", "--data", many, "--batch", 1)
    ran = codetr(*arguments)
    assert ran.code == 3
    assert bad.name in ran.err
    ran = codetr(*arguments, *SKIP, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["images"] == 11
    assert ran.json["left_out"] == [{"path": str(bad), "reason": "the file is damaged"}]
    assert "11 images (1 of 12 skipped: their files cannot be read)" in ran.json["protocol"]
    assert ran.json["protocol_parts"]["left_out"] == 1
    found: list[dict[str, Any]] = json.loads(Path(ran.json["detections"]).read_text())
    ids = {image["file_name"]: image["id"] for image in json.loads(annotations(many).read_text())["images"]}
    assert ids[bad.name] not in {entry["image_id"] for entry in found}
    assert "1 of 12 images cannot be read and are skipped" in " ".join(ran.err.split())
    hollow(of(many, "val", 3))
    ran = codetr(*arguments, *SKIP, "--force")
    assert ran.code == 3
    assert "2 of 12 images" in " ".join(ran.err.split())


def annotations(many: Path) -> Path:
    return many / "annotations" / "instances_val2017.json"


def test_only_the_first_few_get_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "settings.toml").touch()
    bad_files = BadFiles(RunFolder(tmp_path), {"train": 100, "val": 5}, {})
    for number in range(10):
        bad_files.on_unreadable(BadFile(f"{number}.jpg", "two\nlines\there"))
        bad_files.on_unreadable(BadFile(f"{number}.jpg", "again"))
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 3
    assert warnings[-1].endswith("bad_files.txt")
    listed = read_list(tmp_path / "bad_files.txt")
    assert len(listed) == 10
    assert listed["train", "4.jpg"] == ("replaced", BadFile("4.jpg", "two lines here"))
    with pytest.raises(DatasetError, match="11 of 100 images of the train split"):
        bad_files.on_unreadable(BadFile("10.jpg", "one too many"))


def test_a_list_of_a_former_version_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "bad_files.txt"
    path.write_text("# Columns: ...\ntrain\tleft out\t/old/a.jpg\tempty\n")
    assert read_list(path) == {("train", "/old/a.jpg"): ("skipped", BadFile("/old/a.jpg", "empty"))}


def test_names_that_are_no_utf8_can_be_noted(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").touch()
    bad = BadFile("caf\udce9\x85.jpg", "cut short")
    BadFiles(RunFolder(tmp_path), {"train": 100}, {}).on_unreadable(bad)
    assert read_list(tmp_path / "bad_files.txt") == {("train", bad.path): ("replaced", bad)}


def test_a_list_that_cannot_be_read_is_named_and_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "bad_files.txt"
    monkeypatch.setattr(bad_images, "MAX_LIST_BYTES", 1000)
    path.write_text("train\tskipped\t/a.jpg\tempty\n" * 100)
    log_summary(RunFolder(tmp_path))
    assert f"{path} cannot be read and is not used: it has more than 1,000 bytes" in caplog.text
    path.unlink()
    path.mkdir()
    assert read_list(path) == {}
