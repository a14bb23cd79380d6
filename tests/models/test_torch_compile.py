from __future__ import annotations

import copy
import os
import stat
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.errors import ResourceError
from codetr_cli.inference.loading import compile_for
from codetr_cli.models import torch_compile
from codetr_cli.models.build import build_model
from codetr_cli.models.codetr import CoDETR
from codetr_cli.models.inference_mode import optimize_for_inference
from codetr_cli.models.torch_compile import compile_static_parts, use_private_cache
from tests.models.networks import SWIN, VIT, make_batch


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
    for name, parameter in model.named_parameters():
        if "sampling_offsets" in name:  # initial offsets are whole cells, where rounding chooses the derivative's side
            torch.nn.init.normal_(parameter, std=0.1)
    traced = compile_static_parts(copy.deepcopy(model), backend="aot_eager")
    images, mask, _ = make_batch()
    for network in (model, traced):
        sum(value.square().mean() for value in network(images, mask).values()).backward()
    ours = {name: parameter.grad for name, parameter in traced.named_parameters() if parameter.grad is not None}
    theirs = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert ours.keys() == theirs.keys(), "and the names of the weights stay"
    for name, grad in theirs.items():
        torch.testing.assert_close(ours[name], grad, rtol=1e-3, atol=1e-5, msg=name)


RESNET = ["model.backbone.block=bottleneck", "model.backbone.norm=frozen_batch"]
ONE_LAYER = ["model.encoder_layers=1", "model.decoder_layers=1"]
ALL = [
    (family, backbone, training)
    for family in ("co_dino", "co_deformable")
    for backbone in ("resnet", "swin", "vit")
    for training in (False, True)
]
USUAL = [("co_dino", "swin", True), ("co_deformable", "vit", False)]


@pytest.mark.parametrize(
    ("family", "backbone", "training"),
    [pytest.param(*case, marks=[] if case in USUAL else pytest.mark.slow) for case in ALL],
)
def test_the_static_parts_are_one_graph(tiny_settings, family, backbone, training):
    """From images to outputs, and in training everything before the losses: `fullgraph` refuses any break."""
    parts = {"resnet": RESNET, "swin": SWIN, "vit": VIT}[backbone]
    settings = apply_overrides(tiny_settings, [f"model.family={family}", *parts, *ONE_LAYER])
    model = build_model(settings.model)
    model = model.train() if training else optimize_for_inference(model)
    images, mask, _ = make_batch(64, 96, valid=(64, 80))
    if not training:
        with torch.inference_mode():
            outputs = torch.compile(model, backend="eager", fullgraph=True)(
                images, mask if family == "co_dino" else None
            )
        assert outputs["pred_logits"].shape == (2, 30, 3)
        return
    outputs = torch.compile(_before_losses, backend="eager", fullgraph=True)(model, images, mask)
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    without = {
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    }
    assert not {name for name in without if not name.startswith(("label_embed", "positive_queries", "aux_heads.roi"))}


def _before_losses(model: CoDETR, images: Tensor, mask: Tensor) -> list[Tensor]:
    """The outputs of a training pass that no loss has chosen from."""
    encoded = model.encode(images, mask)
    proposals = model.select_queries(encoded, all_tokens=True)
    logits, boxes = model.predict_layers(model.decode(model.matching_queries(proposals), encoded))
    maps = model.aux_maps(encoded)
    heads = [*model.aux_heads.rpn(maps), *model.aux_heads.atss(maps)]
    aux_outputs = [output for head in heads for output in (head if isinstance(head, (list, tuple)) else [head])]
    all_boxes = torch.where(proposals.all_boxes.isfinite(), proposals.all_boxes, 0.0)
    return [logits, boxes, proposals.all_logits, all_boxes, *aux_outputs]


def test_without_a_compiler_the_setting_is_refused_by_name(tiny_settings, monkeypatch):
    monkeypatch.setattr(torch_compile.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    model = build_model(tiny_settings.model)
    with pytest.raises(ResourceError, match=r"train\.compile=true.*g\+\+"):
        compile_for(model, torch.device("cpu"), "train.compile")


@pytest.mark.parametrize("spoil", [None, "writable", "link", "file"])
def test_compiled_code_is_kept_where_only_the_user_can_write(tmp_path, monkeypatch, spoil):
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / "cache" / "compiled"
    folder.parent.mkdir()
    if spoil == "writable":
        folder.mkdir()
        folder.chmod(0o777)
    elif spoil == "link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    elif spoil == "file":
        folder.touch()
    at_exit = []
    monkeypatch.setattr(torch_compile.atexit, "register", lambda *call: at_exit.append(call))
    use_private_cache()
    used = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert (used == folder) == (spoil is None)
    assert stat.S_IMODE(used.lstat().st_mode) == 0o700
    for remove, path, process in at_exit:
        remove(path, process + 1)  # as in a process that was forked from this one
        assert used.is_dir()
        remove(path, process)
    assert used.is_dir() == (spoil is None)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/chosen")
    use_private_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/chosen"
