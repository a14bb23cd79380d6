"""The selection of queries from encoder tokens."""

from __future__ import annotations

import pytest

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.models.build import build_model
from tests.models.networks import make_batch
from tests.postprocessing import post_process


@pytest.fixture
def model(tiny_settings):
    return build_model(tiny_settings.model).eval()


def test_images_with_fewer_tokens_than_queries_use_all_tokens(tiny_settings):
    model = build_model(apply_overrides(tiny_settings, ["model.num_queries=4000"]).model).eval()
    images, mask, metas = make_batch()
    tokens = sum((96 // stride) * (128 // stride) for stride in (4, 8, 16, 32))
    assert model(images, mask)["pred_logits"].shape == (2, tokens, 3)
    assert len(model.detect(images, mask, metas, post_process(max_detections=7))[0]) == 7
