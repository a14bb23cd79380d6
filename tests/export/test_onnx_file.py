"""The ONNX file: its operators, its weights, and what must not be in it."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from codetr_cli.errors import ResourceError
from codetr_cli.export import onnx_file
from codetr_cli.export.request import WriteRequest
from codetr_cli.inference.exported.engine import open_engine
from codetr_cli.inference.exported.metadata import METADATA_KEY
from codetr_cli.models.backbones.vit import rotation
from tests.conftest import REPOSITORY
from tests.export import networks
from tests.export.networks import Exported
from tests.export.tiny_graph import tiny_metadata

onnx = pytest.importorskip("onnx", reason="the optional package onnx reads the files")

EXPORTED = ("any_size", "swin", pytest.param("vit_masks", marks=pytest.mark.slow))


@pytest.fixture(params=EXPORTED)
def exported(request: pytest.FixtureRequest) -> Exported:
    found: Exported = request.getfixturevalue(request.param)
    return found


def test_the_graph_is_valid_and_of_an_opset_that_every_runtime_has(exported: Exported):
    onnx.checker.check_model(str(exported.path), full_check=True)
    model = onnx.load(str(exported.path))
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert not model.functions
    assert {node.domain for node in model.graph.node} == {""}


def test_operators(exported: Exported):
    model = onnx.shape_inference.infer_shapes(onnx.load(str(exported.path)))
    count = Counter(node.op_type for node in model.graph.node)
    norms = [module for module in exported.loaded.model.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert count["LayerNormalization"] >= len(norms) - 1, "a norm is several nodes: half precision would break it"
    levels = exported.loaded.settings.model.num_levels
    layers = exported.loaded.settings.model.encoder_layers + exported.loaded.settings.model.decoder_layers
    assert count["GridSample"] == levels * layers
    grids = {node.input[1] for node in model.graph.node if node.op_type == "GridSample"}
    ranks = [len(info.type.tensor_type.shape.dim) for info in model.graph.value_info if info.name in grids]
    assert set(ranks) == {4}
    assert not {"Loop", "If", "Scan", "NonZero", "ScatterND", "SequenceAt"} & set(count), "shapes depend on values"
    assert count["RoiAlign"] == (8 if exported.metadata.output.masks else 0), "five levels and three refinements"


class Normed(torch.nn.Module):
    """A group of 360,000 numbers far from zero, as of the finest level of a large image."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.GroupNorm(1, 3)

    def forward(self, images: torch.Tensor, image_sizes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.norm(images), image_sizes + 1


def test_norms_of_large_groups_are_as_precise_as_in_pytorch(tmp_path: Path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the optional package onnxruntime runs the file")
    images, sizes = 1 + 0.3 * torch.randn(1, 3, 300, 400), torch.tensor([[300, 400]])
    program = torch.export.export(Normed(), (images, sizes))
    onnx.save_model(onnx_file._convert(program, tiny_metadata()), str(tmp_path / "norm.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "norm.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": images.numpy(), "image_sizes": sizes.numpy()})[0]
    exact = torch.nn.functional.group_norm(images.double(), 1)
    assert (torch.from_numpy(found) - exact).abs().max() < 3e-6  # 3e-5 with one InstanceNormalization


def test_the_number_of_best_scores_is_a_constant_where_the_size_is_fixed(swin: Exported):
    graph = onnx.load(str(swin.path)).graph
    initializers = {initializer.name for initializer in graph.initializer}
    assert all(node.input[1] in initializers for node in graph.node if node.op_type == "TopK")


def test_rotary_tables_of_the_largest_vit_are_float32():
    class Tables(torch.nn.Module):
        def forward(self, like: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(like * table for table in rotation(96, 96, 64, like=like))  # a canvas of 1536

    program = torch.export.export(Tables(), (torch.ones(1),), strict=False)
    exported = torch.onnx.export(program, (), dynamo=True, opset_version=onnx_file.OPSET, verbose=False)
    assert exported is not None
    graph = exported.model_proto.graph
    assert not {"Cos", "Sin"} & {node.op_type for node in graph.node}
    assert onnx.TensorProto.DOUBLE not in {table.data_type for table in graph.initializer}


def test_names_of_inputs_and_outputs(exported: Exported):
    graph = onnx.load(str(exported.path)).graph
    outputs = ["logits", "boxes"]
    if exported.metadata.output.detections:
        outputs = ["boxes", "scores", "labels", *(["masks", "mask_ious"] if exported.metadata.output.masks else [])]
    assert [value.name for value in graph.input] == ["images", "image_sizes"]
    assert [value.name for value in graph.output] == outputs


def test_weights_are_there_once(exported: Exported):
    initializers = onnx.load(str(exported.path)).graph.initializer
    stored = sum(len(initializer.raw_data) for initializer in initializers)
    network = sum(value.nbytes for value in exported.loaded.model.state_dict().values())
    assert stored < 1.1 * network + 400_000, "a constant that was computed, or a weight that is there twice"
    large = [data for initializer in initializers if len(data := initializer.raw_data) > 1000 and any(data)]
    assert len(set(large)) == len(large)


def test_nothing_of_this_machine_is_in_the_file(exported: Exported):
    content = exported.path.read_bytes()
    for text in (str(REPOSITORY), site.getsitepackages()[0], "site-packages", ".py", str(exported.path.parent)):
        assert text.encode() not in content, text


def test_metadata(exported: Exported):
    model = onnx.load(str(exported.path), load_external_data=False)
    (entry,) = model.metadata_props
    assert entry.key == METADATA_KEY
    assert json.loads(entry.value)["format"] == "codetr-export-1"
    assert exported.engine.metadata == exported.metadata
    assert model.producer_name == "codetr"


@pytest.mark.slow
def test_the_same_checkpoint_gives_the_same_bytes(any_size: Exported, tmp_path: Path):
    program = (
        "import sys\nfrom pathlib import Path\nfrom codetr_cli.export.job import export\n"
        "from codetr_cli.export.options import ExportOptions\n"
        "export(sys.argv[1], ExportOptions(dynamic_size=True), Path(sys.argv[2]))"
    )
    for seed in ("1", "2"):
        path = tmp_path / seed / "network.onnx"
        command = [sys.executable, "-c", program, str(any_size.checkpoint), str(path)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
        assert path.read_bytes() == any_size.path.read_bytes()


def test_large_weights_have_a_file_of_their_own(any_size: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onnx_file, "MAX_INLINE_BYTES", 1000)
    model = onnx.load(str(any_size.path))
    monkeypatch.setattr(onnx_file, "build_onnx", lambda request: model)
    path = tmp_path / "large.onnx"
    onnx_file.write_onnx(WriteRequest(any_size.loaded.model, any_size.metadata, path))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["large.onnx", "large.onnx.data"]
    assert path.stat().st_size < (tmp_path / "large.onnx.data").stat().st_size
    images, sizes = networks.make_input(any_size.metadata, (96, 128), 1)
    found = open_engine(path, torch.device("cpu")).run(images, sizes)
    expected = any_size.engine.run(images, sizes)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ResourceError, match=r"pip install 'codetr-cli\[onnx\]'"):
        onnx_file._import_onnx()


def test_a_package_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch):
    onnxscript = pytest.importorskip("onnxscript", reason="the optional package onnxscript converts programs to ONNX")
    monkeypatch.setattr(onnxscript, "__version__", "0.6.2")
    with pytest.raises(ResourceError, match=r"0\.7 or newer, and 0\.6\.2 is .* --upgrade 'codetr-cli\[onnx\]'"):
        onnx_file._import_onnx()
    monkeypatch.setattr(onnxscript, "__version__", "0.8rc1")
    assert onnx_file._import_onnx() is not None
