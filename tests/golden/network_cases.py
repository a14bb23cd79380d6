"""Runs our network on recorded evaluation, training, optimizer-step and initialisation cases, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from codetr_cli.losses.collaborative import CollaborativeObjective, Step
from codetr_cli.models.build import build_model, build_postprocess
from codetr_cli.models.codetr import CoDETR
from codetr_cli.models.encoder import cell_centres
from codetr_cli.models.proposals import propose_boxes
from codetr_cli.weights.names import rename
from tests.golden import synth
from tests.golden.case import GRADIENT_TOLERANCE, TOLERANCE, Case, Report
from tests.golden.network_inputs import RecordedDraws, batch_of, build_case_model, objective_of, settings_of

Values = dict[str, Any]


def _tolerance(key: str) -> float:
    return GRADIENT_TOLERANCE if key.startswith("grad") else TOLERANCE


@contextmanager
def _outputs_of(modules: dict[str, nn.Module]) -> Iterator[dict[str, Any]]:
    """Collects what the named modules give; a module that runs several times keeps its first output."""
    found: dict[str, Any] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _module, _inputs, output: found.setdefault(name, output) is None or None

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _watched(model: CoDETR) -> dict[str, nn.Module]:
    modules: dict[str, nn.Module] = {"backbone": model.backbone, "neck": model.neck}
    modules.update({f"encoder/layer/{i}": layer for i, layer in enumerate(model.encoder.layers)})
    modules.update({f"decoder/layer/{i}": layer for i, layer in enumerate(model.decoder.layers)})
    return modules


def _spread(values: Values, found: dict[str, Any]) -> None:
    for name, output in found.items():
        if isinstance(output, list):
            values.update({f"{name}/{i}": part for i, part in enumerate(output)})
        else:
            values[name] = output


# ---------------------------------------------------------------------------------------------------------------- eval


def run_eval(case: Case, report: Report) -> None:
    """Evaluation: every stage from the backbone to the detections, with and without NMS, and the auxiliary detectors."""
    settings = settings_of(case)
    model = build_case_model(case, settings.model).eval()
    images, mask, metas = batch_of(case)
    values: Values = {}
    with torch.no_grad():
        with _outputs_of(_watched(model)) as found:
            encoded = model.encode(images, mask)
            proposals = model.select_queries(encoded)
            queries = model.matching_queries(len(images))
            decoded = model.decode(queries, proposals.boxes, encoded)
        _spread(values, found)
        logits, boxes = model.predict_layers(decoded)
        by_class = len(case.tensors.get("two_stage/topk_score", {"shape": (0,) * 3})["shape"]) == 3
        _eval_stages(values, by_class, model, encoded, proposals, queries, decoded, logits, boxes)
        postprocess = build_postprocess(settings.test)
        plain = build_postprocess(settings.test.model_copy(update={"nms": "none"}))
        for prefix, process in (("result", postprocess), ("result_no_nms", plain)):
            for i, found_here in enumerate(process(logits[-1], boxes[-1], metas)):
                values[f"{prefix}/{i}/boxes"] = found_here.boxes
                values[f"{prefix}/{i}/scores"] = found_here.scores
                values[f"{prefix}/{i}/labels"] = found_here.labels
    case.compare(report, values, _tolerance)


def _eval_stages(
    values: Values,
    by_class: bool,
    model: CoDETR,
    encoded: Any,
    proposals: Any,
    queries: Tensor,
    decoded: Any,
    logits: Tensor,
    boxes: Tensor,
) -> None:
    layout = encoded.layout
    for i, (level_mask, position) in enumerate(
        zip(layout.level_masks, model.encoder.encode_positions(layout), strict=True)
    ):
        values[f"mask/{i}"] = level_mask.to(torch.uint8)
        values[f"pos/{i}"] = position.permute(0, 3, 1, 2)
    candidates = propose_boxes(layout)
    projected = model.proposals.project(encoded.memory, candidates)
    all_boxes = model.box_heads[-1](projected) + candidates
    chosen = proposals.indices[..., None].expand(-1, -1, 4)
    values |= {
        "encoder/reference_points": cell_centres(layout),
        "encoder/valid_ratios": layout.valid_ratios,
        "encoder/memory": encoded.memory,
        "memory": encoded.memory.transpose(0, 1),
        "two_stage/output_memory": projected,
        "two_stage/output_proposals": candidates,
        "two_stage/enc_outputs_class": model.class_heads[-1](projected),
        "two_stage/class_logits": model.class_heads[-1](projected),
        "two_stage/enc_outputs_coord_unact": all_boxes,
        "two_stage/topk_indices": proposals.indices,
        "two_stage/topk_coords": proposals.boxes,
        "two_stage/topk_coords_unact": all_boxes.gather(1, chosen),
        "two_stage/topk_score": proposals.logits if by_class else proposals.logits.max(-1)[0],
        "decoder/query_in": queries.transpose(0, 1),
        "decoder/reference_in": decoded.references[0],
        "decoder/states": decoded.states,
        "decoder/references": decoded.references,
        "head/classes": logits,
        "head/coords": boxes,
    }
    for i in range(len(logits)):
        values[f"decoder/logits/{i}"], values[f"decoder/boxes/{i}"] = logits[i], boxes[i]
    for i, aux_map in enumerate(model.aux_maps(encoded)):
        values[f"head/enc_outputs/{i}"] = values[f"encoder_maps/{i}"] = aux_map


# --------------------------------------------------------------------------------------------------------------- train


def run_train(case: Case, report: Report) -> None:
    """A training forward and backward: targets, losses by name, gradient norms by published parameter name."""
    settings = settings_of(case)
    model = build_case_model(case, settings.model)
    objective = objective_of(model, settings)
    images, mask, targets = batch_of(case)
    values: Values = {}
    with _outputs_of(_watched(model)) as found:
        step = objective.run(images, mask, targets, RecordedDraws(case.facts["random_draws"]))
    _spread(values, found)
    _loss_values(values, step, model.num_classes)
    _train_stages(values, case, objective, step, targets)
    total = torch.stack(list(step.losses.values())).sum()
    total.backward()
    _gradient_values(values, case, model)
    case.compare(report, values, _tolerance)
    recorded = case.facts.get("total_loss")
    if recorded is not None:
        report("facts.total_loss", total, recorded)


def _loss_values(values: Values, step: Step, num_classes: int) -> None:
    values["loss/loss"] = torch.stack(list(step.losses.values())).sum()[None]
    values |= {f"loss/{name}": value.reshape(1) for name, value in step.losses.items()}
    labels = torch.cat([c.labels for c in step.roi.candidates])
    hits = (step.roi.logits.argmax(1) == labels).double().mean() * 100
    values["loss/acc0"] = hits[None]


def _train_stages(
    values: Values, case: Case, objective: CollaborativeObjective, step: Step, targets: list[dict[str, Any]]
) -> None:
    model, dn = objective.model, step.denoising
    classes = model.num_classes
    for draw in case.facts["random_draws"]:
        key = f"draw/{draw['index']}/{draw['site']}"
        if key in case.tensors:
            raw = synth.uniform(draw["key"], tuple(draw["shape"]))
            high = classes if "label" in draw["site"] else 2
            values[key] = np.floor(high * raw).astype(np.int64) if "randint" in draw["kind"] else raw
    values |= {
        "dn/input_query_label": dn.content,
        "dn/input_query_bbox": dn.reference_logits,
        "dn/attn_mask": dn.blocked.to(torch.uint8),
        "dn/attn_mask_row_true_count": dn.blocked.sum(1),
        "encoder/memory": step.encoded.memory,
        "memory": step.encoded.memory.transpose(0, 1),
        "two_stage/topk_score": step.proposals.logits,
        "two_stage/topk_coords": step.proposals.boxes,
        "two_stage/topk_indices": step.proposals.indices,
        "head/classes": step.logits,
        "head/coords": step.boxes,
        "decoder/references": step.decoded.references,
        "decoder/states": step.decoded.states,
    }
    for i, aux_map in enumerate(step.aux_maps):
        values[f"head/enc_outputs/{i}"] = values[f"encoder_maps/{i}"] = aux_map
    for layer, matches in enumerate(step.matches):
        name = "enc" if layer == len(step.logits) else f"layer{layer}"
        for i, (queries, objects) in enumerate(matches):
            of_object = torch.full((len(targets[i]["labels"]),), -1)
            of_object[objects] = queries
            values[f"assign/{name}/img{i}"] = of_object
    _aux_stages(values, step, targets, classes)


def _aux_stages(values: Values, step: Step, targets: list[dict[str, Any]], classes: int) -> None:
    rpn, roi, atss = step.rpn, step.roi, step.atss
    for i, (logits, deltas) in enumerate(zip(rpn.logits, rpn.deltas, strict=True)):
        values[f"rpn/cls/{i}"], values[f"rpn/reg/{i}"] = logits, deltas
    for i, (boxes, scores) in enumerate(rpn.proposals):
        values[f"rpn/proposals/{i}"], values[f"rpn/scores/{i}"] = boxes[:50], scores[:50]
    for i, (candidates, positives, indices) in enumerate(
        zip(roi.candidates, roi.num_positives, roi.object_indices, strict=True)
    ):
        objects = targets[i]["boxes"]
        wanted = candidates.objects[:positives]
        same = (wanted[:, None] == objects[None]).all(-1)
        values[f"roi/priors/{i}"] = candidates.boxes
        values[f"roi/pos_assigned_gt_inds/{i}"] = (
            same.to(torch.uint8).argmax(1) if len(objects) else wanted.new_zeros(0).long()
        )
        values[f"roi/pos_is_gt/{i}"] = (indices < len(objects)).to(torch.uint8)
    labels = torch.cat([c.labels for c in roi.candidates])
    objects = torch.cat([c.objects for c in roi.candidates])
    values |= {
        "roi/cls_score": roi.logits,
        "roi/bbox_pred": roi.deltas,
        "roi/bbox_feats": roi.pooled,
        "roi/targets/labels": labels,
        "roi/targets/label_weights": torch.ones(len(labels)),
        "roi/targets/bbox_targets": objects,
        "roi/targets/bbox_weights": (labels < classes)[:, None].double().expand(-1, 4),
    }
    for i, (logits, deltas, centerness) in enumerate(zip(atss.logits, atss.deltas, atss.centerness, strict=True)):
        values[f"atss/cls/{i}"], values[f"atss/reg/{i}"], values[f"atss/centerness/{i}"] = logits, deltas, centerness
    for i, candidates in enumerate(atss.candidates):
        positive = (candidates.labels < classes).nonzero()[:, 0]
        values[f"atss/pos_inds/{i}"] = positive
        values[f"atss/pos_labels/{i}"] = candidates.labels[positive]
        values[f"atss/pos_targets/{i}"] = candidates.objects[positive]
    feats = _positive_features(step)
    for head, done in enumerate(step.positive):
        is_object = done.targets.labels < classes
        values |= {
            f"aux/{head}/coords": done.boxes,
            f"aux/{head}/labels": done.targets.labels,
            f"aux/{head}/targets": done.targets.boxes,
            f"aux/{head}/label_weights": torch.ones(is_object.shape),
            f"aux/{head}/bbox_weights": is_object[..., None].double().expand(-1, -1, 4),
            f"aux/{head}/feats": feats[head],
            f"aux/{head}/classes": done.logits,
            f"aux/{head}/coords_out": done.predicted_boxes,
            f"aux/{head}/decoder_query_in": done.queries,
        }


def _positive_features(step: Step) -> list[Tensor]:
    """Features of the boxes that became positive queries (Co-DINO records but does not use them).

    The boxes are found again by their coordinates among the head's candidates, in order.
    """
    sizes = [len(c.labels) for c in step.roi.candidates]
    per_head = [
        list(step.roi.pooled.mean((2, 3)).split(sizes)),
        list(torch.cat([m.flatten(2).transpose(1, 2) for m in step.aux_maps], 1)),
    ]
    selected = []
    for done, features, candidates in zip(
        step.positive, per_head, (step.roi.candidates, step.atss.candidates), strict=True
    ):
        rows = []
        for i, candidate in enumerate(candidates):
            positive = (candidate.labels < done.logits.shape[-1]).nonzero()[:, 0]
            background = (candidate.labels == done.logits.shape[-1]).nonzero()[:, 0]
            index = torch.cat([positive, background])[: done.boxes.shape[1]]
            rows.append(features[i][index])
        selected.append(torch.stack(rows))
    return selected


def _gradient_values(values: Values, case: Case, model: CoDETR) -> None:
    parameters = dict(model.named_parameters())
    ours = {published: name for published, name in _names(case).items() if name in parameters}

    def norm(published: str) -> float:
        gradient = parameters[ours[published]].grad
        return -1.0 if gradient is None else float(gradient.norm())

    names = case.facts["grad_names"]
    values["grad_norm"] = np.array([norm(name) for name in names])
    for key in case.tensors:
        if key.startswith("grad/"):
            values[key] = parameters[ours[key.removeprefix("grad/")]].grad


def _names(case: Case) -> dict[str, str]:
    """Published name -> ours for every floating entry of the case."""
    published = {name: name for name, _, dtype in case.manifest if dtype.startswith("float")}
    return {theirs: ours for ours, theirs in rename(published).state.items()}


# --------------------------------------------------------------------------------------------------------------- steps


def run_steps(case: Case, report: Report) -> None:
    """Optimizer steps on the same images: losses, gradient norm and how far every parameter moved."""
    from codetr_cli.engine.optim import build_optimizer

    settings = settings_of(case)
    model = build_case_model(case, settings.model)
    objective = objective_of(model, settings)
    images, mask, targets = batch_of(case)
    optimizer = build_optimizer(model, settings.train)
    names = _names(case)
    parameters = dict(model.named_parameters())
    trained = {published: parameters[names[published]] for published in case.facts["trainable"]}
    start = {published: parameter.detach().clone() for published, parameter in trained.items()}
    salt = "probe/"
    values: Values = {}
    for index, fact in enumerate(case.facts["steps"]):
        losses = objective.run(images, mask, targets, RecordedDraws(fact["random_draws"])).losses
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], settings.train.clip_norm)
        report(f"step/{index}/total_loss", total, fact["total_loss"])
        for name, recorded in fact["losses"].items():
            if name in losses:
                report(f"step/{index}/loss/{name}", losses[name], recorded)
        report(f"step/{index}/grad_norm", norm, fact["grad_norm_before_clip"], GRADIENT_TOLERANCE)
        report(f"step/{index}/lrs", sorted({group["lr"] for group in optimizer.param_groups}), sorted(set(fact["lrs"])))
        optimizer.step()
        moved = {published: parameter.detach() - start[published] for published, parameter in trained.items()}
        values[f"step/{index}/delta_norm"] = np.array([float(delta.norm()) for delta in moved.values()])
        values[f"step/{index}/delta_probe"] = np.array(
            [
                float((delta.numpy() * synth.draw(salt + name, tuple(delta.shape))).sum())
                for name, delta in moved.items()
            ]
        )
    case.compare(report, values, lambda key: GRADIENT_TOLERANCE)


# ---------------------------------------------------------------------------------------------------------------- init


def run_init(case: Case, report: Report) -> None:
    """Initialisation: constants equal, random entries with the same mean, deviation and range up to sampling error."""
    from codetr_cli.config import load_preset

    torch.manual_seed(0)
    recorded = {name: fact for name, fact in case.facts["parameters"].items()}
    state = build_model(load_preset("co_dino_r50").model).state_dict()
    names = {theirs: ours for ours, theirs in rename({name: name for name in recorded}).state.items()}
    for published, fact in recorded.items():
        if published not in names:
            continue
        value = state[names[published]].double()
        if list(value.shape) != fact["shape"]:
            report.fail(published, f"shape {list(value.shape)} instead of {fact['shape']}")
        elif fact["same_for_all_seeds"] and "values" in fact:
            wanted = torch.as_tensor(fact["values"], dtype=torch.float64)
            report(published, value.flatten(), wanted.flatten().expand(value.numel()).numpy(), 1e-6)
        else:
            _compare_statistics(report, published, value, fact)


def _compare_statistics(report: Report, name: str, value: Tensor, fact: dict[str, Any]) -> None:
    """Mean and deviation within five standard errors; the range of a bounded distribution within 5 %."""
    count, deviation = value.numel(), fact["std"]
    if deviation == 0:
        report(name, value.flatten(), np.full(count, fact["mean"]), 1e-6)
        return
    standard_error = deviation / count**0.5
    mean_error = abs(float(value.mean()) - fact["mean"]) / standard_error
    # The recorded figures come from three draws, so both sides carry sampling error; kurtosis up to the normal's 3.
    deviation_error = abs(float(value.std(unbiased=False)) - deviation) / (deviation / (2 * count) ** 0.5)
    report(f"{name} mean", 0.0 if mean_error <= 5 else mean_error, 0.0, 0.0)
    report(f"{name} std", 0.0 if deviation_error <= 6 else deviation_error, 0.0, 0.0)
    bounded = fact["max"] / deviation < 1.9 and count >= 2000  # uniform: max is sqrt(3) deviations
    if bounded:
        report(f"{name} max", float(value.max()), fact["max"], 0.05)
        report(f"{name} min", float(value.min()), fact["min"], 0.05)
