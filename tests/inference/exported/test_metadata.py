"""The metadata of a file of unknown origin: what is read, and what is refused with a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from codetr_cli.errors import CheckpointError
from codetr_cli.export.job import describe
from codetr_cli.export.options import ExportOptions
from codetr_cli.inference.exported import metadata as module
from codetr_cli.inference.exported.metadata import (
    ExportMetadata,
    describe_inputs,
    describe_outputs,
    input_names,
    output_names,
    parse_metadata,
)
from codetr_cli.inference.options import TileOptions
from tests.export import networks


@pytest.fixture(scope="module")
def metadata() -> ExportMetadata:
    options = ExportOptions(size=(96, 160), batch=2, tiles=TileOptions(size=(128, 96)))
    return describe(networks.load_random(), options)


def changed(metadata: ExportMetadata, path: str, value: Any) -> str:
    """The metadata as text with another value at a path such as `input.mean`."""
    table = json.loads(metadata.to_json())
    *folders, name = path.split(".")
    place = table
    for folder in folders:
        place = place[folder]
    place[name] = value
    return json.dumps(table)


def test_round_trip(metadata: ExportMetadata):
    assert parse_metadata(metadata.to_json(), "x.onnx") == metadata


def test_settings_survive(metadata: ExportMetadata):
    settings = parse_metadata(metadata.to_json(), "x.onnx").parsed_settings("x.onnx")
    assert settings.test.fixed_size == (96, 160)
    assert settings.model.num_queries == 30


def test_a_file_of_another_program():
    with pytest.raises(CheckpointError, match=r"x\.onnx was not written by `codetr export`"):
        parse_metadata(None, "x.onnx")


@pytest.mark.parametrize("value", ["codetr-export-2", None, 5, ["a"], "x" * 10_000])
def test_another_format(metadata: ExportMetadata, value: Any):
    with pytest.raises(CheckpointError, match="Install a newer codetr, or export again") as caught:
        parse_metadata(changed(metadata, "format", value), "x.onnx")
    assert len(str(caught.value)) < 300


WRONG = [
    ("input.height", 0),
    ("input.height", -1),
    ("input.height", 96.5),
    ("input.height", "96"),
    ("input.height", True),
    ("input.width", 2**20),
    ("input.batch", 10**9),
    ("input.divisor", 0),
    ("input.mean", [1.0, 2.0]),
    ("input.mean", "grey"),
    ("input", None),
    ("output.candidates", 0),
    ("output.candidates", 10**8),
    ("output.nms", "softer"),
    ("output.nms_iou", 1.5),
    ("output.nms_iou", float("nan")),
    ("output.max_detections", -3),
    ("class_names", ["disc"]),
    ("class_names", "disc"),
    ("class_names", ["disc", "bar", 5]),
    ("category_ids", [1, 2]),
    ("category_ids", [1, 2, 2.5]),
    ("category_ids", [1, 2, 2]),
    ("settings", {}),
    ("settings", []),
    ("settings.model.num_queries", 10**12),
    ("settings.model.num_classes", 4),
    ("settings.test.nms", "softer"),
    ("export_format", "exe"),
    ("precision", "int1"),
    ("attention", "other"),
    ("tiles", {"size": [1, 1], "overlap": 0.2, "whole": True}),
    ("tiles", {"size": [64, 64], "overlap": 1.0, "whole": True}),
    ("weights", {"file": "a", "sha256": "../../etc", "licence": None}),
    ("weights", {"file": "a" * 10_000, "sha256": None, "licence": None}),
    ("versions", {str(number): "1" for number in range(1000)}),
    ("versions", {"torch": 2}),
]


@pytest.mark.parametrize(("path", "value"), WRONG)
def test_wrong_values(metadata: ExportMetadata, path: str, value: Any):
    with pytest.raises(CheckpointError, match=r"x\.onnx has metadata that codetr does not write: .+\.$"):
        parse_metadata(changed(metadata, path, value), "x.onnx")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "5", '"text"', "{}" * 2, "[" * 100_000, '{"format": NaN}', "\x00"]
)
def test_no_metadata_at_all(text: str):
    with pytest.raises(CheckpointError):
        parse_metadata(text, "x.onnx")


def test_duplicate_keys(metadata: ExportMetadata):
    text = metadata.to_json()
    with pytest.raises(CheckpointError, match="codetr does not write"):
        parse_metadata('{"precision": "fp32", ' + text[1:], "x.onnx")


def test_long_metadata(metadata: ExportMetadata, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MAX_METADATA", 100)
    with pytest.raises(CheckpointError, match=r"they have [0-9,]+ characters"):
        parse_metadata(metadata.to_json(), "x.onnx")


def test_fields_of_later_versions_do_not_matter(metadata: ExportMetadata):
    assert parse_metadata(changed(metadata, "input.later", [1]), "x.onnx") == metadata


def test_names_and_descriptions_agree(metadata: ExportMetadata):
    masks = networks.load_random(*networks.VIT, *networks.REFINE)
    for each in (
        metadata,
        describe(networks.load_random(), ExportOptions(postprocess=True, preprocess=True, dynamic_size=True)),
        describe(masks, ExportOptions()),
    ):
        assert [line.split(":")[0] for line in describe_inputs(each)] == input_names(each)
        assert [line.split(":")[0] for line in describe_outputs(each)] == output_names(each)
    assert describe_inputs(metadata)[0] == "images: float32 (2, 3, 96, 160), normalised RGB, 0 where padded"


def test_kept_candidates():
    loaded = networks.load_random("test.candidates=max_detections")
    rule = describe(loaded, ExportOptions(postprocess=True)).output
    assert (rule.candidates, rule.kept(30), rule.kept(10)) == (20, 30, 20)
    assert rule.model_copy(update={"masks": True}).kept(30) == 20
