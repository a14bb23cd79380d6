from __future__ import annotations

from tests.commands.bench.fakes import SMALL_RUN


def test_tables_without_json(codetr, checkpoint):
    ran = codetr("bench", "train", "--checkpoint", checkpoint, "--iterations", 1, "--size", "64x96", "--device", "cpu")
    assert ran.code == 0, ran.err
    for part in ("Training step: tiny at 64x96, batch 2", "backward", "p99"):
        assert part in ran.out


def test_comparison_with_plain_pytorch(codetr, checkpoint):
    words = ("--compare", "torch", "--checkpoint", checkpoint, "--batch", 1, "--objects", 5)
    ran = codetr("bench", "train", *words, *SMALL_RUN, "--json")
    assert ran.code == 0, ran.err
    found = ran.json["training"]
    assert "inference" not in ran.json
    assert (found["batch"], found["objects"]) == (1, 5)
    assert list(found["plain"]["stages_ms"]) == ["data", "forward", "backward", "optimizer"]
    assert found["agreement"]["relative_difference"] < 1e-4
