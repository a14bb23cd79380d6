"""Files from strangers in every verb: one clear sentence, the right exit code, nothing read that is no data."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from codetr_cli.config.overrides import to_toml
from codetr_cli.config.schema import Settings
from codetr_cli.models.build import build_model
from codetr_cli.weights.checkpoint import _content_hash, save_checkpoint
from tests.conftest import Ran

pytestmark = pytest.mark.skipif(os.name != "posix", reason="named pipes and devices are those of Unix")

ANNOTATIONS = {split: f"annotations/instances_{split}2017.json" for split in ("train", "val")}


@pytest.fixture
def preset(tmp_path: Path, tiny_settings: Settings) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(to_toml(tiny_settings))
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the tiny network."""
    from codetr_cli.config.overrides import parse_settings
    from tests.conftest import TINY_TABLE

    settings = parse_settings(TINY_TABLE, where="tests/conftest.py")
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    torch.manual_seed(0)
    state = build_model(settings.model).state_dict()
    save_checkpoint(path, state, settings=settings, class_names=["disc", "bar", "ring"], category_ids=[2, 3, 7])
    return path


def assert_refused(ran: Ran, code: int, *words: str) -> None:
    """The command ended with an exit code and one sentence, which names what it must."""
    assert ran.code == code, ran.err
    assert "Traceback" not in ran.err
    assert "bug in codetr" not in ran.err
    assert "\x1b" not in ran.out + ran.err
    last = ran.err.splitlines()[-1]
    assert last.startswith("error: "), ran.err
    for word in words:
        assert word in ran.err


# ------------------------------------------------------------------------------------------------------------ data sets


def of_first_image(root: Path, change: Callable[[Path], Any]) -> None:
    """Replaces the first image of both splits."""
    for split in ("train2017", "val2017"):
        path = sorted((root / split).iterdir())[0]
        path.unlink()
        change(path)


