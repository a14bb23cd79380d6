from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from codetr_cli.benchmark.data import DataSpec, _ImageStages, benchmark_data, worker_counts
from codetr_cli.config.overrides import parse_settings
from codetr_cli.config.schema import Settings
from codetr_cli.data.coco import build_dataset
from codetr_cli.data.demo import write_demo
from codetr_cli.errors import DatasetError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "set"
    write_demo(folder, train=8, val=1, size=96)
    return folder


def settings_of(demo: Path, **data: object) -> Settings:
    table = {"name": "x", "data": {"root": str(demo), "short_sides": (64,), "long_side": 100, **data}}
    return parse_settings(table, where="here")


def test_worker_counts_double_up_to_the_cores():
    assert [worker_counts(most) for most in (0, 1, 2, 6, 8)] == [
        (0,), (0, 1), (0, 1, 2), (0, 1, 2, 4, 6), (0, 1, 2, 4, 8),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("slow", "stage"),
    [
        ("read_bytes", "read"),
        ("decode", "decode"),
        ("annotated", "objects"),
        ("transform", "augment"),
        ("copy_paste", "paste"),
    ],
)
def test_time_is_counted_where_it_is_spent(demo: Path, monkeypatch: pytest.MonkeyPatch, slow: str, stage: str):
    settings = settings_of(demo, augmentation="lsj", canvas=96, copy_paste="boxes")
    dataset = build_dataset(settings, split="train", training=True)
    real = getattr(dataset, slow)

    def slowly(*arguments, **options):
        time.sleep(0.05)
        return real(*arguments, **options)

    monkeypatch.setattr(dataset, slow, slowly)
    spec = DataSpec(images=4, seconds=0.05, workers=(0,), device=CPU)
    ticks: list[int] = []
    found = benchmark_data(dataset, settings, spec, lambda: ticks.append(1))
    calls = 1 if slow == "copy_paste" else 2  # a second image is read to paste from
    assert found.stages_ms[stage] >= 45 * calls
    assert found.bottleneck == stage
    assert len(ticks) == spec.ticks


def test_an_item_is_that_of_the_data_set(demo: Path):
    settings = settings_of(demo, augmentation="lsj", canvas=96, copy_paste="boxes")
    dataset = build_dataset(settings, split="train", training=True)
    image, target = _ImageStages(dataset).next_item(iter([(3, 1)]))
    same_image, same_target = dataset[3, 1]
    assert np.array_equal(image, same_image)
    assert torch.equal(target["boxes"], same_target["boxes"])
    assert target.keys() == same_target.keys()


def test_bad_files_are_skipped_where_the_settings_allow_it(demo: Path, tmp_path: Path):
    shutil.copytree(demo, tmp_path / "set")
    for image in sorted((tmp_path / "set" / "train2017").iterdir())[:7]:
        image.write_bytes(b"no image")
    for choice in ("skip", "error"):
        dataset = build_dataset(settings_of(tmp_path / "set", bad_files=choice), split="train", training=True)
        stages = _ImageStages(dataset)
        keys = ((0, index) for index in range(8))
        if choice == "skip":
            assert stages.next_item(keys)[1]["image_id"] == dataset.image_ids[7]
            with pytest.raises(DatasetError, match="too few usable images"):
                stages.next_item(keys)
        else:
            with pytest.raises(DatasetError, match="cannot read image"):
                stages.next_item(keys)


def test_the_loader_is_measured_with_workers(demo: Path):
    settings = settings_of(demo)
    dataset = build_dataset(settings, split="train", training=True)
    spec = DataSpec(images=3, seconds=0.2, workers=(0, 1), device=CPU, needed=0.001)
    found = benchmark_data(dataset, settings, spec)
    assert list(found.loader_images_per_s) == [0, 1]
    assert all(rate > 0 for rate in found.loader_images_per_s.values())
    assert found.enough_workers == 1
    assert found.stages_ms["paste"] == 0
    assert found.stages_ms["copy"] > 0
