"""The name table: strict, the same both ways, and complete for the recorded key lists and for our own model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from codetr_cli.config.presets import load_preset
from codetr_cli.errors import CheckpointError
from codetr_cli.models.build import build_model
from codetr_cli.weights import names

SHARED = Path(os.environ.get("CODETR_SHARED") or Path(__file__).parents[3] / "shared")
NAMINGS = ("mmdet3", "sensex")


def manifest(case):
    path = SHARED / "golden" / "cases" / case / "manifest.json"
    if not path.is_file():
        pytest.skip(f"recorded key list {path} is not here")
    return json.loads(path.read_text())


def model_shapes(overrides=()):
    with torch.device("meta"):
        model = build_model(load_preset("co_dino_r50", list(overrides)).model)
    return {name: list(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.parity
@pytest.mark.parametrize(
    ("case", "naming", "overrides"),
    [
        ("co_dino_r50_eval", "mmdet3", ()),
        ("co_dino_r50_sensex_eval", "sensex", ()),
        ("co_dino_r50_train", "mmdet3", ()),
        ("co_dino_r50_9enc_eval", "sensex", None),
    ],
)
def test_every_recorded_entry_is_used_or_dropped_and_comes_back(case, naming, overrides):
    entries = manifest(case)
    renamed = names.rename({name: shape for name, shape, _ in entries})
    assert renamed.naming == naming
    dropped = [name for group in renamed.dropped.values() for name in group]
    assert len(renamed.state) + len(dropped) == len(entries)
    assert all(name.endswith(".num_batches_tracked") for name in dropped)
    back = {names.to_published(ours, naming): shape for ours, shape in renamed.state.items()}
    assert back == {name: shape for name, shape, _ in entries if name not in dropped}
    if overrides is not None:
        assert renamed.state == model_shapes(overrides)


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_entry_of_our_model_has_a_published_name(naming):
    ours = list(model_shapes(["model.encoder_layers=13", "model.num_levels=6"]))
    published = [names.to_published(name, naming) for name in ours]
    assert None not in published
    assert len(set(published)) == len(ours)
    assert [names.to_ours(name, naming) for name in published] == ours


@pytest.mark.parametrize("family", ["co_dino", "co_deformable"])
@pytest.mark.parametrize("naming", NAMINGS)
def test_table_is_a_bijection_and_no_name_fits_two_rows(naming, family):
    table = names.table(naming, family)
    assert len(set(table.values())) == len(table)
    for published, ours in table.items():
        for index in ("0", "2", "10", "117"):
            source, target = published.replace("{}", index), ours.replace("{}", index)
            assert names.to_ours(source, naming) == target
            assert names.to_published(target, naming, family) == source
            assert sum(bool(names._pattern(other).fullmatch(source)) for other in table) == 1
            assert sum(bool(names._pattern(other).fullmatch(target)) for other in table.values()) == 1


@pytest.mark.parametrize(
    "name",
    [
        "query_head.cls_branches.00.weight",
        "query_head.cls_branches.-1.weight",
        "query_head.cls_branches.1.weight.extra",
        "xquery_head.cls_branches.1.weight",
        "query_head.reg_branches.1.1.weight",
        "query_head.reg_branches.1.3.weight",
        "query_head.cls_branches.\u0661.weight",
        "query_headXcls_branches.1.weight",
        "",
    ],
)
def test_near_misses_are_unknown(name):
    assert names.to_ours(name, "mmdet3") is None
    assert names.drop_reason(name) is None


def test_publishers_differ_in_the_label_embedding_and_transformer_backbones():
    mmdet3, sensex = (set(names.table(naming)) for naming in NAMINGS)
    rest = [name for name in mmdet3 ^ sensex if not name.startswith(("backbone.", "neck.p{}"))]
    assert sorted(rest) == ["query_head.dn_generator.label_embedding.weight", "query_head.label_embedding.weight"]
    assert names.find_naming(["a", "query_head.label_embedding.weight"]) == "sensex"
    assert names.find_naming(["a"]) == "mmdet3"


def test_unknown_entries_are_listed():
    entries = {"neck.convs.0.conv.weight": 1, "backbone.stages.0.blocks.0.gate": 2, "neck.extra": 3}
    with pytest.raises(CheckpointError, match=r"2 entries.*backbone\.stages\.0\.blocks\.0\.gate, neck\.extra.*Co-Def"):
        names.rename(entries)
    with pytest.raises(CheckpointError, match="another architecture"):
        names.rename({"transformer.encoder.weight": 1})


def test_other_publishers_spelling_is_unknown_when_both_are_there():
    entries = {"query_head.label_embedding.weight": 1, "query_head.dn_generator.label_embedding.weight": 2}
    with pytest.raises(CheckpointError, match="label_embedding"):
        names.rename(entries)


def test_averaging_copies_are_dropped_only_beside_their_original():
    entries = {"neck.convs.0.gn.weight": "averages", "ema_neck_convs_0_gn_weight": "raw"}
    renamed = names.rename(entries)
    assert renamed.state == {"neck.convs.0.norm.weight": "averages"}
    assert renamed.dropped == {names.REASON_RAW_COPY: ["ema_neck_convs_0_gn_weight"]}
    with pytest.raises(CheckpointError, match="ema_neck_convs_1_gn_weight"):
        names.rename({**entries, "ema_neck_convs_1_gn_weight": "stray"})


def test_data_parallel_prefix_is_ignored_when_all_have_it():
    assert names.rename({"module.neck.convs.0.gn.weight": 1}).state == {"neck.convs.0.norm.weight": 1}
    with pytest.raises(CheckpointError, match=r"module\.neck"):
        names.rename({"module.neck.convs.0.gn.weight": 1, "neck.convs.1.gn.weight": 2})
