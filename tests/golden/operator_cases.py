"""Runs our operators on the recorded operator cases."""

from __future__ import annotations

import numpy as np
import torch

from codetr_cli.ops.deform_attn import multi_scale_deformable_attention
from codetr_cli.ops.nms import batched_nms, batched_soft_nms
from tests.golden import synth
from tests.golden.case import TOLERANCE, Case, Report


def run_deform_attn(case: Case, report: Report) -> None:
    """Deformable attention forward and backward on every recorded configuration."""
    values = {}
    for index, c in enumerate(case.facts["configurations"]):
        levels = len(c["shapes"])
        tokens = sum(h * w for h, w in c["shapes"])
        location_shape = (c["bs"], c["queries"], c["heads"], levels, c["points"], 2)
        value = case.tensor(synth.draw(f"msda/{index}/value", (c["bs"], tokens, c["heads"], c["ch"])))
        locations = case.tensor(c["lo"] + (c["hi"] - c["lo"]) * synth.uniform(f"msda/{index}/loc", location_shape))
        weights = case.tensor(synth.uniform(f"msda/{index}/attn", location_shape[:-1]))
        weights = weights / weights.sum((-2, -1), keepdim=True)
        gradient = case.tensor(synth.draw(f"msda/{index}/grad", (c["bs"], c["queries"], c["heads"] * c["ch"])))
        inputs = [t.clone().requires_grad_() for t in (value, locations, weights)]
        output = multi_scale_deformable_attention(inputs[0], [tuple(s) for s in c["shapes"]], inputs[1], inputs[2])
        output.backward(gradient)
        values[f"{index}/out"] = output
        for name, tensor in zip(("value", "loc", "attn"), inputs, strict=True):
            values[f"{index}/grad_{name}"] = tensor.grad
    case.compare(report, values, lambda key: TOLERANCE)


def run_nms(case: Case, report: Report) -> None:
    """Hard and soft NMS with every recorded setting."""
    count = 300
    base = synth.boxes("nms/base", 12, 400, 500)
    boxes = base[np.arange(count) % 12] + 6 * synth.draw("nms/jit", (count, 4))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    scores = case.tensor(synth.uniform("nms/score", (count,)) * 0.98 + 0.01)
    labels = case.tensor(synth.labels("nms/lab", count, 3))
    corners = case.tensor(boxes)
    values = {}
    for name, c in case.facts["configurations"].items():
        if c["type"] == "nms":
            keep = batched_nms(corners, scores, labels, c["iou_threshold"])[: c.get("max_num", count)]
            kept_scores = scores[keep]
        else:
            keep, kept_scores = batched_soft_nms(
                corners,
                scores,
                labels,
                iou_threshold=c["iou_threshold"],
                min_score=c.get("min_score", 1e-3),
                method=c.get("method", "linear"),
                sigma=c.get("sigma", 0.5),
                max_detections=c.get("max_num"),
            )
        values[f"{name}/keep"] = keep
        values[f"{name}/dets"] = torch.cat([corners[keep], kept_scores[:, None]], 1)
    case.compare(report, values, lambda key: TOLERANCE)
