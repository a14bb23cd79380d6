"""Packages of PyTorch: what is traced, how they run without codetr, and what is refused."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from codetr_cli.config.schema import Settings
from codetr_cli.errors import CheckpointError, ConfigError, ResourceError
from codetr_cli.export import torch_package
from codetr_cli.export.graph import MAX_BATCH, DetectionGraph
from codetr_cli.export.job import describe, export
from codetr_cli.export.options import ExportOptions
from codetr_cli.export.request import WriteRequest
from codetr_cli.export.torch_package import save_package, trace_program, write_torch_package
from codetr_cli.inference.exported import trust
from codetr_cli.inference.exported.engine import open_engine
from codetr_cli.inference.loading import LoadedModel
from codetr_cli.models.build import build_model, build_postprocess
from codetr_cli.models.torch_compile import why_not_compile
from codetr_cli.ops import deform_attn, deform_attn_backends, deform_attn_triton_tuning
from codetr_cli.ops.compile_kernel import CompilerError
from codetr_cli.ops.deform_attn import available_backends
from codetr_cli.ops.package_kernel import why_not_package
from tests.conftest import REPOSITORY
from tests.document_blocks import blocks
from tests.export import networks
from tests.inference.fakes import write_run

CPU = torch.device("cpu")
SIZE = (64, 96)
PAGE = "docs/export.md"

RUN_WITHOUT_CODETR = """
import sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "codetr_cli":
            raise ImportError(name)

sys.meta_path.insert(0, Forbidden())
import torch
from safetensors.torch import load_file, save_file

