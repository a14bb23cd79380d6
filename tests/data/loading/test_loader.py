from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from codetr_cli.config.schema import Settings
from codetr_cli.data.batch import Batch
from codetr_cli.data.coco import CocoDataset, build_dataset
from codetr_cli.data.loading.loader import (
    AspectGroupedSampler,
    EvalLoader,
    Segment,
    TrainLoader,
    build_train_loader,
)
from codetr_cli.errors import DatasetError
from tests.forked import run_forked

FLAGS = np.array([1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1])


def make_sampler(rank: int = 0, world_size: int = 1, micro_batch: int = 2, seed: int = 0) -> AspectGroupedSampler:
    return AspectGroupedSampler(FLAGS, micro_batch=micro_batch, rank=rank, world_size=world_size, seed=seed)


@pytest.fixture
def dataset(mixed_coco: Path) -> CocoDataset:
    settings = Settings.model_validate(
        {
            "name": "x",
            "data": {"root": str(mixed_coco), "short_sides": (32, 40), "long_side": 64, "crop_size": (20, 30)},
        }
    )
    return build_dataset(settings, split="train", training=True)


def make_loader(dataset: CocoDataset, workers: int = 0) -> TrainLoader:
    return build_train_loader(
        dataset, micro_batch=2, workers=workers, seed=3, rank=0, world_size=1, aspect_grouping=True
    )


def equal(a: Batch, b: Batch) -> bool:
    return torch.equal(a.images, b.images) and [t["image_id"] for t in a.targets] == [t["image_id"] for t in b.targets]


@pytest.mark.parametrize(("micro_batch", "world_size"), [(1, 1), (2, 1), (2, 2), (3, 4), (2, 16)])
def test_ranks_together_cover_every_image_in_batches_of_one_orientation(micro_batch: int, world_size: int) -> None:
    ranks = [make_sampler(rank, world_size, micro_batch) for rank in range(world_size)]
    assert len({len(sampler) for sampler in ranks}) == 1
    batches = np.concatenate([sampler.batches(5) for sampler in ranks])
    assert set(batches.ravel().tolist()) == set(range(len(FLAGS)))
    assert all(len(set(FLAGS[batch].tolist())) == 1 for batch in batches)
    counts = Counter(batches.ravel().tolist())
    for group in (0, 1):
        members = [counts[int(i)] for i in np.flatnonzero(group == FLAGS)]
        assert max(members) - min(members) <= 1


def test_order_changes_with_epoch_and_seed_and_repeats_with_both() -> None:
    orders = [make_sampler(seed=seed).batches(epoch).tolist() for seed in (0, 10) for epoch in (0, 1)]
    assert len({str(order) for order in orders}) == 4
    assert make_sampler().batches(1).tolist() == orders[1]


@pytest.mark.parametrize("seed", [-1, 2**64 - 1])
def test_every_seed_has_an_order(seed: int) -> None:
    sampler = make_sampler(seed=seed)
    assert sampler.batches(3).tolist() == make_sampler(seed=2**64 - 1).batches(3).tolist()


def test_sampler_resumes_from_any_batch() -> None:
    sampler = make_sampler()
    sampler.set_epoch(2)
    whole = list(sampler)
    sampler.set_epoch(2, start_batch=4)
    assert list(sampler) == whole[4:]
    assert len(sampler) == len(whole) - 4
    assert all(epoch == 2 for batch in whole for epoch, _ in batch)


MANY = np.random.default_rng(0).integers(0, 2, 61)


def epoch_at_widths(*widths: tuple[int, int, int], other: int | None = None) -> list[list[int]]:
    """The images of one epoch, a list for each of the segments (processes, images at once, batches); -1: to the end.

    Args:
        widths: of the segments.
        other: batch of the first segment from which on, and in all later ones, batches come in another order.
    """
    used: list[list[int]] = []
    segments: list[Segment] = []
    for number, (world_size, micro_batch, count) in enumerate(widths):
        order = other if number == 0 or other is None else 0
        found: list[int] = []
        lengths = set()
        for rank in range(world_size):
            sampler = AspectGroupedSampler(MANY, micro_batch=micro_batch, rank=rank, world_size=world_size, seed=3)
            lengths.add(sampler.set_epoch(4, 0, order, segments))
            batches = list(sampler)
            assert all(len({MANY[index] for _, index in batch}) == 1 for batch in batches)
            assert {epoch for batch in batches for epoch, _ in batch} <= {4}
            begun = batches[:count] if count >= 0 else batches
            found += [index for batch in begun for _, index in batch]
            if count > 0:  # and a stop within a segment changes nothing in it
                sampler.set_epoch(4, count, order, segments)
                assert list(sampler) == batches[count:]
        assert len(lengths) == 1
        used.append(found)
        segments.append((world_size, micro_batch, count, order))
    return used


