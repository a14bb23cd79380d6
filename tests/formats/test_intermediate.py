"""COCO's tables of parsed data sets."""

from __future__ import annotations

import json
from pathlib import Path

from codetr_cli.formats import intermediate
from codetr_cli.formats.intermediate import ParsedBox, ParsedDataset, ParsedImage, coco_text, to_coco


def test_the_text_in_pieces_is_that_of_the_table(monkeypatch):
    def parsed() -> ParsedDataset:
        boxes = [ParsedBox(0, (1, 2, 3.5, 4)), ParsedBox(1, (-5, 2, 3, 400), True, (1, 2, 3, 4, 5, 6.12345))]
        images = [ParsedImage(f"{number}\udcff.jpg", 30, 40, "x", boxes * number) for number in range(5)]
        splits = {"train": images[:3], "val": images[3:], "test": []}
        return ParsedDataset("x", Path(), ["cat", "狗"], 1, splits, dict.fromkeys(splits, "here"))

    for piece in (1, 2, 7, 10_000):
        monkeypatch.setattr(intermediate, "PIECE", piece)
        for split in ("train", "val", "test"):
            whole, pieces = parsed(), parsed()
            assert "".join(coco_text(pieces, split)) == json.dumps(to_coco(whole, split))
            assert pieces.findings.sorted() == whole.findings.sorted()
