"""What an exported file says of itself, beside what it should say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from codetr_cli.errors import listed, shown
from codetr_cli.export.options import ExportOptions
from codetr_cli.inference.exported.metadata import ExportMetadata
from codetr_cli.inference.options import TileOptions

SPEED_ONLY = frozenset(("batch_size", "cuda_graph", "compile", "allow_nonfinite_weights", "tta_scales", "tta_flip"))
"""Settings of `test` that do not change the detections of an exported file."""
DATA = ("mean", "std", "pad_divisor")


def options_of(metadata: ExportMetadata) -> ExportOptions:
    """The options that a file was exported with, by its metadata."""
    rule, tiles = metadata.input, metadata.tiles
    size = None if rule.height is None or rule.width is None else (rule.height, rule.width)
    return ExportOptions(
        format=metadata.export_format,
        size=size,
        dynamic_size=size is None,
        batch=rule.batch,
        precision=metadata.precision,
        attention=metadata.attention,
        preprocess=rule.pixels,
        postprocess=metadata.output.detections,
        tiles=None if tiles is None else TileOptions(size=tiles.size, overlap=tiles.overlap, whole=tiles.whole),
    )


def metadata_differences(expected: ExportMetadata, found: ExportMetadata) -> list[str]:
    """Sentences on everything that changes detections and is not as in the checkpoint.

    Args:
        expected: of the checkpoint, with the options of the file.
        found: of the file.
    """
    sentences = []
    if expected.class_names != found.class_names or expected.category_ids != found.category_ids:
        sentences.append(_classes(expected, found))
    wanted, given = dict(_values(expected)), dict(_values(found))
    different = [key for key in wanted | given if wanted.get(key) != given.get(key)]
    if different:
        texts = [
            f"{key} is {shown(given.get(key))} in the file and {shown(wanted.get(key))} in the checkpoint"
            for key in different
        ]
        sentences.append(
            f"The file has other settings than the checkpoint: {listed(texts, 5, separator='; ')}. If it was exported "
            "with these, verify with the same --set."
        )
    sums = expected.weights.sha256, found.weights.sha256
    if None not in sums and sums[0] != sums[1]:
        sentences.append(
            f"The file was made from other weights: {found.weights.file} with SHA-256 {str(sums[1])[:12]}..., not "
            f"{str(sums[0])[:12]}..."
        )
    return sentences


def _classes(expected: ExportMetadata, found: ExportMetadata) -> str:
    ours, theirs = (
        [f"{name} ({number})" for name, number in zip(side.class_names, side.category_ids, strict=True)]
        for side in (expected, found)
    )
    if len(ours) != len(theirs):
        return f"The file has {len(theirs)} classes and the checkpoint {len(ours)}."
    rows = [row for row in range(len(ours)) if ours[row] != theirs[row]]
    texts = [f"class {row} is {theirs[row]} in the file and {ours[row]} in the checkpoint" for row in rows]
    kind = "in another order" if sorted(ours) == sorted(theirs) else "other classes than the checkpoint"
    return f"The file has its classes {kind}: {listed(texts, 4, separator='; ')}."


def _values(metadata: ExportMetadata) -> Iterator[tuple[str, Any]]:
    """Dotted names and values of what detections depend on."""
    settings = metadata.parsed_settings("the file").model_dump(mode="json")
    for key, value in _flat("model", settings["model"]):
        yield key, value
    for key in DATA:
        yield f"data.{key}", settings["data"][key]
    for key, value in _flat("test", settings["test"]):
        if key.removeprefix("test.") not in SPEED_ONLY:
            yield key, value
    for part, rule in (("input", metadata.input), ("output", metadata.output)):
        yield from _flat(part, rule.model_dump(mode="json"))


def _flat(prefix: str, table: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(f"{prefix}.{key}", value)
        else:
            yield f"{prefix}.{key}", value
