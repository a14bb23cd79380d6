"""Networks, precisions and options on the emulated GPU: nothing is mixed, raced or misplaced; values are the CPU's.

The fast selection runs by default, everything with `-m slow`.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from codetr_cli.config.overrides import apply_overrides
from tests.strict.others import OTHER_KINDS
from tests.strict.workloads import Work, evaluated_batch, random_network, training_step
from tests.strict_device import StrictTensor, strict_device, values, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)

DEFORMABLE = ("model.family=co_deformable", "model.finest_stride=8", "model.num_levels=4",
              "train.loss.class_weight=2.0")  # fmt: skip
SWIN = ("model.backbone.kind=swin", "model.backbone.embed_dim=16", "model.backbone.num_heads=[1, 2, 2, 4]",
        "model.backbone.layers=[1, 1, 2, 1]", "model.backbone.window_size=4")  # fmt: skip
VIT = ("model.backbone.kind=vit", "model.backbone.embed_dim=32", "model.backbone.depth=2", "model.num_levels=5",
       "model.backbone.num_heads=2", "model.backbone.hidden_dim=20", "model.backbone.window_size=4",
       "model.backbone.global_blocks=[1]", "model.backbone.pretrain_size=64")  # fmt: skip
RECOMPUTED = ("model.encoder_checkpointing=2", "model.decoder_checkpointing=true", "model.aux_checkpointing=true",
              "model.backbone.checkpointing=true")  # fmt: skip
FCN = (*DEFORMABLE, "model.mask.kind=fcn", "model.mask.dim=32")
REFINE = ("model.mask.kind=refine", "model.mask.dim=32")
NETWORKS = {
    "co_dino": (),
    "co_deformable": DEFORMABLE,
    "swin": SWIN,
    "vit": VIT,
    "fcn": FCN,
    "refine": REFINE,
    "recomputed": RECOMPUTED,
    "frozen_norms": ("model.backbone.norm=frozen_batch", "model.backbone.block=bottleneck",
                     "model.backbone.frozen_stages=1"),
    "three_points": ("model.num_points=3",),
    "no_positive_queries": ("train.loss.positive_queries=false",),
    "no_aux_heads": ("train.loss.aux_heads=false", "train.loss.positive_queries=false"),
}  # fmt: skip
DETECTION = {
    **{name: NETWORKS[name] for name in ("co_dino", "co_deformable", "swin", "vit", "refine", "frozen_norms")},
    "nms_none": ("test.nms=none",),
    "nms_hard": ("test.nms=hard",),
    "nms_soft": ("test.nms=soft",),
    "roi_head": ("test.head=roi",),
    "atss_head": ("test.head=atss",),
    "fcn_roi_head": (*FCN, "test.head=roi"),
}
TRAINED_BY_DEFAULT = {
    ("co_dino", "fp16", True, 5),
    ("co_deformable", "fp32", True, 0),
    ("vit", "bf16", True, 5),
    ("refine", "bf16", False, 5),
}
DETECTED_BY_DEFAULT = {
    ("nms_soft", "bf16", True), ("roi_head", "fp32", True), ("refine", "fp32", True),
}  # fmt: skip
DETECTED_ELSEWHERE_BY_DEFAULT = {
    ("mps", "vit", "fp32"), ("mps", "frozen_norms", "fp32"), ("mps", "swin", "bf16"),
    ("mps", "nms_hard", "fp32"), ("mps", "fcn_roi_head", "fp32"), ("xpu", "refine", "fp32"),
}  # fmt: skip


def cases(options, default):
    return [pytest.param(*case, marks=() if case in default else pytest.mark.slow) for case in options]


@pytest.mark.parametrize(
    ("network", "precision", "padded", "objects"),
    cases(
        [
            (name, precision, padded, objects)
            for name in NETWORKS
            for precision in ("fp32", "bf16", "fp16")
            for padded, objects in ((False, 5), (True, 5), (True, 0))
        ],
        TRAINED_BY_DEFAULT,
    ),
)
def test_a_training_step(tiny_settings, network, precision, padded, objects):
    settings = apply_overrides(tiny_settings, list(NETWORKS[network]))
    work = Work(size=(64, 96), precision=precision, padded=padded, objects=objects)
    model = random_network(settings)
    reference = copy.deepcopy(model)
    with strict_device() as gpu:
        ours, _ = training_step(model.to(GPU), settings, work, GPU, update=precision == "fp16")
        assert not gpu.problems, gpu.report()
        found = float(values(ours.loss))
    if precision != "fp32":
        work = Work(size=work.size, padded=padded, objects=objects)
    theirs, _ = training_step(reference, settings, work, CPU, update=False)
    # In reduced precision other queries may match: the network computes the same, up to its rounding.
    assert found == pytest.approx(float(theirs.loss), rel=1e-6 if precision == "fp32" else 0.05)
    for (name, mine), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None), name
        if mine.grad is None:
            continue
        assert isinstance(mine.grad, StrictTensor), name
        if precision == "fp32":
            tolerance = 1e-5 * float(other.grad.abs().max())
            torch.testing.assert_close(values(mine.grad), other.grad, rtol=1e-4, atol=tolerance, msg=name)


@pytest.mark.parametrize(
    ("network", "precision", "optimized"),
    cases(
        [(n, p, optimized) for n in DETECTION for p in ("fp32", "bf16", "fp16") for optimized in (True, False)],
        DETECTED_BY_DEFAULT,
    ),
)
def test_a_detection(tiny_settings, network, precision, optimized):
    check_detection(tiny_settings, network, precision, optimized, "cuda")


@pytest.mark.parametrize(
    ("kind", "network", "precision"),
    cases([(k, n, p) for k in OTHER_KINDS for n in DETECTION for p in ("fp32", "bf16")], DETECTED_ELSEWHERE_BY_DEFAULT),
)
def test_a_detection_on_gpus_that_do_not_train(tiny_settings, kind, network, precision):
    check_detection(tiny_settings, network, precision, True, kind)


def check_detection(tiny_settings, network, precision, optimized, kind):
    settings = apply_overrides(tiny_settings, list(DETECTION[network]))
    work = Work(size=(64, 96), precision=precision, padded=True, optimized=optimized)
    model = random_network(settings)
    reference = copy.deepcopy(model)
    device = torch.device(kind)
    with strict_device(kind) as gpu:
        found = evaluated_batch(model.to(device), settings, work, device)
        assert not gpu.problems, gpu.report()
    assert len(found) > 0
    if precision == "fp32":
        expected = evaluated_batch(reference, settings, work, CPU)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.boxes_xywh, expected.boxes_xywh, rtol=1e-5, atol=1e-3)
        assert found.masks == expected.masks
