"""Settings: published defaults, overrides of every key, error messages with the nearest known key."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from codetr_cli.config.model_settings import SwinConfig
from codetr_cli.config.overrides import (
    REMOVED,
    RENAMED,
    apply_overrides,
    parse_settings,
    replace_settings,
    setting_names,
    to_toml,
    user_set,
)
from codetr_cli.config.presets import load_preset
from codetr_cli.config.schema import Settings
from codetr_cli.errors import ConfigError
from codetr_cli.reading import parse_toml


@pytest.fixture
def settings() -> Settings:
    return Settings(name="x")


def value_of(settings: Settings, name: str) -> object:
    node: object = settings
    for part in name.split("."):
        node = getattr(node, part)
    return node


def has_value(settings: Settings, name: str) -> bool:
    try:
        value_of(settings, name)
    except AttributeError:
        return False
    return True


def test_defaults_are_those_of_the_published_recipe(settings: Settings):
    """co_dino_5scale_r50_1x_coco.py."""
    train, data, model, test = settings.train, settings.data, settings.model, settings.test
    assert (train.lr, train.weight_decay, train.backbone_lr_scale, train.clip_norm) == (2e-4, 1e-4, 0.1, 0.1)
    assert (train.batch_size, train.epochs, train.lr_milestones) == (16, 12, (11,))
    assert data.short_sides == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert (data.long_side, data.crop_short_sides, data.crop_size) == (1333, (400, 500, 600), (384, 600))
    assert (model.num_queries, model.num_levels, model.encoder_layers, model.decoder_layers) == (900, 5, 6, 6)
    assert (test.max_detections, test.nms, test.nms_iou) == (300, "soft", 0.8)


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("train.lr=1e-4", "train.lr", 1e-4),
        ("train.max_steps=7", "train.max_steps", 7),
        ("train.max_steps=none", "train.max_steps", None),
        ("train.loss.aux_heads = true", "train.loss.aux_heads", True),
        ("data.root=/a folder/with=sign", "data.root", "/a folder/with=sign"),
        ("data.short_sides=[64, 96]", "data.short_sides", (64, 96)),
        ('test.nms="hard"', "test.nms", "hard"),
        ("test.nms=hard", "test.nms", "hard"),
        ("model.backbone.base_channels=8", "model.backbone.base_channels", 8),
    ],
)
def test_overrides(settings: Settings, override: str, name: str, value: object):
    assert value_of(apply_overrides(settings, [override]), name) == value


def test_later_overrides_win(settings: Settings):
    assert apply_overrides(settings, ["train.lr=1", "train.lr=2"]).train.lr == 2


def test_overrides_keep_other_settings(settings: Settings):
    changed = apply_overrides(settings, ["train.seed=5"])
    assert changed != settings
    assert apply_overrides(changed, ["train.seed=0"]) == settings


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.lrr=1", ["'train.lrr'", "'train.lr'"]),
        ("lr=1", ["'train.lr'"]),
        ("trian.lr=1", ["'train.lr'"]),
        ("train.lr", ["key=value"]),
        ("=1", ["key=value"]),
        ("train=1", ["table", "train.<name>"]),
        ("train.lr=-1", ["train.lr", "greater than 0", "-1"]),
        ("train.lr=fast", ["train.lr", "'fast'"]),
        ("train.epochs=1.5", ["train.epochs", "1.5"]),
        ("test.nms=maybe", ["test.nms", "'none', 'hard' or 'soft'", "'maybe'"]),
        ("data.flip_probability=1.5", ["data.flip_probability", "less than or equal to 1"]),
        ("train.loss.aux_heads=false", ["train.loss", "positive_queries needs aux_heads"]),
        ("model.embed_dim=100", ["embed_dim 100 is not divisible by num_heads 8"]),
    ],
)
def test_wrong_overrides_are_explained(settings: Settings, override: str, words: list[str]):
    with pytest.raises(ConfigError) as caught:
        apply_overrides(settings, [override])
    for word in words:
        assert word in str(caught.value)


def test_all_errors_are_reported_at_once(settings: Settings):
    with pytest.raises(ConfigError) as caught:
        apply_overrides(settings, ["train.lr=-1", "test.nms=maybe"])
    assert "train.lr" in str(caught.value)
    assert "test.nms" in str(caught.value)


def test_unknown_key_in_a_file_names_the_file(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nlearning_rate = 1\n")
    with pytest.raises(ConfigError, match=r"mine\.toml.*'train\.learning_rate'"):
        load_preset(str(path))


def test_a_file_takes_its_name_from_the_path(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nepochs = 3\n")
    settings = load_preset(str(path), ["train.seed=4"])
    assert (settings.name, settings.train.epochs, settings.train.seed) == ("mine", 3, 4)


@pytest.mark.parametrize("content", [b"[train\n", b"\xff\xfe"])
def test_broken_files(tmp_path: Path, content: bytes):
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML"):
        load_preset(str(path))


def test_missing_file():
    with pytest.raises(ConfigError, match=r"no/such\.toml: No such file"):
        load_preset("no/such.toml")


def test_unknown_preset():
    with pytest.raises(ConfigError, match=r"'co_dino_r5'.*did you mean 'co_dino_r50'"):
        load_preset("co_dino_r5")


def test_toml_round_trip(tiny_settings: Settings, tmp_path: Path):
    path = tmp_path / "settings.toml"
    changed = apply_overrides(tiny_settings, ['data.root=C:\\"quoted"\\é', "train.max_steps=3", "train.lr=1e-05"])
    path.write_text(to_toml(changed), encoding="utf-8")
    assert load_preset(str(path)) == changed


def test_settings_never_change(settings: Settings):
    with pytest.raises(ValueError, match="frozen"):
        settings.train.lr = 1.0  # type: ignore[misc]


def test_every_setting_can_be_overridden_by_name(settings: Settings):
    names = setting_names()
    assert len(names) == len(set(names)) > 80
    kinds = [apply_overrides(settings, [f"model.backbone.kind={kind}"]) for kind in ("resnet", "swin", "vit")]
    for name in names:
        assert any(has_value(choice, name) for choice in kinds), name


def test_another_kind_of_backbone_starts_from_its_defaults(settings: Settings):
    changed = apply_overrides(settings, ["model.backbone.kind=swin", "model.backbone.window_size=12"])
    assert changed.model.backbone == SwinConfig(window_size=12)
    with pytest.raises(ConfigError, match="another kind of backbone"):
        apply_overrides(settings, ["model.backbone.window_size=12"])


def test_settings_from_a_checkpoint_name_it_when_wrong():
    with pytest.raises(ConfigError, match=r"wrong settings in ckpt\.safetensors"):
        parse_settings({"name": "x", "model": {"num_classes": 0}}, where="ckpt.safetensors")


def test_none_is_a_choice_where_there_is_one_and_null_elsewhere():
    settings = load_preset("co_dino_tiny", ["test.nms=none", "train.max_steps=none"])
    assert settings.test.nms == "none"
    assert settings.train.max_steps is None


# ---------------------------------------------------------------------------------------------- what the user has set


def test_a_preset_counts_as_defaults_and_overrides_count_as_set():
    assert user_set(load_preset("co_dino_swin_l")) == set()
    settings = load_preset("co_dino_r50", ["train.lr=1e-3", "train.shard=true", "train.loss.box_noise=1.0"])
    assert user_set(settings) == {"train.lr", "train.fsdp", "train.loss.box_noise"}
    assert user_set(apply_overrides(settings, ["data.root=x"])) == user_set(settings) | {"data.root"}
    assert settings.train.model_dump(exclude_unset=True) == {"lr": 1e-3, "fsdp": True, "loss": {"box_noise": 1.0}}
    assert user_set(Settings(name="x").train) == set()


def test_a_file_given_by_path_counts_as_set(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nepochs = 3\n[model.backbone]\nkind = 'swin'\n")
    settings = load_preset(str(path), ["train.seed=4"])
    assert user_set(settings) == {"train.epochs", "train.seed", "model.backbone.kind"}


def test_replaced_values_are_typed_and_do_not_count_as_set():
    settings = load_preset("co_dino_r50", ["train.lr=1e-3"])
    values = {"train.lr_milestones": [3, 5], "data.root": "a=b, 'c'", "train.max_steps": None, "train.lr": 1e-4}
    changed = replace_settings(settings, values)
    assert (changed.train.lr_milestones, changed.data.root, changed.train.lr) == ((3, 5), "a=b, 'c'", 1e-4)
    assert user_set(changed) == {"train.lr"}
    assert replace_settings(changed, {"model.backbone.kind": "swin"}).model.backbone == SwinConfig()
    with pytest.raises(ConfigError, match=r"'train\.lrr'.*'train\.lr'"):
        replace_settings(settings, {"train.lrr": 1})
    with pytest.raises(ConfigError, match=r"train\.epochs.*greater than 0"):
        replace_settings(settings, {"train.epochs": 0})


# --------------------------------------------------------------------------------------------------------- former names


def with_former_names(settings: Settings) -> dict[str, Any]:
    """A table as it was written when settings had their former names."""
    table = settings.model_dump(mode="json")
    for former, current in RENAMED.items():
        if former == "model.backbone.width":
            current = "model.backbone.base_channels" if settings.model.backbone.kind == "resnet" else current
        *parents, leaf = former.split(".")
        node = table
        for parent in parents:
            node = node[parent]
        node[leaf] = node.pop(current.rsplit(".", 1)[1])
    table["train"]["recipe"] = "auto" if table["train"]["recipe"] else "preset"
    return table


@pytest.mark.parametrize("name", ["co_dino_r50", "co_dino_swin_l", "co_dino_vit_l"])
def test_former_names_are_read(name: str):
    settings = load_preset(name, ["train.auto_recipe=false", "train.early_stop_patience=3", "data.extra_roots=[a]"])
    table = with_former_names(settings)
    before = json.dumps(table)
    assert parse_settings(table, "settings.toml") == settings
    assert json.dumps(table) == before


def test_a_former_name_on_the_command_line_works_with_a_warning(caplog: pytest.LogCaptureFixture):
    settings = load_preset("co_dino_r50", ["train.shard=true", "train.recipe=preset", "model.backbone.width=32"])
    assert settings.train.fsdp
    assert not settings.train.auto_recipe
    assert settings.model.backbone.base_channels == 32
    assert [record.getMessage() for record in caplog.records] == [
        "the setting train.shard is now called train.fsdp",
        "the setting train.recipe is now called train.auto_recipe",
        "the setting model.backbone.width is now called model.backbone.base_channels",
    ]
    swin = load_preset("co_dino_r50", ["model.backbone.kind=swin", "model.backbone.width=48"])
    assert swin.model.backbone.embed_dim == 48


@pytest.mark.parametrize("key", REMOVED)
def test_a_removed_setting_is_ignored_with_a_warning(key: str, caplog: pytest.LogCaptureFixture):
    settings = load_preset("co_dino_r50", [])
    assert load_preset("co_dino_r50", [f"{key}=100"]) == settings
    (message,) = caplog.messages
    assert message.startswith(f"the setting {key} is ignored: ")
    table, leaf = settings.model_dump(mode="json"), key.removeprefix("data.")
    table["data"][leaf] = 100
    assert parse_settings(table, "settings.toml") == settings
    assert table["data"][leaf] == 100


def test_a_setting_under_both_names_is_refused():
    with pytest.raises(ConfigError, match=r"sets both train.shard and its current name train.fsdp"):
        parse_settings({"name": "x", "train": {"shard": True, "fsdp": False}}, "x.toml")


HOSTILE_VALUES = [
    "nan",
    "inf",
    "-inf",
    "9" * 4000,
    "9" * 100_000,
    "1e999",
    "[" * 100_000,
    "\ud800",
    "{a=1}",
    "1" + ".a" * 50_000,
    "\0",
]


@pytest.mark.parametrize("key", ["train.lr", "train.seed", "model.num_classes", "data.short_sides", "test.tta_scales"])
def test_hostile_values_are_wrong_settings(key):
    for value in HOSTILE_VALUES:
        with pytest.raises(ConfigError) as caught:
            apply_overrides(Settings(name="x"), [f"{key}={value}"])
        assert len(str(caught.value)) < 1000


def test_hostile_files_are_wrong_settings(tmp_path):
    path = tmp_path / "x.toml"
    texts = ["a" + ".a" * 50_000 + "=1", "[" * 100_000, "x=" + "9" * 100_000, "x=" + "[" * 50_000, "model=1", "name=5",
             "#" * 2**21, "".join(f"k{number}=1\n" for number in range(20_000)),
             "name='../x'", "[model]\nbackbone=[]"]  # fmt: skip
    for text in texts:
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load_preset(str(path))
        assert len(str(caught.value)) < 5000
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_preset(str(path))
    with pytest.raises(ConfigError, match="unknown preset"):
        load_preset(str(path.with_suffix("")))


def test_control_characters_come_back_from_toml(tmp_path):
    settings = replace_settings(Settings(name="x"), {"data.root": '/a\r\n\x1b\x7f\t\x00"b'})
    (tmp_path / "x.toml").write_text(to_toml(settings), encoding="utf-8", newline="")
    assert load_preset(str(tmp_path / "x.toml")).data.root == settings.data.root


@pytest.mark.parametrize(
    "table",
    [
        {"data": {"short_sides": [-1] * 10**6}},
        {"train": {"loggers": "a," * 10**6}},
        {"train": dict.fromkeys(map(str, range(10**5)), 1)},
        {"test": {"tta_scales": [["a"] * 5_000] * 9_000}},
        {"train": {"loggers": "a," * 40_000}},
    ],
)
def test_floods_of_wrong_values_are_counted_first(table):
    started = time.process_time()
    with pytest.raises(ConfigError, match=r"wrong settings in x: .*(limit|more)"):
        parse_settings({"name": "x", **table}, where="x")
    assert time.process_time() - started < 1


def test_no_clipping_is_zero():
    assert parse_settings({"name": "x", "train": {"clip_norm": float("inf")}}, where="x").train.clip_norm == 0


@pytest.mark.parametrize("seed", [-(2**63), 2**64 - 1])
def test_seeds_are_those_of_torch(seed):
    settings = parse_settings({"name": "x", "train": {"seed": seed}}, where="x")
    assert parse_settings(parse_toml(to_toml(settings)), where="x") == settings
