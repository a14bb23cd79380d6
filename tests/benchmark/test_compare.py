from __future__ import annotations

import sys

import pytest
import torch

from codetr_cli.benchmark.compare import compare, compare_detections
from codetr_cli.benchmark.model import BenchmarkSpec, InferenceWorkload, TrainingWorkload
from codetr_cli.models.build import build_model, build_postprocess
from codetr_cli.models.postprocess import Detections
from codetr_cli.ops import deform_attn
from codetr_cli.ops.deform_attn import active_backend
from codetr_cli.runtime.synthetic import randomize_weights

SPEC = BenchmarkSpec(
    size=(64, 96), batch=1, device=torch.device("cpu"), precision="auto", warmup=0, iterations=2, split_iterations=1
)


def make_workload(settings, *, training: bool, change=lambda model: None):
    torch.manual_seed(0)
    model = build_model(settings.model, aux_heads=training).eval()
    randomize_weights(model)
    change(model)
    if training:
        return TrainingWorkload(model, settings, SPEC)
    return InferenceWorkload(model, build_postprocess(settings.test), settings, SPEC)


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backend of every call of the operator."""
    called = []
    real = deform_attn._choose

    def choose(backend, device, exporting):
        called.append(real(backend, device, exporting))
        return called[-1]

    monkeypatch.setattr(deform_attn, "_choose", choose)
    return called


@pytest.mark.parametrize("training", [False, True])
def test_ours_and_plain_take_turns_and_agree(tiny_settings, backends, training):
    ticks, made = [], []

    def make(name):
        made.append((name, len(backends)))
        return make_workload(tiny_settings, training=training)

    found = compare(lambda: make("ours"), lambda: make("plain"), SPEC, lambda: ticks.append(1))
    assert found.order == ["ours", "plain", "ours", "plain"]
    assert [name for name, _ in made] == ["ours", "plain", "ours"]
    assert len(ticks) == SPEC.comparison_ticks == 9
    # The reference ran only between building the plain network and building ours again.
    ours_first = backends[: made[1][1]]
    assert set(ours_first) == {active_backend("cpu")} != {"reference"}
    assert set(backends[made[1][1] : made[2][1]]) == {"reference"}
    assert found.attention == {"ours": active_backend("cpu"), "plain": "reference"}
    assert found.speed_up == pytest.approx(found.latency_median_ms["plain"] / found.latency_median_ms["ours"])
    assert list(found.ours.stages_ms) == list(found.plain.stages_ms)
    if training:
        assert found.agreement["loss_ours"] > 0
        assert found.agreement["relative_difference"] < 1e-4
    else:
        assert found.agreement["detections_ours"] == found.agreement["detections_plain"] == 20
        assert found.agreement["unmatched"] == 0
        assert found.agreement["largest_box_difference_px"] < 0.01
    if sys.platform == "linux":
        assert found.memory_ratio == pytest.approx(found.plain.peak_memory_bytes / found.ours.peak_memory_bytes)


def test_another_computation_is_noticed(tiny_settings):
    def shift(model):
        model.class_heads[-2].bias.data += torch.tensor([0.5, -0.5, 0.2])

    found = compare(
        lambda: make_workload(tiny_settings, training=False, change=shift),
        lambda: make_workload(tiny_settings, training=False),
        SPEC,
    )
    assert found.agreement["unmatched"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process's peak memory be reset")
def test_our_network_is_gone_while_plain_is_measured(tiny_settings):
    def hoard(model):
        model.register_buffer("hoard", torch.ones(100 * 2**20 // 4))

    found = compare(
        lambda: make_workload(tiny_settings, training=False, change=hoard),
        lambda: make_workload(tiny_settings, training=False),
        SPEC,
    )
    assert found.ours.peak_memory_bytes - found.plain.peak_memory_bytes > 50 * 2**20


def make_detections(*rows):
    boxes, scores, labels = zip(*rows, strict=True)
    return Detections(torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels))


def test_detections_are_compared_whatever_their_order():
    first = ([0.0, 0.0, 10.0, 10.0], 0.9, 1)
    second = ([5.0, 5.0, 50.0, 50.0], 0.9, 2)
    moved = ([5.0, 5.0, 50.0, 50.25], 0.9, 2)
    same = compare_detections([make_detections(first, second)], [make_detections(moved, first)])
    assert same["unmatched"] == 0
    assert same["largest_box_difference_px"] == 0.25
    assert same["largest_score_difference"] == 0
    assert not same["labels_equal"]
    assert compare_detections([make_detections(first, second)], [make_detections(first, moved)])["labels_equal"]


@pytest.mark.parametrize(
    "other",
    [([0.0, 0.0, 10.0, 12.0], 0.9, 1), ([0.0, 0.0, 10.0, 10.0], 0.8, 1), ([0.0, 0.0, 10.0, 10.0], 0.9, 0)],
    ids=["box", "score", "label"],
)
def test_detections_that_differ_are_counted(other):
    found = compare_detections([make_detections(([0.0, 0.0, 10.0, 10.0], 0.9, 1))], [make_detections(other)])
    assert found["unmatched"] == 1
    assert found["largest_box_difference_px"] is None


def test_no_detections_are_no_difference():
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    found = compare_detections([nothing], [nothing])
    assert (found["unmatched"], found["detections_ours"], found["labels_equal"]) == (0, 0, True)
