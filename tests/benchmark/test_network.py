from __future__ import annotations

from pathlib import Path

import pytest
import torch

from codetr_cli.benchmark.model import TRAINING_OBJECTS, InferenceWorkload, TrainingWorkload
from codetr_cli.benchmark.network import BenchmarkedNetwork
from tests.inference.fakes import write_checkpoint

CPU = torch.device("cpu")


@pytest.mark.parametrize("training", [False, True])
def test_what_is_not_given_comes_from_the_settings(tiny_settings, tmp_path: Path, training: bool):
    checkpoint = write_checkpoint(tmp_path / "m.safetensors", tiny_settings)
    network = BenchmarkedNetwork(str(checkpoint), [], CPU, training=training, random_weights=False)
    spec = network.spec(runs=(1, 2, 3))
    assert (spec.size, spec.batch, spec.objects) == ((96, 160), 2 if training else 1, TRAINING_OBJECTS)
    assert (spec.warmup, spec.iterations, spec.split_iterations) == (1, 2, 3)
    assert isinstance(network._optimized(spec), TrainingWorkload if training else InferenceWorkload)
    assert network.parameters > 1000


def test_a_presets_random_weights_are_the_same_every_time():
    small = ["embed_dim=32", "ffn_dim=32", "norm_groups=8", "num_queries=20", "encoder_layers=1", "decoder_layers=1"]
    overrides = [f"model.{setting}" for setting in small]
    network = BenchmarkedNetwork("co_dino_tiny", overrides, CPU, training=False, random_weights=True)
    spec = network.spec(runs=(0, 1, 1), size=(64, 64))
    first, second = network._optimized(spec).model.state_dict(), network._optimized(spec).model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
