"""Runs our network and losses on recorded training cases: targets, losses by name, gradients, optimizer steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from codetr_cli.losses.atss import AtssOutput
from codetr_cli.losses.record import AuxOutput, ForwardRecord, PositivePass
from codetr_cli.losses.roi import RoiOutput
from codetr_cli.losses.rpn import RpnOutput
from codetr_cli.models.codetr import CoDETR
from codetr_cli.training.optim import build_optimizer
from tests.golden import synth
from tests.golden.case import CPU, GRADIENT_TOLERANCE, TOLERANCE, Case, Report
from tests.golden.mask_stages import train_mask_values
from tests.golden.network_inputs import (
    RecordedDraws,
    batch_of,
    build_case_model,
    listed_draws,
    objective_of,
    on_device,
    published_names,
    settings_of,
)
from tests.golden.network_stages import (
    Values,
    in_layout_of,
    indices_of,
    layers_values,
    maps_values,
    proposals_values,
    stages_of,
    tolerance_of,
)

Targets = list[dict[str, Any]]

NEGLIGIBLE = 1e-9
"""Gradients below this share of the largest one are rounding errors of a sum that is zero."""


def run_train(case: Case, report: Report) -> None:
    """A training forward and backward: targets, losses by name, gradient norms by published parameter name."""
    settings = settings_of(case, case.shapes)
    model = build_case_model(case, settings.model)
    objective = objective_of(model, settings)
    images, mask, targets = batch_of(case)
    draws = RecordedDraws(listed_draws(case.facts))
    with stages_of(model) as values:
        record = objective.run(images, mask, targets, draws)
    total = torch.stack(list(record.losses.values())).sum()
    total.backward()
    record, targets = on_device((record, targets), CPU)
    values |= _given_draws(case, draws, targets) | _decoder_values(case, record, targets)
    values |= _hidden_values(values, record)
    values |= _loss_values(record, model.num_classes) | train_mask_values(record, targets)
    if record.aux is not None:
        aux = record.aux
        values |= (
            maps_values(aux.maps) | _rpn_values(case, aux.rpn) | proposals_values(case, aux.rpn.proposals.per_image())
        )
        values |= _roi_values(aux.roi, targets, model.num_classes) | _atss_values(aux.atss, targets)
        values |= _positive_values(record, aux, model.num_classes)
    gradients = _gradients(case, model)
    values |= {f"grad/{name}": gradient for name, gradient in gradients.items()}
    values["grad_norm"] = np.array([_norm(gradients[name]) for name in case.facts.get("grad_names", [])])
    case.compare(report, in_layout_of(case, values), tolerance_of)
    stored = {key.removeprefix("loss/") for key in case.tensors}
    losses = {name: value for name, value in case.facts["losses"].items() if name not in stored}
    _compare_losses({**case.facts, "losses": losses}, values, report, where="")
    _compare_gradients(case, gradients, report)


# --------------------------------------------------------------------------------------------------------------- stages


def _given_draws(case: Case, draws: RecordedDraws, targets: Targets) -> Values:
    """The draws as the case holds them: Sense-X's code has changed the noise of boxes in place by then."""
    values: Values = dict(draws.given)
    of_boxes = [name for name, value in values.items() if "query_denoising" in name and value.ndim == 2]
    if case.publisher == "sensex" and len(of_boxes) == 2:
        sign, shift = of_boxes
        blocks = values[shift].reshape(-1, 2, sum(len(target["labels"]) for target in targets), 4)
        further = np.array([0.0, 1.0])[:, None, None]
        values[shift] = (blocks + further).reshape(values[shift].shape) * (values[sign] * 2 - 1)
    return values


