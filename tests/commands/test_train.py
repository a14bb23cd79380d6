from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from codetr_cli import console
from codetr_cli.commands.train import _Display
from codetr_cli.config.overrides import to_toml
from codetr_cli.config.presets import load_preset
from codetr_cli.config.schema import Settings
from codetr_cli.runs.folder import read_state
from codetr_cli.training.reporter import StepProgress
from codetr_cli.weights.checkpoint import load_checkpoint
from tests.conftest import Ran
from tests.forked import ForkedPython, Program, Python, new_python
from tests.run_folders import assert_same_weights, losses, metrics


@pytest.fixture
def preset(tmp_path: Path, tiny_settings: Settings) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(to_toml(tiny_settings))
    return path


@pytest.fixture
def train(codetr: Callable[..., Ran], preset: Path, tiny_coco: Path) -> Callable[..., Ran]:
    """Runs `codetr train` of the tiny network on the tiny data set."""

    def run(*words: object) -> Ran:
        return codetr("train", "--preset", preset, "--data", tiny_coco, "--device", "cpu", *words)

    return run


# ---------------------------------------------------------------------------------------------------- a whole training


def test_training_leaves_a_whole_run_folder(train: Callable[..., Ran], tmp_path: Path, tiny_coco: Path):
    run = tmp_path / "run"
    ran = train("--run", run, "--set", "train.memory_check=true")
    assert ran.code == 0, ran.err
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert names == {
        ".lock", "settings.toml", "origin.json", "memory.json", "metrics.jsonl", "events.log",
        "process.json", "plots/losses.png", "plots/learning_rate.png", "plots/ap.png", "plots/pr_curves.png",
        "report.html", "report.json", ".codetr_results",
        *(
            f"checkpoints/{kind}/{name}"
            for kind in ("last", "best")
            for name in ("model.safetensors", "state.pt", "sums.json")
        ),
    }  # fmt: skip
    assert load_preset(str(run / "settings.toml")).data.root == str(tiny_coco)
    checkpoint = load_checkpoint(run / "checkpoints/last/model.safetensors")
    assert checkpoint.class_names == ["disc", "bar", "ring"]
    assert checkpoint.category_ids == [2, 3, 7]
    kinds = [(line["kind"], line["step"]) for line in metrics(run)]
    assert kinds == [("train", 1), ("train", 2), ("train", 3), ("eval", 3), ("end", 3)]
    groups = {"decoder", "proposals", "denoising", "rpn", "roi", "atss", "positive queries"}
    assert set(metrics(run)[0]["groups"]) == groups
    assert "AP50" in ran.err
    assert str(run / "checkpoints/last/model.safetensors") in ran.out


