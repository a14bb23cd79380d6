"""Checksums find files that are not as they were written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from codetr_cli.config.schema import Settings
from codetr_cli.errors import CheckpointError
from codetr_cli.runs import checksums
from codetr_cli.runs.checksums import check_sums
from codetr_cli.runs.folder import RunFolder, read_state
from codetr_cli.weights.checkpoint import file_sha256
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


def test_a_file_is_hashed_once_and_links_are_refused(
    folder: RunFolder, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    save(folder, tiny_settings, 1)
    path = folder.last / "sums.json"
    sums = json.loads(path.read_text())["sha256"]
    (folder.last / "sharded").mkdir()
    for number in range(5):
        (folder.last / "sharded" / f"{number}").hardlink_to(folder.last / "state.pt")
        sums[f"sharded/{number}"] = sums["state.pt"]
    path.write_text(json.dumps({"sha256": sums}))
    hashed: list[Path] = []
    monkeypatch.setattr(checksums, "file_sha256", lambda file: hashed.append(file) or file_sha256(file))
    check_sums(folder.last)
    assert len(hashed) == 2
    (folder.last / "sharded").rename(folder.path / "elsewhere")
    (folder.last / "sharded").symlink_to(folder.path / "elsewhere")
    with pytest.raises(CheckpointError, match="is a link, not a file"):
        check_sums(folder.last)
    (folder.last / "sharded").unlink()
    (folder.path / "elsewhere").rename(folder.last / "sharded")
    (folder.last / "sharded" / "0").unlink()
    (folder.last / "sharded" / "0").symlink_to("../state.pt")
    with pytest.raises(CheckpointError, match="is a link, not a file"):
        check_sums(folder.last)


def test_a_flipped_bit_in_the_state_is_found_before_it_is_read(folder: RunFolder, tiny_settings: Settings):
    state = {"step": 1, "optimizer": {"x": torch.zeros(500, 50)}}
    folder.save(weights(1), state, settings=tiny_settings, class_names=NAMES, category_ids=IDS)
    flip_a_byte(folder.last / "state.pt")
    with pytest.raises(CheckpointError, match=r"bad CRC-32"):
        read_state(folder.last / "state.pt")
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
