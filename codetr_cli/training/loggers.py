"""TensorBoard, Weights & Biases and MLflow get every line of metrics.jsonl (`train.loggers`).

Only the process of rank 0 logs. A service that fails warns once, gets every later line, and never stops a training. A
resumed training continues the service's record of the run, which is found by an id derived from the run folder.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from codetr_cli.config.schema import Settings
from codetr_cli.errors import ConfigError, StoppedError
from codetr_cli.runs.memory_record import flatten

logger = logging.getLogger(__name__)

Ending = Literal["finished", "stopped", "failed"]

PROJECT = "codetr"  # unless the service's own environment variable names another
UNSHOWN = ("kind", "step", "eta_s", "time", "total_steps")
PAUSE_FACTOR = 20  # a service that failed slowly is not called for this many times the duration of the call
SLOW_S = 0.05


class Service(Protocol):
    """One service that gets the lines of metrics.jsonl. Any exception means that a call failed."""

    def log(self, line: Mapping[str, Any]) -> None:
        """Sends a line."""

    def close(self, ending: Ending) -> None:
        """Sends what is buffered and ends the record."""


@dataclass(frozen=True)
class Record:
    """A run, as a service records it; `step` is the last one done when this process starts, 0 for a new run."""

    folder: Path
    settings: Settings
    step: int

    @property
    def name(self) -> str:
        """The display name of the run: the last two parts of its folder, as in co_dino_r50/3."""
        return "/".join(self.folder.absolute().parts[-2:])

    @property
    def id(self) -> str:
        """The id of the run for services, 16 hexadecimal digits; the same whenever the run is resumed.

        It is derived from the name and the first line of events.log, which has the time of the first start: a new run
        in the place of an old one has another id.
        """
        try:
            with (self.folder / "events.log").open(encoding="utf-8") as file:
                first_line = file.readline()
        except FileNotFoundError:
            first_line = ""
        return hashlib.sha256(f"{self.name}\n{first_line}".encode()).hexdigest()[:16]

    @property
    def own_folder(self) -> Path:
        """The folder for local files of services."""
        path = self.folder / "loggers"
        path.mkdir(exist_ok=True)
        return path


class Loggers:
    """All services of a run; a context manager that passes on how the training ended.

    Args:
        openers: by name of the service; called at the first line, and again until one call succeeds.
    """

    def __init__(self, openers: Mapping[str, Callable[[], Service]] | None = None) -> None:
        self._connections = [_Connection(name, opener) for name, opener in (openers or {}).items()]

    def log(self, line: Mapping[str, Any]) -> None:
        """Sends a line of metrics.jsonl to every service."""
        for connection in self._connections:
            connection.log(line)

    def __enter__(self) -> Loggers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ending: Ending = "finished" if error is None else "failed"
        if isinstance(error, StoppedError | KeyboardInterrupt):
            ending = "stopped"
        for connection in self._connections:
            connection.close(ending)


class _Connection:
    """Calls one service; a failure warns once, and costs at most 1 / PAUSE_FACTOR of the time."""

    def __init__(self, name: str, opener: Callable[[], Service]) -> None:
        self._name, self._opener = name, opener
        self._service: Service | None = None
        self._warned = False
        self._retry_at = 0.0

    def log(self, line: Mapping[str, Any]) -> None:
        if time.monotonic() >= self._retry_at:
            self._call(partial(self._send, line))

    def close(self, ending: Ending) -> None:
        if self._service is not None:
            self._call(partial(self._service.close, ending))

    def _send(self, line: Mapping[str, Any]) -> None:
        self._service = self._service or self._opener()
        self._service.log(line)

    def _call(self, action: Callable[[], None]) -> None:
        started = time.monotonic()
        try:
            action()
        except Exception as error:  # no failure of a service may end a training
            now = time.monotonic()
            if now - started > SLOW_S:
                self._retry_at = now + PAUSE_FACTOR * (now - started)
            if not self._warned:
                self._warned = True
                reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                text = "logging to %s failed (%s). Training continues, and metrics.jsonl has every line."
                logger.warning(text, self._name, reason)


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line by the names in services: train/loss, train/losses/loss_cls, eval/AP, ...

    Values that are not finite and metrics without objects (-1) are skipped.
    """
    kind = str(line["kind"])
    shown = {key: value for key, value in line.items() if key not in UNSHOWN}
    metrics = shown.pop("metrics", {})
    values = {f"{kind}/{name}": value for name, value in metrics.items() if value >= 0}
    values |= {f"{kind}/{name}": value for name, value in flatten(shown, "/").items()}
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


# ------------------------------------------------------------------------------------------------------------- services


class TensorBoardLogger:
    """Event files in the run folder's loggers/tensorboard; `tensorboard --logdir runs` shows all runs.

    A resumed run, and one that returned to a checkpoint, hides what was written for later steps.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._open(record.step)
        if record.step == 0:
            text = json.dumps(record.settings.model_dump(mode="json"), indent=2).replace("\n", "\n    ")
            self._writer.add_text("settings", "    " + text, 0)

    def log(self, line: Mapping[str, Any]) -> None:
        """Writes the numbers of a line."""
        if line["kind"] == "rollback":
            self._writer.close()
            self._open(line["step"])
        for name, value in numbers(line).items():
            self._writer.add_scalar(name, value, line["step"])

    def close(self, ending: Ending) -> None:
        """Writes what is buffered."""
        self._writer.close()

    def _open(self, step: int) -> None:
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(log_dir=str(self._record.own_folder / "tensorboard"), purge_step=step + 1)


class WandbLogger:
    """A run of Weights & Biases, continued by a resumed training; WANDB_PROJECT, WANDB_MODE and others work as usual.

    Steps that a resumed training repeats are ignored by the service: their numbers are the same.
    """

    def __init__(self, record: Record) -> None:
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(
            project=None if os.environ.get("WANDB_PROJECT") else PROJECT,
            name=record.name,
            id=record.id,
            resume="allow",
            dir=str(record.own_folder),
            config=record.settings.model_dump(mode="json"),
            # wandb's own output would break the progress and the JSON on standard output.
            settings=wandb.Settings(silent=True, console="off"),
        )
        if getattr(self._run, "url", None):
            logger.info("Weights & Biases: %s", self._run.url)

    def log(self, line: Mapping[str, Any]) -> None:
        """Sends the numbers of a line."""
        found = numbers(line)
        if found:
            self._run.log(found, step=line["step"])

    def close(self, ending: Ending) -> None:
        """Sends what is buffered and marks a failed run as such."""
        self._run.finish(exit_code=1 if ending == "failed" else 0)


class MlflowLogger:
    """A run of MLflow, continued by a resumed training; MLFLOW_TRACKING_URI is the server."""

    STATUS: Mapping[Ending, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
    TAG = "codetr_run"  # of the run at the server; its value is the id of the record
    PARAMETERS = 100  # MLflow's limit of a request
    PARAMETER_LENGTH = 500

    def __init__(self, record: Record) -> None:
        mlflow = importlib.import_module("mlflow")
        self._entities = importlib.import_module("mlflow.entities")
        # By default MLflow retries a request for minutes, and training would wait.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        self._client = mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        known = self._client.search_runs([experiment_id], f"tags.{self.TAG} = '{record.id}'", max_results=1)
        if known:
            self._run_id = str(known[0].info.run_id)
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            self._run_id = self._create(record, experiment_id)

    def log(self, line: Mapping[str, Any]) -> None:
        """Sends the numbers of a line."""
        now_ms = int(time.time() * 1000)
        found = [self._entities.Metric(name, value, now_ms, line["step"]) for name, value in numbers(line).items()]
        if found:
            self._client.log_batch(self._run_id, metrics=found)

    def close(self, ending: Ending) -> None:
        """Ends the run."""
        self._client.set_terminated(self._run_id, status=self.STATUS[ending])

    def _create(self, record: Record, experiment_id: str) -> str:
        created = self._client.create_run(experiment_id, run_name=record.name, tags={self.TAG: record.id})
        run_id = str(created.info.run_id)
        parameters = [
            self._entities.Param(key, str(value)[: self.PARAMETER_LENGTH])
            for key, value in flatten(record.settings.model_dump(mode="json")).items()
        ]
        for start in range(0, len(parameters), self.PARAMETERS):
            self._client.log_batch(run_id, params=parameters[start : start + self.PARAMETERS])
        return run_id


SERVICES: dict[str, tuple[str, Callable[[Record], Service]]] = {
    "tensorboard": ("torch.utils.tensorboard", TensorBoardLogger),
    "wandb": ("wandb", WandbLogger),
    "mlflow": ("mlflow", MlflowLogger),
}
"""By name: the module that must be importable, and the class that opens a record."""


def check_loggers(names: Sequence[str]) -> None:
    """Raises a ConfigError for a service whose package is not installed, without importing it."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise _not_installed(name, "it is not installed")


def open_loggers(names: Sequence[str], record: Record) -> Loggers:
    """Connects a run with the services that `train.loggers` names.

    Raises:
        ConfigError: a package is missing or broken.
    """
    openers: dict[str, Callable[[], Service]] = {}
    for name in dict.fromkeys(names):
        module, opener = SERVICES[name]
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise _not_installed(name, f"it cannot be imported ({error})") from error
        openers[name] = partial(opener, record)
    return Loggers(openers)


def _not_installed(name: str, problem: str) -> ConfigError:
    return ConfigError(
        f"train.loggers names {name}, but {problem}: install it with pip install 'codetr-cli[{name}]' (or pip install "
        f"{name}), or train without it: --set train.loggers=[]"
    )
