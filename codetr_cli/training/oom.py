"""Out of memory in a step: the step is computed again with less memory, and so are all later ones.

A GPU's step is first computed again as it was, once, after the allocator's unused blocks are released: memory that is
only fragmented has room then. Otherwise the images of a forward pass are split in halves, and again, as with a smaller
`train.micro_batch`. When a single image does not fit, all supported activations are recomputed in the backward pass.
After that the training ends.
A single process retries at once, and its checkpoints store the splits. With several processes the others wait for the
one that ran out of memory: that one writes the splits to the run folder and exits, and the launcher restarts all. A
process group of one does the same, because a wrapped network cannot restart an interrupted backward pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from codetr_cli.config.overrides import replace_settings
from codetr_cli.data.batch import Batch
from codetr_cli.distributed import process_group
from codetr_cli.errors import MemoryShrunkError, ResourceError
from codetr_cli.runs.memory_record import read_record, write_record
from codetr_cli.runtime.memory import free_unused, is_out_of_memory
from codetr_cli.runtime.rng import restore_random_states
from codetr_cli.training.recomputation import all_checkpointing, set_checkpointing
from codetr_cli.training.state import MicroBatches, TrainContext, TrainState

logger = logging.getLogger(__name__)


class OutOfMemoryInStep(Exception):  # noqa: N818 (caught and retried, never shown)
    """A forward or backward pass of this micro batch ran out of memory."""

    def __init__(self, batch: Batch) -> None:
        super().__init__("out of memory")
        self.batch = batch


@contextmanager
def out_of_memory_in(batch: Batch) -> Iterator[None]:
    """Raises `OutOfMemoryInStep` with this micro batch for any error that means that memory ran out."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryInStep(batch) from error


def retry_with_less_memory(
    step: Callable[[TrainContext, TrainState, MicroBatches], float],
    context: TrainContext,
    state: TrainState,
    micro_batches: MicroBatches,
) -> float:
    """Runs `train_step`, and again with less memory for as long as it runs out of memory.

    The state's progress stores how steps are computed from now on.

    Raises:
        MemoryShrunkError: all processes have to restart to compute the step with less memory.
        ResourceError: there is no way to use less memory.
    """
    may_be_fragmented = context.device.type == "cuda" and not process_group.is_connected()
    while True:
        try:
            return step(context, state, micro_batches)
        except OutOfMemoryInStep as error:
            batch = error.batch
        # The error holds the tensors of the step until the end of `except`.
        state.optimizer.zero_grad(set_to_none=True)
        if may_be_fragmented:
            may_be_fragmented = False
            free_unused(context.device)
            logger.info(
                "out of memory in step %d with %s: the step is computed again after unused memory is released",
                state.progress.step + 1,
                _describe(batch),
            )
        else:
            reduce_memory(context, state, batch)
        restore_random_states(state.step_inputs[0][1], context.device)


def split(batch: Batch, parts: int, *, keep_padding: bool = False) -> list[Batch]:
    """Splits a batch into at most this many parts, as evenly as possible and in order.

    With `keep_padding` each part keeps the size of the batch; otherwise it has that of its own largest image.
    """
    count, parts = len(batch), min(parts, len(batch))
    if parts <= 1:
        return [batch]
    borders = [index * count // parts for index in range(parts + 1)]
    return [batch.part(first, last, keep_padding=keep_padding) for first, last in pairwise(borders)]


def reduce_memory(context: TrainContext, state: TrainState, batch: Batch) -> None:
    """Selects the next way to compute a step on this micro batch with less memory; call it outside of `except`.

    Raises:
        MemoryShrunkError: all processes have to restart to compute the step with less memory.
        ResourceError: there is no way to use less memory.
    """
    free_unused(context.device)
    progress, is_single = state.progress, not process_group.is_connected()
    splits, recompute = progress.micro_batch_splits, progress.recompute_all
    if splits < len(batch):
        splits = min(2 * splits, len(batch))
    elif not recompute and all_checkpointing(context.settings):
        recompute = True
    else:
        raise ResourceError(
            f"out of memory in step {progress.step + 1} with {_describe(batch)}, although "
            f"{_describe_savings(splits, recompute)}: use smaller images (data.short_sides, data.long_side) or a "
            "smaller network. The same command continues from the newest checkpoint."
        )
    cause = {
        "step": progress.step + 1,
        "epoch": progress.epoch,
        "process": process_group.rank(),
        "images": [int(target["image_id"]) for target in batch.targets],
        "size": list(batch.images.shape[-2:]),
        "named": _describe(batch),
    }
    if not is_single:
        record = read_record(context.io.folder.path)
        record.parts, record.recompute, record.why = splits, recompute, cause
        write_record(context.io.folder.path, record)
        raise MemoryShrunkError(
            f"training process {process_group.rank()} ran out of memory in step {progress.step + 1} with "
            f"{_describe(batch)}: when the training continues, {_describe_savings(splits, recompute)}. The same "
            "command continues from the newest checkpoint."
        )
    progress.micro_batch_splits, progress.recompute_all = splits, recompute
    _apply_recomputation(context, state)
    _log(context, state, cause)


def apply_saved_splits(context: TrainContext, state: TrainState) -> None:
    """Computes steps as before the restart after memory ran out: as in the checkpoint, or in the run folder."""
    progress = state.progress
    if process_group.is_connected():
        record = read_record(context.io.folder.path)
        if record.parts > progress.micro_batch_splits or record.recompute > progress.recompute_all:
            progress.micro_batch_splits = max(progress.micro_batch_splits, record.parts)
            progress.recompute_all = progress.recompute_all or record.recompute
            if process_group.is_main():
                _log(context, state, {**record.why, "step": progress.step, "epoch": progress.epoch})
    _apply_recomputation(context, state)


def _apply_recomputation(context: TrainContext, state: TrainState) -> None:
    if state.progress.recompute_all:
        settings = replace_settings(context.settings, all_checkpointing(context.settings))
        set_checkpointing(context.model, settings.model)


def _log(context: TrainContext, state: TrainState, cause: dict[str, Any]) -> None:
    progress = state.progress
    context.io.log(
        {
            "kind": "memory",
            "step": cause["step"],
            "epoch": cause["epoch"],
            "parts": progress.micro_batch_splits,
            "recompute": progress.recompute_all,
            "process": cause["process"],
            "images": cause["images"],
            "size": cause["size"],
        }
    )
    logger.warning(
        "out of memory in step %s with %s: the step is computed again, and from now on %s",
        cause["step"],
        cause["named"],
        _describe_savings(progress.micro_batch_splits, progress.recompute_all),
    )


def _describe_savings(splits: int, recompute: bool) -> str:
    savings = [f"the images of a forward pass are split into {splits} parts"] if splits > 1 else []
    savings += ["all supported activations are recomputed in the backward pass"] if recompute else []
    return " and ".join(savings) or "a forward pass has one image and nothing can be recomputed"


def _describe(batch: Batch) -> str:
    """Ids and sizes of the images of a batch, and their number of objects."""
    height, width = batch.images.shape[-2:]
    images = ", ".join(f"{target['image_id']} ({'x'.join(map(str, target['size']))})" for target in batch.targets)
    objects = sum(len(target["boxes"]) for target in batch.targets)
    return f"{len(batch)} images in {height}x{width} pixels with {objects} objects in all (image ids {images})"
