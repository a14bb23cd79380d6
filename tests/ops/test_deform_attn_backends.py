"""Which backend is used: availability, the setting, and the check before first use."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch

from codetr_cli.errors import ConfigError, ResourceError
from codetr_cli.ops import deform_attn_backends as backends
from codetr_cli.ops import deform_attn_cpu
from codetr_cli.ops.deform_attn import (
    active_backend,
    available_backends,
    use_backend,
)
from tests.ops.deform_attn_inputs import SHAPES, attend, make_problem


@pytest.fixture
def fresh_choice() -> Iterator[None]:
    """Forgets what has been found out about backends, before and after."""
    caches = (backends.proven, backends._fastest, backends._asked)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def test_every_backend_runs_or_says_why_not_in_a_sentence():
    found = available_backends("cpu")
    assert list(found) == list(backends.BACKENDS)
    assert found["torch"] is None
    assert all(reason is None or (reason.endswith(".") and len(reason) > 20) for reason in found.values())
    assert found[active_backend("cpu")] is None


def test_determinism_that_is_switched_on_later_drops_what_has_none(fresh_choice: None, monkeypatch: pytest.MonkeyPatch):
    class Unordered:
        @staticmethod
        def why_not(device: torch.device) -> str | None:
            return "It adds in no fixed order." if torch.are_deterministic_algorithms_enabled() else None

    monkeypatch.setattr(backends, "backend_module", lambda name: Unordered)
    monkeypatch.setattr(backends, "proven", lambda name, device: True)
    assert active_backend("cuda") == "triton"
    torch.use_deterministic_algorithms(True)
    try:
        assert active_backend("cuda") == "torch"
        assert available_backends("cuda")["mmcv"] == "It adds in no fixed order."
    finally:
        torch.use_deterministic_algorithms(False)
    assert active_backend("cuda") == "triton"


def test_each_gpu_is_asked_about_itself(fresh_choice: None, monkeypatch: pytest.MonkeyPatch):
    """The GPUs of a machine may differ: what one cannot run, another can, and "cuda" is the current one."""
    tested = []

    class NeedsTheSecond:
        @staticmethod
        def why_not(device: torch.device) -> str | None:
            return None if device.index == 1 else f"{device} is too old."

    def difference(name: str, device: torch.device) -> str | None:
        tested.append((name, device))
        return None

    monkeypatch.setattr(backends, "backend_module", lambda name: NeedsTheSecond)
    monkeypatch.setattr(backends, "_difference", difference)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert active_backend("cuda") == active_backend("cuda:0") == "torch"
    assert active_backend("cuda:1") == "triton"
    assert available_backends("cuda")["triton"] == "cuda:0 is too old."
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert active_backend("cuda") == active_backend(torch.device("cuda", 1)) == "triton"
    assert tested == [("triton", torch.device("cuda", 1))], "tested once, on the device that is meant"


def test_settings_context_and_environment_force_a_backend(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CODETR_DEFORM_ATTN", "torch")
    assert active_backend() == "torch"
    with use_backend("reference"):
        assert active_backend() == "reference"
        assert backends.choose_backend("torch", "cpu") == "torch"
    assert active_backend() == "torch"


def test_a_backend_that_cannot_run_here_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch):
    problem = make_problem(shapes=SHAPES, queries=1)
    with pytest.raises(ResourceError, match=r"attention_backend selects .*'mmcv': .*mmcv.*Use 'auto'"):
        attend(problem, problem.leaves(), "mmcv")
    monkeypatch.setenv("CODETR_DEFORM_ATTN", "trition")
    with pytest.raises(ConfigError, match=r"CODETR_DEFORM_ATTN selects .*'trition'; available: auto, triton"):
        active_backend()


@pytest.mark.usefixtures("fresh_choice")
def test_a_kernel_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch):
    if (reason := available_backends()["cpu"]) is not None:
        pytest.skip(reason)
    right = deform_attn_cpu.forward
    monkeypatch.setattr(deform_attn_cpu, "forward", lambda *arguments: right(*arguments) * 1.01)
    problem = make_problem(shapes=SHAPES)
    with pytest.warns(RuntimeWarning, match=r"'cpu' is not used on this machine: its output differs .* by \d\.\de-0"):
        output = attend(problem, problem.leaves(), "auto")
    torch.testing.assert_close(output, attend(problem, problem.leaves(), "reference"), rtol=0, atol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert active_backend() == "torch"


@pytest.mark.usefixtures("fresh_choice")
def test_a_kernel_that_fails_is_not_used(monkeypatch: pytest.MonkeyPatch):
    if (reason := available_backends()["cpu"]) is not None:
        pytest.skip(reason)

    def broken(*_: object, **__: object) -> None:
        raise MemoryError("no memory")

    monkeypatch.setattr(deform_attn_cpu, "backward", broken)
    with pytest.warns(RuntimeWarning, match="it failed with MemoryError"):
        assert active_backend() == "torch"