def of_table(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the annotations of both splits."""
    for name in ANNOTATIONS.values():
        path = root / name
        table = json.loads(path.read_text())
        change(table)
        path.write_text(json.dumps(table))


def of_file(root: Path, change: Callable[[Path], Any]) -> None:
    """Replaces both annotation files."""
    for name in ANNOTATIONS.values():
        (root / name).unlink()
        change(root / name)


def tag_bomb(path: Path) -> None:
    """A TIFF of 4 MB whose 60,000 tags claim a million numbers each."""
    tags = b"".join(struct.pack("<HHII", 1000 + i % 60000, 4, 1_000_000, 8) for i in range(60_000))
    body = b"\0" * 4_000_100
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", 60_000) + tags)


def sparse(path: Path) -> None:
    """The first bytes of a JPEG, then 200 GB of zeros that take no space."""
    with path.open("wb") as file:
        file.write(b"\xff\xd8\xff\xe0\0\x10JFIF\0")
        file.truncate(200_000_000_000)


DATA_FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "image: pipe": (lambda root: of_first_image(root, os.mkfifo), "pipe"),
    "image: endless device": (lambda root: of_first_image(root, lambda path: path.symlink_to("/dev/zero")), "device"),
    "image: of the kernel": (lambda root: of_first_image(root, lambda path: path.symlink_to("/proc/kmsg")), "kernel"),
    "image: folder": (lambda root: of_first_image(root, Path.mkdir), ""),
    "image: tags": (lambda root: of_first_image(root, tag_bomb), ""),
    "image: sparse": (lambda root: of_first_image(root, sparse), ""),
    "annotations: pipe": (lambda root: of_file(root, os.mkfifo), ""),
    "annotations: endless device": (lambda root: of_file(root, lambda path: path.symlink_to("/dev/zero")), ""),
    "annotations: folder": (lambda root: of_file(root, Path.mkdir), ""),
    "annotations: deep": (lambda root: of_file(root, lambda path: path.write_text("[" * 200_000)), ""),
    "annotations: digits": (
        lambda root: of_file(root, lambda path: path.write_text('{"images":[{"id":' + "9" * 10_000 + "}]}")), ""
    ),
    "annotations: huge id": (lambda root: of_table(root, lambda table: table["images"][0].update(id=10**30)), ""),
    "annotations: infinite size": (
        lambda root: of_table(root, lambda table: table["images"][0].update(width=float("inf"))), ""
    ),
    "annotations: null box": (lambda root: of_table(root, lambda table: table["annotations"][0].update(bbox=None)), ""),
    "name: outside": (
        lambda root: of_table(root, lambda table: table["images"][0].update(file_name="../../../../etc/passwd")),
        "data.allow_outside",
    ),
    "name: absolute": (
        lambda root: of_table(root, lambda table: table["images"][0].update(file_name="/etc/passwd")),
        "data.allow_outside",
    ),
    "name: zero byte": (lambda root: of_table(root, lambda table: table["images"][0].update(file_name="a\0.jpg")), ""),
    "name: surrogate": (
        lambda root: of_table(root, lambda table: table["images"][0].update(file_name="\ud800.jpg")), ""
    ),
    "name: commands for the terminal": (
        lambda root: of_table(root, lambda table: table["images"][0].update(file_name="\x1b[2J\nerror: x")), "\\x1b[2J"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", DATA_FAULTS)
def test_data_in_every_verb(
    codetr: Callable[..., Ran], tiny_coco: Path, preset: Path, weights: Path, tmp_path: Path, fault: str
):
    change, word = DATA_FAULTS[fault]
    change(tiny_coco)
    assert_refused(codetr("prepare", tiny_coco, "--no-link"), 3, word)
    train = ("train", "--preset", preset, "--data", tiny_coco, "--run", tmp_path / "run", "--device", "cpu")
    assert_refused(codetr(*train), 3, word)
    assert_refused(codetr("eval", weights, "--data", tiny_coco, "--device", "cpu", "--out", tmp_path / "o"), 3, word)
    assert_refused(codetr("bench", "data", "--data", tiny_coco, "--preset", preset), 3, word)


PICTURES: dict[str, Callable[[Path], Any]] = {
    "pipe": os.mkfifo,
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "kernel": lambda path: path.symlink_to("/proc/kmsg"),
    "tags": tag_bomb,
    "sparse": sparse,
    "empty": Path.touch,
}


@pytest.mark.parametrize("picture", PICTURES)
def test_pictures_to_predict(codetr: Callable[..., Ran], tiny_coco: Path, weights: Path, tmp_path: Path, picture: str):
    folder = tiny_coco / "val2017"
    bad = folder / "a.jpg"
    PICTURES[picture](bad)
    predict = ("predict", "--checkpoint", weights, "--device", "cpu", "--out", tmp_path / "o")
    assert_refused(codetr(*predict, folder), 3, "a.jpg")
    assert (tmp_path / "o" / "predictions.json").is_file()
    assert_refused(codetr(*predict, bad), 3, "a.jpg")


# ---------------------------------------------------------------------------------------------------------- checkpoints


def of_metadata(path: Path, key: str, value: str) -> None:
    """Changes the metadata of a checkpoint, whose hash stays right."""
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    tensors = load_file(path)
    metadata[key] = value
    del metadata["content_sha256"]
    save_file(tensors, path, {**metadata, "content_sha256": _content_hash(tensors, metadata)})


def of_settings(path: Path, **values: Any) -> None:
    """Changes settings in a checkpoint; `a__b` is b in the section a."""
    with safe_open(path, "pt") as file:
        settings = json.loads(file.metadata()["settings"])
    for key, value in values.items():
        *parents, leaf = key.split("__")
        section = settings
        for parent in parents:
            section = section[parent]
        section[leaf] = value
    of_metadata(path, "settings", json.dumps(settings))


def of_weights(path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Changes one tensor of a checkpoint, whose hash stays right."""
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if name.startswith("decoder.") and tensor.dim() == 2)
    tensors[name] = change(tensors[name])
    del metadata["content_sha256"]
    save_file(tensors, path, {**metadata, "content_sha256": _content_hash(tensors, metadata)})


