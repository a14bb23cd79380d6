"""Settings that do not fit together are refused."""

from __future__ import annotations

import pytest

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.config.schema import Settings
from codetr_cli.errors import ConfigError
from tests.models.networks import SWIN, VIT


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.augmentation=lsj"], "needs a canvas: set data.canvas"),
        (["data.copy_paste=boxes"], "needs augmentation 'lsj'"),
        (["data.lsj_ratio=[2.0, 0.1]"], r"must be \(smaller, larger\)"),
        (
            ["test.fixed_size=[96, 100]", "data.pad_divisor=32"],
            "test.fixed_size 96 x 100 is no multiple of data.pad_divisor 32",
        ),
        (["test.fixed_size=[96, 96]", "test.canvas=96"], "test.fixed_size and test.canvas both set the size"),
        (["test.canvas=100", "data.pad_divisor=32"], "test.canvas 100 is not a multiple of data.pad_divisor 32"),
        (["data.oversample_threshold=0"], "oversample_threshold"),
    ],
)
def test_settings_that_do_not_go_together(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        apply_overrides(Settings(name="x"), overrides)


def test_settings_that_do_not_fit_are_refused(tiny_settings):
    for overrides, message in (
        ([*VIT, "model.num_levels=4"], "backbone vit needs finest_stride 4 and num_levels 5"),
        ([*VIT, "model.backbone.global_blocks=[3]"], "beyond depth 3"),
        ([*VIT, "model.backbone.num_heads=3"], "not divisible by 4 x num_heads 3"),
        ([*VIT, "model.backbone.fixed_size=100"], "fixed_size 100 is not divisible by patch_size 16"),
        ([*SWIN, "model.backbone.num_heads=[3, 2, 2, 4]"], "stage 0 are not divisible by 3 heads"),
    ):
        with pytest.raises(ConfigError, match=message):
            apply_overrides(tiny_settings, overrides)


@pytest.mark.parametrize(
    ("override", "named"),
    [("model.mask.dim=20", "dim"), ("model.mask.dim=8", "dim"), ("model.mask.pooled_size=7", "pool")],
)
def test_sizes_that_cannot_be_halved_are_refused(tiny_settings, override, named):
    with pytest.raises(ConfigError, match=named):
        apply_overrides(tiny_settings, ["model.mask.kind=refine", override])
