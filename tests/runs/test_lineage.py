"""What weights were trained from: recorded in checkpoints, found by run folders, and the licence that follows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from codetr_cli.config.overrides import to_toml
from codetr_cli.runs.folder import RunInputs
from codetr_cli.runs.lineage import licence_of, lineage_of, name_of, recorded_lineage, run_of
from codetr_cli.weights.checkpoint import content_id, load_checkpoint, read_extra, save_checkpoint
from codetr_cli.weights.licence import UNKNOWN, Licence, stated_licence
from tests.conftest import Ran
from tests.inference.fakes import write_checkpoint
from tests.inference.hub.records import KNOWN, write_weights

PUBLISHED = "the published weights of co_dino_r50 (the repository's)"


def write_start(run: Path, start: Path | None) -> None:
    """The record of a run, as all versions write it."""
    run.mkdir(parents=True, exist_ok=True)
    inputs = RunInputs(train_annotations="train.json", weights=start and str(start))
    (run / "origin.json").write_text(json.dumps(asdict(inputs)))


def run_from(run: Path, settings, start: Path | None, **extra: str) -> Path:
    """A checkpoint in a run folder."""
    write_start(run, start)
    return write_weights(run / "checkpoints/best/model.safetensors", settings, **extra)


def test_the_run_and_the_name_of_a_checkpoint(tmp_path: Path):
    weights = tmp_path / "runs/cells/2/checkpoints/best/model.safetensors"
    assert run_of(weights) == tmp_path / "runs/cells/2"
    assert run_of(tmp_path / "model.safetensors") is None
    assert name_of(weights) == "cells/2"
    assert name_of(tmp_path / "cells/model.safetensors") == "cells"
    assert name_of(tmp_path / "co_dino.pth") == "co_dino.pth"


def test_an_earlier_training_inherits_what_its_run_folder_names(tmp_path: Path, tiny_settings):
    first = write_weights(tmp_path / "published.safetensors", tiny_settings, source_sha256=KNOWN + "0" * 56)
    second = run_from(tmp_path / "runs/coco/1", tiny_settings, first)
    third = run_from(tmp_path / "runs/cells/1", tiny_settings, second)
    assert licence_of(third) == Licence(
        "MIT", f"fine-tuned from coco/1, fine-tuned from published.safetensors, {PUBLISHED}"
    )


def test_a_start_that_is_unknown_stays_unknown(tmp_path: Path, tiny_settings):
    start = write_weights(tmp_path / "a.safetensors", tiny_settings)
    path = run_from(tmp_path / "run", tiny_settings, start)
    assert licence_of(path) == Licence(None, f"fine-tuned from a.safetensors, {UNKNOWN}")
    start.unlink()
    assert licence_of(path) == Licence(None, "they were fine-tuned from a.safetensors, which cannot be read now")
    write_start(tmp_path / "run", None)
    assert licence_of(path) == Licence(None, UNKNOWN)


def test_trainings_in_a_circle_end(tmp_path: Path, tiny_settings):
    path = run_from(tmp_path / "runs/1", tiny_settings, tmp_path / "runs/1/checkpoints/best/model.safetensors")
    found = licence_of(path)
    assert found.name is None
    assert "more than 20 trainings" in found.reason


def test_what_a_training_records(tmp_path: Path, tiny_settings):
    licence = stated_licence("CC-BY-4.0").as_extra
    start = write_weights(tmp_path / "base/model.safetensors", tiny_settings, repository="my-lab/base", **licence)
    found = lineage_of(start)
    assert found == {
        "origin": "base",
        "origin_sha256": content_id(start),
        "base_model": "my-lab/base",
        "licence": "CC-BY-4.0",
        "licence_reason": "fine-tuned from base, named by those who published it",
    }
    copy = write_weights(tmp_path / "copy.safetensors", tiny_settings, step="9", **found)
    assert licence_of(copy) == Licence("CC-BY-4.0", found["licence_reason"])
    assert recorded_lineage(read_extra(copy)) == found


def test_the_hash_of_a_published_file_is_its_own(tmp_path: Path, tiny_settings):
    converted = write_weights(tmp_path / "a.safetensors", tiny_settings, source_sha256=KNOWN + "0" * 56)
    assert lineage_of(converted)["origin_sha256"] == KNOWN + "0" * 56


def test_a_record_counts_before_the_run_folder(tmp_path: Path, tiny_settings):
    """The file that a run names may be another one since."""
    start = write_weights(tmp_path / "a.safetensors", tiny_settings, **stated_licence("MIT").as_extra)
    path = run_from(tmp_path / "run", tiny_settings, start, origin="a.safetensors")
    assert licence_of(path) == Licence(None, "they were fine-tuned from a.safetensors, whose licence was not known")


def test_no_text_has_folders_of_this_machine(tmp_path: Path, tiny_settings):
    secret = tmp_path / "secret"
    known = {"source_sha256": KNOWN + "0" * 56}
    first = write_weights(secret / "base/model.safetensors", tiny_settings, **known)
    second = run_from(secret / "runs/cells/1", tiny_settings, first)
    gone = run_from(secret / "runs/cells/2", tiny_settings, secret / "gone/model.safetensors")
    for path in (second, gone):
        assert "secret" not in licence_of(path).reason
        assert "secret" not in json.dumps(lineage_of(path))


def test_long_texts_of_a_file_of_others_are_cut(tmp_path: Path, tiny_settings):
    """A checkpoint with longer texts than are read would be lost."""
    hostile = {"licence": "MIT", "licence_reason": "x" * 100_000}
    start = write_weights(tmp_path / "a.safetensors", tiny_settings, **hostile)
    trained = write_weights(tmp_path / "b.safetensors", tiny_settings, step="1", **lineage_of(start))
    assert load_checkpoint(trained).extra["licence"] == "MIT"


def test_a_trained_checkpoint_keeps_its_lineage_wherever_it_is(
    codetr: Callable[..., Ran], tmp_path: Path, tiny_settings, tiny_coco: Path
):
    preset, start, run = (tmp_path / name for name in ("tiny.toml", "base/model.safetensors", "run"))
    preset.write_text(to_toml(tiny_settings))
    plain = load_checkpoint(write_checkpoint(start, tiny_settings))
    save_checkpoint(start, **{**vars(plain), "extra": {"repository": "my-lab/base", **stated_licence("MIT").as_extra}})
    expected = lineage_of(start)
    words = ("train", "--preset", preset, "--data", tiny_coco, "--device", "cpu", "--no-eval", "--run", run)

    def train(steps: int, *more: object) -> Path:
        ran = codetr(*words, "--set", f"train.max_steps={steps}", *more)
        assert ran.code == 0, ran.err
        return run / "checkpoints/last/model.safetensors"

    copied = Path(shutil.copy(train(1, "--weights", start), tmp_path / "copied.safetensors"))
    assert read_extra(copied) == {"step": "1", **expected}
    assert licence_of(copied) == Licence("MIT", "fine-tuned from base, named by those who published it")

    # A continued run does not look at the file again, which is of somebody else by now.
    save_checkpoint(start, **{**vars(plain), "extra": stated_licence("GPL-3.0").as_extra})
    assert read_extra(train(2, "--weights", start)) == {"step": "2", **expected}


def test_a_checkpoint_of_an_earlier_version_records_nothing():
    assert recorded_lineage({"step": "3"}) == {}
