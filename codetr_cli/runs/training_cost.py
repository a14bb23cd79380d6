"""How long a training took, on what, and how much energy its GPUs used: from the lines of its metrics.jsonl.

Each line of training has the rate at which images were processed since the line before, and each evaluation its
seconds. Interruptions, steps that were trained again, and the start of processes are not in the sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from codetr_cli.runs.metrics_log import has_numbers, read_lines
from codetr_cli.runs.process_record import read_process


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """What a training has used up to a step.

    Attributes:
        seconds: of training, and of evaluations before that step.
        evaluation_seconds: of these, those of evaluations.
        device: name of the GPUs, or "cpu"; empty: not recorded.
        processes: that trained at the same time, one on each GPU; of the newest start.
        energy_joules: of the GPUs; None: not measured throughout.
    """

    seconds: float
    evaluation_seconds: float = 0.0
    device: str = ""
    processes: int = 1
    energy_joules: float | None = None


def training_cost(run: Path, *, batch_size: int, step: int | None = None) -> TrainingCost | None:
    """What a run has used; None where it has no lines, or they cannot be read.

    Args:
        run: its folder.
        batch_size: images of a step.
        step: that counts as the end; None: the newest.
    """
    seconds = evaluation_seconds = energy = 0.0
    before, is_measured = 0, True
    try:
        for line in read_lines(run / "metrics.jsonl"):
            if step is not None and line["step"] > step:
                continue
            if line["kind"] == "eval" and line["step"] != step and has_numbers(line, "seconds"):
                evaluation_seconds += line["seconds"]
            if line["kind"] != "train" or not has_numbers(line, "images_per_s") or line["images_per_s"] <= 0:
                continue
            seconds += max(line["step"] - before, 0) * batch_size / line["images_per_s"]
            before = line["step"]
            is_measured = is_measured and has_numbers(line, "energy_j")
            energy += line["energy_j"] if is_measured else 0.0
    except OSError:
        return None
    if not seconds:
        return None
    process = read_process(run)
    return TrainingCost(
        seconds=seconds + evaluation_seconds,
        evaluation_seconds=evaluation_seconds,
        device="" if process is None else process.device,
        processes=1 if process is None else process.processes,
        energy_joules=energy if is_measured else None,
    )