CHECKPOINT_FAULTS: dict[str, Callable[[Path], Any]] = {
    "class names: null": lambda path: of_metadata(path, "class_names", "null"),
    "category ids: duplicates": lambda path: of_metadata(path, "category_ids", "[1, 1, 2]"),
    "class names: numbers": lambda path: of_metadata(path, "class_names", "[1, 2, 3]"),
    "class names: deep": lambda path: of_metadata(path, "class_names", "[" * 100_000 + "]" * 100_000),
    "class names: million letters": lambda path: of_metadata(path, "class_names", json.dumps(["a" * 10**6, "b", "c"])),
    "class names: commands for the terminal": lambda path: of_metadata(
        path, "class_names", json.dumps(["\x1b[2J", "b", "c"])
    ),
    "category ids: not finite": lambda path: of_metadata(path, "category_ids", "[NaN, 1, 2]"),
    "category ids: fractions": lambda path: of_metadata(path, "category_ids", "[1.5, 2, 3]"),
    "category ids: booleans": lambda path: of_metadata(path, "category_ids", "[true, 2, 3]"),
    "category ids: too many": lambda path: of_metadata(path, "category_ids", "[1, 2, 3, 4]"),
    "extra: list": lambda path: of_metadata(path, "extra", "[]"),
    "settings: text": lambda path: of_metadata(path, "settings", '"x"'),
    "settings: huge": lambda path: of_settings(path, model__ffn_dim=2_000_000_000),
    "settings: deep network": lambda path: of_settings(path, model__encoder_layers=10**9),
    "weights: nan": lambda path: of_weights(path, lambda tensor: tensor * float("nan")),
    "weights: infinite": lambda path: of_weights(path, lambda tensor: tensor.fill_(float("-inf"))),
    "weights: complex": lambda path: of_weights(path, lambda tensor: tensor.to(torch.complex64)),
    "weights: booleans": lambda path: of_weights(path, lambda tensor: tensor.bool()),
    "weights: another shape": lambda path: of_weights(path, lambda tensor: tensor[:1].contiguous()),
    "file: pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "file: endless device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "file: empty": lambda path: path.write_bytes(b""),
    "file: header of 2^60 bytes": lambda path: path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}"),
    "file: noise": lambda path: path.write_bytes(np.random.default_rng(0).bytes(4096)),
}


@pytest.mark.parametrize("fault", CHECKPOINT_FAULTS)
def test_checkpoint_in_every_verb(
    codetr: Callable[..., Ran], tiny_coco: Path, preset: Path, weights: Path, tmp_path: Path, fault: str
):
    bad = tmp_path / "bad.safetensors"
    shutil.copy(weights, bad)
    CHECKPOINT_FAULTS[fault](bad)
    cpu = ("--device", "cpu")
    assert_refused(codetr("predict", tiny_coco / "val2017", "--checkpoint", bad, *cpu, "--out", tmp_path / "o"), 4)
    assert_refused(codetr("eval", bad, "--data", tiny_coco, *cpu, "--out", tmp_path / "o"), 4)
    assert_refused(codetr("bench", "infer", "--checkpoint", bad, *cpu), 4)
    train = ("train", "--preset", preset, "--data", tiny_coco, "--run", tmp_path / "run", *cpu)
    if fault != "weights: another shape":  # fine-tuning takes what fits
        assert_refused(codetr(*train, "--weights", bad), 4)
    assert not (tmp_path / "o").exists() or not any((tmp_path / "o").iterdir())


# ----------------------------------------------------------------------------------------------------------- everything


@pytest.mark.slow
@pytest.mark.parametrize("script", ["01", "02", "03", "05", "06", "08", "09", "11"])
def test_recorded_scripts(shared_dir: Path, tmp_path: Path, script: str):
    """What broke an earlier version, as programs of their own; each ends with 0 where nothing breaks any more."""
    import subprocess
    import sys

    (path,) = (shared_dir / "hostile").glob(f"{script}_*.py")
    program = tmp_path / "bin" / "codetr"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m codetr_cli "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "CODETR_BIN": str(program), "CODETR_PYTHON": sys.executable, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(path)], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout
