"""Who else is told what metrics.jsonl holds: TensorBoard, Weights & Biases, MLflow (`train.loggers`).

Only the process of rank 0 logs. Each service is fed by a thread of its own, so that one that is slow or cannot be
reached costs no step: it warns once, is offered every later line again, and never stops a training. What a service
needs to continue its own record of a resumed run lies in the run folder's `loggers/`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import math
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from codetr_cli.config.schema import Settings
from codetr_cli.errors import ConfigError, StoppedError
from codetr_cli.files import write_text

Ending = Literal["finished", "stopped", "failed"]

LINES_WAITING = 1000  # for one service; what comes then is left out
PATIENCE_S = 20.0  # at the end of a training, for what is not sent yet
PROJECT = "codetr"  # unless the service's own environment variable names another
UNSHOWN = ("kind", "step", "eta_s")


class Logger(Protocol):
    """One service that is told the lines of metrics.jsonl, from a single thread."""

    def log(self, line: Mapping[str, Any]) -> None:
        """Takes a line; any exception means that it did not work."""

    def close(self, ending: Ending) -> None:
        """Sends what is left and ends the record."""


@dataclass(frozen=True)
class Record:
    """What a service is told of a run when its record is opened.

    Attributes:
        folder: the run folder.
        settings: of the run.
        step: done when this process begins; 0 for a new run.
        note: tells the person a sentence; called from a thread.
    """

    folder: Path
    settings: Settings
    step: int
    note: Callable[[str], None]

    @property
    def name(self) -> str:
        """The run's name for people: the last two parts of its folder, as in co_dino_r50/3."""
        return "/".join(self.folder.absolute().parts[-2:])

    @property
    def own_folder(self) -> Path:
        """Where services keep what they need."""
        path = self.folder / "loggers"
        path.mkdir(exist_ok=True)
        return path

    def read_id(self, service: str) -> str | None:
        """The id under which a service knows the run, None before it does."""
        try:
            return (self.own_folder / f"{service}.id").read_text(encoding="utf-8").strip() or None
        except FileNotFoundError:
            return None

    def write_id(self, service: str, run_id: str) -> None:
        """Remembers that id."""
        write_text(self.own_folder / f"{service}.id", run_id + "\n")


class Loggers:
    """All services of a run as one; a context manager that tells them how the training ended.

    Args:
        openers: by name of the service; called in its thread, again and again until one call succeeds.
        warn: tells the person a sentence, once a service; called from the thread that logs.
    """

    def __init__(
        self, openers: Mapping[str, Callable[[], Logger]] | None = None, warn: Callable[[str], None] | None = None
    ) -> None:
        self._feeds = [_Feed(name, opener) for name, opener in (openers or {}).items()]
        self._warn = warn or (lambda text: None)

    def log(self, line: Mapping[str, Any]) -> None:
        """Hands a line of metrics.jsonl to every service, without waiting."""
        for feed in self._feeds:
            feed.put(line)
        self._tell()

    def close(self, ending: Ending, patience_s: float = PATIENCE_S) -> None:
        """Ends all records; what is not sent in time is given up.

        Args:
            ending: how the training ended.
            patience_s: to wait for all services together.
        """
        deadline = time.monotonic() + patience_s
        for feed in self._feeds:
            feed.end(ending, deadline)
        for feed in self._feeds:
            feed.join(deadline)
        self._tell()

    def __enter__(self) -> Loggers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close("finished")
        else:
            self.close("stopped" if isinstance(error, StoppedError | KeyboardInterrupt) else "failed")

    def _tell(self) -> None:
        for feed in self._feeds:
            if feed.problem is not None and not feed.told:
                feed.told = True
                self._warn(
                    f"{feed.name} does not take what is logged ({feed.problem}). The training goes on, and "
                    "metrics.jsonl has everything."
                )


