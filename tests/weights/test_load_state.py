"""Loading a checkpoint into a model: everything, or what matches for other classes and queries."""

from __future__ import annotations

import math
import re

import pytest
import torch

from codetr_cli.config.presets import load_preset
from codetr_cli.errors import CheckpointError
from codetr_cli.models.build import build_model
from codetr_cli.weights.load_state import CLASS_ENTRIES, load_exact, load_matching
from tests.weights.published_states import SMALL, small_model

OLD = ["cat", "dog", "hen"]


def old_state():
    """Entries that differ from a new model's in every number."""
    state = small_model(seed=1).state_dict()
    return {name: torch.randn_like(value) if value.is_floating_point() else value for name, value in state.items()}


def is_class_entry(name):
    return any(re.fullmatch(pattern, name) for pattern in CLASS_ENTRIES)


def test_everything_is_loaded():
    model, state = small_model(), old_state()
    report = load_exact(model, state)
    assert report.loaded == list(model.state_dict())
    assert (report.partial, report.reinitialized, report.ignored) == ({}, [], [])
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_class_entries_are_exactly_those_whose_shape_depends_on_the_classes():
    """A new head that is missing in the table of class rows fails here."""
    three, five = small_model(3).state_dict(), small_model(5).state_dict()
    follow = {name for name in three if three[name].shape != five[name].shape}
    assert follow == {name for name in three if is_class_entry(name)}


def family_model(kind, num_classes, *more, seed=0):
    """A small network of another family than Co-DINO, or with masks, or with class-agnostic boxes."""
    presets = {"deformable": "co_deformable_r50", "fcn masks": "co_deformable_mask_r50", "refined masks": "co_dino_r50"}
    overrides = {
        "deformable": [],
        "fcn masks": ["model.mask.dim=16"],
        "refined masks": ['model.mask.kind="refine"', "model.mask.dim=16", "model.mask.iou_fc_dim=16"],
        "one box": ["model.roi.class_agnostic=true"],
    }[kind]
    torch.manual_seed(seed)
    settings = load_preset(
        presets.get(kind, "co_dino_r50"), [*SMALL, *overrides, f"model.num_classes={num_classes}", *more]
    )
    model = build_model(settings.model)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.randn_like(value))
    return model


KINDS = ["deformable", "fcn masks", "refined masks", "one box"]


