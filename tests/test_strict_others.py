"""Apple's and Intel's GPUs, emulated: they evaluate and predict with plain PyTorch, and do not train."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from codetr_cli.config.overrides import to_toml
from codetr_cli.config.schema import Settings
from tests.conftest import Ran
from tests.inference.fakes import write_checkpoint
from tests.strict.others import OTHER_KINDS
from tests.strict_device import strict_device, values, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_the_emulation_is_as_strict(kind):
    with strict_device(kind) as gpu:
        a = torch.arange(3, device=kind)
        assert a.device == torch.device(kind, 0)
        assert a.new_tensor([1.0]).device == torch.ones(1).to(kind).device == a.device
        with pytest.raises(RuntimeError, match="same device"):
            a + torch.ones(3)
        assert sum(gpu.mixes.values()) == 1
        assert values(a[a > 0]).tolist() == [1, 2]
        assert gpu.waits
        with pytest.raises(TypeError, match="to numpy"):
            a.numpy()
    assert torch.ones(1).device.type == "cpu"


def test_apples_gpus_lack_float64_and_some_operators():
    with strict_device("mps"):
        x = torch.ones(3, 3, device="mps")
        for make in (
            x.double,
            lambda: torch.zeros(1, dtype=torch.float64, device="mps"),
            lambda: x.new_ones(1).double(),
        ):
            with pytest.raises(TypeError, match="doesn't support float64"):
                make()
        with pytest.raises(NotImplementedError, match="linalg_eig"):
            torch.linalg.eigvals(x)
    with strict_device("xpu"):
        assert torch.ones(1, device="xpu").double().dtype == torch.float64


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_evaluation_and_prediction_give_what_the_cpu_gives(
    kind: str, codetr: Callable[..., Ran], tmp_path: Path, tiny_settings: Settings, tiny_coco: Path
):
    weights = write_checkpoint(tmp_path / "model.safetensors", tiny_settings)
    images = sorted((tiny_coco / "val2017").iterdir())
    results = {}
    for device in ("cpu", kind):
        with strict_device(kind, own_rng=True) as gpu:
            words = ("--device", device, "--json")
            evaluated = codetr("eval", weights, "--data", tiny_coco, *words, "--out", tmp_path / device / "eval")
            predicted = codetr("predict", *images, "--checkpoint", weights, *words, "--score", 0.0,
                               "--out", tmp_path / device / "predict")  # fmt: skip
            assert evaluated.code == predicted.code == 0, evaluated.err + predicted.err
            assert not gpu.problems, gpu.report()
            assert (sum(gpu.kernels.values()) > 500) == (device == kind)
            used = {name for _, name in gpu.ops}
            assert ("aten::grid_sampler_2d" in used) == (device == kind)
            assert not [name for name in used if name.startswith("codetr::")]
        results[device] = [
            *json.loads((tmp_path / device / "eval/detections.json").read_text()),
            *json.loads((tmp_path / device / "predict/predictions.json").read_text()),
        ]
    assert len(results["cpu"]) == 80
    for found, expected in zip(results[kind], results["cpu"], strict=True):
        # The CPU has a kernel of its own for deformable attention: the last bits differ.
        assert found["score"] == pytest.approx(expected["score"], abs=1e-6)
        assert found["bbox"] == pytest.approx(expected["bbox"], abs=0.101)  # rounded to 0.1
        rest = found.keys() - {"score", "bbox"}
        assert {key: found[key] for key in rest} == {key: expected[key] for key in rest}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_training_says_what_is_missing(
    kind: str, codetr: Callable[..., Ran], tmp_path: Path, tiny_settings: Settings, tiny_coco: Path
):
    preset = tmp_path / "tiny.toml"
    preset.write_text(to_toml(tiny_settings))
    with strict_device(kind):
        ran = codetr("train", "--preset", preset, "--data", tiny_coco, "--run", tmp_path / "run", "--device", kind)
    assert ran.code != 0
    assert f"--device {kind} evaluates and predicts, but does not train: the memory check" in " ".join(ran.err.split())
    assert not (tmp_path / "run").exists()
