"""Commands from beginning to end on the emulated GPU."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from codetr_cli.config.overrides import apply_overrides, to_toml
from codetr_cli.config.presets import load_preset
from codetr_cli.config.schema import Settings
from codetr_cli.losses.collaborative import CollaborativeObjective
from codetr_cli.runs.memory_record import read_record
from tests.conftest import Ran
from tests.inference.fakes import write_checkpoint
from tests.strict_device import strict_device, why_not

pytestmark = [
    pytest.mark.skipif(why_not() is not None, reason=why_not() or ""),
    pytest.mark.usefixtures("_switches", "_quick"),
]
LIMIT = 18 * 2**20
"""Less than a step of the tiny network needs as it is (22 MiB), more than one that recomputes its encoder (14 MiB)."""


@pytest.fixture
def _switches():
    """Restores what a deterministic training sets for the whole process."""
    enabled, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, fill = torch.backends.cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(enabled, warn_only=warns)
    torch.backends.cudnn.benchmark = benchmark
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("codetr_cli.training.plots.draw_plots", lambda lines, folder: [])
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:128")  # else a training sets its own
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture
def train(codetr: Callable[..., Ran], tmp_path: Path, tiny_settings: Settings, tiny_coco: Path) -> Callable[..., Ran]:
    preset = tmp_path / "tiny.toml"
    preset.write_text(to_toml(apply_overrides(tiny_settings, ["train.memory_check=true"])))

    def run(*words: object) -> Ran:
        return codetr("train", "--preset", preset, "--data", tiny_coco, "--run", tmp_path / "run", *words)

    return run


def test_a_training_on_the_second_gpu(train: Callable[..., Ran], tmp_path: Path):
    """Mixed precision, moving average, checkpoints, evaluation: in a fixed order, and resumed."""
    words = ("--device", "cuda:1", "--set", "train.precision=bf16", "--set", "train.ema_momentum=0.01",
             "--set", "train.deterministic=true", "--set", "train.checkpoint_every=1",
             "--set", "train.memory_check=false")  # fmt: skip
    with strict_device(own_rng=True, index=1) as gpu:
        ran = train(*words, "--set", "train.max_steps=1")
        assert ran.code == 0, ran.err
        ran = train(*words, "--set", "train.max_steps=2")
        assert ran.code == 0, ran.err
        assert not gpu.problems, gpu.report()
        # Sums of whole numbers are the same in any order, and so is a largest value; embeddings are sorted first.
        ordered = {"aten::cumsum", "aten::scatter_reduce", "aten::embedding_dense_backward"}
        assert {name for _, name in gpu.unordered} <= ordered, gpu.unordered
    assert "resumed after step 1 of 2" in ran.err
    weights = load_file(tmp_path / "run/checkpoints/last/model.safetensors")
    assert all(bool(value.isfinite().all()) for value in weights.values())
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2]
    assert all(math.isfinite(line["loss"]) for line in lines if line["kind"] == "train")
    assert [line["kind"] for line in lines].count("eval") == 2


def test_a_step_that_runs_out_of_memory_is_repeated_before_it_is_split(
    train: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Once in step 1: memory was fragmented. Twice in step 2: it is too small."""
    failures = iter([True, False, True, True])
    forward = CollaborativeObjective.forward

    def failing(self, *inputs, **named):
        if next(failures, False):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")
        return forward(self, *inputs, **named)

    monkeypatch.setattr(CollaborativeObjective, "forward", failing)
    with strict_device(own_rng=True):
        ran = train("--device", "cuda", "--no-eval", "--set", "train.max_steps=2", "--set", "train.memory_check=false")
    assert ran.code == 0, ran.err
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2]
    (split,) = [line for line in lines if line["kind"] == "memory"]
    assert (split["step"], split["parts"]) == (2, 2)
    events = (tmp_path / "run/events.log").read_text()
    assert events.count("computed again after unused memory is released") == 2


def test_settings_that_fit_the_memory_of_the_gpu(train: Callable[..., Ran], tmp_path: Path):
    words = ("--device", "cuda", "--no-eval", "--set", "train.max_steps=2", "--set", "train.precision=fp32")
    with strict_device(own_rng=True, total_memory=LIMIT) as gpu:
        refused = train(*words)
        assert refused.code == 5
        assert "or --auto-fit to have it set automatically" in " ".join(refused.err.split())
        fitted = train(*words, "--auto-fit")
        assert fitted.code == 0, fitted.err
        assert gpu.bytes_peak <= LIMIT
    assert read_record(tmp_path / "run").fitted
    assert load_preset(str(tmp_path / "run/settings.toml")).model.encoder_checkpointing == 2
    events = (tmp_path / "run/events.log").read_text()
    assert "out of memory" not in events


def test_evaluation_and_prediction_give_what_the_cpu_gives(
    codetr: Callable[..., Ran], tmp_path: Path, tiny_settings: Settings, tiny_coco: Path
):
    weights = write_checkpoint(tmp_path / "model.safetensors", tiny_settings)
    images = sorted((tiny_coco / "val2017").iterdir())
    results = {}
    for device in ("cpu", "cuda"):
        with strict_device(own_rng=True) as gpu:
            words = ("--device", device, "--json")
            evaluated = codetr("eval", weights, "--data", tiny_coco, *words, "--out", tmp_path / device / "eval")
            predicted = codetr("predict", *images, "--checkpoint", weights, *words, "--score", 0.0,
                               "--out", tmp_path / device / "predict")  # fmt: skip
            assert evaluated.code == predicted.code == 0, evaluated.err + predicted.err
            assert not gpu.problems
            if device == "cuda":
                assert sum(gpu.kernels.values()) > 500
        results[device] = [
            json.loads(path.read_text()) for path in sorted((tmp_path / device).rglob("*.json"))
            if path.name in ("detections.json", "predictions.json")
        ]  # fmt: skip
    assert [len(records) for records in results["cpu"]] == [40, 40]
    assert results["cuda"] == results["cpu"]
