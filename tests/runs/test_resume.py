from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.config.schema import Settings
from codetr_cli.errors import ConfigError
from codetr_cli.runs.folder import RunFolder, RunInputs
from codetr_cli.runs.memory_record import MemoryRecord, with_fitted, write_record
from codetr_cli.runs.resume import check_weights_named, choose_run, differences, with_weights

INPUTS = RunInputs(train_annotations="/data/train.json", val_annotations="/data/val.json")


@pytest.fixture
def folder(tmp_path: Path, tiny_settings: Settings) -> RunFolder:
    run = RunFolder(tmp_path / "runs" / "tiny" / "1")
    run.open(tiny_settings, INPUTS)
    (run.path / ".lock").touch()  # of the training
    return run


def changed(settings: Settings, *overrides: str) -> Settings:
    return apply_overrides(settings, list(overrides))


def numbered(root: Path, settings: Settings, inputs: RunInputs = INPUTS, number: int = 1) -> RunFolder:
    run = RunFolder(root / settings.name / str(number))
    run.open(settings, inputs)
    return run


def test_without_run_the_first_number_is_taken(tmp_path: Path, tiny_settings: Settings):
    choice = choose_run(tiny_settings, INPUTS, run=None, root=tmp_path)
    assert (choice.path, choice.resume) == (tmp_path / "tiny" / "1", False)


def test_the_newest_interrupted_run_is_continued(tmp_path: Path, tiny_settings: Settings):
    numbered(tmp_path, tiny_settings, number=9)
    numbered(tmp_path, tiny_settings, number=10)
    choice = choose_run(tiny_settings, INPUTS, run=None, root=tmp_path)
    assert (choice.path, choice.resume) == (tmp_path / "tiny" / "10", True)
    assert "continuing" in choice.note


@pytest.mark.parametrize("case", ["finished", "settings", "length", "data", "weights", "fresh", "unreadable"])
def test_otherwise_a_new_number_is_taken(tmp_path: Path, tiny_settings: Settings, case: str):
    run = numbered(tmp_path, tiny_settings)
    settings, inputs = tiny_settings, INPUTS
    if case == "finished":
        run.log({"kind": "end", "step": 3})
    elif case == "settings":
        settings = changed(settings, "train.lr=1e-3")
    elif case == "length":
        settings = changed(settings, "train.epochs=9")
    elif case == "data":
        inputs = RunInputs(train_annotations="/elsewhere/train.json", val_annotations=INPUTS.val_annotations)
    elif case == "weights":
        inputs = RunInputs(**{**INPUTS.__dict__, "weights": "/w.safetensors"})
    elif case == "unreadable":
        run.settings_path.write_text("[nonsense]\nx = 1\n")
    choice = choose_run(settings, inputs, run=None, root=tmp_path, restart=case == "fresh")
    assert (choice.path, choice.resume) == (tmp_path / "tiny" / "2", False)


def test_a_given_folder_is_made_or_continued(tmp_path: Path, tiny_settings: Settings):
    path = tmp_path / "mine"
    assert choose_run(tiny_settings, INPUTS, run=path).resume is False
    RunFolder(path).open(tiny_settings, INPUTS)
    assert choose_run(tiny_settings, INPUTS, run=path).resume is True


def test_other_settings_are_listed(folder: RunFolder, tiny_settings: Settings):
    settings = changed(
        tiny_settings, "train.lr=1e-3", "train.loss.aux_heads=false", "train.loss.positive_queries=false"
    )
    with pytest.raises(ConfigError) as error:
        choose_run(settings, INPUTS, run=folder.path)
    text = str(error.value)
    assert "train.lr: 0.0002 there, 0.001 now" in text
    assert "train.loss.aux_heads: True there, False now" in text
    assert "--run" in text


def test_other_data_is_another_run(folder: RunFolder, tiny_settings: Settings):
    inputs = RunInputs(train_annotations="/elsewhere.json")
    with pytest.raises(ConfigError, match=r"train_annotations: /data/train.json there, /elsewhere.json now"):
        choose_run(tiny_settings, inputs, run=folder.path)


def located(tmp_path: Path, settings: Settings, place: str, digest: str = "1a") -> tuple[Settings, RunInputs]:
    """Settings and inputs of the same training whose data is in another folder."""
    root = tmp_path / place
    inputs = RunInputs(
        train_annotations=str(root / "train.json"),
        train_digest=digest,
        val_annotations=str(root / "val.json"),
        val_digest="2b",
    )
    return changed(settings, f"data.root={root}", f"data.val_images={root}/images"), inputs


