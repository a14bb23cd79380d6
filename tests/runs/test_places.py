"""Links, pipes and other things in the places of a run's files."""

from __future__ import annotations

import os

import pytest

from codetr_cli.config.schema import Settings
from codetr_cli.errors import ConfigError
from codetr_cli.runs.folder import RunFolder
from codetr_cli.runs.resume import choose_run
from tests.runs.saved_runs import INPUTS


@pytest.mark.parametrize("name", ["settings.toml", "metrics.jsonl", "events.log", "origin.json", ".lock", "plots"])
def test_names_of_a_run_that_are_links_or_pipes_are_refused(folder: RunFolder, tiny_settings: Settings, name: str):
    place = folder.path / name
    if place.exists():
        place.rmdir() if place.is_dir() else place.unlink()
    place.symlink_to(folder.path.parent)
    with pytest.raises(ConfigError, match=f"{name} is not a f"):
        choose_run(tiny_settings, INPUTS, run=folder.path)
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(ConfigError, match=f"{name} is not a f"):
        choose_run(tiny_settings, INPUTS, run=folder.path)


def test_plots_may_be_on_another_disk_but_not_among_other_files(folder: RunFolder, tiny_settings: Settings):
    other = folder.path.parent / "disk"
    folder.plots_dir.rename(other)
    (other / "losses.png").touch()
    folder.plots_dir.symlink_to(other)
    assert choose_run(tiny_settings, INPUTS, run=folder.path).resume
    folder.open(tiny_settings, INPUTS)
    (other / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="plots is not a folder of plots"):
        choose_run(tiny_settings, INPUTS, run=folder.path)


def test_checkpoints_may_be_on_another_disk_but_not_in_another_run(folder: RunFolder, tiny_settings: Settings):
    other = folder.path.parent / "disk"
    folder.checkpoints_dir.rename(other)
    folder.checkpoints_dir.symlink_to(other)
    assert choose_run(tiny_settings, INPUTS, run=folder.path).resume
    victim = RunFolder(folder.path.parent / "victim")
    victim.open(tiny_settings, INPUTS)
    folder.checkpoints_dir.unlink()
    folder.checkpoints_dir.symlink_to(victim.checkpoints_dir)
    with pytest.raises(ConfigError, match="a link to the checkpoints of another run"):
        choose_run(tiny_settings, INPUTS, run=folder.path)
