"""The data card."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from codetr_cli import __version__
from codetr_cli.inference.options import DetectOptions
from codetr_cli.prediction.labels.card import MAX_REVIEWS, Contents, card, describe_model
from codetr_cli.prediction.labels.options import DatasetOptions, LabelOptions


def detector(path: Path | None) -> Any:
    test = SimpleNamespace(short_side=800, long_side=1333, head="decoder", nms="soft", max_detections=100)
    loaded = SimpleNamespace(path=path, model=None, settings=SimpleNamespace(name="tiny", test=test))
    return SimpleNamespace(loaded=loaded, precision="auto")


def test_what_made_the_labels(tmp_path: Path) -> None:
    weights = tmp_path / "m.safetensors"
    weights.write_bytes(b"weights")
    options = DetectOptions(score=0.4, class_scores={"cat": 0.6}, nms="hard")
    labels = LabelOptions(class_map={"dog": ""}, review=(0.2, 0.5))
    facts = describe_model(detector(weights), options, labels, ["test.short_side=800"], tta=True)
    assert facts["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert (facts["checkpoint"], facts["preset"], facts["codetr"]) == (str(weights), "tiny", __version__)
    assert facts["settings"]["nms"] == "hard"
    contents = Contents(classes={"cat": 0, "a|b`<x>": 0})
    contents.count("train", [("cat", 0.61), ("cat", 1.0)])
    contents.count("val", [])
    for number in range(MAX_REVIEWS + 2):
        contents.add_review(f"images/{number}.jpg", "cat 0.40")
    text = card("new\nname", "YOLO", facts, DatasetOptions(layout="yolo", source="photos"), contents)
    lines = text.splitlines()
    assert lines[0] == "# new name"
    assert "2 images from `photos` with 2 objects" in text
    for row in ("| train | 1 | 2 |", "| val | 1 | 0 |", "| cat | 2 |", "| a\\|b'&lt;x> | 0 |", "| nms | hard |"):
        assert row in lines, row
    assert "| lowest score of cat | 0.6 |" in lines
    assert "| class dog | is dropped |" in lines
    assert next(line for line in lines if line.startswith("0.6-0.7")).split() == ["0.6-0.7", "1", "#" * 40]
    assert next(line for line in lines if line.startswith("0.9-1.0")).split()[1] == "1"
    assert "- and 2 more" in lines
    assert describe_model(detector(None), options, labels, [], tta=False)["sha256"] is None