def test_a_run_continues_when_its_data_has_moved(folder: RunFolder, tmp_path: Path, tiny_settings: Settings):
    folder.open(*located(tmp_path, tiny_settings, "here"))
    choice = choose_run(*located(tmp_path, tiny_settings, "there"), run=folder.path)
    assert choice.resume
    assert f"moved from {tmp_path}/here/train.json to {tmp_path}/there/train.json" in choice.note
    assert "moved" not in choose_run(*located(tmp_path, tiny_settings, "here"), run=folder.path).note
    newest = numbered(tmp_path, *located(tmp_path, tiny_settings, "here"))
    choice = choose_run(*located(tmp_path, tiny_settings, "there"), run=None, root=tmp_path)
    assert (choice.path, choice.resume) == (newest.path, True)


def test_moved_data_with_other_content_is_another_run(folder: RunFolder, tmp_path: Path, tiny_settings: Settings):
    folder.open(*located(tmp_path, tiny_settings, "here"))
    with pytest.raises(ConfigError) as error:
        choose_run(*located(tmp_path, tiny_settings, "there", "other"), run=folder.path)
    text = str(error.value)
    assert f"data.root: {tmp_path}/here there, {tmp_path}/there now" in text
    assert f"train_annotations: {tmp_path}/here/train.json there, {tmp_path}/there/train.json now" in text
    assert f"the content of train_annotations ({tmp_path}/there/train.json) has changed" in text
    assert "val_annotations" not in text


def test_a_run_without_digests_is_bound_to_the_path(folder: RunFolder, tmp_path: Path, tiny_settings: Settings):
    settings, inputs = located(tmp_path, tiny_settings, "here")
    folder.open(settings, replace(inputs, train_digest=None, val_digest=None))
    with pytest.raises(ConfigError, match=r"data\.root"):
        choose_run(*located(tmp_path, tiny_settings, "there"), run=folder.path)


def test_fitted_settings_may_have_former_names(folder: RunFolder, tiny_settings: Settings):
    write_record(folder.path, MemoryRecord(fitted={"train.shard": [False, True]}))
    assert with_fitted(tiny_settings, folder.path).train.fsdp


def test_what_changes_no_number_may_change(folder: RunFolder, tiny_settings: Settings):
    settings = changed(tiny_settings, "data.workers=3", "train.log_every=7", "model.encoder_checkpointing=1")
    assert differences(folder, settings, INPUTS) == []


def test_a_run_may_grow_and_not_shrink(folder: RunFolder, tiny_settings: Settings):
    assert choose_run(changed(tiny_settings, "train.epochs=5"), INPUTS, run=folder.path).resume
    folder.open(changed(tiny_settings, "train.epochs=5", "train.max_steps=8"), INPUTS)
    assert choose_run(changed(tiny_settings, "train.epochs=5"), INPUTS, run=folder.path).resume
    with pytest.raises(ConfigError, match=r"train.max_steps: 8 there, 7 now"):
        choose_run(changed(tiny_settings, "train.epochs=5", "train.max_steps=7"), INPUTS, run=folder.path)


def test_a_finished_run_stays_unless_it_grows(folder: RunFolder, tiny_settings: Settings):
    folder.log({"kind": "end", "step": 3})
    with pytest.raises(ConfigError, match="is finished; its weights are"):
        choose_run(tiny_settings, INPUTS, run=folder.path)
    assert choose_run(changed(tiny_settings, "train.epochs=2"), INPUTS, run=folder.path).resume


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, tiny_settings: Settings):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match="no run folder"):
        choose_run(tiny_settings, INPUTS, run=tmp_path, restart=True)


def test_restart_moves_the_old_run_aside(folder: RunFolder, tiny_settings: Settings):
    old = folder.path.with_name("1.old1")
    old.mkdir()
    choice = choose_run(changed(tiny_settings, "train.lr=1"), INPUTS, run=folder.path, restart=True)
    assert not choice.resume
    assert not folder.path.exists()
    assert json.loads((folder.path.with_name("1.old2") / "origin.json").read_text())["weights"] is None


