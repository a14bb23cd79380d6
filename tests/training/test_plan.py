from __future__ import annotations

import pytest

from codetr_cli.errors import ConfigError
from codetr_cli.training.plan import BatchSizes, batch_sizes, steps_per_epoch


@pytest.mark.parametrize(
    ("batch_size", "micro_batch", "world_size", "expected"),
    [
        (16, 2, 8, (2, 1)),  # as published
        (16, 2, 1, (2, 8)),
        (16, 2, 16, (1, 1)),  # a process that gets one image takes one
        (1, 2, 1, (1, 1)),
        (3, 8, 1, (3, 1)),
        (6, 3, 1, (3, 2)),
    ],
)
def test_images_of_a_step_are_spread(batch_size: int, micro_batch: int, world_size: int, expected: tuple[int, int]):
    plan = batch_sizes(batch_size, micro_batch, world_size)
    assert plan == BatchSizes(batch_size, expected[0], expected[1], world_size)
    assert plan.micro_batch * plan.accumulation * plan.world_size == batch_size


def test_the_arithmetic_in_words():
    assert batch_sizes(16, 2, 4).describe() == "16 images per step = 4 processes x 2 at a time x 2 accumulated"


@pytest.mark.parametrize(
    ("batch_size", "micro_batch", "world_size", "suggestions"),
    [
        (7, 2, 1, ("train.micro_batch=1 or 7", "train.batch_size=6 or 8")),
        (16, 3, 1, ("train.micro_batch=2 or 4", "train.batch_size=15 or 18")),
        (16, 2, 3, ("train.batch_size=15 or 18", "processes: 1 or 2")),
        (2, 2, 4, ("train.batch_size=4,", "processes: 1 or 2")),
        (12, 4, 2, ("train.micro_batch=3 or 6", "train.batch_size=8 or 16")),
    ],
)
def test_numbers_that_do_not_divide_come_with_the_nearest_that_do(
    batch_size: int, micro_batch: int, world_size: int, suggestions: tuple[str, ...]
):
    with pytest.raises(ConfigError) as error:
        batch_sizes(batch_size, micro_batch, world_size)
    for suggestion in suggestions:
        assert suggestion in str(error.value)


def test_the_last_step_of_an_epoch_may_be_smaller():
    assert steps_per_epoch(5, 2) == 3
    assert steps_per_epoch(4, 2) == 2
    assert steps_per_epoch(1, 8) == 1
