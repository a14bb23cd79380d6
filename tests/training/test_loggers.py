"""Stand-ins of the services' packages have their names and signatures and record how they were called."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from codetr_cli.config.overrides import apply_overrides, to_toml
from codetr_cli.config.schema import Settings
from codetr_cli.errors import ConfigError, DivergedError, StoppedError
from codetr_cli.training.loggers import Loggers, Record, check_loggers, numbers, open_loggers
from tests.conftest import Ran

TRAIN = {
    "kind": "train",
    "step": 3,
    "epoch": 0,
    "loss": 2.5,
    "grad_norm": None,
    "lr": 1e-4,
    "losses": {"loss_cls": 1.5, "loss_bbox": 1.0},
    "groups": {"positive queries": 0.5},
    "eta_s": 60.0,
}
EVAL = {"kind": "eval", "step": 3, "epoch": 1, "seconds": 2.0, "metrics": {"AP": 0.25, "APs": -1.0}}
SKIP = {"kind": "skip", "step": 4, "epoch": 1, "image_ids": [7, 8], "losses": {"loss_cls": "nan"}, "in_a_row": 1}

WANDB = """
import json, os
CALLS, TRIES = [], []
class Settings:
    def __init__(self, silent=None, console=None, **more):
        self.silent, self.console = silent, console
class Run:
    url = "https://wandb.test/run"
    def log(self, data, step=None, commit=None):
        CALLS.append(("log", data, step))
    def finish(self, exit_code=None, quiet=None):
        CALLS.append(("finish", exit_code))
def init(entity=None, project=None, dir=None, id=None, name=None, notes=None, tags=None, config=None, mode=None,
         resume=None, settings=None):
    if os.environ.get("WANDB_TEST_OFFLINE"):
        TRIES.append(name)
        raise ConnectionError("no route to wandb.test\\nmore text")
    assert settings.silent and settings.console == "off"
    CALLS.append(("init", dict(project=project, dir=dir, id=id, name=name, resume=resume, config=config)))
    return Run()
"""
MLFLOW = """
from types import SimpleNamespace
CALLS = []
RUNS = {}
class MlflowClient:
    def __init__(self, tracking_uri=None, registry_uri=None): ...
    def get_experiment_by_name(self, name):
        return None
    def create_experiment(self, name, artifact_location=None, tags=None):
        CALLS.append(("create_experiment", name))
        return "17"
    def search_runs(self, experiment_ids, filter_string="", run_view_type=1, max_results=1000):
        assert experiment_ids == ["17"]
        return [run for text, run in RUNS.items() if text == filter_string][:max_results]
    def create_run(self, experiment_id, start_time=None, tags=None, run_name=None):
        CALLS.append(("create_run", experiment_id, run_name))
        (name, value), = tags.items()
        RUNS[f"tags.{name} = '{value}'"] = SimpleNamespace(info=SimpleNamespace(run_id="abc"))
        return SimpleNamespace(info=SimpleNamespace(run_id="abc"))
    def update_run(self, run_id, status=None, name=None):
        CALLS.append(("update_run", run_id, status))
    def log_batch(self, run_id, metrics=(), params=(), tags=(), synchronous=None):
        assert len(params) <= 100
        CALLS.append(("metrics", {m.key: (m.value, m.step) for m in metrics}) if metrics else
                     ("params", {p.key: p.value for p in params}))
    def set_terminated(self, run_id, status=None, end_time=None):
        CALLS.append(("end", run_id, status))
"""
ENTITIES = """
class Metric:
    def __init__(self, key, value, timestamp, step):
        assert isinstance(timestamp, int) and isinstance(step, int)
        self.key, self.value, self.step = key, value, step
class Param:
    def __init__(self, key, value):
        assert len(value) <= 500
        self.key, self.value = key, value