def test_a_dry_run_moves_nothing_aside(folder: RunFolder, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch):
    choice = choose_run(tiny_settings, INPUTS, run=folder.path, restart=True, dry_run=True)
    assert "moved to" in choice.note
    assert folder.settings_path.exists()
    assert not folder.path.with_name("1.old1").exists()
    monkeypatch.chdir(folder.path)
    assert choose_run(tiny_settings, INPUTS, run=Path(), restart=True, dry_run=True).path == Path()


def test_a_run_that_continues_counts_as_interrupted_before_it_has_its_new_length(
    folder: RunFolder, tiny_settings: Settings
):
    folder.log({"kind": "train", "step": 2})
    folder.log({"kind": "end", "step": 2, "epoch": 1, "early": False})
    folder.open(changed(tiny_settings, "train.epochs=2"), INPUTS)
    assert folder.status() == "interrupted"
    assert [line["kind"] for line in folder.metrics()] == ["train"]


@pytest.mark.parametrize("longer", ["train.epochs=2", "train.max_steps=3"])
def test_a_run_that_an_earlier_version_left_with_an_old_end_continues(
    folder: RunFolder, tiny_settings: Settings, longer: str
):
    settings = changed(tiny_settings, longer)
    folder.open(settings, INPUTS)
    folder.log({"kind": "end", "step": 2, "epoch": 1, "early": False})
    assert choose_run(settings, INPUTS, run=folder.path).resume
    folder.log({"kind": "end", "step": 3, "epoch": 2, "early": False})
    with pytest.raises(ConfigError, match="is finished"):
        choose_run(settings, INPUTS, run=folder.path)


def test_a_kill_between_memory_json_and_the_settings_changes_nothing(folder: RunFolder, tiny_settings: Settings):
    write_record(folder.path, MemoryRecord(fitted={"train.precision": ["fp32", "bf16"]}))
    assert choose_run(tiny_settings, INPUTS, run=folder.path).resume


def test_a_folder_that_a_kill_left_without_settings_is_used_again(tmp_path: Path, tiny_settings: Settings):
    numbered(tmp_path, tiny_settings).log({"kind": "end", "step": 1})
    second = numbered(tmp_path, tiny_settings, number=2)
    second.settings_path.unlink()
    assert choose_run(tiny_settings, INPUTS, run=None, root=tmp_path).path == second.path
    (second.path / "slurm").mkdir()  # a job waits for it
    assert choose_run(tiny_settings, INPUTS, run=None, root=tmp_path).path == second.path.with_name("3")


def test_a_command_without_weights_does_not_read_those_that_a_run_names(folder: RunFolder, tiny_settings: Settings):
    check_weights_named(INPUTS, folder.path)
    named = replace(INPUTS, weights="/w.safetensors")
    folder.open(tiny_settings, named)
    check_weights_named(named, folder.path)
    with pytest.raises(ConfigError, match=r"give --weights /w\.safetensors again"):
        check_weights_named(INPUTS, folder.path)


def test_a_command_without_weights_keeps_those_of_the_run_on_record(folder: RunFolder, tiny_settings: Settings):
    folder.open(tiny_settings, replace(INPUTS, weights="/w.safetensors"))
    assert with_weights(INPUTS, folder.path).weights == "/w.safetensors"
    assert with_weights(replace(INPUTS, weights="/v.safetensors"), folder.path).weights == "/v.safetensors"
    assert with_weights(INPUTS, folder.path / "nothing") == INPUTS


@pytest.mark.parametrize("name", ["metrics.jsonl", "plots", ".lock", "checkpoints", "memory.json"])
def test_a_run_is_moved_aside_whatever_it_holds(folder: RunFolder, tiny_settings: Settings, name: str):
    place = folder.path / name
    if place.is_dir():
        place.rmdir()
    place.unlink(missing_ok=True)
    place.symlink_to("nothing")
    choice = choose_run(tiny_settings, INPUTS, run=folder.path, restart=True)
    assert not choice.resume
    assert not folder.path.exists()
    assert (folder.path.with_name("1.old1") / name).is_symlink()


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "null", "[]", '{"train_annotations": 3}', '{"train_annotations": "x", "more": 1}']
)
def test_inputs_that_cannot_be_read_are_no_inputs(folder: RunFolder, tiny_settings: Settings, text: str):
    folder.inputs_path.write_text(text)
    assert folder.inputs() is None
    assert choose_run(tiny_settings, INPUTS, run=folder.path).resume
