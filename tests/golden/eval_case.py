"""Runs our network on recorded evaluation cases, stage by stage, from the backbone to the detections."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from codetr_cli.models.build import build_postprocess
from codetr_cli.models.codetr import CoDETR, Encoded
from codetr_cli.models.decoder import DecoderOutput
from codetr_cli.models.encoder import cell_centres
from codetr_cli.models.postprocess import Detections, PostProcess
from codetr_cli.models.proposals import Proposals, propose_boxes
from codetr_cli.models.queries import Queries
from tests.golden.case import Case, Report
from tests.golden.mask_stages import eval_mask_values
from tests.golden.network_inputs import batch_of, build_case_model, settings_of
from tests.golden.network_stages import (
    Values,
    in_layout_of,
    layers_values,
    maps_values,
    proposals_values,
    rotary_values,
    stages_of,
    tolerance_of,
)

AUX_HEADS = {"aux_rcnn": ("rcnn", "roi"), "aux_atss": ("atss", "atss")}
"""Recorded key -> the published name of the auxiliary head's test settings and ours of the head."""


@torch.no_grad()
def run_eval(case: Case, report: Report) -> None:
    """Compares every stage, the detections with and without NMS, and the auxiliary heads' where they are recorded."""
    settings = settings_of(case, case.shapes)
    model = build_case_model(case, settings.model).eval()
    images, mask, metas = batch_of(case)
    with stages_of(model) as values:
        encoded = model.encode(images, mask)
        proposals = model.select_queries(encoded)
        queries = model.matching_queries(proposals)
        decoded = model.decode(queries, encoded)
    logits, boxes = model.predict_layers(decoded)
    values |= rotary_values(model) | _encoder_values(model, encoded)
    values |= _selection_values(case, model, encoded, proposals)
    values |= _decoder_values(case, queries, decoded) | layers_values(logits, boxes)
    postprocess = build_postprocess(settings.test)
    plain = dataclasses.replace(postprocess, nms="none")
    found = postprocess(logits[-1], boxes[-1], metas)
    values |= _detections_values("result", found)
    values |= _detections_values("result_no_nms", plain(logits[-1], boxes[-1], metas))
    values |= _aux_values(case, model, encoded, metas, postprocess)
    values |= eval_mask_values(case, model, encoded, found, metas, postprocess)
    case.compare(report, in_layout_of(case, values), tolerance_of)


def _encoder_values(model: CoDETR, encoded: Encoded) -> Values:
    layout = encoded.layout
    positions = layout.split_levels(model.encoder.encode_positions(layout))
    values: Values = {f"mask/{i}": mask for i, mask in enumerate(layout.level_masks)}
    values |= {f"pos/{i}": position for i, position in enumerate(positions)}
    for name in ("encoder/reference_points", "enc_reference_points"):
        values[name] = cell_centres(layout)
    for name in ("encoder/valid_ratios", "valid_ratios"):
        values[name] = layout.valid_ratios
    for name in ("encoder/memory", "memory"):
        values[name] = encoded.memory
    return values | maps_values(model.aux_maps(encoded))


def _selection_values(case: Case, model: CoDETR, encoded: Encoded, proposals: Proposals) -> Values:
    candidates = propose_boxes(encoded.layout)
    projected = model.proposals.project(encoded.memory, candidates)
    logits = model.class_heads[-1](projected)
    box_logits = model.box_heads[-1](projected) + candidates
    return {
        "two_stage/output_memory": projected,
        "two_stage/output_proposals": candidates,
        "two_stage/enc_outputs_class": logits,
        "two_stage/class_logits": logits,
        "two_stage/enc_outputs_coord_unact": box_logits,
        "two_stage/topk_indices": proposals.indices,
        "two_stage/topk_coords": proposals.boxes,
        "two_stage/topk_coords_unact": box_logits.gather(1, proposals.indices[..., None].expand(-1, -1, 4)),
        "two_stage/topk_score": proposals.logits
        if case.publisher == "mmdet3"
        else model.proposals.score(proposals.logits),
    }


def _decoder_values(case: Case, queries: Queries, decoded: DecoderOutput) -> Values:
    # Some cases hold the references after each layer only, without the initial ones.
    recorded = case.tensors.get("decoder/references", {}).get("shape", [len(decoded.references)])[0]
    given = {} if queries.query_pos is None else {"decoder/query_pos_in": queries.query_pos}
    return {
        **given,
        "decoder/query_in": queries.content,
        "decoder/reference_in": decoded.references[0],
        "decoder/states": decoded.states,
        "decoder/references": decoded.references[-recorded:],
    }


def _detections_values(prefix: str, found: list[Detections]) -> Values:
    values: Values = {}
    for i, detections in enumerate(found):
        values |= {f"{prefix}/{i}/{name}": getattr(detections, name) for name in ("boxes", "scores", "labels")}
    return values


def _aux_values(
    case: Case, model: CoDETR, encoded: Encoded, metas: list[dict[str, Any]], postprocess: PostProcess
) -> Values:
    values: Values = {}
    heads = model.aux_heads
    if heads is not None and any(key.startswith("rpn/") for key in case.tensors):
        sizes = [meta["norm_size"] for meta in metas]
        values |= proposals_values(case, heads.rpn.propose(model.aux_maps(encoded), sizes))
    for prefix, (theirs, ours) in AUX_HEADS.items():
        test = case.facts.get("aux_test_cfg", {}).get(theirs, {})
        recorded = any(key.startswith(f"{prefix}/") for key in case.tensors)
        if recorded and not test.get("score_thr"):
            found = model.detect_encoded(encoded, metas, dataclasses.replace(postprocess, head=ours))
            values |= _detections_values(prefix, found)
    return values