@pytest.mark.parametrize("other", [None, 0, 3])
@pytest.mark.parametrize(
    "widths",
    [
        [(2, 1, 9), (1, 1, -1)],
        [(1, 1, 20), (2, 1, -1)],
        [(2, 2, 7), (3, 2, -1)],
        [(2, 4, 3), (2, 1, -1)],
        [(1, 1, 40), (1, 4, -1)],
        [(2, 2, 5), (1, 3, 4), (3, 1, -1)],
        [(3, 1, 6), (1, 1, 6), (3, 1, 6), (2, 2, -1)],
        [(8, 2, 3), (5, 3, -1)],
    ],
)
def test_an_epoch_at_several_widths_uses_each_image_and_repeats_only_to_fill_up(
    widths: list[tuple[int, int, int]], other: int | None
) -> None:
    used = epoch_at_widths(*widths, other=other)
    counts = Counter(index for segment in used for index in segment)
    assert set(counts) == set(range(len(MANY)))
    # No image of an earlier segment comes again, and within a segment a group is repeated less than once around.
    for number, segment in enumerate(used):
        before = {index for earlier in used[:number] for index in earlier}
        assert not before & set(segment)
        world_size, micro_batch, _ = widths[number]
        repeated = len(segment) - len(set(segment))
        assert repeated <= 2 * (world_size * micro_batch - 1)  # two groups
    first = epoch_at_widths(widths[0], other=other)[0]
    assert first == used[0]


def test_the_first_segment_is_the_published_order_and_later_ones_differ() -> None:
    sampler = make_sampler()
    plain = sampler.batches(2)
    assert sampler.set_epoch(2, 0, None, []) == len(plain)
    assert [[index for _, index in batch] for batch in sampler] == plain.tolist()
    # A segment of no batch leaves all images, which are divided again.
    again = sampler.batches(2, [(2, 1, 0, None)])
    assert sorted(again.ravel().tolist()) == sorted(plain.ravel().tolist())
    assert again.tolist() != plain.tolist()


def test_nothing_may_be_left_for_another_width() -> None:
    """When only the images are left that filled the batches up, the epoch is over."""
    groups = np.zeros(3, np.int64)
    ranks = [AspectGroupedSampler(groups, micro_batch=1, rank=rank, world_size=2, seed=0) for rank in range(2)]
    whole = [ranks[rank].batches(0).ravel().tolist() for rank in range(2)]
    assert sorted(set(whole[0] + whole[1])) == [0, 1, 2]
    lengths = set()
    for epoch in range(20):
        one = AspectGroupedSampler(groups, micro_batch=1, rank=0, world_size=1, seed=0)
        lengths.add(one.set_epoch(epoch, 0, None, [(2, 1, 1, None)]))
    assert lengths == {1, 2}  # the same image twice at once, or two of the three
    assert one.set_epoch(0, 0, None, [(2, 1, 2, None)]) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_repeat_and_resume_with_any_number_of_workers(dataset: CocoDataset, workers: int) -> None:
    reference = make_loader(dataset)
    loader = make_loader(dataset, workers)
    for epoch in (0, 1):
        reference.set_epoch(epoch)
        loader.set_epoch(epoch)
        expected = list(reference)
        assert len(expected) == len(loader) == 2
        assert all(equal(a, b) for a, b in zip(expected, loader, strict=True))
    loader.set_epoch(1, start_batch=1)
    (rest,) = list(loader)
    assert equal(rest, expected[1])
    # Leaving an epoch early and starting another must not mix the two.
    loader.set_epoch(0)
    next(iter(loader))
    loader.set_epoch(1)
    assert all(equal(a, b) for a, b in zip(expected, loader, strict=True))


