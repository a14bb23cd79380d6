"""What is known of a checkpoint, from its file and from its run folder."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest

from codetr_cli.config.overrides import replace_settings
from codetr_cli.config.presets import load_preset
from codetr_cli.inference.hub.facts import _text, changed_settings, describe_checkpoint, without_paths
from codetr_cli.runs.folder import RunInputs
from codetr_cli.weights.licence import stated_licence
from tests.inference.fakes import write_checkpoint, write_run
from tests.inference.hub.records import write_training, write_weights

PRIVATE = {
    "data.root": "/home/me/secret/cells",
    "data.extra_roots": ("/home/me/secret/more",),
    "data.train_annotations": "/home/me/secret/a.json",
    "train.backbone_weights": "/home/me/secret/backbone.pth",
}


def write_inputs(run: Path, weights: Path | None = None) -> None:
    inputs = RunInputs(
        train_annotations="/home/me/secret/cells/annotations/instances_train.json",
        train_digest="abc123",
        val_annotations="/home/me/secret/cells/annotations/instances_val.json",
        weights=str(weights) if weights else None,
    )
    (run / "origin.json").write_text(json.dumps(asdict(inputs)))


def test_a_lone_checkpoint(tmp_path: Path, tiny_settings):
    facts = describe_checkpoint(write_checkpoint(tmp_path / "a.safetensors", tiny_settings))
    assert facts.licence.name is None
    assert facts.evaluation is None
    assert (facts.data, facts.origin, facts.base_model, facts.step, facts.command) == ("", "", "", None, "")
    assert len(facts.content) == 64


def test_a_checkpoint_of_a_run(tmp_path: Path, tiny_settings):
    run = tmp_path / "runs/cells/2"
    settings = replace_settings(tiny_settings, PRIVATE)
    (path,) = write_run(run, settings, "best")
    write_inputs(run)
    facts = describe_checkpoint(path)
    assert (facts.data, facts.data_digest) == ("cells and more", "abc123")
    assert (facts.validation, facts.origin) == ("instances_val", "")


def test_nothing_for_others_has_paths_of_this_machine(tmp_path: Path, tiny_settings):
    settings = replace_settings(tiny_settings, PRIVATE)
    facts = describe_checkpoint(write_checkpoint(tmp_path / "a.safetensors", settings))
    assert "secret" not in facts.settings.model_dump_json()
    assert facts.settings.train.backbone_weights == "backbone.pth"
    assert without_paths(tiny_settings) == tiny_settings
    assert without_paths(load_preset("co_dino_r50")) == load_preset("co_dino_r50")


def test_credentials_in_urls_are_hidden(tiny_settings):
    url = "https://user:hunter2@example.org/backbone.pth?token=hunter2"
    settings = without_paths(replace_settings(tiny_settings, {"train.backbone_weights": url}))
    assert "hunter2" not in settings.model_dump_json()


def test_a_training_that_started_from_another(tmp_path: Path, tiny_settings):
    (first,) = write_run(tmp_path / "runs/coco/7", tiny_settings, "best")
    (second,) = write_run(tmp_path / "runs/cells/1", tiny_settings, "best")
    write_inputs(tmp_path / "runs/cells/1", first)
    facts = describe_checkpoint(second)
    assert (facts.origin, facts.base_model) == ("coco/7", "")
    assert facts.licence.name is None


def test_a_training_that_started_from_a_published_model(tmp_path: Path, tiny_settings):
    extra = {"repository": "my-lab/base", **stated_licence("CC-BY-4.0").as_extra}
    base = write_weights(tmp_path / "base/model.safetensors", tiny_settings, **extra)
    (path,) = write_run(tmp_path / "run", tiny_settings, "best")
    write_inputs(tmp_path / "run", base)
    facts = describe_checkpoint(path)
    assert (facts.origin, facts.base_model) == ("base", "my-lab/base")
    assert facts.licence.name == "CC-BY-4.0"
    assert facts.licence.reason == "fine-tuned from base, named by those who published it"


def test_a_copy_of_a_trained_checkpoint_keeps_what_it_started_from(tmp_path: Path, tiny_settings):
    record = {"origin": "base", "base_model": "my-lab/base", **stated_licence("MIT").as_extra}
    facts = describe_checkpoint(write_weights(tmp_path / "copy.safetensors", tiny_settings, step="9", **record))
    assert (facts.origin, facts.base_model, facts.licence.name) == ("base", "my-lab/base", "MIT")


def test_an_evaluation_with_other_test_settings_is_none_of_this_model(tmp_path: Path, tiny_settings):
    run = write_training(tmp_path / "run", 20)
    path = write_weights(run / "checkpoints/best/model.safetensors", tiny_settings, step="20")
    assert describe_checkpoint(path).evaluation is not None
    assert describe_checkpoint(path, test=tiny_settings.test).evaluation is not None
    other = tiny_settings.test.model_copy(update={"short_side": 64})
    facts = describe_checkpoint(path, test=other)
    assert facts.evaluation is None
    assert facts.settings.test.short_side == 64
    assert describe_checkpoint(path, test=other, evaluation=run).evaluation is not None


def test_the_command_has_the_settings_that_differ(tmp_path: Path):
    settings = load_preset("co_dino_tiny", ["train.epochs=3", "data.short_sides=[64,96]", "data.root=/home/me/cells"])
    settings = replace_settings(settings, {"model.num_classes": 3})
    assert changed_settings(settings) == {"train.epochs": 3, "data.short_sides": [64, 96]}
    facts = describe_checkpoint(write_checkpoint(tmp_path / "a.safetensors", settings))
    words = shlex.split(facts.command)
    assert words[:6] == ["codetr", "train", "--preset", "co_dino_tiny", "--data", "DATA"]
    sets = [word for before, word in pairwise(words) if before == "--set"]
    again = load_preset("co_dino_tiny", sets)
    assert (again.train, again.data.short_sides) == (settings.train, settings.data.short_sides)


@pytest.mark.parametrize("value", [None, 12.5, True, "random words", (0.5, 2.0)])
def test_values_of_settings_survive_the_command(value):
    keys = {
        None: "test.canvas",
        12.5: "train.timeout_minutes",
        True: "train.compile",
        "random words": "train.backbone_weights",
        (0.5, 2.0): "data.lsj_ratio",
    }
    settings = replace_settings(load_preset("co_dino_r50_lsj"), {keys[value]: value})
    json_value = settings.model_dump(mode="json")[keys[value].split(".")[0]][keys[value].split(".")[1]]
    assert load_preset("co_dino_r50_lsj", [f"{keys[value]}={_text(json_value)}"]) == settings