class _Feed:
    """A thread that hands lines to one service.

    Attributes:
        problem: the first thing that went wrong.
        told: whether the person knows of it.
    """

    def __init__(self, name: str, opener: Callable[[], Logger]) -> None:
        self.name, self._opener = name, opener
        self.problem: str | None = None
        self.told = False
        self._waiting: queue.Queue[Mapping[str, Any] | Ending] = queue.Queue(LINES_WAITING)
        self._thread = threading.Thread(target=self._work, name=f"logger-{name}", daemon=True)
        self._thread.start()

    def put(self, line: Mapping[str, Any]) -> None:
        try:
            self._waiting.put_nowait(line)
        except queue.Full:
            self._fail(f"{LINES_WAITING} lines wait for it; newer ones are left out")

    def end(self, ending: Ending, deadline: float) -> None:
        try:
            self._waiting.put(ending, timeout=max(0.0, deadline - time.monotonic()))
        except queue.Full:
            self._fail("it is too slow")

    def join(self, deadline: float) -> None:
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._fail("it does not answer; what it was not sent yet is lost to it")

    def _work(self) -> None:
        logger: Logger | None = None
        item: Mapping[str, Any] | Ending = {}
        while not isinstance(item, str):
            item = self._waiting.get()
            try:
                if not isinstance(item, str):
                    logger = logger or self._opener()
                    logger.log(item)
                elif logger is not None:
                    logger.close(item)
            except Exception as error:  # whatever a service does wrong is no reason to lose a training
                self._fail(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")

    def _fail(self, problem: str) -> None:
        self.problem = self.problem or problem


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line by the names that services show: train/loss, train/losses/loss_cls, eval/AP, ...

    Args:
        line: of metrics.jsonl.

    Returns:
        without what is not finite, and without metrics that had nothing to measure (-1).
    """
    kind = str(line["kind"])
    shown = {key: value for key, value in line.items() if key not in UNSHOWN}
    metrics = shown.pop("metrics", {})
    found = {f"{kind}/{name}": value for name, value in metrics.items() if value >= 0}
    found |= {f"{kind}/{name}": value for name, value in _flat(shown)}
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


# ------------------------------------------------------------------------------------------------------------- services


class TensorBoardLogger:
    """Event files in the run folder's loggers/tensorboard; `tensorboard --logdir runs` shows all runs.

    A resumed run and one that went back to a checkpoint hide what had been written of later steps.

    Args:
        record: of the run.
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
        """Writes what is left."""
        self._writer.close()

    def _open(self, step: int) -> None:
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(log_dir=str(self._record.own_folder / "tensorboard"), purge_step=step + 1)


class WandbLogger:
    """A run of Weights & Biases, continued when the training is; WANDB_PROJECT, WANDB_MODE and the like work as ever.

    Steps that a resumed training repeats are not taken a second time: their numbers are the same.

    Args:
        record: of the run.
    """

    def __init__(self, record: Record) -> None:
        wandb = importlib.import_module("wandb")
        run_id = record.read_id("wandb") or uuid.uuid4().hex[:12]
        record.write_id("wandb", run_id)
        self._run = wandb.init(
            project=None if os.environ.get("WANDB_PROJECT") else PROJECT,
            name=record.name,
            id=run_id,
            resume="allow",
            dir=str(record.own_folder),
            config=record.settings.model_dump(mode="json"),
            # Standard output belongs to the program; what wandb prints would break its progress and its JSON.
            settings=wandb.Settings(silent=True, console="off"),
        )
        if getattr(self._run, "url", None):
            record.note(f"Weights & Biases: {self._run.url}")

    def log(self, line: Mapping[str, Any]) -> None:
        """Sends the numbers of a line."""
        found = numbers(line)
        if found:
            self._run.log(found, step=line["step"])

    def close(self, ending: Ending) -> None:
        """Sends what is left and marks a failed run as such."""
        self._run.finish(exit_code=1 if ending == "failed" else 0)


class MlflowLogger:
    """A run of MLflow, continued when the training is; MLFLOW_TRACKING_URI says where.

    Args:
        record: of the run.
    """

    STATUS: Mapping[Ending, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
    PARAMETERS = 100  # at once, by MLflow's rules
    PARAMETER_LENGTH = 500

    def __init__(self, record: Record) -> None:
        mlflow = importlib.import_module("mlflow")
        self._entities = importlib.import_module("mlflow.entities")
        self._client = mlflow.MlflowClient()
        run_id = record.read_id("mlflow")
        if run_id is not None:
            self._client.update_run(run_id, status="RUNNING")
        self._run_id = run_id or self._create(record)

    def log(self, line: Mapping[str, Any]) -> None:
        """Sends the numbers of a line."""
        now_ms = int(time.time() * 1000)
        found = [self._entities.Metric(name, value, now_ms, line["step"]) for name, value in numbers(line).items()]
        if found:
            self._client.log_batch(self._run_id, metrics=found)

    def close(self, ending: Ending) -> None:
        """Ends the run."""
        self._client.set_terminated(self._run_id, status=self.STATUS[ending])

    def _create(self, record: Record) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        run_id = str(self._client.create_run(experiment_id, run_name=record.name).info.run_id)
        record.write_id("mlflow", run_id)
        parameters = [
            self._entities.Param(key, str(value)[: self.PARAMETER_LENGTH])
            for key, value in _flat(record.settings.model_dump(mode="json"), ".")
        ]
        for start in range(0, len(parameters), self.PARAMETERS):
            self._client.log_batch(run_id, params=parameters[start : start + self.PARAMETERS])
        return run_id


SERVICES: dict[str, tuple[str, Callable[[Record], Logger]]] = {
    "tensorboard": ("torch.utils.tensorboard", TensorBoardLogger),
    "wandb": ("wandb", WandbLogger),
    "mlflow": ("mlflow", MlflowLogger),
}
"""By name: the module that must be importable, and what opens a record."""


def check_loggers(names: Sequence[str]) -> None:
    """Refuses services whose package is not installed, without importing it.

    Raises:
        ConfigError: says what to install.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise _not_installed(name, "it is not installed")


def open_loggers(names: Sequence[str], record: Record, warn: Callable[[str], None]) -> Loggers:
    """Connects a run with the services of its settings.

    Args:
        names: of services, as in `train.loggers`.
        record: of the run.
        warn: tells the person a sentence.

    Raises:
        ConfigError: a package is missing or broken.
    """
    check_loggers(names)
    openers: dict[str, Callable[[], Logger]] = {}
    for name in dict.fromkeys(names):
        module, opener = SERVICES[name]
        try:
            importlib.import_module(module)  # here and not in a thread: what is missing is said before the start
        except ImportError as error:
            raise _not_installed(name, f"it cannot be imported ({error})") from error
        openers[name] = functools.partial(opener, record)
    return Loggers(openers, warn)


def _not_installed(name: str, problem: str) -> ConfigError:
    return ConfigError(
        f"train.loggers names {name}, but {problem}: install it with pip install 'codetr-cli[{name}]' (or pip install "
        f"{name}), or train without it: --set train.loggers=[]"
    )


def _flat(table: Mapping[str, Any], separator: str = "/") -> Iterator[tuple[str, Any]]:
    """The leaves of nested tables by the path to each."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}{separator}{name}", leaf) for name, leaf in _flat(value, separator))
        else:
            yield key, value
