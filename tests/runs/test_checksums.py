"""Checksums find files that are not as they were written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from codetr_cli.config.schema import Settings
from codetr_cli.errors import CheckpointError
from codetr_cli.runs.folder import RunFolder, read_state
from tests.runs.saved_runs import IDS, NAMES, save, weights


def flip_a_byte(path: Path) -> None:
    """Changes one bit in the middle of a file, in its tensors."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "sums.json"])
@pytest.mark.parametrize("damage", ["flipped", "short", "missing"])
def test_a_file_that_is_not_as_it_was_written_is_named_and_passed_over(
    folder: RunFolder, tiny_settings: Settings, name: str, damage: str
):
    for step in (1, 2):
        folder.save(
            {"layer.weight": torch.full((500, 50), float(step))},
            {"step": step, "optimizer": {"x": torch.full((500, 50), float(step))}},
            settings=tiny_settings, class_names=NAMES, category_ids=IDS,
        )  # fmt: skip
    path = folder.last / name
    if damage == "flipped":
        flip_a_byte(path)
    elif damage == "short":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        path.unlink()
    problems: list[str] = []
    saved = folder.load(problems.append)
    assert saved is not None
    if name == "sums.json" and damage == "missing":  # as earlier versions left them
        assert (saved.state["step"], problems) == (2, [])
        return
    assert saved.state["step"] == 1
    assert len(problems) == 1
    assert str(path) in problems[0]
    shutil.rmtree(folder.previous)
    with pytest.raises(CheckpointError, match=name):
        folder.load(problems.append)


def test_a_flipped_bit_in_the_state_is_found_by_nothing_else(folder: RunFolder, tiny_settings: Settings):
    state = {"step": 1, "optimizer": {"x": torch.zeros(500, 50)}}
    folder.save(weights(1), state, settings=tiny_settings, class_names=NAMES, category_ids=IDS)
    flip_a_byte(folder.last / "state.pt")
    assert read_state(folder.last / "state.pt")["optimizer"]["x"].any()  # reads, and is wrong
    with pytest.raises(CheckpointError, match=r"state.pt is damaged"):
        folder.load()


def test_the_best_checkpoint_and_one_gone_back_to_are_checked_too(folder: RunFolder, tiny_settings: Settings):
    save(folder, tiny_settings, 1)
    folder.mark_best()
    save(folder, tiny_settings, 2)
    folder.go_back_to("best")
    assert (folder.last / "sums.json").read_bytes() == (folder.best / "sums.json").read_bytes()
    (folder.previous / "sums.json").unlink()  # one of an earlier version
    folder.go_back_to("previous")
    saved = folder.load()
    assert saved is not None
    assert saved.state["step"] == 1
