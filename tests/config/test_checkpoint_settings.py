"""What a checkpoint decides and what it does not."""

from __future__ import annotations

import pytest

from codetr_cli.config.checkpoint_settings import is_decided, settings_of_checkpoint
from codetr_cli.config.overrides import replace_settings, setting_names
from codetr_cli.config.presets import load_preset, preset_names
from codetr_cli.config.schema import Settings
from codetr_cli.errors import CheckpointError, ConfigError

DEFAULTS = Settings(name="x")


def used(overrides=(), **values):
    values = {key.replace("__", "."): value for key, value in values.items()}
    kind = values.pop("model.backbone.kind", "resnet")
    stored = replace_settings(DEFAULTS, {"model.backbone.kind": kind})
    stored = replace_settings(stored, values)
    return settings_of_checkpoint(stored, overrides, source="x.safetensors")


def test_the_network_and_its_evaluation_are_decided():
    settings = used(model__num_queries=30, test__short_side=96, data__mean=(1, 2, 3), train__loss__aux_heads=True)
    assert settings.model.num_queries == 30
    assert settings.test.short_side == 96
    assert settings.data.mean == (1, 2, 3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("test.compile", True),
        ("test.cuda_graph", True),
        ("test.allow_nonfinite_weights", True),
        ("model.attention_backend", "mmcv"),
        ("data.root", "/etc"),
        ("data.extra_roots", ("/etc",)),
        ("data.val_images", "/etc"),
        ("data.val_annotations", "/dev/zero"),
        ("data.workers", 1000),
        ("data.bad_files", "skip"),
        ("data.max_pixels", 10**12),
        ("data.allow_outside", True),
        ("data.max_images", 1),
        ("train.backbone_weights", "http://127.0.0.1/x.pth"),
        ("train.loggers", ("wandb",)),
        ("train.compile", True),
        ("train.fsdp", True),
        ("train.precision", "fp16"),
        ("train.micro_batch", 10**5),
        ("train.deterministic", True),
        ("source.url", "http://127.0.0.1/x.pth"),
        ("source.filename", "../x"),
    ],
)
def test_what_runs_on_this_machine_is_not(key, value, caplog):
    caplog.set_level("INFO")
    name = key.replace(".", "__")
    table, leaf = key.split(".")
    assert getattr(getattr(used(**{name: value}), table), leaf) == getattr(getattr(DEFAULTS, table), leaf)
    noted = [message for message in caplog.messages if f"--set {key}=" in message]
    assert len(noted) == (key in ("test.compile", "test.cuda_graph", "model.attention_backend", "data.bad_files",
                                  "data.max_pixels", "data.allow_outside", "data.max_images"))  # fmt: skip


def test_the_user_decides_everything():
    settings = used(["test.compile=true", "data.workers=7", "test.batch_size=1000000"], test__compile=False)
    assert (settings.test.compile, settings.data.workers, settings.test.batch_size) == (True, 7, 10**6)


def test_fewer_workers_are_allowed():
    assert used(data__workers=0).data.workers == 0


@pytest.mark.parametrize(
    ("values", "override"),
    [
        ({"test__canvas": 7984}, "test.canvas=7984"),
        ({"test__short_side": 2**14, "test__long_side": 2**14}, "test.short_side=800"),
        ({"test__tta_scales": [2.0**14]}, "test.tta_scales=[1.0]"),
        ({"data__pad_divisor": 1024, "test__long_side": 2**14}, "test.long_side=100"),
        ({"model__backbone__kind": "vit", "model__backbone__patch_size": 1}, "test.canvas=96"),
        ({"model__roi__output_size": 64, "model__rpn__num_proposals_test": 10_000}, "model.roi.output_size=7"),
        ({"model__mask__kind": "fcn", "model__mask__pooled_size": 64}, "model.mask.pooled_size=14"),
        (
            {"model__mask__dim": 256, "model__mask__kind": "refine", "model__mask__regions_per_chunk": 9_000},
            "model.mask.regions_per_chunk=9000",
        ),
    ],
)
def test_large_work_needs_the_user(values, override):
    with pytest.raises(CheckpointError, match=r"asks for .* a checkpoint by itself may use .*--set"):
        used(**values)
    with pytest.raises(CheckpointError, match="by itself"):
        used(["test.batch_size=1"], **values)
    used([override], **values)


def test_large_batches_of_a_checkpoint_become_smaller(caplog):
    caplog.set_level("INFO")
    assert used(test__short_side=1280, test__long_side=2048, test__batch_size=16).test.batch_size == 3
    assert "--set test.batch_size=16" in caplog.text
    assert used(test__batch_size=10**6).test.batch_size == 7
    assert used(["test.batch_size=50"], test__batch_size=10**6).test.batch_size == 50
    assert used(test__canvas=1024, test__batch_size=8).test.batch_size == 8


@pytest.mark.parametrize("name", preset_names())
def test_published_sizes_are_no_large_work(name: str, caplog):
    caplog.set_level("INFO")
    settings = replace_settings(load_preset(name), {"test.tta_scales": (0.5, 1.25)})
    assert settings_of_checkpoint(settings, source="x").test == replace_settings(settings, {}).test
    assert "--set test.batch_size" not in caplog.text


@pytest.mark.parametrize(
    "values",
    [
        {"model__backbone__kind": "vit", "model__backbone__window_size": 65},
        {"model__backbone__kind": "swin", "model__backbone__window_size": 33},
        {"model__num_queries": 10_001},
        {"model__num_points": 65},
        {"model__rpn__proposals_pre_nms_test": 20_001},
        {"model__rpn__num_proposals_test": 10_001},
        {"model__atss__pre_nms": 20_001},
        {"model__atss__max_detections": 10_001},
        {"model__roi__max_detections": 10_001},
        {"test__max_detections": 10_001},
        {"model__mask__dilations": (1, 3, 65)},
        {"model__mask__pooled_size": 66},
    ],
)
def test_what_no_weight_depends_on_has_limits(values):
    with pytest.raises(ConfigError, match="less than or equal to"):
        used(**values)


def test_a_new_setting_is_not_decided_by_itself():
    """A table, or a setting outside the tables of the list, is added on purpose only."""
    decided = {key.split(".")[0] for key in setting_names() if is_decided(key)}
    assert decided == {"name", "summary", "model", "data", "train", "test"}
    outside = [key for key in setting_names() if key.startswith(("data.", "train.", "source.")) and is_decided(key)]
    assert [key for key in outside if not key.startswith("train.loss.")] == [
        "data.mean", "data.std", "data.pad_divisor", "train.clip_norm",
    ] or "data.dataset" in outside  # fmt: skip
