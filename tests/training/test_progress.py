from __future__ import annotations

from codetr_cli.training.progress import Progress

FIRST_VERSION = {
    "step": 7,
    "epoch": 1,
    "batch": 2,
    "segments": [(2, 1, 3, None)],
    "best": 0.25,
    "evaluated_step": 5,
    "fruitless": 1,
    "bad_steps": 2,
    "other_order": (1, 4),
    "parts": 2,
    "recompute": True,
}
"""As every version stores it in the `position` of a checkpoint."""


def test_what_checkpoints_hold_has_the_same_keys_in_all_versions():
    progress = Progress.from_stored(FIRST_VERSION)
    assert progress.epoch_segments == [(2, 1, 3, None)]
    assert progress.evals_without_improvement == 1
    assert progress.nonfinite_steps == 2
    assert progress.reshuffled_from == (1, 4)
    assert (progress.micro_batch_splits, progress.recompute_all) == (2, True)
    assert progress.as_stored() == FIRST_VERSION


def test_keys_that_an_earlier_version_did_not_write_keep_their_defaults():
    assert Progress.from_stored({"step": 3, "epoch": 0, "batch": 3}) == Progress(step=3, batch=3)


def test_images_are_reshuffled_from_a_micro_batch_of_one_epoch_and_in_all_later_epochs():
    progress = Progress(reshuffled_from=(1, 4))
    batches = []
    for _ in range(3):
        batches.append(progress.reshuffled_from_batch)
        progress.start_next_epoch()
    assert batches == [None, 4, 0]


def test_an_evaluation_that_is_not_better_is_counted():
    progress = Progress()
    for step, ap in enumerate((0.2, 0.2, 0.1, 0.3), 1):
        progress.count_evaluation(step, ap)
    assert (progress.best, progress.evaluated_step, progress.evals_without_improvement) == (0.3, 4, 0)