@pytest.mark.parametrize("kind", KINDS)
def test_class_entries_of_every_kind_of_network(kind):
    three, five = (family_model(kind, count).state_dict() for count in (3, 5))
    follow = {name for name in three if three[name].shape != five[name].shape}
    for_all = {"aux_heads.roi.box_head.weight", "aux_heads.roi.box_head.bias"} if kind == "one box" else set()
    if kind == "refined masks":
        for_all = {"mask_branch.head.logits.3.weight", "mask_branch.head.logits.3.bias"}
    assert follow == {name for name in three if is_class_entry(name)} - for_all


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("new", [["hen", "duck", "cat", "owl"], ["hen"], ["cat", "dog", "hen"]])
def test_rows_of_every_kind_of_network_follow_the_names(kind, new):
    old, model = family_model(kind, 3, seed=1), family_model(kind, len(new), seed=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_matching(model, old.state_dict(), class_names=new, checkpoint_class_names=OLD)
    theirs, after = old.state_dict(), model.state_dict()
    proposals = ("class_heads.2.weight", "class_heads.2.bias") if "deformable" in kind or kind == "fcn masks" else ()
    for name, value in after.items():
        if name in proposals:  # its first row belongs to no class
            assert torch.equal(value[0], theirs[name][0]), name
            assert torch.equal(value, theirs[name]) == (len(new) == 3)
        elif not is_class_entry(name) or (len(value) == len(theirs[name]) and len(new) != 3):
            assert torch.equal(value, theirs[name]), name  # also class-agnostic boxes and masks
        else:
            per_class = 4 if "box_head" in name and kind != "one box" else 1
            for label, word in enumerate(new):
                source, row = (theirs, OLD.index(word)) if word in OLD else (before, label)
                here = slice(label * per_class, (label + 1) * per_class)
                there = slice(row * per_class, (row + 1) * per_class)
                assert torch.equal(value[here], source[name][there]), (name, word)
    assert set(report.loaded) | set(report.partial) | set(report.reinitialized) == set(after)


def test_queries_of_co_deformable_keep_their_rank():
    old, model = family_model("deformable", 3, seed=1), family_model("deformable", 3, "model.num_queries=20", seed=2)
    before = model.state_dict()["query_embed.weight"].clone()
    report = load_matching(model, old.state_dict())
    after = model.state_dict()["query_embed.weight"]
    assert torch.equal(after[:12], old.state_dict()["query_embed.weight"])
    assert torch.equal(after[12:], before[12:])
    assert "the first 12 queries" in report.partial["query_embed.weight"]


@pytest.mark.parametrize("kind", ["fcn masks", "refined masks"])
def test_boxes_start_from_masks_and_masks_from_boxes(kind):
    masks = family_model(kind, 3, seed=1)
    boxes = family_model("deformable", 3, seed=2) if kind == "fcn masks" else small_model(3, seed=2)
    part = "aux_heads.roi.mask_head." if kind == "fcn masks" else "mask_branch."
    report = load_matching(boxes, masks.state_dict())
    assert report.ignored
    assert all(name.startswith(part) for name in report.ignored)
    report = load_matching(masks, boxes.state_dict())
    assert report.reinitialized
    assert all(name.startswith(part) for name in report.reinitialized)
    if kind == "refined masks":
        with pytest.raises(CheckpointError, match="missing: mask_branch"):
            load_exact(masks, boxes.state_dict())


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
@pytest.mark.parametrize("load", [load_exact, load_matching])
def test_another_architecture_is_refused(change, load):
    state = old_state()
    if change == "missing":
        del state["decoder.norm.weight"]
    elif change == "unexpected":
        state["decoder.extra.weight"] = torch.zeros(1)
    else:
        state["encoder.layers.0.ffn.linear1.weight"] = torch.zeros(99, 32)
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"run\.safetensors \(preset 'x'\) has another architecture") as caught:
        load(model, state, source="run.safetensors (preset 'x')")
    culprit = {
        "missing": "1 are missing: decoder.norm.weight",
        "unexpected": "decoder.extra.weight",
        "shape": "encoder.layers.0.ffn.linear1.weight has 99x32 instead of 16x32",
    }
    assert culprit[change] in str(caught.value)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), "a refused checkpoint changed the model"


def test_an_exact_load_refuses_other_classes_and_queries():
    with pytest.raises(CheckpointError, match=r"class_heads\.0\.weight has 3x32 instead of 5x32"):
        load_exact(small_model(5), old_state())
    with pytest.raises(CheckpointError, match=r"query_embed\.weight has 12x32 instead of 20x32"):
        load_exact(small_model(3, "model.num_queries=20"), old_state())


def test_rows_follow_the_class_names():
    model, state = small_model(4), old_state()
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_matching(model, state, class_names=["owl", "Hen", "cat", "fox"], checkpoint_class_names=OLD)
    new = model.state_dict()
    for name, (per, shared) in {
        "class_heads.0.weight": (1, 0),
        "class_heads.2.bias": (1, 0),
        "label_embed.weight": (1, 0),
        "aux_heads.roi.class_head.weight": (1, 1),
        "aux_heads.roi.class_head.bias": (1, 1),
        "aux_heads.roi.box_head.weight": (4, 0),
        "aux_heads.roi.box_head.bias": (4, 0),
        "aux_heads.atss.class_head.weight": (1, 0),
        "aux_heads.atss.class_head.bias": (1, 0),
    }.items():
        for label, theirs in ((1, 2), (2, 0)):
            kept = slice(label * per, label * per + per), slice(theirs * per, theirs * per + per)
            assert torch.equal(new[name][kept[0]], state[name][kept[1]]), name
        for label in (0, 3):
            rows = slice(label * per, label * per + per)
            assert torch.equal(new[name][rows], fresh[name][rows]), name
        if shared:
            assert torch.equal(new[name][-1], state[name][-1]), "the background is no class of its own"
        assert report.partial[name] == "rows of 2 of 4 classes"
    assert (report.known_classes, report.new_classes) == (["Hen", "cat"], ["owl", "fox"])
    assert set(report.partial) == {name for name in new if is_class_entry(name)}
    assert set(report.loaded) == set(new) - set(report.partial)
    assert report.reinitialized == []
    text = " ".join(report.lines())
    assert "Hen, cat" in text
    assert "owl, fox" in text


