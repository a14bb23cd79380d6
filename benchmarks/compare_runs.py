"""Compares two finished runs bit for bit, in everything that can be repeated.

    python benchmarks/compare_runs.py runs/a runs/b

Compared are the weights and states of the newest and of the best checkpoint, and every logged loss and metric; times,
memory and rates are not.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

UNREPEATABLE = (
    *("images_per_s", "data_wait", "memory_bytes", "ram_free_bytes", "energy_j", "eta_s", "seconds", "time"),
)
"""Values of a line of metrics.jsonl that differ between runs."""


class DifferenceError(Exception):
    """Two runs differ."""


def main() -> int:
    """Compares two run folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN")
    try:
        count = compare(*parser.parse_args().runs)
    except DifferenceError as error:
        sys.stdout.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{count} values are equal\n")
    return 0


def compare(ours: Path, theirs: Path) -> int:
    """Compares two finished runs.

    Returns:
        the number of compared values.

    Raises:
        DifferenceError: names the first values that differ.
    """
    pairs = list(zip(_values(ours), _values(theirs), strict=True))
    different = [name for (name, a), (other, b) in pairs if name != other or not equal(a, b)]
    if different:
        raise DifferenceError(f"{len(different)} of {len(pairs)} values differ: {', '.join(different[:8])}")
    return len(pairs)


def metric_lines(run: Path) -> list[dict[str, Any]]:
    """The complete lines of a run's metrics.jsonl."""
    file = run / "metrics.jsonl"
    content = file.read_bytes() if file.is_file() else b""
    return [json.loads(line) for line in content.splitlines(keepends=True) if line[-1:] == b"\n"]


def leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The values of nested dicts and lists, with their names."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(f"{name}.{key}", item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from leaves(f"{name}.{index}", item)
    else:
        yield name, value


def equal(a: Any, b: Any) -> bool:
    """Whether two values are the same to the last bit; NaN equals NaN."""
    import torch

    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    return bool(a == b)


def _values(run: Path) -> Iterator[tuple[str, Any]]:
    """All repeatable values of a run by name."""
    from safetensors.torch import load_file

    from codetr_cli.files import WEIGHTS_NAME
    from codetr_cli.runs.folder import STATE, read_state

    for name in ("last", "best"):
        folder = run / "checkpoints" / name
        yield from leaves(f"{name} weights", load_file(folder / WEIGHTS_NAME))
        yield from leaves(f"{name} state", read_state(folder / STATE))
    for number, line in enumerate(metric_lines(run)):
        repeatable = {key: value for key, value in line.items() if key not in UNREPEATABLE}
        yield from leaves(f"line {number + 1} of metrics.jsonl, {line['kind']}", repeatable)


if __name__ == "__main__":
    sys.exit(main())
