"""Weights that are no finite real numbers are refused, by every way in which weights are loaded."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from codetr_cli.errors import CheckpointError
from codetr_cli.weights import values
from codetr_cli.weights.convert import convert_file
from codetr_cli.weights.load_state import load_exact, load_matching
from codetr_cli.weights.pretrained import load_backbone
from codetr_cli.weights.values import CHUNK, check_weights, count_nonfinite
from tests.weights.published_states import published_state, small_model, small_preset

NAN = float("nan")
ENTRY = "encoder.level_embed"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf")])
def test_one_wrong_value_is_found_anywhere(dtype, value):
    numbers = torch.ones(CHUNK + 3, dtype=dtype)
    assert count_nonfinite(numbers) == 0
    for place in (0, CHUNK - 1, CHUNK + 2):
        wrong = numbers.clone()
        wrong[place] = value
        assert count_nonfinite(wrong) == 1
    numbers[:2] = torch.tensor([value, -value])
    assert count_nonfinite(numbers) == 2


def test_huge_finite_values_are_allowed():
    largest = torch.finfo(torch.float32).max
    check_weights({"a": torch.full((1000,), largest), "b": torch.full((9,), 65504.0).half()}, source="x")
    check_weights({"a": torch.zeros(0), "b": torch.tensor(-largest), "c": torch.ones(4, 4).T[::2]}, source="x")


def test_what_becomes_infinite_in_the_model_is_refused():
    assert count_nonfinite(torch.tensor([1e300, 1.0], dtype=torch.float64)) == 1


def test_an_entry_under_many_names_is_examined_once(monkeypatch):
    shared, examined = torch.tensor([NAN, 1.0, 2.0]), []
    monkeypatch.setattr(values, "count_nonfinite", lambda value: examined.append(value) or count_nonfinite(value))
    state = {f"w{number}": shared[:2] for number in range(9)} | {"other": shared[1:]}
    with pytest.raises(CheckpointError, match="9 of 10 entries"):
        check_weights(state, source="x")
    assert len(examined) == 2


@pytest.mark.parametrize("kind", ["matching", "backbone"])
def test_values_are_examined_after_the_shapes_were_compared(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(values, "count_nonfinite", lambda value: pytest.fail("values were examined"))
    state = {name: value for name, value in small_model().state_dict().items() if name != "backbone.layer1.0.bn1.bias"}
    with pytest.raises(CheckpointError, match="1 are missing"):
        {"matching": matching, "backbone": backbone}[kind](tmp_path, state)


def test_the_first_entries_and_their_number_are_named():
    state = {f"w{number}": torch.tensor([NAN, 1.0]) for number in range(5)} | {"good": torch.ones(1)}
    with pytest.raises(
        CheckpointError, match=r"NaN or infinite: 5 of 6 entries, w0 \(1 of 2 values\).*2 more"
    ) as caught:
        check_weights(state, source="x.safetensors")
    assert "--set test.allow_nonfinite_weights=true" in str(caught.value)
    check_weights(state, source="x", allow_nonfinite=True)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool, torch.int64, torch.uint8, torch.float8_e4m3fn])
def test_other_types_are_refused_even_if_nan_is_allowed(dtype):
    state = {"w": torch.ones(2).to(dtype)}
    with pytest.raises(CheckpointError, match=rf"1 entries of another type.*w \({str(dtype)[6:]}\)"):
        check_weights(state, source="x", allow_nonfinite=True)


def test_an_integer_entry_of_the_model_is_an_integer():
    check_weights({"n": torch.ones(1).long()}, source="x", expected={"n": torch.zeros(1).long()})
    with pytest.raises(CheckpointError, match=r"n \(float32\)"):
        check_weights({"n": torch.ones(1)}, source="x", expected={"n": torch.zeros(1).long()})


def exact(folder, state, **options):
    load_exact(small_model(), state, **options)


def matching(folder, state, **options):
    load_matching(small_model(), state, **options)


def backbone(folder, state, **options):
    save_file(
        {name[9:]: value for name, value in state.items() if name.startswith("backbone.")}, folder / "b.safetensors"
    )
    load_backbone(small_model(), folder / "b.safetensors", **options)


def published(folder, state, allow_nonfinite=False):
    entries = published_state()
    entries["query_head.transformer.level_embeds"] = state[ENTRY]
    torch.save({"state_dict": entries}, folder / "x.pth")
    overrides = [f"test.allow_nonfinite_weights={str(allow_nonfinite).lower()}"]
    convert_file(folder / "x.pth", preset=small_preset(folder), overrides=overrides)


@pytest.mark.parametrize("load", [exact, matching, backbone, published])
def test_every_way_of_loading_checks(tmp_path, load):
    state = small_model().state_dict()
    load(tmp_path, state)
    wrong = {name: torch.full_like(value, NAN) for name, value in state.items()}
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        load(tmp_path, wrong)
    load(tmp_path, wrong, allow_nonfinite=True)
    with pytest.raises(CheckpointError, match="of another type"):
        load(tmp_path, {name: value.to(torch.complex64) for name, value in state.items()})
