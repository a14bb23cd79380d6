"""A model as a folder: written, read again by everything that takes a checkpoint, and never over files of others."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from codetr_cli.config.overrides import replace_settings
from codetr_cli.errors import ArgumentError, CheckpointError, ConfigError
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.hub.facts import describe_checkpoint
from codetr_cli.inference.hub.folder import FILES, check_model_folder, is_model_folder, write_folder
from codetr_cli.inference.loading import Classes, load_detector
from codetr_cli.weights.checkpoint import load_checkpoint
from codetr_cli.weights.licence import stated_licence
from tests.document_blocks import fenced
from tests.inference.fakes import CATEGORY_IDS, CLASS_NAMES, write_checkpoint, write_run

PIXELS = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)


@pytest.fixture
def detector(tmp_path: Path, tiny_settings) -> Detector:
    settings = replace_settings(tiny_settings, {"data.root": "/home/me/secret/cells"})
    (path,) = write_run(tmp_path / "run", settings, "best")
    return Detector.load(path, device="cpu")


def test_the_files(detector: Detector, tmp_path: Path):
    folder = tmp_path / "models/cells"
    paths = detector.save_pretrained(folder, license="Apache-2.0")
    assert paths == [folder / name for name in FILES]
    assert {path.name for path in folder.iterdir()} == {*FILES, ".codetr_results"}
    assert is_model_folder(folder)
    checkpoint = load_checkpoint(folder / "model.safetensors")
    assert (checkpoint.class_names, checkpoint.category_ids) == (CLASS_NAMES, CATEGORY_IDS)
    assert checkpoint.extra == stated_licence("Apache-2.0").as_extra
    assert checkpoint.settings.data.root is None
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["id2label"]) == ("codetr", {"0": "disc", "1": "bar", "2": "ring"})
    assert config["category_ids"] == CATEGORY_IDS
    assert json.loads((folder / "preprocessor_config.json").read_text())["long_side"] == 160
    assert "# cells\n" in (folder / "README.md").read_text()
    for path in paths:
        assert b"secret" not in path.read_bytes(), path


def test_the_same_detections_from_the_folder(detector: Detector, tmp_path: Path):
    folder = tmp_path / "cells"
    detector.save_pretrained(folder)
    expected = detector.predict(PIXELS, score=0)
    for again in (
        Detector.from_pretrained(folder, device="cpu"),
        Detector.load(folder, device="cpu"),
        Detector.load(folder / "model.safetensors", device="cpu"),
    ):
        found = again.predict(PIXELS, score=0)
        assert np.array_equal(found.boxes, expected.boxes)
        assert np.array_equal(found.scores, expected.scores)
        assert found.class_names == expected.class_names


def test_commands_take_the_folder(codetr, detector: Detector, tmp_path: Path, tiny_coco: Path):
    folder = tmp_path / "cells"
    detector.save_pretrained(folder)
    images = tiny_coco / "val2017"
    ran = codetr("predict", images, "--checkpoint", folder, "--out", tmp_path / "out", "--no-draw", "--json")
    assert ran.code == 0, ran.err
    ran = codetr("eval", folder, "--data", tiny_coco, "--json")
    assert ran.code == 0, ran.err
    assert set(FILES) <= {path.name for path in folder.iterdir()}


def test_overrides_of_the_detector_are_saved(detector: Detector, tmp_path: Path):
    other = Detector.load(detector.loaded.path, device="cpu", overrides=["test.short_side=64", "test.long_side=64"])
    other.save_pretrained(tmp_path / "small")
    again = Detector.from_pretrained(tmp_path / "small", device="cpu")
    assert (again.loaded.settings.test.short_side, again.loaded.settings.test.long_side) == (64, 64)
    assert np.array_equal(again.predict(PIXELS, score=0).boxes, other.predict(PIXELS, score=0).boxes)
    assert json.loads((tmp_path / "small/preprocessor_config.json").read_text())["short_side"] == 64


def test_files_of_others_stay(detector: Detector, tmp_path: Path):
    folder = tmp_path / "cells"
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    for force in (False, True):
        with pytest.raises(ArgumentError, match=r"README\.md already exists.*never replaced"):
            detector.save_pretrained(folder, force=force)
    assert [path.name for path in folder.iterdir()] == ["README.md"]


def test_own_files_are_replaced_when_asked(detector: Detector, tmp_path: Path):
    folder = tmp_path / "cells"
    detector.save_pretrained(folder)
    with pytest.raises(ArgumentError, match=r"already exist.*force=True"):
        detector.save_pretrained(folder)
    detector.save_pretrained(folder, license="MIT", force=True)
    assert "license: mit" in (folder / "README.md").read_text()
    (folder / "README.md").write_text("edited")
    with pytest.raises(ArgumentError, match="never replaced"):
        detector.save_pretrained(folder, force=True)


def test_a_file_in_the_place_of_the_folder(detector: Detector, tmp_path: Path):
    (tmp_path / "cells").write_text("a file")
    with pytest.raises(ArgumentError, match="is a file, where a folder is needed"):
        detector.save_pretrained(tmp_path / "cells")


def test_random_weights_are_not_saved(tiny_settings, tmp_path: Path):
    import torch

    loaded = load_detector(
        "co_dino_tiny", torch.device("cpu"), classes=Classes(CLASS_NAMES, CATEGORY_IDS), random_weights=True
    )
    with pytest.raises(ArgumentError, match="random weights"):
        Detector(loaded, device="cpu").save_pretrained(tmp_path / "cells")


def test_exported_files_are_no_checkpoints(tmp_path: Path):
    with pytest.raises(ConfigError, match="exported file"):
        describe_checkpoint(tmp_path / "model.onnx")


def test_folders_without_a_model(tmp_path: Path, tiny_settings):
    assert not is_model_folder(tmp_path / "none")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"no model\.safetensors.*but config\.json"):
        check_model_folder(tmp_path)
    with pytest.raises(ArgumentError, match="save_pretrained"):
        Detector.from_pretrained(tmp_path)
    write_checkpoint(tmp_path / "model.safetensors", tiny_settings)
    assert check_model_folder(tmp_path) == tmp_path / "model.safetensors"
    assert not is_model_folder(tmp_path)
    for name in ("README.md", "preprocessor_config.json"):
        (tmp_path / name).write_text("{}")
    assert not is_model_folder(tmp_path)  # its config.json is of another program


def test_weights_that_are_none_are_refused(detector: Detector, tmp_path: Path):
    detector.save_pretrained(tmp_path / "cells")
    (tmp_path / "cells/model.safetensors").write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(CheckpointError):
        Detector.from_pretrained(tmp_path / "cells")


def test_the_programs_of_the_card_run(detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("transformers", reason="the extra transformers is not installed")
    folder = tmp_path / "models/cells"
    write_folder(folder, describe_checkpoint(detector.loaded.path), name="cells")
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("image.jpg", PIXELS)
    programs = fenced((folder / "README.md").read_text(), "python")
    assert len(programs) == 2
    for program in programs:
        assert "path/to/this/folder" in program
        exec(compile(program.replace("path/to/this/folder", "models/cells"), "README.md", "exec"), {})