def test_new_classes_have_the_published_bias():
    model = small_model(2)
    load_matching(model, old_state(), class_names=["owl", "fox"], checkpoint_class_names=OLD)
    for head in model.class_heads:
        assert torch.allclose(head.bias, torch.full((2,), -math.log(99)))


def test_same_number_of_other_classes_does_not_inherit_their_rows():
    model, state = small_model(3), old_state()
    report = load_matching(model, state, class_names=["owl", "fox", "elk"], checkpoint_class_names=OLD)
    assert set(report.reinitialized) == {name for name in model.state_dict() if is_class_entry(name)}
    assert not torch.equal(model.class_heads[0].weight, state["class_heads.0.weight"])
    assert torch.equal(model.decoder.norm.weight, state["decoder.norm.weight"])


def test_reordered_classes_are_loaded_whole():
    model, state = small_model(3), old_state()
    report = load_matching(model, state, class_names=["hen", "cat", "dog"], checkpoint_class_names=OLD)
    assert torch.equal(model.class_heads[0].weight, state["class_heads.0.weight"][[2, 0, 1]])
    assert torch.equal(model.aux_heads.roi.class_head.bias, state["aux_heads.roi.class_head.bias"][[2, 0, 1, 3]])
    assert (report.partial, report.reinitialized) == ({}, [])


def test_without_names_other_numbers_of_classes_are_reinitialized():
    model, state = small_model(5), old_state()
    report = load_matching(model, state)
    assert set(report.reinitialized) == {name for name in model.state_dict() if is_class_entry(name)}
    model = small_model(3)
    assert load_matching(model, state).reinitialized == []


@pytest.mark.parametrize(("queries", "kept"), [(20, 12), (8, 8)])
def test_queries_keep_their_rank(queries, kept):
    model, state = small_model(3, f"model.num_queries={queries}"), old_state()
    fresh = model.query_embed.weight.detach().clone()
    report = load_matching(model, state)
    assert torch.equal(model.query_embed.weight[:kept], state["query_embed.weight"][:kept])
    assert torch.equal(model.query_embed.weight[kept:], fresh[kept:])
    assert list(report.partial) == ["query_embed.weight"]
    assert f"first {kept} queries of the checkpoint's 12; the model has {queries}): query_embed." in report.lines()[-1]


def test_inconsistent_class_names_are_refused():
    with pytest.raises(CheckpointError, match="class_heads"):
        load_matching(small_model(2), old_state(), class_names=["d", "x"], checkpoint_class_names=list("abcd"))


def test_training_parts_may_be_absent_on_either_side():
    state = old_state()
    lean = small_model(aux_heads=False)
    report = load_exact(lean, state)
    assert set(report.ignored) == set(state) - set(lean.state_dict())
    assert "aux_heads.rpn.conv.weight" in report.ignored
    with pytest.raises(CheckpointError, match="missing"):
        load_exact(small_model(), lean.state_dict())
    report = load_matching(small_model(), lean.state_dict())
    assert set(report.reinitialized) == set(report.reinitialized) & set(state) - set(lean.state_dict())
    assert "label_embed.weight" in report.reinitialized
    part = {name: value for name, value in state.items() if name != "aux_heads.rpn.conv.weight"}
    with pytest.raises(CheckpointError, match=r"aux_heads\.rpn\.conv\.weight"):
        load_matching(small_model(), part)


def test_other_precision_is_cast():
    model = small_model(3).double()
    load_exact(model, old_state())
    assert model.decoder.norm.weight.dtype == torch.float64
