"""Exported files around a graph that is made by hand in milliseconds: its detections depend on every pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from codetr_cli.config.overrides import apply_overrides, parse_settings
from codetr_cli.export.job import describe
from codetr_cli.export.onnx_file import OPSET
from codetr_cli.export.openvino_model import read_onnx, save_openvino
from codetr_cli.export.options import ExportOptions
from codetr_cli.inference.exported.metadata import METADATA_KEY, ExportMetadata, output_names
from codetr_cli.inference.loading import LoadedModel
from codetr_cli.models.build import build_postprocess
from tests.conftest import TINY_TABLE

CLASS_NAMES, CATEGORY_IDS = ["disc", "bar", "ring"], [2, 3, 7]
QUERIES, CELLS = 30, 4


def metadata_of(*overrides: str, **options: Any) -> ExportMetadata:
    """The metadata of a file of the tiny network that the options ask for."""
    settings = apply_overrides(parse_settings(TINY_TABLE, "tests/conftest.py"), ["data.pad_divisor=32", *overrides])
    loaded = LoadedModel(
        model=cast("Any", None),
        postprocess=build_postprocess(settings.test),
        settings=settings,
        class_names=CLASS_NAMES,
        category_ids=CATEGORY_IDS,
    )
    return describe(loaded, ExportOptions(**options))


def build_model(metadata: ExportMetadata | None, *, text: str | None = None) -> Any:
    """The `onnx.ModelProto`: a convolution, and from its means logits and boxes, or the best of them.

    Args:
        metadata: of the file; None: none, and the inputs of the default.
        text: metadata to write in their place.
    """
    described = metadata or metadata_of()
    rule, detections = described.input, described.output.detections
    random = np.random.default_rng(0)
    classes, channels = len(CLASS_NAMES), 16
    weights = {
        "kernel": random.normal(0, 1, (channels, 3, 7, 7)) / 5,
        "to_outputs": random.normal(0, 1, (channels, QUERIES * (classes + 4))) / 12,
        "bias": np.tile([-1.5] * classes + [0, 0, -1, -1], QUERIES) + random.normal(0, 0.7, QUERIES * (classes + 4)),
        "mean": np.array(rule.mean).reshape(1, 3, 1, 1),
        "std": np.array(rule.std).reshape(1, 3, 1, 1),
    }
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    numbers = {
        "cells": [0, QUERIES, classes + 4], "start": [0], "middle": [classes], "end": [classes + 4], "axis": [2],
        "flat": [0, -1], "one": [1], "two": [2], "four": [4], "count": [described.output.candidates],
        "classes": classes, "flip": [1, 0, 1, 0],
    }  # fmt: skip
    initializers += [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in numbers.items()]
    scalars = {"zero": 0.0, "half": 0.5, "whole": 1.0}
    initializers += [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in scalars.items()]
    node = helper.make_node
    nodes = []
    if rule.pixels:
        nodes += [
            node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
            node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
            node("Sub", ["planes", "mean"], ["centred"]),
            node("Div", ["centred", "std"], ["normal"]),
        ]
    nodes += [
        node("Conv", ["normal" if rule.pixels else "images", "kernel"], ["maps"], strides=[5, 5]),
        node("Relu", ["maps"], ["active"]),
        node("GlobalAveragePool", ["active"], ["pooled"]),
        node("Flatten", ["pooled"], ["vector"]),
        node("Gemm", ["vector", "to_outputs", "bias"], ["all"]),
        node("Reshape", ["all", "cells"], ["by_query"]),
        node("Slice", ["by_query", "start", "middle", "axis"], ["raw_logits"]),
        node("Slice", ["by_query", "middle", "end", "axis"], ["raw_boxes"]),
        node("Sigmoid", ["raw_boxes"], ["cxcywh" if detections else "boxes"]),
        # image_sizes must count, or the runtime removes it
        node("Cast", ["image_sizes"], ["sizes"], to=TensorProto.FLOAT),
        node("ReduceMean", ["sizes", "one"], ["size"], keepdims=1),
        node("Unsqueeze", ["size", "one"], ["size3"]),
        node("Mul", ["size3", "zero"], ["nothing"]),
        node("Add", ["raw_logits", "nothing"], ["logits"]),
    ]
    if detections:
        nodes += [
            node("Sigmoid", ["logits"], ["probabilities"]),
            node("Reshape", ["probabilities", "flat"], ["flattened"]),
            node("TopK", ["flattened", "count"], ["scores", "index"], axis=1),
            node("Mod", ["index", "classes"], ["labels"]),
            node("Div", ["index", "classes"], ["query"]),
            node("Unsqueeze", ["query", "axis"], ["query3"]),
            node("GatherND", ["cxcywh", "query3"], ["chosen"], batch_dims=1),
            node("Slice", ["chosen", "start", "two", "axis"], ["centres"]),
            node("Slice", ["chosen", "two", "four", "axis"], ["sides"]),
            node("Mul", ["sides", "half"], ["halves"]),
            node("Sub", ["centres", "halves"], ["low"]),
            node("Add", ["centres", "halves"], ["high"]),
            node("Concat", ["low", "high"], ["corners"], axis=2),
            node("Clip", ["corners", "zero", "whole"], ["clipped"]),
            node("Gather", ["sizes", "flip"], ["limits"], axis=1),
            node("Unsqueeze", ["limits", "one"], ["limits3"]),
            node("Mul", ["clipped", "limits3"], ["boxes"]),
        ]
    batch, height, width = rule.batch or "batch", rule.height or "height", rule.width or "width"
    shape = [batch, height, width, 3] if rule.pixels else [batch, 3, height, width]
    inputs = [
        helper.make_tensor_value_info("images", TensorProto.UINT8 if rule.pixels else TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("image_sizes", TensorProto.INT64, [batch, 2]),
    ]
    count = described.output.candidates
    shapes: dict[str, tuple[int, list[Any]]] = {
        "logits": (TensorProto.FLOAT, [batch, QUERIES, classes]),
        "boxes": (TensorProto.FLOAT, [batch, count if detections else QUERIES, 4]),
        "scores": (TensorProto.FLOAT, [batch, count]),
        "labels": (TensorProto.INT64, [batch, count]),
    }
    outputs = [helper.make_tensor_value_info(name, *shapes[name]) for name in output_names(described)]
    graph = helper.make_graph(nodes, "handmade", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    if metadata is not None:
        value = metadata.to_json() if text is None else text
        model.metadata_props.append(onnx.StringStringEntryProto(key=METADATA_KEY, value=value))
    return model


def write_onnx(path: Path, *overrides: str, **options: Any) -> Path:
    """An ONNX file."""
    onnx.save_model(build_model(metadata_of(*overrides, **options)), str(path))
    return path


def write_openvino(path: Path, *overrides: str, **options: Any) -> Path:
    """An OpenVINO file with the same graph."""
    metadata = metadata_of(*overrides, format="openvino", **options)
    model = build_model(metadata)
    del model.metadata_props[:]
    save_openvino(read_onnx(model), metadata, path)
    return path