"""


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], list[Any]]]:
    """Importable stand-ins; gives what a service was called with, in order."""
    root = tmp_path / "packages"
    (root / "mlflow").mkdir(parents=True)
    (root / "wandb.py").write_text(WANDB)
    (root / "mlflow/__init__.py").write_text(MLFLOW)
    (root / "mlflow/entities.py").write_text(ENTITIES)
    for name in ("wandb", "mlflow", "mlflow.entities"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "1")  # restored afterwards
    monkeypatch.syspath_prepend(root)
    yield lambda name: sys.modules[name].CALLS
    for name in ("wandb", "mlflow", "mlflow.entities"):
        sys.modules.pop(name, None)


def record(tmp_path: Path, settings: Settings, step: int = 0) -> Record:
    folder = tmp_path / "runs/tiny/4"
    folder.mkdir(parents=True, exist_ok=True)
    return Record(folder=folder, settings=settings, step=step)


def run(names: tuple[str, ...], tmp_path: Path, settings: Settings, *lines: Mapping[str, Any], step: int = 0) -> None:
    with open_loggers(names, record(tmp_path, settings, step)) as loggers:
        for line in lines:
            loggers.log(line)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[str]]:
    """The messages of a level so far."""
    caplog.set_level("INFO", logger="codetr_cli")
    return lambda level: [record.getMessage() for record in caplog.records if record.levelname == level]


# ------------------------------------------------------------------------------------------------------------- numbers


def test_numbers_of_lines_have_names_that_group():
    assert numbers(TRAIN) == {
        "train/epoch": 0.0, "train/loss": 2.5, "train/lr": 1e-4, "train/losses/loss_cls": 1.5,
        "train/losses/loss_bbox": 1.0, "train/groups/positive queries": 0.5,
    }  # fmt: skip
    assert numbers(EVAL) == {"eval/AP": 0.25, "eval/epoch": 1.0, "eval/seconds": 2.0}
    assert numbers(SKIP) == {"skip/epoch": 1.0, "skip/in_a_row": 1.0}


# ------------------------------------------------------------------------------------------------------------- services


def test_wandb_gets_everything_and_continues(
    tmp_path: Path,
    tiny_settings: Settings,
    stand_ins: Callable[[str], list[Any]],
    logged: Callable[[str], list[str]],
):
    run(("wandb",), tmp_path, tiny_settings, TRAIN, EVAL)
    assert logged("WARNING") == []
    assert logged("INFO") == ["Weights & Biases: https://wandb.test/run"]
    (_, init), *logs, end = stand_ins("wandb")
    assert (init["project"], init["name"], init["resume"]) == ("codetr", "tiny/4", "allow")
    assert init["config"]["train"]["lr"] == tiny_settings.train.lr
    assert Path(init["dir"]) == tmp_path / "runs/tiny/4/loggers"
    assert logs == [("log", numbers(TRAIN), 3), ("log", numbers(EVAL), 3)]
    assert end == ("finish", 0)
    stand_ins("wandb").clear()
    run(("wandb",), tmp_path, tiny_settings, step=3)
    assert stand_ins("wandb") == []  # nothing to log, so nothing was opened
    run(("wandb",), tmp_path, tiny_settings, TRAIN, step=3)
    assert stand_ins("wandb")[0][1]["id"] == init["id"]
    (tmp_path / "runs/tiny/4/events.log").write_text("2026-01-01 00:00:00  new run\n")  # another run in this place
    assert record(tmp_path, tiny_settings).id != init["id"]


def test_mlflow_gets_everything_and_continues(
    tmp_path: Path,
    tiny_settings: Settings,
    stand_ins: Callable[[str], list[Any]],
    logged: Callable[[str], list[str]],
):
    run(("mlflow",), tmp_path, tiny_settings, TRAIN, EVAL)
    assert logged("WARNING") == []
    calls = stand_ins("mlflow")
    assert calls[:2] == [("create_experiment", "codetr"), ("create_run", "17", "tiny/4")]
    parameters = {key: value for call in calls if call[0] == "params" for key, value in call[1].items()}
    assert parameters["train.lr"] == "0.0002"
    assert len(parameters) > 100
    metrics = [call[1] for call in calls if call[0] == "metrics"]
    assert metrics == [{name: (value, 3) for name, value in numbers(line).items()} for line in (TRAIN, EVAL)]
    assert calls[-1] == ("end", "abc", "FINISHED")
    calls.clear()
    run(("mlflow",), tmp_path, tiny_settings, TRAIN, step=3)
    assert [call[0] for call in calls] == ["create_experiment", "update_run", "metrics", "end"]
    assert calls[1] == ("update_run", "abc", "RUNNING")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(StoppedError("", 15), "KILLED", 0), (DivergedError(""), "FAILED", 1), (RuntimeError(), "FAILED", 1)],
)
def test_services_get_how_it_ended(
    tmp_path: Path,
    tiny_settings: Settings,
    stand_ins: Callable[[str], list[Any]],
    error: Exception,
    status: str,
    code: int,
):
    loggers = open_loggers(("mlflow", "wandb"), record(tmp_path, tiny_settings))
    loggers.log(TRAIN)
    loggers.__exit__(type(error), error, None)
    assert stand_ins("mlflow")[-1] == ("end", "abc", status)
    assert stand_ins("wandb")[-1] == ("finish", code)


def test_tensorboard_shows_a_run_that_went_back_and_one_that_was_resumed(
    tmp_path: Path, tiny_settings: Settings, logged: Callable[[str], list[str]]
):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def lines(*steps: int) -> list[dict[str, Any]]:
        return [{"kind": "train", "step": step, "loss": float(step)} for step in steps]

    back = {"kind": "rollback", "step": 2, "epoch": 0, "from_step": 5}
    again = {"kind": "train", "step": 3, "loss": 30.0}
    run(("tensorboard",), tmp_path, tiny_settings, *lines(1, 2, 3, 4, 5), back, again, *lines(4, 5), EVAL)
    run(("tensorboard",), tmp_path, tiny_settings, *lines(5, 6), step=4)
    assert logged("WARNING") == []
    shown = EventAccumulator(str(tmp_path / "runs/tiny/4/loggers/tensorboard"))
    shown.Reload()
    assert [(x.step, x.value) for x in shown.Scalars("train/loss")] == [(1, 1), (2, 2), (3, 30), (4, 4), (5, 5), (6, 6)]
    assert shown.Scalars("eval/AP")[0].value == 0.25
    assert "tiny" in shown.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()


# -------------------------------------------------------------------------------------------------- what may go wrong


@pytest.mark.parametrize("name", ["wandb", "mlflow", "tensorboard"])
def test_a_missing_package_is_an_error_before_the_start(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    with pytest.raises(ConfigError, match=rf"pip install 'codetr-cli\[{name}\]'.*train.loggers=\[\]"):
        check_loggers([name])


def test_a_broken_package_is_an_error_before_the_start(
    tmp_path: Path, tiny_settings: Settings, stand_ins: Callable[[str], list[Any]]
):
    (tmp_path / "packages/wandb.py").write_text("import a_library_that_is_not_there")
    with pytest.raises(ConfigError, match=r"wandb, but it cannot be imported .No module named 'a_library"):
        run(("wandb",), tmp_path, tiny_settings)


def test_a_service_out_of_reach_warns_once_and_gets_what_comes_later(
    tmp_path: Path,
    tiny_settings: Settings,
    stand_ins: Callable[[str], list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    logged: Callable[[str], list[str]],
):
    monkeypatch.setenv("WANDB_TEST_OFFLINE", "1")
    with open_loggers(("wandb", "mlflow"), record(tmp_path, tiny_settings)) as loggers:
        for _ in range(3):
            loggers.log(TRAIN)
        assert len(sys.modules["wandb"].TRIES) == 3
        monkeypatch.delenv("WANDB_TEST_OFFLINE")
        loggers.log(EVAL)
    (warning,) = logged("WARNING")
    assert warning.startswith("logging to wandb failed (ConnectionError: no route to wandb.test).")
    assert [call[0] for call in stand_ins("wandb")] == ["init", "log", "finish"]
    assert sum(call[0] == "metrics" for call in stand_ins("mlflow")) == 4  # the other one has everything


class Slow:
    """A service that fails after a while."""

    def __init__(self) -> None:
        self.calls = 0

    def log(self, line: Mapping[str, Any]) -> None:
        self.calls += 1
        time.sleep(0.1)
        raise TimeoutError

    def close(self, ending: str) -> None: ...


def test_a_service_that_fails_slowly_costs_little_time(logged: Callable[[str], list[str]]):
    service = Slow()
    with Loggers({"wandb": lambda: service}) as loggers:
        for _ in range(50):
            loggers.log(TRAIN)
    assert service.calls == 1
    assert len(logged("WARNING")) == 1


def test_without_services_nothing_happens():
    with Loggers() as loggers:
        loggers.log(TRAIN)
    check_loggers(())


def test_lines_stay_as_they_are(tmp_path: Path, tiny_settings: Settings, stand_ins: Callable[[str], list[Any]]):
    before = json.dumps(TRAIN)
    run(("wandb", "mlflow"), tmp_path, apply_overrides(tiny_settings, ["train.loggers=wandb,mlflow"]), TRAIN)
    assert json.dumps(TRAIN) == before


# -------------------------------------------------------------------------------------------------- the whole program


def test_a_training_logs_to_tensorboard(
    tmp_path: Path,
    tiny_coco: Path,
    tiny_settings: Settings,
    codetr: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(os, "fsync", lambda file: None)
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    preset, folder = tmp_path / "tiny.toml", tmp_path / "run"
    preset.write_text(to_toml(tiny_settings))
    words = ("train", "--preset", preset, "--data", tiny_coco, "--device", "cpu", "--run", folder, "--no-eval")
    words += ("--set", "train.loggers=tensorboard")
    assert codetr(*words, "--set", "train.max_steps=2").code == 0
    ran = codetr(*words, "--set", "train.max_steps=3")
    assert (ran.code, ran.err) == (0, "")
    shown = EventAccumulator(str(folder / "loggers/tensorboard"))
    shown.Reload()
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    expected = [(line["step"], pytest.approx(line["loss"])) for line in logged if line["kind"] == "train"]
    assert [(x.step, x.value) for x in shown.Scalars("train/loss")] == expected
    assert len(expected) == 3


def test_a_missing_package_stops_before_the_run_folder_is_made(
    tmp_path: Path, tiny_coco: Path, tiny_settings: Settings, codetr: Callable[..., Ran]
):
    if importlib.util.find_spec("wandb") is not None:
        pytest.skip("wandb is installed")
    preset, folder = tmp_path / "tiny.toml", tmp_path / "run"
    preset.write_text(to_toml(tiny_settings))
    ran = codetr(
        "train", "--preset", preset, "--data", tiny_coco, "--device", "cpu", "--run", folder,
        "--set", "train.loggers=wandb",
    )  # fmt: skip
    assert ran.code == 2
    assert "pip install 'codetr-cli[wandb]'" in ran.err
    assert not folder.exists()