def _decoder_values(case: Case, record: ForwardRecord, targets: Targets) -> Values:
    values: Values = {
        "encoder/memory": record.encoded.memory,
        "memory": record.encoded.memory,
        "two_stage/topk_score": record.proposals.logits
        if case.publisher == "mmdet3"
        else record.proposals.logits.max(-1)[0],
        "two_stage/class_logits": _first(record.proposals.all_logits, record.proposals.logits),
        "two_stage/topk_coords": record.proposals.boxes,
        "two_stage/boxes": _first(record.proposals.all_boxes, record.proposals.boxes),
        "two_stage/topk_indices": record.proposals.indices,
        "decoder/references": record.decoded.references,
        "decoder/states": record.decoded.states,
        **layers_values(record.logits, record.boxes),
    }
    if record.denoising is not None:
        values |= {
            "dn/input_query_label": record.denoising.content,
            "dn/input_query_bbox": record.denoising.reference_logits,
            "dn/attn_mask": record.denoising.attn_mask,
            "dn/attn_mask_row_true_count": record.denoising.attn_mask.sum(1),
        }
    for i, target in enumerate(targets):
        values |= {f"gt/{i}/boxes": target["boxes"], f"gt/{i}/labels": target["labels"]}
    num_queries, num_proposed = record.proposals.indices.shape[1], values["two_stage/boxes"].shape[1]
    for layer, matches in enumerate(record.matches):
        is_proposals = layer == len(record.logits)
        for i, (queries, objects) in enumerate(matches):
            of_object = torch.full((len(targets[i]["labels"]),), -1)
            of_object[objects] = torch.from_numpy(queries)
            of_query = torch.zeros(num_proposed if is_proposals else num_queries, dtype=torch.int64)
            of_query[queries] = torch.from_numpy(objects + 1)
            values[f"assign/{'enc' if is_proposals else f'layer{layer}'}/img{i}"] = of_object
            values[f"hungarian/{'enc' if is_proposals else layer}/{i}"] = of_query
    return values


def _hidden_values(values: Values, record: ForwardRecord) -> Values:
    """What the decoder's layers give for denoising and matching queries; it decodes those of the heads after them."""
    count = record.logits.shape[2]
    return {
        key: value[:, :count] for key, value in values.items() if key.startswith(("decoder/hidden/", "decoder/layer/"))
    }


def _first(value: Tensor | None, otherwise: Tensor) -> Tensor:
    return otherwise if value is None else value


def _loss_values(record: ForwardRecord, num_classes: int) -> Values:
    values: Values = {f"loss/{name}": value.reshape(1) for name, value in record.losses.items()}
    values["loss/loss"] = torch.stack(list(record.losses.values())).sum()[None]
    if record.aux is not None:
        labels = torch.cat([c.labels for c in record.aux.roi.sampled])
        values["loss/acc0"] = (record.aux.roi.logits.argmax(1) == labels).double().mean()[None] * 100
    return values


def _rpn_values(case: Case, rpn: RpnOutput) -> Values:
    values: Values = {f"rpn/cls/{i}": logits for i, logits in enumerate(rpn.logits)}
    values |= {f"rpn/reg/{i}": deltas for i, deltas in enumerate(rpn.deltas)}
    for i, (assigned, valid) in enumerate(zip(rpn.assigned, rpn.valid, strict=True)):
        values[f"rpn/assign/{i}/positive"] = _positives_with_objects(assigned[valid])
    return values


def _positives_with_objects(assigned: Tensor) -> Tensor:
    """Rows: the positive anchors, counted among those inside the image's padding, and their object's index + 1."""
    positive = (assigned >= 0).nonzero()[:, 0]
    return torch.stack([positive, assigned[positive] + 1])


def _roi_values(roi: RoiOutput, targets: Targets, num_classes: int) -> Values:
    values: Values = {}
    for i, (candidates, is_object) in enumerate(zip(roi.regions.boxes, roi.regions.is_object, strict=True)):
        of_positives = indices_of(candidates.objects[: candidates.num_positives], targets[i]["boxes"])
        values |= {
            f"roi/priors/{i}": candidates.boxes,
            f"rcnn/sample/{i}/boxes": candidates.boxes,
            f"roi/pos_assigned_gt_inds/{i}": of_positives,
            f"rcnn/sample/{i}/pos_gt": of_positives,
            f"roi/pos_is_gt/{i}": is_object,
        }
    labels = torch.cat([c.labels for c in roi.sampled])
    return values | {
        "roi/cls_score": roi.logits,
        "roi/bbox_pred": roi.deltas,
        "roi/bbox_feats": roi.pooled,
        "roi/targets/labels": labels,
        "roi/targets/label_weights": torch.ones(len(labels)),
        "roi/targets/bbox_targets": torch.cat([c.objects for c in roi.sampled]),
        "roi/targets/bbox_weights": (labels < num_classes)[:, None].double().expand(-1, 4),
    }


