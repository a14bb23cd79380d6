from __future__ import annotations

from codetr_cli.config.overrides import apply_overrides, replace_settings
from codetr_cli.config.schema import Settings
from codetr_cli.models.build import build_model
from codetr_cli.training.recomputation import all_checkpointing, set_checkpointing


def test_only_what_is_off_is_switched_on(tiny_settings: Settings):
    settings = apply_overrides(tiny_settings, ["model.decoder_checkpointing=true"])
    assert list(all_checkpointing(settings)) == [
        "model.encoder_checkpointing",
        "model.aux_checkpointing",
        "model.backbone.checkpointing",
    ]
    assert all_checkpointing(replace_settings(settings, all_checkpointing(settings))) == {}


def test_a_built_network_follows_the_settings(tiny_settings: Settings):
    model = build_model(tiny_settings.model)
    parts = (model.encoder, model.decoder, model.aux_heads, model.backbone)
    set_checkpointing(model, replace_settings(tiny_settings, all_checkpointing(tiny_settings)).model)
    assert [part.checkpointing for part in parts] == [2, True, True, True]
    set_checkpointing(model, tiny_settings.model)
    assert not any(part.checkpointing for part in parts)