def test_progress_has_one_counter_and_one_estimate(capsys, monkeypatch: pytest.MonkeyPatch):
    """A run that is continued counts from its own steps."""
    console.set_mode()
    clock = iter([0.0, 5.0, 20.0, 20.0, 50.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    line = {"epoch": 2, "loss": 5.25, "images_per_s": 12.5}
    with closing(_Display()) as display:
        display.step_done(StepProgress(step=306, total_steps=1010, line={**line, "eta_s": 900.0}))
        display.step_done(StepProgress(step=307, total_steps=1010, line={**line, "eta_s": 600.0}))
        display.evaluated(0.3125, 0.3125)
        display.step_done(StepProgress(step=308, total_steps=1010, line={**line, "eta_s": 500.0}))
    streams = capsys.readouterr()
    assert streams.err.splitlines() == [
        "training: 306/1,010 (30%), 15 min 00 s left, epoch 3, loss 5.25, images/s 12.5",
        "training: 307/1,010 (30%), 10 min 00 s left, epoch 3, loss 5.25, images/s 12.5",
        "training: 308/1,010 (30%), 8 min 20 s left, epoch 3, loss 5.25, AP 0.312 (best 0.312), images/s 12.5",
    ]
    assert streams.out == ""


def test_json_answers_with_one_object(train: Callable[..., Ran], tmp_path: Path):
    answer = train("--run", tmp_path / "run", "--json").json
    assert answer["steps"] == 3
    assert answer["metrics"]["AP"] >= 0
    assert Path(answer["weights"]).is_file()


def test_two_steps_and_one_more_are_three(train: Callable[..., Ran], tmp_path: Path):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert train("--run", straight, "--no-eval", "--set", "train.max_steps=3").code == 0
    assert train("--run", resumed, "--no-eval", "--set", "train.max_steps=2").code == 0
    ran = train("--run", resumed, "--no-eval", "--set", "train.max_steps=3", "--set", "data.workers=1")
    assert ran.code == 0, ran.err
    assert "resumed after step 2 of 3" in ran.err
    assert_same_weights(resumed, straight)
    assert losses(resumed) == losses(straight)


def test_a_finished_run_is_not_touched(train: Callable[..., Ran], tmp_path: Path):
    run = tmp_path / "run"
    words = ("--run", run, "--no-eval", "--set", "train.max_steps=1")
    assert train(*words).code == 0
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    ran = train(*words)
    assert ran.code == 2
    assert "is finished; its weights are" in ran.err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_without_run_folders_are_numbered(train: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for number in ("1", "2"):
        assert train("--no-eval", "--set", "train.max_steps=1").code == 0
        assert (tmp_path / "runs/tiny" / number / "checkpoints/last/model.safetensors").is_file()


def test_fine_tuning_on_other_classes_says_what_it_keeps(
    train: Callable[..., Ran], codetr: Callable[..., Ran], preset: Path, tmp_path: Path, tiny_coco: Path
):
    first = tmp_path / "first"
    assert train("--run", first, "--no-eval", "--set", "train.max_steps=1").code == 0
    path = tiny_coco / "annotations/instances_train2017.json"
    table = json.loads(path.read_text())
    table["categories"] = [{"id": 7, "name": "ring"}, {"id": 2, "name": "wheel"}, {"id": 3, "name": "bar"},
                           {"id": 5, "name": "moon"}]  # fmt: skip
    path.write_text(json.dumps(table))
    second = tmp_path / "second"
    ran = train("--run", second, "--no-eval", "--set", "train.max_steps=1", "--weights", first)
    assert ran.code == 0, ran.err
    assert "known to the checkpoint: bar, ring" in ran.err
    assert "initialized from scratch: wheel, moon" in ran.err
    assert "moon" in ran.err  # it has no object
    old, new = (load_file(run / "checkpoints/last/model.safetensors") for run in (first, second))
    assert len(new["class_heads.0.weight"]) == 4
    moved = (new["backbone.conv1.weight"] - old["backbone.conv1.weight"]).abs().max()
    assert 0 < moved < 1e-3  # one step from there


# ------------------------------------------------------------------------------------------------------------- dry run


def test_dry_run_shows_settings_and_plan_and_writes_nothing(train: Callable[..., Ran], tmp_path: Path):
    ran = train("--run", tmp_path / "run", "--dry-run", "--set", "train.batch_size=8")
    assert ran.code == 0, ran.err
    assert "num_classes = 3" in ran.out
    assert "8 images per step = 1 process x 2 at a time x 4 accumulated" in ran.out
    assert "4 of" in ran.out
    assert not (tmp_path / "run").exists()


def test_devices_that_only_infer_are_refused_before_anything_is_written(
    train: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    ran = train("--run", tmp_path / "run", "--device", "mps")
    assert ran.code == 5
    assert "--device mps evaluates and predicts, but does not train: the memory check" in " ".join(ran.err.split())
    assert not (tmp_path / "run").exists()


def test_dry_run_as_json(train: Callable[..., Ran], tmp_path: Path):
    plan = train("--run", tmp_path / "run", "--dry-run", "--json").json
    assert plan["settings"]["train"]["batch_size"] == 2
    assert (plan["images"], plan["val_images"], plan["steps_per_epoch"], plan["total_steps"]) == (4, 2, 3, 3)
    assert plan["batches"] == {"batch_size": 2, "micro_batch": 2, "accumulation": 1, "world_size": 1}
    assert plan["device"] == "cpu"
    assert 0 < plan["trained_parameters"] <= plan["parameters"]


# --------------------------------------------------------------------------------------------------------- wrong usage


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--set", "train.batch_size=7"), 2, "train.batch_size=6 or 8"),
        (("--set", "train.lr=fast"), 2, "train.lr"),
        (("--set", "train.batchsize=2"), 2, "did you mean 'train.batch_size'"),
        (("--procs", "3"), 2, "train.batch_size=3, or another number of processes: 1 or 2"),
        (("--gpus", "1", "--procs", "1"), 2, "exclude each other"),
        (("--weights", "nowhere.safetensors"), 4, "nowhere.safetensors"),
        (("--set", "train.precision=fp16"), 2, "fp16"),
        (("--precision", "tf32"), 2, "needs an NVIDIA GPU with TF32: the device is cpu"),
        (("--gpus", "1"), 2, "--device cpu exclude each other"),
    ],
)
def test_wrong_usage_names_the_cure(
    train: Callable[..., Ran], tmp_path: Path, words: tuple[str, ...], code: int, says: str
):
    ran = train("--run", tmp_path / "run", *words)
    assert ran.code == code, ran.err
    assert says in ran.err
    assert "Traceback" not in ran.err
    assert not (tmp_path / "run").exists()


def test_a_gpu_that_is_not_there(codetr: Callable[..., Ran], preset: Path, tiny_coco: Path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    ran = codetr("train", "--preset", preset, "--data", tiny_coco, "--gpus", 2)
    assert ran.code == 5
    assert "--device cpu" in ran.err


def test_an_unknown_preset_suggests_the_nearest(codetr: Callable[..., Ran]):
    ran = codetr("train", "--preset", "co_dino_r5")
    assert ran.code == 2
    assert "co_dino_r50" in ran.err


def test_missing_data_is_named(codetr: Callable[..., Ran], preset: Path, tmp_path: Path):
    ran = codetr("train", "--preset", preset, "--data", tmp_path / "nowhere", "--device", "cpu")
    assert ran.code == 3
    assert "nowhere" in ran.err


def edit(tiny_coco: Path, split: str, change: Callable[[dict[str, Any]], None]) -> None:
    path = tiny_coco / f"annotations/instances_{split}2017.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def test_validation_classes_that_training_does_not_know_are_refused(
    train: Callable[..., Ran], tmp_path: Path, tiny_coco: Path
):
    edit(tiny_coco, "val", lambda table: table["categories"].append({"id": 9, "name": "cube"}))
    ran = train("--run", tmp_path / "run")
    assert ran.code == 3
    assert "cube" in ran.err
    assert "--no-eval" in ran.err
    assert train("--run", tmp_path / "run", "--no-eval", "--set", "train.max_steps=1").code == 0


def test_validation_that_lacks_a_class_is_refused(train: Callable[..., Ran], tmp_path: Path, tiny_coco: Path):
    edit(tiny_coco, "val", lambda table: table.update(categories=table["categories"][1:], annotations=[]))
    ran = train("--run", tmp_path / "run")
    assert ran.code == 3
    assert "ring" in ran.err


def test_annotations_without_an_object_are_refused(train: Callable[..., Ran], tmp_path: Path, tiny_coco: Path):
    edit(tiny_coco, "train", lambda table: table.update(annotations=[]))
    ran = train("--run", tmp_path / "run")
    assert ran.code == 3
    assert "no object" in ran.err


def test_a_class_without_objects_is_warned_of(train: Callable[..., Ran], tmp_path: Path, tiny_coco: Path):
    for split in ("train", "val"):
        edit(tiny_coco, split, lambda table: table["categories"].append({"id": 9, "name": "cube"}))
    ran = train("--run", tmp_path / "run", "--set", "train.max_steps=1")
    assert ran.code == 0, ran.err
    assert "1 of 4 classes have no object" in ran.err
    assert "cube" in ran.err


def test_a_learning_rate_that_is_far_too_high_diverges(train: Callable[..., Ran], tmp_path: Path):
    run = tmp_path / "run"
    ran = train("--run", run, "--no-eval", "--set", "train.lr=1e30", "--set", "train.checkpoint_every=1")
    assert ran.code == 6
    assert "diverged: 2 steps in a row were not finite and were skipped, the last of them step 3" in ran.err
    assert "on the images with id" in ran.err
    assert read_state(run / "checkpoints/last/state.pt")["step"] == 1


def test_a_broken_image_names_the_file_and_keeps_the_run(train: Callable[..., Ran], tmp_path: Path, tiny_coco: Path):
    image = sorted((tiny_coco / "train2017").iterdir())[0]
    image.write_bytes(image.read_bytes()[:100])
    ran = train("--run", tmp_path / "run")
    assert ran.code == 3
    assert image.name in ran.err
    assert "Traceback" not in ran.err


# ---------------------------------------------------------------------------------------------- stopping and processes


def start(preset: Path, tiny_coco: Path, run: Path, *words: object, python: Python = ForkedPython) -> Program:
    command = ("train", "--preset", preset, "--data", tiny_coco, "--run", run, "--device", "cpu", *words)
    return python("-m", "codetr_cli", *command)


def wait_for_steps(process: Program, run: Path, steps: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "metrics.jsonl").is_file() and len((run / "metrics.jsonl").read_text().splitlines()) >= steps:
            return
        time.sleep(0.01)
    raise AssertionError(f"no {steps} steps: {process.communicate(timeout=5)}")


STEPS = ("--no-eval", "--set", "train.max_steps=16", "--set", "train.checkpoint_every=2")


def test_killed_and_started_again_it_ends_as_if_nothing_had_happened(
    train: Callable[..., Ran], preset: Path, tiny_coco: Path, tmp_path: Path
):
    run = tmp_path / "killed"
    process = start(preset, tiny_coco, run, *STEPS)
    wait_for_steps(process, run, 3)
    process.kill()
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    ran = train("--run", run, *STEPS)
    assert ran.code == 0, ran.err
    assert "continuing the interrupted run" in ran.err
    assert train("--run", tmp_path / "straight", *STEPS).code == 0
    assert_same_weights(run, tmp_path / "straight")
    assert losses(run) == losses(tmp_path / "straight")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_a_signal_saves_the_newest_step(
    train: Callable[..., Ran], preset: Path, tiny_coco: Path, tmp_path: Path, number: int, code: int
):
    run = tmp_path / "run"
    process = start(preset, tiny_coco, run, "--no-eval", "--set", "train.max_steps=500", "--set", "data.workers=1")
    wait_for_steps(process, run, 2)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "start the same command again to continue" in err
    assert "finishing this step and saving" in err.lower()
    assert "Traceback" not in err
    state = read_state(run / "checkpoints/last/state.pt")
    assert state["step"] == metrics(run)[-1]["step"]


@pytest.mark.parametrize("python", [ForkedPython, pytest.param(new_python, marks=pytest.mark.slow)])
def test_two_processes_train_one_model(preset: Path, tiny_coco: Path, tmp_path: Path, python: Python):
    run = tmp_path / "run"
    process = start(preset, tiny_coco, run, "--procs", 2, "--json", python=python)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert json.loads(out)["steps"] == 3
    assert [line["kind"] for line in metrics(run)] == ["train"] * 3 + ["eval", "end"]
    state = read_state(run / "checkpoints/last/state.pt")
    assert state["world_size"] == 2
    assert not torch.equal(state["randomness"][0]["torch"], state["randomness"][1]["torch"])
    assert "Warning" not in err
    # Only one process prints, and in plain lines where there is no terminal.
    said = err.splitlines()
    assert [line for line in said if said.count(line) > 1] == []
    assert len([line for line in said if line.startswith("evaluation of step 3 (epoch 1): AP")]) == 1
    assert "\x1b" not in err
    assert "\r" not in err


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_two_processes_stop_together(preset: Path, tiny_coco: Path, tmp_path: Path, number: int, code: int):
    run = tmp_path / "run"
    words = ("--procs", 2, "--no-eval", "--set", "train.max_steps=500")
    process = start(preset, tiny_coco, run, *words, python=new_python)
    wait_for_steps(process, run, 2)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert err.count("start the same command again to continue") == 1
    assert "Traceback" not in err
    state = read_state(run / "checkpoints/last/state.pt")
    assert state["step"] == metrics(run)[-1]["step"]


@pytest.mark.slow
def test_an_error_in_one_process_is_told_once(preset: Path, tiny_coco: Path, tmp_path: Path):
    image = sorted((tiny_coco / "train2017").iterdir())[0]
    image.write_bytes(b"")
    words = ("--procs", 2, "--no-eval")
    process = start(preset, tiny_coco, tmp_path / "run", *words, python=new_python)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 3, err
    assert image.name in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_the_processes_of_a_killed_launcher_save_and_leave(preset: Path, tiny_coco: Path, tmp_path: Path):
    run = tmp_path / "run"
    words = ("--procs", 2, "--no-eval", "--set", "train.max_steps=500")
    process = start(preset, tiny_coco, run, *words, python=new_python)
    wait_for_steps(process, run, 2)
    process.kill()
    process.communicate(timeout=60)  # both streams end only when every process has left
    state = read_state(run / "checkpoints/last/state.pt")
    assert state["step"] == metrics(run)[-1]["step"]
    assert metrics(run)[-1]["step"] < 500