package, inputs, outputs = sys.argv[1:]
network = torch._inductor.aoti_load_package(package)
given, found = load_file(inputs), {}
for call in range(len(given) // 2):
    results = network(given[f"{call} images"], given[f"{call} sizes"])
    found |= {f"{call} {index}": result for index, result in enumerate(results)}
save_file(found, outputs)
"""

needs_compiler = pytest.mark.skipif(why_not_compile("cpu") is not None, reason=str(why_not_compile("cpu")))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Lists own packages in a folder of the test; compiled headers are shared."""
    monkeypatch.setattr("codetr_cli.models.torch_compile.cache_dir", lambda: tmp_path / "cache")
    monkeypatch.delenv(trust.VARIABLE, raising=False)


def request_for(settings: Settings, path: Path, **options: object) -> WriteRequest:
    torch.manual_seed(0)
    model = build_model(settings.model, aux_heads=False).eval()
    names = [f"class {index}" for index in range(settings.model.num_classes)]
    loaded = LoadedModel(model, build_postprocess(settings.test), settings, names, list(range(len(names))))
    metadata = describe(loaded, ExportOptions(format="torch", size=SIZE, **options))  # type: ignore[arg-type]
    return WriteRequest(model, metadata, path)


def images_of(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    sizes = torch.tensor([SIZE, (50, 70), (64, 33), (17, 96)][:count])
    return torch.randn(count, 3, *SIZE, generator=generator), sizes


def run_without_codetr(package: Path, inputs: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The outputs of a package in a process that cannot import codetr."""
    given, results = package.with_suffix(".inputs"), package.with_suffix(".outputs")
    names = ("images", "sizes")
    save_file(
        {
            f"{call} {name}": tensor
            for call, pair in enumerate(inputs)
            for name, tensor in zip(names, pair, strict=True)
        },
        given,
    )
    command = [sys.executable, "-W", "ignore", "-c", RUN_WITHOUT_CODETR, str(package), str(given), str(results)]
    subprocess.run(command, check=True, cwd=package.parent, timeout=300)
    found = load_file(results)
    return [(found[f"{call} 0"], found[f"{call} 1"]) for call in range(len(inputs))]


def called_by(program: torch.export.ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def test_the_default_program_calls_torch_only(tmp_path):
    calls = called_by(trace_program(request_for(networks.settings_of(), tmp_path / "network.pt2")))
    assert not [name for name in calls if name.startswith("codetr")]
    assert calls.count("aten.grid_sampler.default") == 2 * 4  # layers, levels


@pytest.mark.skipif(available_backends()["cpu"] is not None, reason="the compiled kernel is not here")
def test_the_plugin_is_the_operator_of_the_kernel(tmp_path):
    request = request_for(networks.settings_of(), tmp_path / "network.pt2", attention="plugin")
    calls = called_by(trace_program(request))
    assert calls.count("codetr.deform_attn.default") == 2
    assert "aten.grid_sampler.default" not in calls


class Doubled(nn.Module):
    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor]:
        sampled = nn.functional.grid_sample(images, images[:, :2].permute(0, 2, 3, 1), align_corners=False)
        return 2 * sampled, image_sizes + 1


@needs_compiler
def test_a_package_is_its_own_and_runs_without_codetr(tiny_settings, tmp_path, monkeypatch):
    """A trivial program in the place of the network: AOTInductor takes minutes for real ones."""
    batch = {0: torch.export.Dim("batch", max=MAX_BATCH)}  # torch 2.7 traces no batch without a limit
    program = torch.export.export(Doubled(), images_of(2), dynamic_shapes=(batch, batch))
    monkeypatch.setattr(torch_package, "trace_program", lambda request: program)
    monkeypatch.setenv("CI", "true")  # there, inductor refuses what it does itself elsewhere
    steps: list[str] = []
    plain = request_for(tiny_settings, tmp_path / "network.pt2")
    write_torch_package(WriteRequest(plain.model, plain.metadata, plain.path, steps.append))
    assert len(steps) == 2
    engine = open_engine(plain.path, CPU)
    assert engine.metadata == plain.metadata
    inputs = [images_of(1), images_of(3)]
    for given, found in zip(inputs, run_without_codetr(plain.path, inputs), strict=True):
        torch.testing.assert_close(found, Doubled()(*given))
        torch.testing.assert_close(tuple(engine.run(*given).values()), found)
    changed = bytearray(plain.path.read_bytes())
    changed[-1] ^= 1
    plain.path.write_bytes(changed)
    with pytest.raises(CheckpointError):
        open_engine(plain.path, CPU)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("attention", ["gridsample", "plugin"])
def test_packages_detect_as_the_network_at_any_batch(tiny_settings, tmp_path, attention):
    if attention == "plugin" and (reason := why_not_package() or available_backends()["cpu"]):
        pytest.skip(reason)
    request = request_for(tiny_settings, tmp_path / "network.pt2", attention=attention)
    write_torch_package(request)
    network = DetectionGraph(request.model, request.metadata)
    inputs = [images_of(count) for count in (1, 2, 4)]
    for given, found in zip(inputs, run_without_codetr(request.path, inputs), strict=True):
        with torch.no_grad():
            expected = network(*given)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("backbone", [networks.BATCH_NORM, networks.SWIN], ids=["resnet", "swin"])
def test_packages_for_any_size_detect_as_the_network(tmp_path, backbone):
    exported = networks.export(tmp_path, *backbone, dynamic_size=True, format="torch")
    for size, batch in networks.ANY_SIZES:
        differences = networks.largest_differences(exported, size, batch)
        assert differences["logits"] < 1e-4, (size, differences)
        assert differences["boxes"] < 1e-5, (size, differences)


def test_a_machine_without_compiler_is_told_what_to_install(tiny_settings, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ResourceError, match=r"needs a C\+\+ compiler.*apt install g\+\+"):
        write_torch_package(request_for(tiny_settings, tmp_path / "network.pt2"))


GPU = torch.device("cuda", 0)


def test_a_package_for_a_gpu_needs_one(codetr, tiny_settings, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    run = write_run(tmp_path / "run", tiny_settings, "last")
    result = codetr("export", run, "--format", "torch", "--device", "cuda", "--out", tmp_path / "network.pt2")
    assert result.code == ResourceError.exit_code
    assert "no GPU for device cuda" in result.err
    assert not (tmp_path / "network.pt2").exists()


def test_other_formats_are_made_on_the_cpu(tiny_settings, tmp_path, monkeypatch):
    made = []
    write_run(tmp_path / "run", tiny_settings, "last")

    def writer(request: WriteRequest) -> None:
        made.append(next(request.model.parameters()).device.type)
        request.path.write_bytes(b"file")

    for name, suffix in (("torch", ".pt2"), ("onnx", ".onnx")):
        options = ExportOptions(format=name, size=SIZE)  # type: ignore[arg-type]
        export(tmp_path / "run", options, tmp_path / f"network{suffix}", device=torch.device("meta"), writer=writer)
    assert made == ["meta", "cpu"]


def test_without_triton_no_package_for_a_gpu(tiny_settings, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match=r"Triton is not installed\. Install it, or use --device cpu"):
        torch_package._check(request_for(tiny_settings, tmp_path / "network.pt2").metadata, GPU)


def test_without_a_gpu_the_plugin_is_refused_with_the_reason_of_the_kernel(tiny_settings, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(deform_attn_backends, "_asked", deform_attn_backends._asked.__wrapped__)
    request = request_for(tiny_settings, tmp_path / "network.pt2", attention="plugin")
    with pytest.raises(ResourceError, match="--attention plugin: torch finds no CUDA or ROCm GPU"):
        torch_package._check(request.metadata, GPU)


def test_other_devices_are_refused(tiny_settings, tmp_path):
    with pytest.raises(ResourceError, match="compiles for cpu and cuda, not for mps: use --device cpu"):
        torch_package._check(request_for(tiny_settings, tmp_path / "network.pt2").metadata, torch.device("mps"))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_plugin_for_a_gpu_is_the_operator_of_the_triton_kernel(tiny_settings, tmp_path, monkeypatch):
    """The whole network, traced on tensors that claim to be on a GPU."""
    monkeypatch.setattr(deform_attn, "_choose", lambda backend, device, exporting: deform_attn_backends._forced)
    monkeypatch.setattr(deform_attn_triton_tuning, "architecture", lambda device: "sm_90")
    request = request_for(tiny_settings, tmp_path / "network.pt2", attention="plugin")
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in request.model.modules():
            for name, weight in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(torch.empty_like(weight, device=GPU)))
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty_like(buffer, device=GPU))
        program = trace_program(request)
    assert called_by(program).count("codetr.deform_attn_triton.default") == 4
    values = [node.meta["val"] for node in program.graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    assert {value.device for value in values} == {GPU}


def test_int8_is_refused(tiny_settings, tmp_path):
    with pytest.raises(ConfigError, match="no int8"):
        write_torch_package(request_for(tiny_settings, tmp_path / "network.pt2", precision="int8"))


def test_a_torch_that_cannot_link_operators_is_named(tiny_settings, tmp_path, monkeypatch):
    monkeypatch.setattr(torch_package, "why_not_package", lambda: "torch 2.7.1 cannot link operators into a package;")
    with pytest.raises(ResourceError, match=r"torch 2\.7\.1 cannot link"):
        write_torch_package(request_for(tiny_settings, tmp_path / "network.pt2", attention="plugin"))


@pytest.mark.parametrize("error", [CompilerError("cc failed"), RuntimeError("cc failed")])
def test_a_compiler_that_fails_is_an_error_of_the_environment(tiny_settings, tmp_path, monkeypatch, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(torch_package, "trace_program", lambda request: None)
    monkeypatch.setattr(torch_package, "compile_program", fail)
    with pytest.raises(ResourceError, match="cannot be compiled here: cc failed"):
        write_torch_package(request_for(tiny_settings, tmp_path / "network.pt2"))


def test_a_full_disk_is_no_error_of_the_compiler(tiny_settings, tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch_package, "trace_program", lambda request: None)
    monkeypatch.setattr(torch_package, "compile_program", lambda *arguments: [])
    monkeypatch.setattr(torch_package, "save_package", fail)
    with pytest.raises(ResourceError, match=r"PyTorch cannot write network\.pt2 \(.*\): often the disk is full"):
        write_torch_package(request_for(tiny_settings, tmp_path / "network.pt2"))


def test_torch_2_7_packages_the_compiled_program_only(tmp_path, monkeypatch):
    """It has no `torch.export.pt2_archive`."""
    importlib.import_module("torch._inductor.package")
    written = []
    older = SimpleNamespace(package_aoti=lambda path, files: written.append((path, files)))
    monkeypatch.setitem(sys.modules, "torch.export.pt2_archive._package", None)
    monkeypatch.setitem(sys.modules, "torch._inductor.package.package", older)
    save_package(tmp_path / "network.pt2", torch.export.export(Doubled(), images_of(2)), ["network.so"])
    assert written == [(str(tmp_path / "network.pt2"), ["network.so"])]


@needs_compiler
@pytest.mark.slow
def test_the_commands_of_the_page_run(codetr, tiny_settings, tmp_path, monkeypatch):
    lines = (REPOSITORY / PAGE).read_text(encoding="utf-8").splitlines()
    first = lines.index("## torch.export")
    last = next(index for index in range(first + 1, len(lines)) if lines[index].startswith("## "))
    command, program = [block for block in blocks(PAGE) if first < block.line <= last]
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/co_dino_r50/1", tiny_settings, "last")
    assert codetr(*command.text.split()[1:], "--device", "cpu").code == 0
    images, image_sizes = torch.randn(2, 3, 96, 160), torch.tensor([[96, 160], [50, 70]])
    names: dict[str, object] = {"images": images, "image_sizes": image_sizes}
    exec(program.text, names)
    expected = open_engine(Path("r50.pt2"), CPU).run(images, image_sizes)
    assert torch.equal(names["logits"], expected["logits"])  # type: ignore[arg-type]
    assert torch.equal(names["boxes"], expected["boxes"])  # type: ignore[arg-type]
