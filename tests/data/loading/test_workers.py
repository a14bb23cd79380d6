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
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from codetr_cli.data.batch import Batch, Target
from codetr_cli.data.loading import worker_process, workers
from codetr_cli.data.loading.transport import SharedBatch, pack
from codetr_cli.data.loading.workers import REPLACEMENTS, Reader
from codetr_cli.errors import ResourceError

ORDER = [[(0, index), (0, index + 1)] for index in range(0, 12, 2)]
linux = pytest.mark.skipif(sys.platform != "linux", reason="injects what only Linux has")


class Images:
    """Random images, of which some do something to the worker that reads them."""

    def __init__(self, folder: Path, fault: str = "", at: int = 5, times: int = 1) -> None:
        self.folder, self.fault, self.at, self.times = folder, fault, at, times

    def __len__(self) -> int:
        return 12

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[np.ndarray, Target]:
        index = key[1] if isinstance(key, tuple) else key
        if self.fault and index == self.at and self._is_due():
            if self.fault == "stop":
                time.sleep(60)
            if self.fault == "exit":
                os._exit(3)
            if self.fault == "memory":
                raise MemoryError
            os.kill(os.getpid(), getattr(signal, self.fault))
        random = np.random.default_rng(index)
        height, width = random.integers(20, 60, 2).tolist()
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        target = {
            "boxes": torch.from_numpy(random.random((index, 4), dtype=np.float32)),
            "labels": torch.arange(index),
            "image_id": index,
            "size": (height, width),
            "pad_size": (height + 3, width + 5),
            "masks": torch.from_numpy(random.integers(0, 2, (index, height + 3, width + 5), dtype=np.uint8)),
        }
        return image, target

    def image_path(self, index: int) -> Path:
        return self.folder / f"{index}.jpg"

    def _is_due(self) -> bool:
        done = len(list(self.folder.glob("fault*")))
        if done < self.times:
            (self.folder / f"fault{done}").touch()
        return done < self.times


def same(first: list[Batch], second: list[Batch]) -> bool:
    for a, b in zip(first, second, strict=True):
        if not (torch.equal(a.images, b.images) and torch.equal(a.padding_mask, b.padding_mask)):
            return False
        for one, other in zip(a.targets, b.targets, strict=True):
            if list(one) != list(other) or any(
                not torch.equal(torch.as_tensor(one[key]), torch.as_tensor(other[key])) for key in one
            ):
                return False
    return True


@pytest.fixture
def expected(tmp_path: Path) -> list[Batch]:
    return list(Reader(Images(tmp_path), ORDER, workers=0))


def test_a_parcel_holds_the_batch_whole(tmp_path: Path, expected: list[Batch]) -> None:
    images = Images(tmp_path)
    parcel = pack([images[4], images[5]])
    assert parcel.trouble is None
    assert isinstance(parcel.block, bytes)
    assert len(parcel.block) < 1000  # what is large is shared, not sent
    assert same([parcel.open()], [expected[2]])
    assert expected[2].padding_mask.dtype == torch.bool
    assert expected[2].padding_mask[0, -3:].all()


