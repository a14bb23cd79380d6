"""Evaluations of a checkpoint: those of the same weights are found, others are not taken for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetr_cli.errors import ConfigError
from codetr_cli.inference.hub.evaluations import find_evaluation, read_evaluation
from tests.inference.hub.records import CONTENT, write_metrics, write_training


def weights_of(run: Path) -> Path:
    return run / "checkpoints/best/model.safetensors"


def test_what_is_read_of_an_evaluation(tmp_path: Path):
    path = write_metrics(tmp_path / "eval/val")
    found = find_evaluation(tmp_path / "a.safetensors", content=CONTENT, step=None)
    assert found is not None
    assert found == read_evaluation(path, content=CONTENT, step=None)
    assert found == read_evaluation(path.parent, content=CONTENT, step=None)
    assert found.metrics == {"AP": 0.5, "AP50": 0.75, "mask_AP": 0.25, "APl": -1.0, "AR100": 0.6}
    assert (found.protocol, found.data, found.images) == ("single scale 96x160", "instances_val", 60)
    assert [each["name"] for each in found.per_class] == ["disc"]
    assert (found.published, found.source) == (52.1, "measured by `codetr eval`")


def test_numbers_that_are_not_comparable_are_not_published_ones(tmp_path: Path):
    path = write_metrics(tmp_path, published={"box_ap": 52.1, "differences": ["tta"], "comparable": False})
    assert read_evaluation(path, content=CONTENT, step=None).published is None


def test_evaluations_of_other_weights_are_not_taken(tmp_path: Path):
    path = write_metrics(tmp_path / "eval/val", weights="d" * 64)
    assert find_evaluation(tmp_path / "a.safetensors", content=CONTENT, step=None) is None
    with pytest.raises(ConfigError, match="other weights"):
        read_evaluation(path, content=CONTENT, step=None)


def test_an_evaluation_of_a_former_version_is_taken_if_it_is_named(tmp_path: Path):
    """It does not record the weights."""
    path = write_metrics(tmp_path / "eval/val", weights=None)
    assert find_evaluation(tmp_path / "a.safetensors", content=CONTENT, step=None) is None
    assert read_evaluation(path, content=CONTENT, step=None).images == 60


def test_the_evaluation_of_most_images_comes_first(tmp_path: Path):
    for images in (10, 60, 20):
        write_metrics(tmp_path / f"eval/best/val_{images}", images=images)
    found = find_evaluation(weights_of(tmp_path), content=CONTENT, step=None)
    assert found is not None
    assert found.images == 60


def test_the_evaluation_during_the_training(tmp_path: Path):
    run = write_training(tmp_path / "run", 10, 20)
    found = find_evaluation(weights_of(run), content=CONTENT, step=20)
    assert found is not None
    assert (found.metrics["AP"], found.protocol) == (0.2, "two; val")
    assert found.source == "measured by the training, after step 20"
    assert found == read_evaluation(run, content=CONTENT, step=20)
    assert find_evaluation(weights_of(run), content=CONTENT, step=15) is None
    write_metrics(run / "eval/best/val")
    assert find_evaluation(weights_of(run), content=CONTENT, step=20).images == 60


def test_no_evaluation(tmp_path: Path):
    run = write_training(tmp_path / "run", 10)
    for step in (15, None):
        with pytest.raises(ConfigError, match=r"neither metrics\.json nor"):
            read_evaluation(run, content=CONTENT, step=step)
    with pytest.raises(ConfigError, match="cannot read"):
        read_evaluation(tmp_path / "none.json", content=CONTENT, step=None)


@pytest.mark.parametrize("text", ["{", "[]", '{"AP": "high"}', '{"AP": NaN}'])
def test_files_that_are_no_evaluation(tmp_path: Path, text: str):
    path = tmp_path / "eval/val/metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"no AP|not valid JSON"):
        read_evaluation(path, content=CONTENT, step=None)
    assert find_evaluation(tmp_path / "a.safetensors", content=CONTENT, step=None) is None
