"""Published checkpoints in all their formats are converted, or an error says why not."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import safetensors.torch
import torch

from codetr_cli.config.overrides import parse_settings, to_toml
from codetr_cli.config.presets import load_preset
from codetr_cli.errors import CheckpointError, ConfigError
from codetr_cli.models.build import build_model
from codetr_cli.weights.architecture import describe, differences
from codetr_cli.weights.checkpoint import save_checkpoint
from codetr_cli.weights.convert import convert_file
from codetr_cli.weights.names import REASON_BATCH_COUNTER, REASON_RAW_COPY
from tests.weights.published_states import (
    published_state,
    raw_state,
    save_mmengine,
    small_model,
    small_preset,
    small_settings,
)


def shapes(settings):
    with torch.device("meta"):
        return {name: value.shape for name, value in build_model(settings.model).state_dict().items()}


@pytest.fixture
def preset(tmp_path):
    return small_preset(tmp_path)


def save(path, state, **sections):
    torch.save({"state_dict": state, **sections}, path)
    return path


def convert(path, preset, **options):
    return convert_file(path, preset=preset, expected_shapes=shapes, **options)


@pytest.mark.parametrize("naming", ["mmdet3", "sensex"])
def test_both_publishers_give_the_same_weights(tmp_path, preset, naming):
    path = save(tmp_path / "x.pth", published_state(naming=naming))
    conversion = convert(path, preset)
    assert conversion.naming == naming
    assert conversion.checkpoint.extra["source_naming"] == naming
    assert conversion.checkpoint.extra["source_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    ours = raw_state()
    assert conversion.checkpoint.state.keys() == ours.keys()
    assert all(torch.equal(conversion.checkpoint.state[name], ours[name]) for name in ours)
    assert list(conversion.dropped) == [REASON_BATCH_COUNTER]
    small_model().load_state_dict(conversion.checkpoint.state)


def test_forms_of_files(tmp_path, preset):
    state = published_state()
    torch.save(dict(state), tmp_path / "bare.pth")
    torch.save({"model": state, "epoch": 3}, tmp_path / "model.pth")
    torch.save({"state_dict": state}, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "parallel.pth")
    safetensors.torch.save_file(dict(state), tmp_path / "theirs.safetensors")
    (tmp_path / "renamed.bin").write_bytes((tmp_path / "theirs.safetensors").read_bytes())
    for name in ("bare.pth", "model.pth", "legacy.pth", "parallel.pth", "theirs.safetensors", "renamed.bin"):
        read = convert(tmp_path / name, preset).checkpoint
        assert all(torch.equal(read.state[key], value) for key, value in raw_state().items()), name


def test_mmengine_file_with_averages_gives_the_averages(tmp_path, preset):
    state = published_state()
    raw = {f"module.{name}": value + 1 for name, value in state.items()}
    path = save_mmengine(tmp_path / "x.pth", state, averages={"steps": torch.tensor(4), **raw})
    conversion = convert(path, preset)
    assert conversion.checkpoint.class_names == ["cat", "dog", "hen"]
    assert all(torch.equal(conversion.checkpoint.state[name], value) for name, value in raw_state().items())
    dropped = [name for names in conversion.dropped.values() for name in names]
    for section in ("[ema_state_dict]", "[message_hub]", "[meta]", "[optimizer]", "[param_schedulers]"):
        assert section in dropped
    assert conversion.dropped[REASON_RAW_COPY] == ["[ema_state_dict]"]


def test_mmcv_file_with_averages_gives_the_averages(tmp_path, preset):
    state = published_state(naming="sensex")
    raw = {"ema_" + name.replace(".", "_"): value + 1 for name, value in state.items()}
    conversion = convert(save(tmp_path / "x.pth", {**state, **raw}), preset)
    assert all(torch.equal(conversion.checkpoint.state[name], value) for name, value in raw_state().items())
    assert conversion.dropped[REASON_RAW_COPY] == list(raw)


def test_unknown_entries_and_sections_are_errors(tmp_path, preset):
    state = published_state()
    with pytest.raises(CheckpointError, match=r"x\.pth: 1 entries.*neck\.gate\.weight"):
        convert(save(tmp_path / "x.pth", {**state, "neck.gate.weight": torch.ones(1)}), preset)
    with pytest.raises(CheckpointError, match=r"sections.*teacher"):
        convert(save(tmp_path / "x.pth", state, teacher=state), preset)
    with pytest.raises(CheckpointError, match=r"not plain tensors: neck\.list"):
        convert(save(tmp_path / "x.pth", {**state, "neck.list": [1, 2]}), preset)
    with pytest.raises(CheckpointError, match="no entries"):
        convert(save(tmp_path / "x.pth", {}), preset)
    torch.save([1, 2], tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="contains a list"):
        convert(tmp_path / "x.pth", preset)


def test_tensors_without_data_are_refused(tmp_path, preset):
    state = published_state()
    for value in (torch.ones(1).expand(10**12), torch.empty(5, device="meta"), torch.eye(3).to_sparse()):
        with pytest.raises(CheckpointError, match=r"query_head\.cls_branches\.0\.weight|refused"):
            convert(save(tmp_path / "x.pth", {**state, "query_head.cls_branches.0.weight": value}), preset)


def test_a_storage_under_many_names_is_not_written_out(tmp_path, preset):
    state, shared = published_state(), torch.rand(500_000)
    for count, message in ((8, "claims"), (2, "rpn_head.rpn_conv.bias|unknown|shape")):
        names = [f"rpn_head.rpn_conv.bias.{number}" for number in range(count)]
        with pytest.raises(CheckpointError, match=message):
            convert(save(tmp_path / "x.pth", {**state, **dict.fromkeys(names, shared)}), preset)


@pytest.mark.parametrize("change", ["missing", "shape", "extra layer", "empty"])
def test_every_entry_is_compared_with_the_model(tmp_path, preset, change):
    state = published_state()
    if change == "missing":
        del state["rpn_head.rpn_conv.bias"]
        message = r"preset 'small'.*missing: aux_heads\.rpn\.conv\.bias"
    elif change == "shape":
        state["bbox_head.0.atss_reg.bias"] = torch.zeros(5)
        message = r"aux_heads\.atss\.box_head\.bias has 5 instead of 4"
    elif change == "extra layer":
        state["query_head.cls_branches.7.weight"] = torch.zeros(3, 32)
        message = r"do not exist in the model: class_heads\.7\.weight"
    else:
        del state["query_head.transformer.query_embed.weight"]
        message = r"query_embed\.weight is missing"
    with pytest.raises(CheckpointError, match=message):
        convert(save(tmp_path / "x.pth", state), preset)


def test_shapes_determine_the_architecture():
    architecture = describe(raw_state())
    assert differences(small_settings().model, architecture) == {}
    for override, value in {
        "model.backbone.layers=[1, 2, 1, 1]": (1, 2, 1, 1),
        "model.backbone.base_channels=16": 16,
        "model.num_levels=4": 4,
        "model.ffn_dim=24": 24,
        "model.encoder_layers=3": 3,
        "model.decoder_layers=3": 3,
        "model.num_queries=30": 30,
        "model.roi.fc_dim=24": 24,
        "model.roi.output_size=5": 5,
        "model.num_classes=9": 9,
    }.items():
        key = override.partition("=")[0]
        gaps = differences(small_settings().model, describe(small_model(3, override).state_dict()))
        assert gaps.keys() == {key}
        assert gaps[key][1] == value
    assert describe(small_model(3, "model.backbone.block=basic").state_dict())["backbone.block"] == "basic"
    gaps = differences(small_settings(3, "model.num_points=4").model, architecture)
    assert gaps == {"model.num_heads*num_points": (16, 8)}


def test_published_r50_is_recognised_without_a_preset(tmp_path):
    with torch.device("meta"):
        model = build_model(load_preset("co_dino_r50", ["model.num_classes=4"]).model)
    architecture = describe(model.state_dict())
    assert architecture["num_queries"] == 900
    assert differences(load_preset("co_dino_r50").model, architecture) == {"model.num_classes": (80, 4)}


def test_another_architecture_names_the_difference_and_the_way_out(tmp_path, preset):
    path = save(tmp_path / "x.pth", published_state(3, "mmdet3", "model.num_queries=30"))
    with pytest.raises(CheckpointError, match=r"num_queries is 30 instead of 12") as caught:
        convert(path, preset)
    assert "--set model.num_queries=30" in str(caught.value)
    assert convert(path, preset, overrides=["model.num_queries=30"]).checkpoint.settings.model.num_queries == 30
    with pytest.raises(CheckpointError, match="another architecture than preset"):
        convert(path, None)


@pytest.mark.parametrize(
    ("file", "num_classes", "chosen", "noted"),
    [
        ("co_small_lsj_3x-0123abcd.pth", 3, "small_lsj_3x", False),  # named after its configuration
        ("co_small_1x.pth", 3, "small", False),
        ("my_small_lsj_3x_finetuned.pth", 3, "small_lsj_3x", False),  # named after the preset
        ("co_3x_8xb2_small-lsj.pth", 3, "small_lsj_3x", False),  # in another order
        ("epoch_12.pth", 5, "small_five", False),  # one preset has as many classes
        ("epoch_12.pth", 3, "small", True),  # ambiguous: the shortest name, and a note
        ("epoch_12.pth", 4, "small", True),
    ],
)
def test_presets_of_one_architecture_are_distinguished(tmp_path, monkeypatch, file, num_classes, chosen, noted):
    names = []
    for name, config, count in (
        ("small", "co_small_1x", 3),
        ("small_lsj_3x", "co_small_lsj_3x", 3),
        ("small_five", "co_small_five", 5),
    ):
        table = {**small_settings(count).model_dump(mode="json"), "name": name}
        table["source"] = {"config": f"projects/configs/{config}.py"}
        path = tmp_path / f"{name}.toml"
        path.write_text(to_toml(parse_settings(table, where="a test")))
        names.append(str(path))
    monkeypatch.setattr("codetr_cli.weights.convert.preset_names", lambda: names)
    path = save(tmp_path / file, published_state(num_classes))
    conversion = convert(path, None)
    assert conversion.preset == chosen
    assert any("choose one with --preset" in note for note in conversion.notes) == noted
    assert conversion.checkpoint.settings.model.num_classes == num_classes


def test_presets_are_tried_and_recognised_by_hash(tmp_path, preset, monkeypatch):
    second = small_preset(tmp_path, name="small_other")
    monkeypatch.setattr("codetr_cli.weights.convert.preset_names", lambda: ["co_dino_r50", second, preset])
    path = save(tmp_path / "x.pth", published_state())
    conversion = convert(path, None)
    assert conversion.preset == "small"
    assert any("also of small_other" in note for note in conversion.notes)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    settings = load_preset(second, [f"source.sha256={sha256}"])
    known = tmp_path / "small_other.toml"
    from codetr_cli.config.overrides import to_toml

    known.write_text(to_toml(settings))
    assert convert(path, None).preset == "small_other"


def test_unknown_preset(tmp_path):
    with pytest.raises(ConfigError, match="co_dino_r50"):
        convert(save(tmp_path / "x.pth", published_state()), "co_dino_r51")


def test_classes(tmp_path, preset):
    def converted(meta, num_classes=3):
        state = published_state(num_classes)
        return convert(save(tmp_path / "x.pth", state, meta=meta), preset)

    assert converted({"CLASSES": ("a", "b", "c")}).checkpoint.class_names == ["a", "b", "c"]
    assert converted({"dataset_meta": {"CLASSES": ["a", "b", "c"]}}).checkpoint.category_ids == [1, 2, 3]
    assert converted({"CLASSES": "cell"}, 1).checkpoint.class_names == ["cell"]
    for meta in ({}, {"CLASSES": ("a", "b")}, {"CLASSES": 5}, {"CLASSES": np.array(["a", "b", "c"])}):
        conversion = converted(meta)
        assert conversion.checkpoint.class_names == ["class_1", "class_2", "class_3"]
        assert conversion.notes
    coco = converted({}, 80)
    assert coco.checkpoint.class_names[:2] == ["person", "bicycle"]
    assert coco.checkpoint.category_ids[-1] == 90
    assert len(set(coco.checkpoint.category_ids)) == 80
    assert converted({"CLASSES": coco.checkpoint.class_names}, 80).checkpoint.category_ids[-1] == 90
    assert converted({"CLASSES": [f"c{i}" for i in range(80)]}, 80).checkpoint.category_ids[-1] == 80


def test_our_own_files_need_no_conversion(tmp_path, preset):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, raw_state(), settings=small_settings(), class_names=["a", "b", "c"], category_ids=[1, 2, 3])
    with pytest.raises(CheckpointError, match="needs no conversion"):
        convert(path, preset)


def test_settings_follow_the_file(tmp_path, preset):
    conversion = convert(save(tmp_path / "x.pth", published_state(5)), preset)
    assert conversion.checkpoint.settings.model.num_classes == 5
    assert conversion.checkpoint.settings == load_preset(preset, ["model.num_classes=5"])
