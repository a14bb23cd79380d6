from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from codetr_cli.benchmark.data import DataPlan, benchmark_data, worker_numbers
from codetr_cli.config.overrides import parse_settings
from codetr_cli.config.schema import Settings
from codetr_cli.data.coco import build_dataset
from codetr_cli.data.demo import write_demo

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "set"
    write_demo(folder, train=8, val=1, size=96)
    return folder


def settings_of(demo: Path, **data: object) -> Settings:
    table = {"name": "x", "data": {"root": str(demo), "short_sides": (64,), "long_side": 100, **data}}
    return parse_settings(table, where="here")


def test_numbers_of_workers_go_up_to_the_cores():
    assert [worker_numbers(most) for most in (0, 1, 2, 6, 8)] == [
        (0,), (0, 1), (0, 1, 2), (0, 1, 2, 4, 6), (0, 1, 2, 4, 8),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("slow", "stage"),
    [("read_bytes", "read"), ("transform", "augment"), ("load_sample", "objects"), ("copy_paste", "paste")],
)
def test_time_is_counted_where_it_is_spent(demo: Path, monkeypatch: pytest.MonkeyPatch, slow: str, stage: str):
    lsj = {"augmentation": "lsj", "canvas": 96, "copy_paste": "boxes"}
    settings = settings_of(demo, **lsj)
    dataset = build_dataset(settings, split="train", training=True)
    real = getattr(dataset, slow)

    def slowly(*arguments, **options):
        time.sleep(0.05)
        return real(*arguments, **options)

    monkeypatch.setattr(dataset, slow, slowly)
    plan = DataPlan(images=4, seconds=0.05, workers=(0,), device=CPU)
    ticks: list[int] = []
    found = benchmark_data(dataset, settings, plan, lambda: ticks.append(1))
    calls = 1 if slow == "copy_paste" else 2  # a second image is read to paste from
    assert found.stages_ms[stage] >= 50 * calls
    assert found.bottleneck == stage
    assert len(ticks) == plan.ticks
    assert getattr(dataset, slow) is slowly  # the clocks are gone


def test_the_loader_is_measured_with_workers(demo: Path):
    settings = settings_of(demo)
    dataset = build_dataset(settings, split="train", training=True)
    plan = DataPlan(images=3, seconds=0.2, workers=(0, 1), device=CPU, needed=0.001)
    found = benchmark_data(dataset, settings, plan)
    assert list(found.loader_images_per_s) == [0, 1]
    assert all(rate > 0 for rate in found.loader_images_per_s.values())
    assert found.enough_workers == 1
    assert found.stages_ms["paste"] == 0
    assert found.stages_ms["copy"] > 0
    assert found.notes == []
