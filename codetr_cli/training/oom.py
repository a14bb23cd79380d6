"""What becomes of a step that runs out of memory: it is computed again in smaller parts, and so are all after it.

The images of a forward pass are halved, and halved again; each part counts by its number of images, so that the step's
gradient is what it would be had the settings asked for as small a micro batch. Images and their order stay as they are.
When a single image does not fit, everything that can be is recomputed in the backward pass. After that nothing is left
to try.

A process alone does this at once, and checkpoints keep it in their position. Of several processes, the others wait for
the one that ran out and cannot be told: it writes down what to do and ends, and the launcher starts all again. So does
a group of one, whose wrapped network cannot begin a backward pass anew that was cut short.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from codetr_cli.data.batch import Batch
from codetr_cli.distributed import process_group
from codetr_cli.errors import MemoryShrunkError, ResourceError
from codetr_cli.runs.memory_record import read_record, write_record
from codetr_cli.runtime.memory import free_unused
from codetr_cli.training.recomputation import set_checkpointing, with_all_checkpointing

if TYPE_CHECKING:
    from codetr_cli.training.loop import Training


def split(batch: Batch, parts: int, *, keep_padding: bool = False) -> list[Batch]:
    """A batch in parts.

    Args:
        batch: of one forward pass.
        parts: so many at most, of as equal numbers of images as can be, in their order.
        keep_padding: each part has the size of the batch, else that of its own largest image.
    """
    count, parts = len(batch), min(parts, len(batch))
    if parts <= 1:
        return [batch]
    borders = [index * count // parts for index in range(parts + 1)]
    return [batch.part(first, last, keep_padding=keep_padding) for first, last in pairwise(borders)]


def shrink(training: Training, batch: Batch) -> None:
    """Chooses the next smaller way to compute a step, after one has run out of memory; call it outside of `except`.

    Args:
        training: its position gets the way, where the process is alone.
        batch: the whole micro batch in which it happened.

    Raises:
        MemoryShrunkError: all processes have to start again to compute that way.
        ResourceError: there is no smaller way.
    """
    free_unused(training.device)
    position, alone = training.position, not process_group.is_connected()
    parts, recompute = position.parts, position.recompute
    if parts < len(batch):
        parts = min(2 * parts, len(batch))
    elif not recompute and _recomputes_less_than_it_could(training):
        recompute = True
    else:
        raise ResourceError(
            f"out of memory in step {position.step + 1} with {_named(batch)}, although {_told(parts, recompute)}: use "
            "smaller images (data.short_sides, data.long_side) or a smaller network. The same command continues from "
            "the newest checkpoint."
        )
    why = {
        "step": position.step + 1,
        "epoch": position.epoch,
        "process": process_group.rank(),
        "images": [int(target["image_id"]) for target in batch.targets],
        "size": list(batch.images.shape[-2:]),
        "named": _named(batch),
    }
    if not alone:
        record = read_record(training.run.path)
        record.parts, record.recompute, record.why = parts, recompute, why
        write_record(training.run.path, record)
        raise MemoryShrunkError(
            f"training process {process_group.rank()} ran out of memory in step {position.step + 1} with "
            f"{_named(batch)}: when the training continues, {_told(parts, recompute)}. The same command continues from "
            "the newest checkpoint."
        )
    position.parts, position.recompute = parts, recompute
    apply(training)
    _tell(training, why)


def adopt(training: Training) -> None:
    """Takes over how steps are computed since memory ran out: from the checkpoint, or from the run folder."""
    position = training.position
    if process_group.is_connected():
        record = read_record(training.run.path)
        if record.parts > position.parts or record.recompute > position.recompute:
            position.parts = max(position.parts, record.parts)
            position.recompute = position.recompute or record.recompute
            if process_group.is_main():
                _tell(training, {**record.why, "step": position.step, "epoch": position.epoch})
    apply(training)


def apply(training: Training) -> None:
    """Has the network recompute what the position asks for."""
    if training.position.recompute:
        set_checkpointing(training.model, with_all_checkpointing(training.settings).model)


def _tell(training: Training, why: dict[str, Any]) -> None:
    position = training.position
    training.log(
        {
            "kind": "memory",
            "step": why["step"],
            "epoch": why["epoch"],
            "parts": position.parts,
            "recompute": position.recompute,
            "process": why["process"],
            "images": why["images"],
            "size": why["size"],
        }
    )
    text = (
        f"out of memory in step {why['step']} with {why['named']}: it is computed again, and from now on "
        f"{_told(position.parts, position.recompute)}"
    )
    training.run.event(text)
    training.report.warn(text)


def _told(parts: int, recompute: bool) -> str:
    told = [f"the images of a forward pass are split into {parts} parts"] if parts > 1 else []
    told += ["everything that can be is recomputed in the backward pass"] if recompute else []
    return " and ".join(told) or "one image at a time is computed and nothing can be recomputed"


def _named(batch: Batch) -> str:
    """The images of a batch by id and size, and their objects."""
    height, width = batch.images.shape[-2:]
    images = ", ".join(f"{target['image_id']} ({'x'.join(map(str, target['size']))})" for target in batch.targets)
    objects = sum(len(target["boxes"]) for target in batch.targets)
    return f"{len(batch)} images in {height}x{width} pixels with {objects} objects in all (image ids {images})"


def _recomputes_less_than_it_could(training: Training) -> bool:
    return with_all_checkpointing(training.settings).model != training.settings.model