@linux
@pytest.mark.parametrize("fault", ["SIGKILL", "SIGBUS", "exit"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_dead_worker_is_replaced_and_no_batch_is_lost(
    tmp_path: Path, expected: list[Batch], fault: str, count: int
) -> None:
    told: list[str] = []
    reader = Reader(Images(tmp_path, fault), ORDER, workers=count, tell=told.append)
    assert same(list(reader), expected)
    (text,) = told
    assert (fault if fault.startswith("SIG") else "exit code 3") in text
    assert str(tmp_path / "5.jpg") in text
    assert "replaced" in text
    assert ("/dev/shm" in text) == (fault == "SIGBUS")


@linux
def test_workers_that_always_die_end_as_a_fault_of_the_machine(tmp_path: Path) -> None:
    reader = Reader(Images(tmp_path, "SIGKILL", times=99), ORDER, workers=2, tell=lambda text: None)
    with pytest.raises(ResourceError, match=r"5\.jpg.*memory.*data\.workers") as caught:
        list(reader)
    assert caught.value.exit_code == 5
    assert len(list(tmp_path.glob("fault*"))) == REPLACEMENTS + 1
    assert reader.processes == []


@linux
def test_a_death_beside_the_reading_interrupts_nothing(tmp_path: Path, expected: list[Batch]) -> None:
    told: list[str] = []
    reader = Reader(Images(tmp_path), ORDER, workers=2, keep_workers=True, tell=told.append)
    batches = iter(reader)
    read = [next(batches)]
    victim = reader.processes[0]
    os.kill(victim.pid or 0, signal.SIGKILL)
    until = time.monotonic() + 0.3
    while time.monotonic() < until:  # a handler of SIGCHLD would raise here
        sum(range(1000))
    assert same([*read, *batches], expected)
    assert len(told) == 1
    assert same(list(reader), expected)  # the next epoch has the new workers
    assert all(process.is_alive() for process in reader.processes)


@linux
def test_a_death_between_two_readings_is_mended_by_the_next(tmp_path: Path, expected: list[Batch]) -> None:
    told: list[str] = []
    reader = Reader(Images(tmp_path), ORDER, workers=2, keep_workers=True, tell=told.append)
    assert same(list(reader), expected)
    victim = reader.processes[0]
    os.kill(victim.pid or 0, signal.SIGKILL)
    victim.join()
    assert same(list(reader), expected)
    (text,) = told
    assert f"process {victim.pid}) was killed by SIGKILL when it had read {tmp_path}" in text


def test_a_reading_that_is_left_does_not_hold_up_the_next(
    tmp_path: Path, expected: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "POLL_S", 0.5)
    reader = Reader(Images(tmp_path, "stop", at=3), ORDER, workers=1, keep_workers=True)
    assert same([next(iter(reader))], expected[:1])
    while not (tmp_path / "fault0").exists():
        time.sleep(0.01)  # until the worker is at the image that takes a minute
    assert same(list(reader), expected)
    reader.close()


@linux
def test_a_hanging_worker_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "POLL_S", 0.1)
    reader = Reader(Images(tmp_path, "stop"), ORDER, workers=1, patience_s=0.3)
    with pytest.raises(ResourceError, match=r"no data for 0 seconds.*process \d+ at .*5\.jpg.*timeout_minutes"):
        list(reader)
    assert reader.processes == []


def test_a_worker_without_memory_says_so(tmp_path: Path) -> None:
    reader = Reader(Images(tmp_path, "memory"), ORDER, workers=1)
    with pytest.raises(ResourceError, match=r"out of memory with .*5\.jpg"):
        list(reader)


@linux
def test_without_shared_memory_batches_come_through_pipes(
    tmp_path: Path, expected: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    parcel = pack([Images(tmp_path)[0]])
    assert isinstance(parcel, SharedBatch)
    assert isinstance(parcel.block, np.ndarray)
    told: list[str] = []
    reader = Reader(Images(tmp_path), ORDER, workers=2, tell=told.append)
    assert same(list(reader), expected)
    assert same(list(reader), expected)
    (text,) = told
    assert "No space left on device" in text
    assert "--shm-size" in text


SCRIPT = """
import os, resource, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.data.loading.test_workers import ORDER, Images, Reader, same
if {limit!r}:
    resource.setrlimit(resource.RLIMIT_NOFILE, {limit!r})
expected = list(Reader(Images(Path({folder!r})), ORDER, workers=0))
told = []
read = []
try:
    for batch in Reader(Images(Path({folder!r})), ORDER, workers={workers}, tell=told.append):
        read.append(batch)  # holds all of them
    print("same" if same(read, expected) else "other", *told)
except Exception as error:
    print(type(error).__name__, error)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def run_script(folder: Path, *, limit: tuple[int, int] | None = None, count: int = 2, before: str = "") -> list[str]:
    root = str(Path(__file__).parents[2])
    script = SCRIPT.format(root=root, folder=str(folder), limit=limit, workers=count)
    command = [sys.executable, "-c", script]
    if before:
        command = ["unshare", "-m", "sh", "-c", f'{before} && exec "$@"', "sh", *command]
    done = subprocess.run(command, timeout=60, check=False, capture_output=True, text=True)
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
    (text, _) = run_script(tmp_path, before=mount.format("256k"))
    assert text.startswith("same no shared memory for batches")
    (text, _) = run_script(tmp_path, before=mount.format("8k"))
    assert text.startswith("ResourceError cannot start 2 data workers: No space left on device")
    assert "--shm-size" in text


def test_a_parcel_is_opened_by_torchs_thread_for_pinned_memory(
    tmp_path: Path, expected: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    images = Images(tmp_path)
    arrived = pin_memory(pack([images[4], images[5]]))
    batch = arrived.open()
    assert same([batch], [expected[2]])
    assert any(batch.images is tensor for tensor in pinned)  # not what lies in shared memory
    error = ResourceError("passes as it is")
    assert pin_memory(error) is error
