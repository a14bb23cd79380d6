from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from codetr_cli.errors import ConfigError
from codetr_cli.inference.pipeline import TimedPostProcess, inference
from tests.postprocessing import post_process
from tests.strict_device import strict_device, why_not

CPU = torch.device("cpu")


@pytest.mark.parametrize("training", [True, False])
def test_the_training_mode_is_restored(training):
    model = nn.Linear(2, 2).train(training)
    with inference(model, CPU, "auto"):
        assert not model.training
        assert model(torch.ones(1, 2)).is_inference()
    assert model.training == training
    with pytest.raises(RuntimeError, match="inside"), inference(model, CPU, "auto"):
        raise RuntimeError("inside")
    assert model.training == training


def test_precision():
    model = nn.Linear(2, 2)
    for precision, dtype in (("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with inference(model, CPU, precision):
            assert model(torch.ones(1, 2)).dtype == dtype
    with pytest.raises(ConfigError, match="fp16"), inference(model, CPU, "fp16"):
        pass


@pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
def test_fp32_on_a_gpu_is_not_tf32():
    def switches() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    with strict_device():
        gpu = torch.device("cuda", 0)
        model = nn.Conv2d(1, 1, 1).to(gpu)
        before = switches()
        for precision, expected in (("auto", (False, False)), ("tf32", (True, True)), ("fp32", (False, False))):
            with inference(model, gpu, precision):
                assert switches() == expected
            assert switches() == before
    with (
        strict_device(capability=(7, 5)),
        pytest.raises(ConfigError, match=r"compute capability 7\.5"),
        inference(model, gpu, "tf32"),
    ):
        pass


def test_a_timed_postprocess_gives_the_same_detections():
    plain = post_process(max_detections=7, nms_iou=0.6)
    timed = TimedPostProcess.around(replace(plain, head="roi"))
    assert (timed.max_detections, timed.nms_iou, timed.head) == (7, 0.6, "roi")
    logits, boxes = torch.randn(2, 10, 3), torch.rand(2, 10, 4)
    targets = [{"norm_size": (50, 60), "scale_factor": (1.0, 1.0)}] * 2
    for _ in range(2):
        for ours, expected in zip(timed(logits, boxes, targets), plain(logits, boxes, targets), strict=True):
            assert torch.equal(ours.boxes, expected.boxes)
            assert torch.equal(ours.scores, expected.scores)
    assert len(timed.seconds) == 2
    assert all(seconds > 0 for seconds in timed.seconds)
