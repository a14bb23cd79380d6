"""How deformable attention is written in ONNX: the names of nodes that are not ONNX's own.

`ops.deform_attn_export` has the formulations that are traced. Two of them consist of ONNX's operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from codetr_cli.ops.deform_attn_export import PLUGIN_NAME

PLUGIN_DOMAIN = "trt.plugins"
"""ONNX Runtime's TensorRT provider finds TensorRT's plugins in this domain; TensorRT's parser ignores it."""
PLUGIN_VERSION = "2"
"""TensorRT has it since 10.11, with the inputs of version 1, which is deprecated."""


INPUTS = {
    "value": "T",
    "spatial_shapes": "I",
    "level_start_index": "I",
    "sampling_locations": "T",
    "attention_weights": "T",
}
"""Inputs of the plugin in order, and their types: T floating point, I int32."""


def plugin_schema() -> Any:
    """The plugin as an `onnx.defs.OpSchema`; it takes the plugin's version and namespace as attributes."""
    from onnx.defs import OpSchema

    floats = ["tensor(float)", "tensor(float16)"]
    return OpSchema(
        PLUGIN_NAME,
        PLUGIN_DOMAIN,
        1,
        inputs=[OpSchema.FormalParameter(name, kind) for name, kind in INPUTS.items()],
        outputs=[OpSchema.FormalParameter("output", "T")],
        type_constraints=[("T", floats, ""), ("I", ["tensor(int32)"], "")],
        attributes=[
            OpSchema.Attribute(name, OpSchema.AttrType.STRING, "") for name in ("plugin_version", "plugin_namespace")
        ],
    )


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How torch.onnx writes the operators of codetr: its `custom_translation_table`."""
    from onnxscript import values

    operator = values.Op(values.Opset(PLUGIN_DOMAIN, 1), PLUGIN_NAME, plugin_schema())

    def plugin(*inputs: Any) -> Any:
        return operator(*inputs, plugin_version=PLUGIN_VERSION, plugin_namespace="")

    return {torch.ops.codetr.deform_attn_plugin.default: plugin}