def _atss_values(atss: AtssOutput, targets: Targets) -> Values:
    values: Values = {}
    for i, (logits, deltas, centerness) in enumerate(zip(atss.logits, atss.deltas, atss.centerness, strict=True)):
        values |= {f"atss/cls/{i}": logits, f"atss/reg/{i}": deltas, f"atss/centerness/{i}": centerness}
    for i, (candidates, valid) in enumerate(zip(atss.sampled, atss.targets.valid, strict=True)):
        positive = (candidates.labels < atss.logits[0].shape[1]).nonzero()[:, 0]
        assigned = torch.full_like(candidates.labels, -1)
        assigned[positive] = torch.from_numpy(indices_of(candidates.objects[positive], targets[i]["boxes"]))
        values |= {
            f"atss/pos_inds/{i}": positive,
            f"atss/pos_labels/{i}": candidates.labels[positive],
            f"atss/pos_targets/{i}": candidates.objects[positive],
            f"atss/assign/{i}/positive": _positives_with_objects(assigned[valid]),
        }
    return values


def _positive_values(record: ForwardRecord, aux: AuxOutput, num_classes: int) -> Values:
    sizes = [len(c.labels) for c in aux.roi.sampled]
    features = (
        list(torch.split(aux.roi.pooled.mean((2, 3)), sizes)),
        list(torch.cat([m.flatten(2).transpose(1, 2) for m in aux.maps], 1)),
    )
    values: Values = {}
    for head, (done, candidates, of_images) in enumerate(
        zip(record.positive.values(), (aux.roi.sampled, aux.atss.sampled), features, strict=True)
    ):
        selected = done.selected
        is_object = selected.targets.labels < num_classes
        of_pass = {
            "coords": selected.boxes,
            "labels": selected.targets.labels,
            "targets": selected.targets.boxes,
            "label_weights": torch.ones(is_object.shape),
            "bbox_weights": is_object[..., None].double().expand(-1, -1, 4),
            "feats": _positive_features(done, [c.labels for c in candidates], of_images, num_classes),
        }
        for name, value in of_pass.items():
            values |= {f"aux/{head}/{name}": value, f"aux{head}/{name}": value}
        values |= {
            f"aux/{head}/classes": done.logits,
            f"aux/{head}/coords_out": done.predicted_boxes,
            f"aux/{head}/decoder_query_in": done.queries.content,
            f"aux{head}/decoder/logits": done.logits[-1],
            f"aux{head}/decoder/boxes": done.predicted_boxes[-1],
        }
    return values


def _positive_features(
    done: PositivePass, labels_of_images: list[Tensor], features: list[Tensor], num_classes: int
) -> Tensor:
    """Features of the boxes that became positive queries: recorded, though Co-DINO does not use them."""
    rows = []
    for labels, of_image in zip(labels_of_images, features, strict=True):
        positive, background = (labels < num_classes).nonzero()[:, 0], (labels == num_classes).nonzero()[:, 0]
        rows.append(of_image[torch.cat([positive, background])[: done.queries.content.shape[1]]])
    return torch.stack(rows)


# ------------------------------------------------------------------------------------------------- losses and gradients


def _compare_losses(facts: dict[str, Any], values: Values, report: Report, where: str) -> None:
    """Losses that are facts of the case or of one of its steps, and their sum."""
    for name, recorded in facts.get("losses", {}).items():
        if f"loss/{name}" in values:
            report(f"{where}loss/{name}", values[f"loss/{name}"], [recorded])
        else:
            report.fail(f"{where}loss/{name}", "not computed by this runner")
    for name, of_levels in facts.get("per_level_losses", {}).items():
        report(f"{where}sum of per_level_losses/{name}", values[f"loss/{name}"], [sum(of_levels)])
    if "total_loss" in facts:
        report(f"{where}total_loss", values["loss/loss"], [facts["total_loss"]])


