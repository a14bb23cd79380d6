"""Which processes a server has, and how they share a port."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from codetr_cli.errors import ConfigError, ResourceError
from codetr_cli.serving import workers
from codetr_cli.serving.options import METRICS_FOLDER, ServeOptions
from codetr_cli.serving.workers import ServeJob, place_workers, shared_port

JOB = ServeJob("x.safetensors", [], "auto", ServeOptions(port=0))


def test_one_process_by_default():
    assert place_workers("cpu", gpus=None, workers=None).processes == 1
    assert place_workers("cpu", gpus=None, workers=1).processes == 1


@pytest.mark.skipif(sys.platform != "linux", reason="several processes share a port on Linux")
def test_several_processes_on_one_port():
    placement = place_workers("cpu", gpus=None, workers=3)
    assert placement.processes == 3
    with shared_port(JOB, placement) as job:
        assert job.options.port > 0
        assert Path(os.environ[METRICS_FOLDER]).is_dir()
        others = [workers.bind(job.options, shared=True) for _ in range(2)]
        for other in others:
            other.listen()
        with pytest.raises(ResourceError, match="cannot listen"):  # another server is not one of them
            workers.bind(job.options)
        for other in others:
            other.close()
    assert METRICS_FOLDER not in os.environ


def test_a_process_for_each_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(workers, "choose_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(sys, "platform", "linux")
    assert place_workers("auto", gpus=2, workers=None).processes == 2
    assert place_workers("auto", gpus=2, workers=4).processes == 4
    with pytest.raises(ResourceError, match="this machine has 2, use --gpus 2"):
        place_workers("auto", gpus=3, workers=None)
    with pytest.raises(ConfigError, match="--workers 1 is fewer than --gpus 2"):
        place_workers("auto", gpus=2, workers=1)
    with pytest.raises(ConfigError, match="exclude each other"):
        place_workers("cpu", gpus=2, workers=None)


def test_other_systems_have_one_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ResourceError, match="on Linux only"):
        place_workers("cpu", gpus=None, workers=2)
