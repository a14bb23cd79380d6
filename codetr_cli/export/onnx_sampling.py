"""How an ONNX file samples: deformable attention is wrong, without any error, with another mode of GridSample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from codetr_cli.errors import counted

BILINEAR = ("bilinear", "linear")  # before opset 20, and since
MAX_OPSET = 19
"""From opset 20 on, TensorRT's parser takes the mode "linear" for nearest."""


def sampling_faults(path: Path) -> list[str]:
    """Sentences on what the GridSample nodes of a file do wrong; none without the package onnx.

    Args:
        path: a file that ONNX Runtime has loaded.
    """
    try:
        import onnx
    except ImportError:
        return []
    model = onnx.load_model(str(path), load_external_data=False)
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    modes = [_mode(onnx, node) for node in model.graph.node if node.op_type == "GridSample"]
    faults = []
    nearest = [mode for mode, *_ in modes if mode not in BILINEAR]
    if nearest:
        faults.append(
            f"{counted(len(nearest), 'GridSample node')} of the graph sample by mode {nearest[0]!r} instead "
            "of bilinearly."
        )
    if any(align for _, align, _ in modes):
        count = sum(align for _, align, _ in modes)
        faults.append(f"{counted(count, 'GridSample node')} of the graph have align_corners=1 instead of 0.")
    if any(padding != "zeros" for *_, padding in modes):
        faults.append("GridSample nodes of the graph do not take zeros for what is outside of the map.")
    if modes and opset > MAX_OPSET:
        faults.append(f"The graph has opset {opset}, whose GridSample TensorRT takes for nearest without an error.")
    return faults


def _mode(onnx: Any, node: Any) -> tuple[str, bool, str]:
    """Mode, align_corners and padding of a GridSample node."""
    values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    mode, padding = (values.get(name, default) for name, default in (("mode", b"linear"), ("padding_mode", b"zeros")))
    return mode.decode("utf-8", "replace"), bool(values.get("align_corners", 0)), padding.decode("utf-8", "replace")