def _gradients(case: Case, model: CoDETR) -> dict[str, Tensor | None]:
    """Published name -> gradient of every parameter."""
    parameters = dict(model.named_parameters())
    names = published_names(case.shapes)
    return {theirs: parameters[ours].grad for theirs, ours in names.items() if ours in parameters}


def _norm(gradient: Tensor | None) -> float:
    return -1.0 if gradient is None else float(gradient.norm())


def _compare_gradients(case: Case, gradients: dict[str, Tensor | None], report: Report) -> None:
    """The gradient norm of every single parameter: the stored list is compared against its largest entry only."""
    facts = case.facts
    if "grad_names" in facts and case.tensors.get("grad_norm", {}).get("every") == 1:
        recorded = dict(zip(facts["grad_names"], case.recorded["grad_norm"].tolist(), strict=True))
    else:
        recorded = {name: -1.0 if norm is None else norm for name, norm in facts.get("grad_l2", {}).items()}
    largest = max(recorded.values(), default=0.0)
    for name, norm in recorded.items():
        if name not in gradients:
            report.fail(f"grad_norm/{name}", "not computed by this runner")
            continue
        ours = _norm(gradients[name])
        if norm < 0:  # no gradient there: none here, or one that is exactly zero
            report(f"grad_norm/{name}", max(ours, 0.0), 0.0, 0.0)
        else:
            scale = max(norm, NEGLIGIBLE * largest)
            report(f"grad_norm/{name}", (ours - norm) / scale, 0.0, GRADIENT_TOLERANCE)
    if "grad_total_l2" in facts:
        norms = [float(gradient.norm()) for gradient in gradients.values() if gradient is not None]
        report("grad_total_l2", float(np.linalg.norm(norms)), facts["grad_total_l2"], GRADIENT_TOLERANCE)


# ---------------------------------------------------------------------------------------------------------------- steps


def run_steps(case: Case, report: Report) -> None:
    """Optimizer steps on the same images: losses, gradient norm and how far every parameter moved."""
    settings = settings_of(case, case.shapes)
    model = build_case_model(case, settings.model)
    objective = objective_of(model, settings)
    images, mask, targets = batch_of(case)
    optimizer = build_optimizer(model, settings.train)
    names, parameters = published_names(case.shapes), dict(model.named_parameters())
    trained = {published: parameters[names[published]] for published in case.facts["trainable"]}
    start = {published: parameter.detach().clone() for published, parameter in trained.items()}
    probes = {name: case.tensor(synth.draw(f"probe/{name}", tuple(p.shape))) for name, p in trained.items()}
    values: Values = {}
    for index, facts in enumerate(case.facts["steps"]):
        record = objective.run(images, mask, targets, RecordedDraws(listed_draws(facts)))
        losses = _loss_values(record, model.num_classes)
        optimizer.zero_grad(set_to_none=True)
        losses["loss/loss"].backward()
        norm = nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], settings.train.clip_norm)
        _compare_losses(facts, losses, report, where=f"step/{index}/")
        report(f"step/{index}/grad_norm", norm, facts["grad_norm_before_clip"], GRADIENT_TOLERANCE)
        rates = sorted({group["lr"] for group in optimizer.param_groups})
        report(f"step/{index}/lrs", rates, sorted(set(facts["lrs"])), TOLERANCE)
        optimizer.step()
        moved = {published: parameter.detach() - start[published] for published, parameter in trained.items()}
        values[f"step/{index}/delta_norm"] = np.array([float(delta.norm()) for delta in moved.values()])
        values[f"step/{index}/delta_probe"] = np.array([float((moved[name] * probes[name]).sum()) for name in moved])
    case.compare(report, values, lambda key: GRADIENT_TOLERANCE)
