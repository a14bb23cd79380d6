from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as pycocotools_mask

from codetr_cli.annotations import run_length_codes
from codetr_cli.annotations.outlines import check_outline
from codetr_cli.annotations.run_length_codes import OutlineError, check_compressed, decompress


def random_codes(seed: int, count: int) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """Codes of random runs, compressed by pycocotools, and their runs: of 1 to 60 numbers, many of them large."""
    generator = np.random.default_rng(seed)
    masks, listed = [], []
    for _ in range(count):
        runs = (2 ** generator.uniform(0, generator.choice([5, 10, 22]), int(generator.integers(1, 60)))).astype(int)
        runs[generator.random(len(runs)) < 0.1] = 0
        runs[-1] += 1 + (runs.sum() + 1) % 2
        size = [2, int(runs.sum()) // 2]
        code = pycocotools_mask.frPyObjects({"size": size, "counts": runs.tolist()}, *size)["counts"].decode()
        masks.append({"size": size, "counts": code})
        listed.append(runs.tolist())
    return masks, listed


def test_codes_are_decompressed_as_pycocotools_compressed_them() -> None:
    masks, listed = random_codes(0, 300)
    for mask, runs in zip(masks, listed, strict=True):
        assert sum(runs) == mask["size"][0] * mask["size"][1]
        assert decompress(mask["counts"].encode()).tolist() == runs
        assert pycocotools_mask.area(mask) == sum(runs[1::2])


@pytest.mark.parametrize("together", [1, 100, 1 << 18])
def test_valid_codes_are_accepted_together(monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    monkeypatch.setattr(run_length_codes, "CHARACTERS_AT_ONCE", together)
    check_compressed([])
    check_compressed(random_codes(1, 400)[0])


@pytest.mark.parametrize("together", [100, 1 << 18])
def test_broken_codes_are_refused_together_as_one_by_one(monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    monkeypatch.setattr(run_length_codes, "CHARACTERS_AT_ONCE", together)
    masks, _ = random_codes(2, 40)
    generator = np.random.default_rng(3)
    bad = ["", "0", "oo", masks[7]["counts"] + "1", "0ooooooo0", "\ud800", "é", "p", "0O", "ooooo?0oooooO", "oooooo0"]
    for _ in range(300):  # most single changes break a code, some make another number of the same runs
        code = list(masks[7]["counts"])
        code[generator.integers(len(code))] = chr(generator.integers(47, 113))
        bad.append("".join(code))
    for code in bad:
        changed = {"size": masks[7]["size"], "counts": code}
        assert refuses(lambda: check_compressed([*masks[:20], changed, *masks[20:]])) == refuses(  # noqa: B023
            lambda: check_outline(changed, tuple(changed["size"]))  # noqa: B023
        )
    assert refuses(lambda: check_compressed([masks[0], {"size": [10**6, 10**6], "counts": "0"}]))


def test_runs_that_wrap_around_are_refused() -> None:
    # 32 differences of 2**28 add up to the first run again.
    largest = "PPPPP8"
    code = "04" + "0" + largest * 33
    assert refuses(lambda: check_compressed([{"size": [2, 2], "counts": code}] * 3))


def refuses(check: Any) -> bool:
    try:
        check()
    except OutlineError:
        return True
    return False
