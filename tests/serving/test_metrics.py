"""Numbers for Prometheus: of one process, and of several that share files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("prometheus_client", reason="the extra serve is not installed")

from codetr_cli.serving.metrics import STAGES, Metrics
from codetr_cli.serving.options import METRICS_FOLDER
from tests.forked import run_forked

PROGRAM = """
import sys
from codetr_cli.serving.metrics import Metrics, forget_dead_processes
forget_dead_processes()
metrics = Metrics()
metrics.images.inc(2)
metrics.queue.set(3)
metrics.requests.labels("/v1/detect", "200", "").inc()
sys.stdout.buffer.write(metrics.text())
"""


def test_one_process():
    metrics = Metrics("1.2.3")
    metrics.requests.labels("/v1/detect", "429", "queue_full").inc()
    metrics.batches.observe(3)
    text = metrics.text().decode()
    assert 'codetr_requests_total{code="queue_full",route="/v1/detect",status="429"} 1.0' in text
    assert 'codetr_batch_images_bucket{le="4.0"} 1.0' in text
    assert 'codetr_build_info{version="1.2.3"} 1.0' in text
    assert all(f'codetr_stage_seconds_count{{stage="{stage}"}} 0.0' in text for stage in STAGES)
    assert "_created" not in text
    memory = next(line for line in text.splitlines() if line.startswith("codetr_resident_memory_bytes "))
    assert float(memory.split()[1]) > 2**20 or sys.platform != "linux"


@pytest.mark.skipif(sys.platform != "linux", reason="several processes share a port on Linux")
def test_several_processes_add_up_and_dead_ones_have_no_queue(tmp_path: Path):
    for _ in range(3):
        done = run_forked("-c", PROGRAM, **{METRICS_FOLDER: str(tmp_path)})
        assert done.returncode == 0, done.stderr
    assert "codetr_images_total 6.0" in done.stdout
    assert 'status="200"} 3.0' in done.stdout
    assert "codetr_queue_images 3.0" in done.stdout  # of the process that lives
