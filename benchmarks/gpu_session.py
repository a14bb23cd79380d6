"""The first ten minutes on a GPU: what works, how exactly, how fast, in the order of what matters most.

    python benchmarks/gpu_session.py --out gpu.json
    python benchmarks/gpu_session.py --out gpu.json --wheels .wheels --cases cases   # where nothing can be installed
    python benchmarks/gpu_session.py --out rehearsal.json --device cpu --quick

Every stage runs in a process of its own with a time limit, and the result file is written after each, so that a crash,
a hang or a lease that ends loses one stage at most. The same command continues where it stopped: stages that have
passed are kept, others run again. No network is used. The exit status is 1 when a stage failed.

Wheels are installed into a temporary folder: those of the requirements of `pip install .` that the machine lacks.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
STAGES_SCRIPT = Path(__file__).with_name("gpu_stages.py")

TAIL_CHARACTERS = 4000
"""Output of a stage that failed that is kept: enough for a traceback."""

LEAST_SECONDS = 5
"""A stage is not started with less time than this."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: key in the result file.
        limit: seconds after which it is killed, with everything that it started.
        command: what runs; `{out}` stands for a file that may get a JSON object.
    """

    name: str
    limit: float
    command: tuple[str, ...]


# ----------------------------------------------------------------------------------------------------------- the stages


def stages(arguments: argparse.Namespace, scratch: Path) -> list[Stage]:
    """All stages, the most important ones first."""
    device, quick = ("--device", arguments.device), arguments.quick
    network = ("--preset", "co_dino_tiny" if quick else "co_dino_r50", "--size", "96x128" if quick else "800x1333")
    runs = ("--warmup", "0" if quick else "5", "--iterations", "1" if quick else "20")

    def own(name: str, *options: str) -> tuple[str, ...]:
        flags = ("--quick",) if quick else ()
        return (sys.executable, str(STAGES_SCRIPT), name, *device, *flags, "--out", "{out}", *options)

    def bench(*words: str) -> tuple[str, ...]:
        return _codetr("bench", *words, *device, "--quiet", "--out", "{out}")

    def infer(*options: str, chosen: Sequence[str] = network) -> tuple[str, ...]:
        return bench("infer", *chosen, *runs, *options)

    def train(*options: str, chosen: Sequence[str] = network) -> tuple[str, ...]:
        return bench("train", *chosen, *runs, *options)

    files = ("--end-to-end", "--images", "4" if quick else "200", "--preset", network[1])
    operators = ("--size", "64x96" if quick else "800x1333", "--iterations", "1" if quick else "5")
    low = "bf16"
    found = [
        Stage("environment", 40, _codetr("doctor", "--json")),
        Stage("equal to the CPU", 90, own("parity")),
        Stage("operators correct", 100, _pytest("tests/ops/test_deform_attn_triton.py")),
        Stage("recorded cases", 120, _golden(arguments)),
        Stage("operators fp32", 60, bench("ops", *operators, "--batch", "2", "--dtype", "fp32")),
        Stage("operators bf16", 60, bench("ops", *operators, "--batch", "2", "--dtype", low)),
        *(Stage(f"inference {name}", 60, infer("--precision", name)) for name in ("fp32", "tf32", low, "fp16")),
        *(Stage(f"training {name}", 60, train("--batch", "2", "--precision", name)) for name in ("fp32", low)),
        Stage("profile", 60, own("profile")),
        Stage("host waits", 60, own("waits")),
        Stage("commands", 150, own("commands", "--folder", str(scratch / "commands"))),
        Stage("exported files", 180, own("exported", "--folder", str(scratch / "commands"))),
        Stage("files to results", 90, bench("infer", *files, "--precision", low)),
        Stage("inference graph", 60, infer("--precision", low, "--set", "test.cuda_graph=true")),
        Stage("inference compiled", 120, infer("--precision", low, "--set", "test.compile=true")),
        Stage("memory", 90, own("memory")),
        Stage("other GPU tests", 90, _pytest("tests", "--ignore=tests/ops")),
    ]
    if not quick:
        swin = ("--preset", "co_dino_swin_l", "--size", "1280x1920")
        found += [
            Stage("Swin-L inference fp16", 60, infer("--precision", "fp16", chosen=swin)),
            Stage("training tf32", 60, train("--batch", "2", "--precision", "tf32")),
            Stage(
                "training wrapped",
                180,
                (
                    sys.executable,
                    "benchmarks/training_gpu.py",
                    "--precision",
                    low,
                    "--iterations",
                    "5",
                    "--out",
                    "{out}",
                ),
            ),
        ]
    return found


def _codetr(*words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "codetr_cli", *words)


def _pytest(*words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "pytest", "-q", "-x", "-m", "gpu", "-p", "no:cacheprovider", *words)


def _golden(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The recorded cases of the checkout, then those of the folder that is given."""
    cases = sorted((REPOSITORY / "tests/golden/cases").iterdir())
    if arguments.quick:
        cases = [case for case in cases if case.name == "nms_ops"]
    elif arguments.cases:
        cases += sorted(path.parent for path in arguments.cases.glob("*/case.json"))
    return (
        sys.executable, "-m", "tests.golden", "--quiet", "--skip-unsupported", "--device", arguments.device,
        *map(str, cases),
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- the driver


def main() -> int:
    """Runs the stages that are wanted and have not passed yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="result, written after every stage")
    parser.add_argument("--device", default="cuda", metavar="NAME")
    parser.add_argument("--minutes", type=float, default=9.5, help="of the whole session (default: 9.5)")
    parser.add_argument("--quick", action="store_true", help="tiny networks: a rehearsal")
    parser.add_argument("--only", action="append", metavar="STAGE", help="only this stage; may be repeated")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="wheels to install first")
    parser.add_argument("--cases", type=Path, metavar="DIR", help="further recorded cases")
    parser.add_argument("--list", action="store_true", help="list the stages")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="codetr-gpu-") as scratch:
        planned = stages(arguments, Path(scratch))
        if arguments.list:
            for stage in planned:
                _say(f"{stage.name:<24} {stage.limit:>4.0f} s  {shlex.join(stage.command)}")
            return 0
        unknown = set(arguments.only or ()) - {stage.name for stage in planned}
        if unknown:
            parser.error(f"no such stage: {', '.join(sorted(unknown))}; --list shows them")
        wanted = [stage for stage in planned if not arguments.only or stage.name in arguments.only]
        environment = _environment(arguments.wheels, Path(scratch))
        return run_session(wanted, arguments.out, minutes=arguments.minutes, environment=environment)


def run_session(wanted: Sequence[Stage], out: Path, *, minutes: float, environment: dict[str, str]) -> int:
    """Runs the stages and writes the result after each; 1 when one failed or had no time."""
    result = _earlier(out)
    result["commands"] = [*result.get("commands", []), shlex.join(sys.argv)]
    result["date"] = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S +0000")
    done: dict[str, Any] = result.setdefault("stages", {})
    end = time.monotonic() + 60 * minutes
    for stage in wanted:
        if done.get(stage.name, {}).get("status") == "passed":
            _say(f"{stage.name}: passed earlier")
            continue
        left = end - time.monotonic()
        if left < LEAST_SECONDS:
            done[stage.name] = {"status": "no time"}
        else:
            done[stage.name] = run_stage(stage, min(stage.limit, left), environment)
        _write(out, result)
        _say(f"{stage.name}: {done[stage.name]['status']} ({done[stage.name].get('seconds', 0)} s)")
    return int(any(done[stage.name]["status"] != "passed" for stage in wanted))


def run_stage(stage: Stage, limit: float, environment: dict[str, str]) -> dict[str, Any]:
    """Runs a stage in a process group of its own, which is killed at the limit.

    Returns:
        status "passed", "failed" or "too slow", seconds, the JSON that it wrote, if any, and, if it has not passed or
        wrote none, the end of its output.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="codetr-stage-") as folder:
        out, log = Path(folder, "out.json"), Path(folder, "log")
        command = [str(out) if word == "{out}" else word for word in stage.command]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=REPOSITORY, env=environment, stdout=output, stderr=output, start_new_session=True
            )
            try:
                status = "failed" if process.wait(timeout=limit) else "passed"
            except subprocess.TimeoutExpired:
                status = "too slow"
            finally:
                _kill_group(process)
        row: dict[str, Any] = {"status": status, "seconds": round(time.monotonic() - started, 1)}
        if out.is_file():
            row["result"] = _read(out)
        if status != "passed" or not out.is_file():
            row["output"] = log.read_text(encoding="utf-8", errors="replace")[-TAIL_CHARACTERS:]
        return row


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a stage's process and whatever it has left running."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(wheels: Path | None, scratch: Path) -> dict[str, str]:
    """The environment of the stages: the checkout, and the wheels, are importable."""
    paths = [str(REPOSITORY)]
    if wheels is not None:
        site = scratch / "site"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        subprocess.run([*pip, "--target", str(site), *map(str, sorted(wheels.glob("*.whl")))], check=True)
        paths.append(str(site))
    if "PYTHONPATH" in os.environ:
        paths.append(os.environ["PYTHONPATH"])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "CODETR_DEBUG": "1"}


def _earlier(out: Path) -> dict[str, Any]:
    return _read(out) if out.is_file() else {}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:  # a stage was killed while it wrote
        return {}


def _write(out: Path, result: dict[str, Any]) -> None:
    """Replaces the result file at once: what is there is always whole."""
    partial = out.with_name(out.name + ".part")
    partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    partial.replace(out)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
