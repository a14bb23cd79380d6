"""The script for the first minutes on a GPU, rehearsed on the CPU: `benchmarks/gpu_session.py` and its stages."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

session = pytest.importorskip("benchmarks.gpu_session", reason="a source distribution has no benchmarks")
gpu_stages = pytest.importorskip("benchmarks.gpu_stages", reason="a source distribution has no benchmarks")

QUICK = argparse.Namespace(device="cpu", quick=True, cases=None)


def stage(name: str, code: str, limit: float = 30) -> session.Stage:
    """A stage that runs some Python; `sys.argv[1]` is the file for its result."""
    return session.Stage(name, limit, (sys.executable, "-c", code, "{out}"))


def run(out: Path, *wanted: session.Stage, minutes: float = 5) -> tuple[int, dict]:
    status = session.run_session(wanted, out, minutes=minutes, environment=dict(os.environ))
    return status, json.loads(out.read_text())["stages"]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


GIVES_FIGURES = "import sys; open(sys.argv[1], 'w').write('{\"ms\": 3}')"


def test_every_stage_has_a_verdict_its_figures_or_its_output(tmp_path):
    status, rows = run(
        tmp_path / "out.json",
        stage("good", GIVES_FIGURES),
        stage("bad", "raise ValueError('no such kernel')"),
        stage("hanging", "import time; time.sleep(60)", limit=0.5),
        stage("killed while it wrote", f"{GIVES_FIGURES[:-2]}[:4]); sys.exit(1)"),
    )
    assert status == 1
    assert rows["good"]["status"] == "passed"
    assert rows["good"]["result"] == {"ms": 3}
    assert rows["bad"]["status"] == "failed"
    assert "no such kernel" in rows["bad"]["output"]
    assert rows["hanging"]["status"] == "too slow"
    assert rows["hanging"]["seconds"] < 30
    assert rows["killed while it wrote"]["status"] == "failed"


def test_a_second_run_keeps_what_passed_and_repeats_the_rest(tmp_path):
    out, count = tmp_path / "out.json", tmp_path / "count"
    counting = f"open({str(count)!r}, 'a').write('x')"
    first, _ = run(out, stage("good", counting), stage("bad", "raise SystemExit(1)"))
    second, rows = run(out, stage("good", counting), stage("bad", "pass"))
    assert (first, second) == (1, 0)
    assert count.read_text() == "x"
    assert rows["bad"]["status"] == "passed"


def test_stages_that_no_time_is_left_for_are_named(tmp_path):
    status, rows = run(tmp_path / "out.json", stage("late", "pass"), minutes=0.01)
    assert status == 1
    assert rows["late"] == {"status": "no time"}


def test_what_a_stage_left_running_is_killed_with_it(tmp_path):
    pid_file = tmp_path / "pid"
    child = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    starts = (
        f"import subprocess, sys, os, time; subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"while not (os.path.exists({str(pid_file)!r}) and open({str(pid_file)!r}).read()): time.sleep(0.01)"
    )
    run(tmp_path / "out.json", stage("parent", starts))
    pid, end = int(pid_file.read_text()), time.monotonic() + 20
    while is_running(pid):  # the kernel ends it a moment after the signal
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_plan_names_each_stage_once_and_fits_a_lease(tmp_path):
    planned = session.stages(argparse.Namespace(device="cuda", quick=False, cases=None), tmp_path)
    names = [each.name for each in planned]
    assert len(set(names)) == len(names)
    assert sum(each.limit for each in planned[:5]) <= 480  # the most important ones fit whatever happens
    assert all(each.limit <= 180 for each in planned)


@pytest.mark.parametrize("name", ["parity", "profile", "waits", "memory"])
def test_a_stage_on_the_cpu(name):
    figures, ok = gpu_stages.STAGES[name](QUICK, torch.device("cpu"))
    assert ok
    assert figures
    json.dumps(figures)


def exported(folder, monkeypatch, *, installed, status=0):
    """The stage of exported files with commands that only answer."""
    ran = []

    def answer(words, **how):
        ran.append(words)
        return subprocess.CompletedProcess(words, status, '{"verified": true}', "differs")

    monkeypatch.setattr(gpu_stages.subprocess, "run", answer)
    monkeypatch.setattr(gpu_stages.importlib.util, "find_spec", lambda name: name if name in installed else None)
    checkpoint = folder / "run/checkpoints/last/model.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"weights")
    arguments = argparse.Namespace(folder=folder)
    return *gpu_stages.exported(arguments, torch.device("cpu")), ran


def test_exported_files_are_verified_where_their_libraries_are(tmp_path, monkeypatch):
    figures, ok, ran = exported(tmp_path, monkeypatch, installed=("onnx", "onnxscript", "onnxruntime"))
    assert ok
    assert [name for name, row in figures.items() if "result" in row] == ["ONNX fp32", "ONNX fp16"]
    assert figures["TensorRT fp16"] == {"skipped": "not installed: tensorrt"}
    assert all("--verify" in words for words in ran)


def test_a_package_of_pytorch_with_the_kernel_is_verified_on_the_device(tmp_path, monkeypatch):
    figures, ok, ran = exported(tmp_path, monkeypatch, installed=("triton",))
    assert ok
    assert [name for name, row in figures.items() if "result" in row] == ["PyTorch fp32, plugin"]
    (words,) = ran
    assert words[words.index("--attention") + 1] == "plugin"
    assert words[words.index("--device") + 1] == "cpu"
    assert words[words.index("--out") + 1].endswith(".pt2")


def test_a_file_that_differs_fails_the_stage(tmp_path, monkeypatch):
    figures, ok, _ = exported(tmp_path, monkeypatch, installed=("onnx", "onnxscript", "tensorrt"), status=4)
    assert not ok
    assert figures["TensorRT fp32"]["status"] == 4
    assert "differs" in figures["TensorRT fp32"]["output"]


def test_without_a_checkpoint_no_file_is_exported(tmp_path):
    figures, ok = gpu_stages.exported(argparse.Namespace(folder=tmp_path), torch.device("cpu"))
    assert ok
    assert "skipped" in figures


def test_a_device_that_computes_something_else_is_found(monkeypatch):
    real = gpu_stages.step

    def wrong(model, settings, size, device):
        losses, gradients = real(model, settings, size, device)
        wrong.calls += 1
        return {name: value * (1 + 1e-3 * (wrong.calls == 2)) for name, value in losses.items()}, gradients

    wrong.calls = 0
    monkeypatch.setattr(gpu_stages, "step", wrong)
    figures, ok = gpu_stages.parity(QUICK, torch.device("cpu"))
    assert not ok
    assert figures["Co-DINO"]["loss_difference"] == pytest.approx(1e-3, rel=1e-3)


def test_idle_share_of_overlapping_kernels():
    assert gpu_stages.idle_share([(0, 4), (2, 5), (7, 10)]) == pytest.approx(0.2)
    assert gpu_stages.idle_share([]) is None


@pytest.mark.slow
def test_the_whole_rehearsal(tmp_path):
    arguments = argparse.Namespace(device="cpu", quick=True, cases=None)
    # Only a GPU has fp16, TF32, graphs, and tests of its own.
    needs_gpu = ("fp16", "tf32", "graph", "compiled", "correct", "GPU tests")
    wanted = [each for each in session.stages(arguments, tmp_path) if not any(word in each.name for word in needs_gpu)]
    status, rows = run(tmp_path / "out.json", *wanted, minutes=15)
    assert status == 0, {name: row for name, row in rows.items() if row["status"] != "passed"}
