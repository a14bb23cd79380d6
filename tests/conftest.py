"""What every test may use: fixed randomness, a tiny network's settings, a tiny data set, the commands in-process."""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from codetr_cli.cli import main
from codetr_cli.config.overrides import parse_settings
from codetr_cli.config.schema import Settings
from tests import quick_plots
from tests.data_fixtures import lvis, mixed_coco, rewrite  # noqa: F401 (fixtures of several folders)

REPOSITORY = Path(__file__).resolve().parent.parent

TINY_TABLE: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "num_classes": 3,
        "backbone": {"block": "basic", "layers": [1, 1, 1, 1], "base_channels": 8, "norm": "group", "frozen_stages": 0},
        "embed_dim": 32,
        "num_heads": 4,
        "num_levels": 4,
        "norm_groups": 8,
        "ffn_dim": 64,
        "encoder_layers": 2,
        "encoder_checkpointing": 0,
        "decoder_layers": 2,
        "num_queries": 30,
        "rpn": {"proposals_pre_nms_train": 60, "proposals_pre_nms_test": 60, "num_proposals": 40},
        "roi": {"fc_dim": 32},
    },
    "data": {
        "short_sides": [64, 80, 96],
        "long_side": 128,
        "crop_short_sides": [64, 80],
        "crop_long_side": 256,
        "crop_size": [48, 80],
        "min_side": 16,
        "workers": 0,
    },
    "train": {
        "epochs": 1,
        "batch_size": 2,
        "micro_batch": 2,
        "log_every": 1,
        "precision": "fp32",
        "val_pictures": 0,
        "memory_check": False,  # a second for each of hundreds of trainings of a network that fits anywhere
        "loss": {"denoising_queries": 10, "max_positive_queries": 20, "rpn_samples": 32, "roi_samples": 32},
    },
    "test": {"short_side": 96, "long_side": 160, "max_detections": 20},
}

# Category ids with a hole and out of order, as real annotation files have them.
TINY_CATEGORIES = [{"id": 7, "name": "ring"}, {"id": 2, "name": "disc"}, {"id": 3, "name": "bar"}]
TINY_SPLITS = {"train2017": 4, "val2017": 2}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts a file first whose exported networks other files use, too: two processes would wait for one export."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/export/test_graph.py"))


def pytest_sessionstart() -> None:
    """Computes a gradient before anything else, so that children that tests fork can compute theirs.

    The first gradient of a process starts a thread per device, and a fork loses threads. There is no device here, but a
    traced program (every exported network is one) leaves a pretended one behind, which would get a thread.
    """
    torch.ones(1, requires_grad=True).backward()


def pytest_collection_finish() -> None:
    """Takes what is there before the first test, a million objects, out of garbage collections: half a second of each.

    It stays out: the check of the memory before a training unfreezes all objects, not only those that it has frozen.
    """
    gc.collect()
    gc.freeze()
    gc.unfreeze = lambda: None
    gc.callbacks.append(_long_collections)


LONG_COLLECTION_S = 0.1


class _LongCollections:
    """Notes when a garbage collection took long: tests have left many objects, as traced and compiled programs do."""

    def __init__(self) -> None:
        self.found, self._start = False, 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._start = time.thread_time()
        elif time.thread_time() - self._start > LONG_COLLECTION_S:
            self.found = True


_long_collections = _LongCollections()


def pytest_runtest_logfinish() -> None:
    """Between two tests, takes what former ones have left out of garbage collections, too."""
    if _long_collections.found:
        gc.collect()
        gc.freeze()
        _long_collections.found = False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Makes captured text encodable: log records may name files that are not UTF-8, which xdist cannot send."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode("utf-8")) for name, text in report.sections
    ]
    return report


# Without a GPU, torch.manual_seed keeps the call for later, with the text of the whole stack: 0.6 ms of every test.
_seed = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    """One thread and fixed seeds: the same numbers in every run, and tests that do not fight for cores."""
    torch.set_num_threads(1)
    _seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def _quick_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots are written, not drawn; a file whose tests look at them has a fixture of this name."""
    monkeypatch.setattr("codetr_cli.training.plots._save", quick_plots.save)


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here survives a power failure, so nothing waits for the disk; `tests/forked.py` leaves it as it is."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The settings and the cache of the user who runs the tests, and a cluster they run on, must not reach them."""
    cluster = [name for name in os.environ if name.startswith("SLURM_")]
    for name in ("CODETR_DATA", "CODETR_DEBUG", "MASTER_ADDR", "MASTER_PORT", *cluster):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def tiny_settings() -> Settings:
    """Settings of a network with every part of Co-DINO that runs in milliseconds: 3 classes, 64 to 128 pixel images."""
    return parse_settings(TINY_TABLE, where="tests/conftest.py")


@pytest.fixture
def tiny_coco(tmp_path: Path) -> Path:
    """A COCO-layout folder of 4 training and 2 validation images, 3 categories, one crowd box and one empty image.

    Sizes differ and lie both ways (between 96x128 and 128x96 pixels); category ids are 2, 3 and 7. Each object is a
    filled rectangle of its class's colour on dark noise.
    """
    root = tmp_path / "coco"
    write_tiny_coco(root)
    return root


def write_tiny_coco(root: Path) -> None:
    """Writes the folder of the `tiny_coco` fixture."""
    generator = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    next_id = 1
    for split, count in TINY_SPLITS.items():
        (root / split).mkdir()
        images, annotations = [], []
        for index in range(count):
            image_id = next_id * 100 + index
            height, width = (96 + 8 * index, 128 - 8 * index) if index % 2 == 0 else (128, 96 + 4 * index)
            name = f"{image_id:012d}.jpg"
            pixels = generator.integers(0, 60, (height, width, 3), dtype=np.uint8)
            # The third training image has no objects.
            for number in range(0 if split == "train2017" and index == 2 else 1 + index):
                label = (index + number) % 3
                w, h = (int(side) for side in generator.integers(24, 56, 2))
                x, y = int(generator.integers(0, width - w)), int(generator.integers(0, height - h))
                colour = [0, 0, 0]
                colour[label] = 230
                pixels[y : y + h, x : x + w] = colour
                annotations.append(
                    {
                        "id": next_id,
                        "image_id": image_id,
                        "category_id": TINY_CATEGORIES[label]["id"],
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    }
                )
                next_id += 1
            cv2.imwrite(str(root / split / name), pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        annotations[-1]["iscrowd"] = 1
        table = {"images": images, "annotations": annotations, "categories": TINY_CATEGORIES}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(table))
        (root / f"{split}.txt").write_text("".join(f"{image['file_name']}\n" for image in images))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Recorded reference material (CODETR_SHARED, else `shared` beside the checkout); skips where there is none."""
    root = Path(os.environ.get("CODETR_SHARED") or REPOSITORY.parent / "shared")
    if not root.is_dir():
        pytest.skip(f"no reference material at {root}: set CODETR_SHARED")
    return root


@dataclass(frozen=True)
class Ran:
    """What a command left behind: its exit code and both streams."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The object that `--json` printed; stdout must hold nothing else."""
        return json.loads(self.out)


@pytest.fixture
def codetr(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs the command line in this process: `codetr("eval", path, "--json").json["AP"]`."""

    def run(*words: object) -> Ran:
        capfd.readouterr()
        code = main([str(word) for word in words])
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return run