def test_without_grouping_all_images_are_one_group(dataset: CocoDataset) -> None:
    loader = build_train_loader(dataset, micro_batch=4, workers=0, seed=0, rank=0, world_size=1, aspect_grouping=False)
    (batch,) = list(loader)
    assert sorted(target["image_id"] for target in batch.targets) == [7, 17, 27, 47]


@pytest.mark.parametrize(("batch_size", "world_size"), [(1, 1), (2, 1), (3, 2), (2, 4), (1, 9)])
def test_evaluation_gives_each_image_once_over_all_ranks(mixed_coco: Path, batch_size: int, world_size: int) -> None:
    settings = Settings.model_validate({"name": "x", "test": {"short_side": 32, "long_side": 64}})
    dataset = build_dataset(settings, split="val", training=False, data=str(mixed_coco))
    seen: list[int] = []
    for rank in range(world_size):
        loader = EvalLoader(dataset, batch_size=batch_size, workers=0, rank=rank, world_size=world_size)
        batches = list(loader)
        assert len(loader) == len(batches)
        seen += [target["image_id"] for batch in batches for target in batch.targets]
    assert sorted(seen) == dataset.image_ids


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_stops_training_with_its_name_only(dataset: CocoDataset, workers: int) -> None:
    dataset.image_path(1).write_bytes(b"")
    with pytest.raises(DatasetError, match=dataset.file_names[1]) as caught:
        list(make_loader(dataset, workers))
    assert "Traceback" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_workers_outlive_a_signal_to_all_processes(dataset: CocoDataset) -> None:
    loader = make_loader(dataset, workers=1)
    expected = list(loader)
    (worker,) = loader.reader.processes
    assert os.getpgid(worker.pid) != os.getpgid(0)
    os.kill(worker.pid, signal.SIGTERM)
    os.kill(worker.pid, signal.SIGINT)
    worker.join(timeout=0.3)
    assert worker.is_alive()
    assert all(equal(a, b) for a, b in zip(expected, loader, strict=True))


def test_a_process_that_leaves_in_the_middle_of_an_epoch_ends_its_workers(mixed_coco: Path) -> None:
    script = f"""
import sys
from codetr_cli.config.schema import Settings
from codetr_cli.data.coco import build_dataset
from codetr_cli.data.loading.loader import build_train_loader
settings = Settings.model_validate({{"name": "x", "data": {{"root": {str(mixed_coco)!r}}}}})
dataset = build_dataset(settings, split="train", training=True)
loader = build_train_loader(
    dataset, micro_batch=1, workers=2, seed=0, rank=0, world_size=1, aspect_grouping=True
)
batches = iter(loader)
next(batches)
sys.exit(7)
"""
    finished = run_forked("-c", script, timeout=60)
    assert (finished.returncode, finished.stderr) == (7, "")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are started as the system has it")
def test_workers_are_copies_also_in_a_process_that_was_started_afresh(
    dataset: CocoDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What multiprocessing does in the processes of a launcher.
    monkeypatch.setattr(
        multiprocessing.context._default_context, "_actual_context", multiprocessing.get_context("spawn")
    )
    loader = make_loader(dataset, workers=1)
    next(iter(loader))
    (worker,) = loader.reader.processes
    assert type(worker).__name__ == "ForkProcess"


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent-death signal")
def test_workers_die_with_a_killed_process(mixed_coco: Path) -> None:
    script = f"""
import os, signal
from codetr_cli.config.schema import Settings
from codetr_cli.data.coco import build_dataset
from codetr_cli.data.loading.loader import build_train_loader
settings = Settings.model_validate({{"name": "x", "data": {{"root": {str(mixed_coco)!r}}}}})
dataset = build_dataset(settings, split="train", training=True)
loader = build_train_loader(
    dataset, micro_batch=1, workers=2, seed=0, rank=0, world_size=1, aspect_grouping=True
)
next(iter(loader))
print(*(worker.pid for worker in loader.reader.processes), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    finished = run_forked("-c", script, timeout=60)
    workers = finished.stdout.split()
    assert len(workers) == 2
    deadline = time.monotonic() + 4.0  # without more ado DataLoader's workers look for their parent every five seconds
    while any(runs(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def runs(pid: str) -> bool:
    try:
        return " Z " not in Path("/proc", pid, "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
