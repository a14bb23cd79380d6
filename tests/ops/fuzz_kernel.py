"""Calls a build of the CPU kernel with random problems; a build with sanitizers stops at the first wrong access.

Run as `python tests/ops/fuzz_kernel.py LIBRARY COUNT`. No torch: sanitizers and its libraries do not get along.
Every tensor ends where its last number does, so that a read or a write too far is seen.
"""

from __future__ import annotations

import ctypes
import sys

import numpy as np

POINTERS = (
    "value", "reference", "sampling", "scores", "grad_output", "output", "grad_value", "grad_sampling", "grad_scores",
    "grad_pixels", "shapes",
)  # fmt: skip
NUMBERS = (
    "batch", "tokens", "heads", "channels", "queries", "levels", "points", "reference_size", "heads_at_once",
    "next_task",
)  # fmt: skip


class Problem(ctypes.Structure):
    _fields_ = (*((name, ctypes.c_void_p) for name in POINTERS), *((name, ctypes.c_int64) for name in NUMBERS))


def random_problem(
    generator: np.random.Generator, dtype: type
) -> tuple[Problem, dict[str, np.ndarray], dict[str, np.ndarray]]:
    levels, points = int(generator.integers(1, 9)), int(generator.integers(1, 17))
    shapes = generator.integers(1, 20, (levels, 2))
    tokens = int(shapes.prod(1).sum())
    batch, heads = (int(n) for n in generator.integers(1, 4, 2))
    queries = tokens if generator.random() < 0.5 else int(generator.integers(1, 150))
    channels = int(generator.choice([1, 3, 4, 7, 8, 16, 20, 32, 33, 64, 100]))
    size = int(generator.choice([0, 2, 4]))
    spread = float(generator.choice([0.1, 3.0, 100.0, 1e20]))
    samples = (batch, queries, heads, levels, points)
    inputs = {
        "value": generator.standard_normal((batch, tokens, heads, channels)),
        "sampling": generator.standard_normal((*samples, 2)) * spread,
        "scores": generator.standard_normal(samples) * spread,
        "grad_output": generator.standard_normal((batch, queries, heads, channels)),
    }
    if size:
        inputs["reference"] = generator.random((batch, queries, levels, size))
    if generator.random() < 0.2:
        inputs["sampling"].flat[generator.integers(inputs["sampling"].size)] = np.nan
    inputs = {name: np.ascontiguousarray(array, dtype) for name, array in inputs.items()}
    outputs = {
        "output": np.zeros((batch, queries, heads, channels), dtype),
        "grad_value": np.zeros((batch, tokens, heads, channels), dtype),
        "grad_sampling": np.zeros((*samples, 2), dtype),
        "grad_scores": np.zeros(samples, dtype),
    }
    if generator.random() < 0.5:
        outputs["grad_pixels"] = np.zeros((*samples, 2), dtype)
    inputs["shapes"] = np.ascontiguousarray(shapes, np.int64)
    problem = Problem(
        batch=batch, tokens=tokens, heads=heads, channels=channels, queries=queries, levels=levels, points=points,
        reference_size=size, heads_at_once=heads if generator.random() < 0.5 else 1,
    )  # fmt: skip
    for name, array in (inputs | outputs).items():
        setattr(problem, name, array.ctypes.data)
    return problem, inputs, outputs


def main(path: str, count: int) -> None:
    library = ctypes.CDLL(path)
    library.codetr_instruction_set.restype = ctypes.c_char_p
    fastest = library.codetr_instruction_set().decode()
    # What a machine can run: everything up to its fastest set.
    sets = ("base", "avx2", "avx512")[: ("base", "avx2", "avx512").index(fastest) + 1]
    generator = np.random.default_rng(0)
    for _ in range(count):
        for dtype, name in ((np.float32, "float"), (np.float64, "double")):
            problem, inputs, outputs = random_problem(generator, dtype)
            for instructions in sets:
                for step in ("forward", "backward"):
                    problem.next_task = 0
                    failed = getattr(library, f"codetr_{step}_{name}_{instructions}")(ctypes.byref(problem))
                    if failed:
                        sys.exit(f"{step} {name} {instructions} found no memory")
            if np.isnan(inputs["sampling"]).any() != np.isnan(outputs["output"]).any():
                sys.exit(f"what is not a number was lost or made in {name}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
