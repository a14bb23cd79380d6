"""Hundreds of broken variants of a checkpoint through the code that loads and converts: an error, never a traceback."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from codetr_cli.config.overrides import parse_settings
from codetr_cli.errors import CheckpointError, CodetrError, ConfigError
from codetr_cli.inference.loading import load_detector
from codetr_cli.inference.model_size import model_shapes
from codetr_cli.models.build import build_model
from codetr_cli.models.codetr import CoDETR
from codetr_cli.weights.checkpoint import load_checkpoint
from codetr_cli.weights.convert import convert_file
from codetr_cli.weights.load_state import load_matching
from codetr_cli.weights.pretrained import load_backbone
from tests.conftest import TINY_TABLE
from tests.inference.fakes import write_checkpoint
from tests.weights.broken_checkpoints import broken_headers, reseal, wrong_metadata, wrong_states
from tests.weights.broken_pickles import broken_contents
from tests.weights.published_states import published_state, raw_state, small_model, small_preset

LONGEST_S = 10.0  # CPU time of one variant; most need a tenth of a second
LONGEST_MESSAGE = 20_000
# A few of the variants always, and all of them among the slow tests.
some_or_all = pytest.mark.parametrize("every", [17, pytest.param(1, marks=pytest.mark.slow)])


class Sweep:
    """Runs functions on broken files and collects what they must not do.

    Attributes:
        every: use every so manieth variant.
        wrong: one text for each variant that was not refused properly.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.wrong: list[str] = []
        self.count = self.refused = 0

    def variants(self, variants: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        """The variants to use."""
        return islice(variants, self.every // 2, None, self.every)

    def run(self, what: str, function: Callable[[], Mapping[str, Tensor]], good: Mapping[str, Tensor]) -> None:
        """Expects an error of the checkpoint, or the entries of the good file: what is not needed may be wrong."""
        started, found = time.process_time(), ""
        self.count += 1
        try:
            state = function()
            found = "" if all(torch.equal(value, good[name]) for name, value in state.items()) else "no error"
        except (CheckpointError, ConfigError) as error:
            self.refused += 1
            if len(str(error)) > LONGEST_MESSAGE:
                found = f"a message of {len(str(error))} characters"
        except CodetrError as error:
            found = f"exit {error.exit_code}: {error}"
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        if time.process_time() - started > LONGEST_S:
            found = f"{time.process_time() - started:.1f} s"
        if found:
            self.wrong.append(f"{what}: {found[:200]}")


@pytest.fixture
def sweep(every: int) -> Iterator[Sweep]:
    sweep = Sweep(every)
    yield sweep
    assert sweep.wrong == []
    assert sweep.refused > 0.7 * sweep.count > 0


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(
        tmp_path_factory.mktemp("good") / "x.safetensors", parse_settings(TINY_TABLE, where="a test")
    )


def load(path: Path) -> Mapping[str, Tensor]:
    return load_detector(path, torch.device("cpu"), optimize=False).model.state_dict()


def convert(path: Path, preset: str) -> Mapping[str, Tensor]:
    return convert_file(path, preset=preset, expected_shapes=model_shapes).checkpoint.state


def into_backbone(path: Path, model: CoDETR) -> Mapping[str, Tensor]:
    for parameter in model.backbone.parameters():
        parameter.data.zero_()
    load_backbone(model, path)
    return {name: value for name, value in model.state_dict().items() if name.startswith("backbone.")}


def save(path: Path, content: Any) -> Path:
    try:
        torch.save(content, path)
    except UnicodeEncodeError:  # a name that cannot be pickled
        torch.save(1, path)
    return path


@some_or_all
def test_wrong_metadata(good, tmp_path, sweep):
    state = load_checkpoint(good).state
    for what, change in sweep.variants(wrong_metadata()):
        path = reseal(good, tmp_path / "x.safetensors", metadata=change)
        sweep.run(what, lambda path=path: load(path), state)


@some_or_all
def test_wrong_entries(good, tmp_path, sweep):
    model, state = build_model(load_checkpoint(good).settings.model), load_checkpoint(good).state
    for number, (what, change) in enumerate(sweep.variants(wrong_states())):
        path = reseal(good, tmp_path / "x.safetensors", state=change)
        if number % 2:
            sweep.run(what, lambda path=path: load(path), state)
        else:
            sweep.run(what, lambda path=path: vars(load_matching(model, load_checkpoint(path).state)), {})


@some_or_all
def test_broken_files_as_weights_to_convert(tmp_path, sweep):
    preset, model = small_preset(tmp_path), small_model()
    for what, data in sweep.variants(broken_headers()):
        path = tmp_path / "x.safetensors"
        path.write_bytes(data)
        sweep.run(what, lambda path=path: convert(path, preset), {})
        sweep.run(what, lambda path=path: into_backbone(path, model), {})


@some_or_all
def test_contents_of_pickles(tmp_path, sweep):
    good, preset = raw_state(), small_preset(tmp_path)
    for what, content in sweep.variants(broken_contents(dict(published_state()))):
        path = save(tmp_path / "x.pth", content)
        sweep.run(what, lambda path=path: convert(path, preset), good)


@some_or_all
def test_contents_of_pickles_as_backbones(tmp_path, sweep):
    good, model = raw_state(), small_model()
    state = {name.removeprefix("backbone."): value for name, value in good.items() if name.startswith("backbone.")}
    for what, content in sweep.variants(broken_contents({**published_state(), **state})):
        path = save(tmp_path / "x.pth", content)
        sweep.run(what, lambda path=path: into_backbone(path, model), good)
    for name, value in islice(state.items(), 0, None, sweep.every):
        for wrong in (*(torch.zeros(shape) for shape in ((), (0,), (1, 1, 1, 1, 1))), value.to(torch.complex64)):
            path = save(tmp_path / "x.pth", {**state, name: wrong})
            sweep.run(f"{name} {wrong.dtype} {tuple(wrong.shape)}", lambda path=path: into_backbone(path, model), {})


@some_or_all
def test_published_names_in_safetensors(tmp_path, sweep):
    state, preset = dict(published_state()), small_preset(tmp_path)
    entry = "query_head.transformer.level_embeds"
    for what, change in sweep.variants(wrong_states()):
        tensors = {name: value.clone() for name, value in state.items() if value.is_floating_point()}
        tensors["encoder.level_embed"] = tensors.pop(entry)
        change(tensors)
        if "encoder.level_embed" in tensors:
            tensors[entry] = tensors.pop("encoder.level_embed")
        save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
        sweep.run(what, lambda: convert(tmp_path / "x.safetensors", preset), raw_state())


def test_commands_exit_with_four(good, tmp_path, codetr, tiny_coco):
    image = next((tiny_coco / "val2017").iterdir())
    variants = {
        "names": {"metadata": lambda metadata: metadata.update(class_names="null")},
        "nan": {"state": lambda state: state["encoder.level_embed"].fill_(float("nan"))},
    }
    for name, change in variants.items():
        path = reseal(good, tmp_path / f"{name}.safetensors", **change)
        ran = codetr("predict", image, "--checkpoint", path, "--out", tmp_path / "out", "--device", "cpu")
        assert ran.code == 4, ran.err
        ran = codetr("eval", path, "--data", tiny_coco, "--device", "cpu")
        assert ran.code == 4, ran.err
    allow = ("--set", "test.allow_nonfinite_weights=true")
    ran = codetr("predict", image, "--checkpoint", path, "--out", tmp_path / "out", "--device", "cpu", *allow)
    assert ran.code == 0, ran.err
