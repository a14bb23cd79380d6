from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from codetr_cli.data.batch import Batch
from codetr_cli.data.loading import worker_process, workers
from codetr_cli.data.loading.transport import SharedBatch, pack
from codetr_cli.data.loading.workers import MAX_REPLACEMENTS, BatchReader
from codetr_cli.errors import ResourceError
from tests.data.loading.fakes import ORDER, Images, same
from tests.forked import run_forked

linux = pytest.mark.skipif(sys.platform != "linux", reason="injects what only Linux has")


@pytest.fixture
def expected(tmp_path: Path) -> list[Batch]:
    return list(BatchReader(Images(tmp_path), ORDER, workers=0))


@linux
@pytest.mark.parametrize("fault", ["SIGKILL", "SIGBUS", "exit"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_dead_worker_is_replaced_and_no_batch_is_lost(
    tmp_path: Path, expected: list[Batch], fault: str, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    reader = BatchReader(Images(tmp_path, fault), ORDER, workers=count)
    assert same(list(reader), expected)
    (text,) = caplog.messages
    assert (fault if fault.startswith("SIG") else "exit code 3") in text
    assert str(tmp_path / "5.jpg") in text
    assert "replaced" in text
    assert ("/dev/shm" in text) == (fault == "SIGBUS")


@linux
def test_workers_that_always_die_raise_a_resource_error(tmp_path: Path) -> None:
    reader = BatchReader(Images(tmp_path, "SIGKILL", times=99), ORDER, workers=2)
    with pytest.raises(ResourceError, match=r"5\.jpg.*memory.*data\.workers") as caught:
        list(reader)
    assert caught.value.exit_code == 5
    assert len(list(tmp_path.glob("fault*"))) == MAX_REPLACEMENTS + 1
    assert reader.processes == []


@linux
def test_a_death_beside_the_reading_interrupts_nothing(
    tmp_path: Path, expected: list[Batch], caplog: pytest.LogCaptureFixture
) -> None:
    reader = BatchReader(Images(tmp_path), ORDER, workers=2, keep_workers=True)
    batches = iter(reader)
    read = [next(batches)]
    victim = reader.processes[0]
    os.kill(victim.pid or 0, signal.SIGKILL)
    until = time.monotonic() + 0.3
    while time.monotonic() < until:  # a handler of SIGCHLD would raise here
        sum(range(1000))
    assert same([*read, *batches], expected)
    assert len(caplog.messages) == 1
    assert same(list(reader), expected)  # the next epoch has the new workers
    assert all(process.is_alive() for process in reader.processes)


@linux
def test_a_worker_that_died_between_two_iterations_is_replaced(
    tmp_path: Path, expected: list[Batch], caplog: pytest.LogCaptureFixture
) -> None:
    reader = BatchReader(Images(tmp_path), ORDER, workers=2, keep_workers=True)
    assert same(list(reader), expected)
    victim = reader.processes[0]
    os.kill(victim.pid or 0, signal.SIGKILL)
    victim.join()
    assert same(list(reader), expected)
    (text,) = caplog.messages
    assert f"process {victim.pid}) was killed by SIGKILL after reading {tmp_path}" in text


def test_an_unfinished_iteration_does_not_block_the_next(
    tmp_path: Path, expected: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "POLL_S", 0.5)
    reader = BatchReader(Images(tmp_path, "stop", at=3), ORDER, workers=1, keep_workers=True)
    assert same([next(iter(reader))], expected[:1])
    while not (tmp_path / "fault0").exists():
        time.sleep(0.01)  # until the worker is at the image that takes a minute
    assert same(list(reader), expected)
    reader.close()


@linux
def test_a_hanging_worker_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "POLL_S", 0.1)
    reader = BatchReader(Images(tmp_path, "stop"), ORDER, workers=1, timeout_s=0.3)
    with pytest.raises(ResourceError, match=r"no data for 0 seconds.*process \d+ at .*5\.jpg.*timeout_minutes"):
        list(reader)
    assert reader.processes == []


def test_a_worker_without_memory_is_reported(tmp_path: Path) -> None:
    reader = BatchReader(Images(tmp_path, "memory"), ORDER, workers=1)
    with pytest.raises(ResourceError, match=r"out of memory with .*5\.jpg"):
        list(reader)


@linux
def test_without_shared_memory_batches_come_through_pipes(
    tmp_path: Path, expected: list[Batch], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    shared = pack([Images(tmp_path)[0]])
    assert isinstance(shared, SharedBatch)
    assert isinstance(shared.block, np.ndarray)
    reader = BatchReader(Images(tmp_path), ORDER, workers=2)
    assert same(list(reader), expected)
    assert same(list(reader), expected)
    (text,) = caplog.messages
    assert "No space left on device" in text
    assert "--shm-size" in text


SCRIPT = """
import os, resource, sys
sys.path.insert(0, {root!r})
from pathlib import Path
import logging
from codetr_cli.data.loading.workers import BatchReader
from tests.data.loading.fakes import ORDER, Images, same
if {limit!r}:
    resource.setrlimit(resource.RLIMIT_NOFILE, {limit!r})
expected = list(BatchReader(Images(Path({folder!r})), ORDER, workers=0))
logging.basicConfig(stream=sys.stdout, format="%(message)s")
read = []
try:
    for batch in BatchReader(Images(Path({folder!r})), ORDER, workers={workers}):
        read.append(batch)  # holds all of them
    print("same" if same(read, expected) else "other")
except Exception as error:
    print(type(error).__name__, error)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def run_script(folder: Path, *, limit: tuple[int, int] | None = None, count: int = 2, before: str = "") -> list[str]:
    root = str(Path(__file__).parents[2])
    script = SCRIPT.format(root=root, folder=str(folder), limit=limit, workers=count)
    if before:
        command = ["unshare", "-m", "sh", "-c", f'{before} && exec "$@"', "sh", sys.executable, "-c", script]
        done = subprocess.run(command, timeout=60, check=False, capture_output=True, text=True)
    else:
        done = run_forked("-c", script, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@linux
def test_the_limit_of_open_files_is_raised_as_far_as_it_may(tmp_path: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = worker_process.DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, worker_process.DESCRIPTORS)
    assert run_script(tmp_path, limit=(32, wanted)) == ["same", str(wanted)]


@linux
def test_a_hard_limit_of_open_files_suffices_or_is_named(tmp_path: Path) -> None:
    assert run_script(tmp_path, limit=(64, 64)) == ["same", "64"]
    text, _ = run_script(tmp_path, limit=(24, 24), count=8)
    assert text.startswith("ResourceError")
    assert "ulimit -n" in text


@linux
def test_a_real_shm_that_is_too_small(tmp_path: Path) -> None:
    mount = "mount -t tmpfs -o size={} none /dev/shm"
    if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("needs the right to mount")
    warning, result, _ = run_script(tmp_path, before=mount.format("256k"))
    assert warning.startswith("no shared memory for batches")
    assert result == "same"
    (text, _) = run_script(tmp_path, before=mount.format("8k"))
    assert text.startswith("ResourceError cannot start 2 data workers: No space left on device")
    assert "--shm-size" in text


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="this system has no signal masks")
def test_a_process_that_starts_is_not_interrupted_before_it_can_handle_it() -> None:
    script = """
import os, signal
from codetr_cli.data.loading.worker_process import interrupts_held, release_interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)
reader, writer = os.pipe()
with interrupts_held():
    child = os.fork()
    os.kill(os.getpid() if child == 0 else child, signal.SIGINT)
    if child == 0:
        os.read(reader, 1)
        try:
            release_interrupts()
        except KeyboardInterrupt:
            os._exit(7)
        os._exit(1)
os.write(writer, b"x")
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""
    ran = run_forked("-c", script)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "7 set()\n", "")
