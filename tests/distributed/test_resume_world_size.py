"""A real training that continues with another number of processes in the middle of an epoch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from codetr_cli.config.overrides import parse_settings, to_toml
from codetr_cli.data.demo import write_demo
from codetr_cli.runs.folder import read_state
from tests.conftest import REPOSITORY, TINY_TABLE

IMAGES = 11

SCRIPT = """
import os, sys
from functools import partial
from pathlib import Path
import torch
from codetr_cli.config.presets import load_preset
from codetr_cli.data.coco import CocoDataset
from codetr_cli.distributed.launcher import LaunchSpec, launch
from codetr_cli.training.plan import plan_job
from codetr_cli.training.reporter import SilentReporter
from codetr_cli.runs.resume import RunChoice
from codetr_cli.training.setup import run_training

FOLDER = Path(sys.argv[1])

def work(part, *overrides):
    read = CocoDataset.__getitem__

    def noted(dataset, key):
        with (FOLDER / f"{part}.txt").open("a") as file:
            file.write(f"{key[0]} {key[1]}\\n")
        return read(dataset, key)

    CocoDataset.__getitem__ = noted
    settings = load_preset(str(FOLDER / "tiny.toml"), list(overrides))
    job = plan_job(settings, data=str(FOLDER / "data"), evaluate=False)
    choice = RunChoice(FOLDER / "run", part != "a", "")
    run_training(job, device=torch.device("cpu"), choice=choice, reporter=SilentReporter())
    CocoDataset.__getitem__ = read

if __name__ == "__main__":
    plan = LaunchSpec(processes=2, max_restarts=0)
    launch(partial(work, "a", "train.max_steps=3"), (), plan)  # 6 of 11 images
    work("b", "train.max_steps=4")  # 2 more
    work("c", "train.micro_batch=1")  # 3 more, and a whole epoch
"""


@pytest.mark.slow
def test_two_processes_then_one_then_another_micro_batch_use_each_image_once(tmp_path: Path):
    write_demo(tmp_path / "data", train=IMAGES, val=1, size=96)
    table = {**TINY_TABLE, "train": {**TINY_TABLE["train"], "epochs": 2}}
    table["data"] = {**TINY_TABLE["data"], "aspect_grouping": False}
    (tmp_path / "tiny.toml").write_text(to_toml(parse_settings(table, where="test")))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    ran = subprocess.run(
        [sys.executable, script, tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    used = {part: [line.split() for line in (tmp_path / f"{part}.txt").read_text().splitlines()] for part in "abc"}
    epochs = [[int(index) for part in "abc" for epoch, index in used[part] if epoch == which] for which in "01"]
    assert [len(used[part]) for part in "ab"] == [6, 2]
    assert sorted(epochs[0]) == list(range(IMAGES))
    assert sorted(epochs[1]) == list(range(IMAGES))
    # 3 + 1 + 2 steps of the first epoch, 6 of the second.
    state = read_state(tmp_path / "run/checkpoints/last/state.pt")
    position = state["position"]
    assert (state["world_size"], state["micro_batch"]) == (1, 1)
    assert (position["step"], position["epoch"], position["segments"]) == (12, 2, [])
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 13))
    events = (tmp_path / "run" / "events.log").read_text()
    assert "with 2 x 1 images at once (processes x images of each) and continues with 1 x 2" in events
    assert "with 1 x 2 images at once (processes x images of each) and continues with 1 x 1" in events
