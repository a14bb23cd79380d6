from __future__ import annotations

import copy

import pytest
import torch

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.errors import ResourceError
from codetr_cli.inference.loading import compile_for
from codetr_cli.models import torch_compile
from codetr_cli.models.build import build_model
from codetr_cli.models.inference_mode import optimize_for_inference
from codetr_cli.models.torch_compile import compile_static_parts
from tests.models.networks import make_batch


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_the_compiled_network_detects_the_same(tiny_settings):
    """`fullgraph` refuses whatever cannot be traced, so this also says that nothing needs to run outside."""
    model = build_model(tiny_settings.model).eval()
    plain = optimize_for_inference(copy.deepcopy(model))
    traced = optimize_for_inference(compile_static_parts(model, backend="aot_eager"))
    for height, width in ((96, 128), (64, 96)):
        images, mask, _ = make_batch(height, width, valid=(64, 80))
        with torch.inference_mode():
            ours, theirs = traced(images, mask), plain(images, mask)
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks, and hides it by other means than ours
def test_the_compiled_network_trains_the_same(tiny_settings):
    settings = apply_overrides(tiny_settings, ["model.encoder_checkpointing=1"])
    torch.manual_seed(0)
    model = build_model(settings.model).train()
    traced = compile_static_parts(copy.deepcopy(model), backend="aot_eager")
    images, mask, _ = make_batch()
    for network in (model, traced):
        sum(value.square().mean() for value in network(images, mask).values()).backward()
    ours = {name: parameter.grad for name, parameter in traced.named_parameters() if parameter.grad is not None}
    theirs = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert ours.keys() == theirs.keys(), "and the names of the weights stay"
    for name, grad in theirs.items():
        torch.testing.assert_close(ours[name], grad, rtol=1e-3, atol=1e-5, msg=name)


def test_without_a_compiler_the_setting_is_refused_by_name(tiny_settings, monkeypatch):
    monkeypatch.setattr(torch_compile.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    model = build_model(tiny_settings.model)
    with pytest.raises(ResourceError, match=r"train\.compile=true.*g\+\+"):
        compile_for(model, torch.device("cpu"), "train.compile")
