from __future__ import annotations

import pytest

from codetr_cli.benchmark.data_report import MAIN_STAGES, WORKER_STAGES, DataTiming, diagnose


def timing_of(
    rates: dict[int, float], *, needed: float | None = None, cold: float | None = 1.0, **stages: float
) -> DataTiming:
    timing = DataTiming(
        images=10,
        micro_batch=2,
        stages_ms={**dict.fromkeys((*WORKER_STAGES, *MAIN_STAGES), 1.0), **stages},
        cold_read_ms=cold,
        file_bytes=2**20,
        file_pixels=4e5,
        network_pixels=1e6,
        loader_images_per_s=rates,
        needed_images_per_s=needed,
        cores=4,
    )
    return diagnose(timing)


def test_the_stage_that_takes_longest_is_named_with_the_workers_that_are_enough():
    found = timing_of({0: 20.0, 1: 10.0, 2: 19.0, 4: 36.0}, needed=14.2, decode=14.0)
    assert (found.bottleneck, found.enough_workers) == ("decode", 2)
    assert found.sentence == (
        "Bottleneck: decoding, 70% of a worker's time. 2 workers supply the 14.2 images/s of a training step: "
        "--set data.workers=2."
    )


def test_the_training_process_alone_is_never_enough():
    assert timing_of({0: 99.0, 1: 99.0}, needed=10.0).enough_workers == 1
    assert timing_of({0: 99.0, 1: 10.5}, needed=10.0).enough_workers is None


def test_processor_cores_are_the_bottleneck_where_workers_compete_for_them():
    found = timing_of({0: 20.0, 1: 20.0, 2: 22.0, 8: 25.0}, needed=50.0, augment=9.0)
    assert (found.bottleneck, found.enough_workers) == ("cores", None)
    assert "it will wait 50% of the time, least with --set data.workers=8" in found.sentence
    assert "4 processor cores here are the limit" in found.sentence


@pytest.mark.parametrize(
    ("stages", "bottleneck", "advice"),
    [
        ({"read": 20.0}, "read", "faster disk"),
        ({"transfer": 20.0}, "transfer", "/dev/shm"),
        ({"objects": 20.0}, "objects", "faster processor cores"),
    ],
)
def test_advice_depends_on_the_bottleneck(stages: dict[str, float], bottleneck: str, advice: str):
    found = timing_of({0: 9.0, 1: 10.0, 4: 38.0}, needed=50.0, **stages)
    assert found.bottleneck == bottleneck
    assert advice in found.sentence


def test_without_a_need_and_with_a_slow_disk():
    found = timing_of({0: 20.0, 1: 10.0, 4: 36.0}, cold=40.0)
    assert "4 workers deliver the most, 36.0 images/s; --step-images-per-s X" in found.sentence
    assert "take 40.0 ms each to read" in found.sentence
    assert "add RAM" in found.sentence
    assert "The training process without workers delivers the most" in timing_of({0: 20.0, 1: 10.0}).sentence
