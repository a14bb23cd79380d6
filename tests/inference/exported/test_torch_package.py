"""Packages of PyTorch are checked before any of their code runs; tests/export/test_torch_package.py runs real ones."""

from __future__ import annotations

import json
import platform
import zipfile
from typing import Any

import pytest
import torch

from codetr_cli.errors import CheckpointError, ResourceError
from codetr_cli.export.job import describe
from codetr_cli.export.options import ExportOptions
from codetr_cli.inference.exported import torch_package, trust
from codetr_cli.inference.exported.engine import choose_for_file, open_engine
from codetr_cli.inference.exported.metadata import METADATA_KEY
from codetr_cli.inference.exported.torch_package import INSTRUCTION_SETS, TorchPackageEngine
from codetr_cli.inference.loading import LoadedModel
from codetr_cli.models.build import build_postprocess

CPU = torch.device("cpu")


@pytest.fixture
def table(tiny_settings) -> dict[str, Any]:
    """What AOTInductor writes of a package for this machine."""
    names = [f"class {index}" for index in range(tiny_settings.model.num_classes)]
    postprocess = build_postprocess(tiny_settings.test)
    loaded = LoadedModel(None, postprocess, tiny_settings, names, list(range(len(names))))  # type: ignore[arg-type]
    metadata = describe(loaded, ExportOptions(format="torch", size=(128, 160)))
    return {
        METADATA_KEY: metadata.to_json(),
        "AOTI_DEVICE_KEY": "cpu",
        "AOTI_MACHINE": platform.machine(),
        "AOTI_CPU_ISA": "DEFAULT",
    }


@pytest.fixture
def ran(monkeypatch):
    """Paths that torch loaded, with the GPU's index if it is for one: every package answers with two outputs."""
    paths = []

    def load(path: str, **place: int):
        paths.append((path, place["device_index"]) if place else path)
        return lambda images, sizes: (images.sum(), sizes.sum())

    monkeypatch.setattr(torch._inductor, "aoti_load_package", load)
    return paths


def write(path, *tables, name="data/aotinductor/model/{}.wrapper_metadata.json"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive_format", "pt2")
        for index, table in enumerate(tables):
            content = table if isinstance(table, (bytes, str)) else json.dumps(table)
            archive.writestr(name.format(index), content)
    return path


@pytest.fixture
def package(tmp_path, table, monkeypatch):
    path = write(tmp_path / "network.pt2", table)
    monkeypatch.setenv(trust.VARIABLE, trust.file_digest(path))
    return path


def test_a_trusted_package_runs(package, ran):
    engine = open_engine(package, CPU)
    assert ran == [str(package)]
    outputs = engine.run(torch.ones(1, 3, 4, 4), torch.tensor([[4, 4]]))
    assert outputs == {"logits": torch.tensor(48.0), "boxes": torch.tensor(8)}
    assert str(engine.info) == f"PyTorch {torch.__version__}, AOTInductor on cpu, fp32"


def test_an_unknown_package_is_not_loaded(package, ran, monkeypatch):
    monkeypatch.delenv(trust.VARIABLE)
    with pytest.raises(CheckpointError, match="contains compiled code"):
        TorchPackageEngine.open(package, CPU)
    assert not ran


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"AOTI_DEVICE_KEY": "cuda"}, "compiled for cuda, not for cpu: use --device cuda"),
        ({"AOTI_MACHINE": "riscv64"}, "compiled for riscv64 processors"),
        ({"AOTI_CPU_ISA": "AVX512 AVX512_VNNI"}, "compiled for processors with AVX512, and this one has AVX2"),
    ],
)
def test_code_for_other_hardware_is_not_loaded(tmp_path, table, ran, monkeypatch, change, reason):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    path = write(tmp_path / "network.pt2", table | change)
    monkeypatch.setenv(trust.VARIABLE, trust.file_digest(path))
    with pytest.raises(ResourceError, match=reason):
        TorchPackageEngine.open(path, CPU)
    assert not ran


@pytest.fixture
def gpu_package(tmp_path, table, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", None)
    path = write(tmp_path / "gpu.pt2", table | {"AOTI_DEVICE_KEY": "cuda", "AOTI_COMPUTE_CAPABILITY": "86"})
    monkeypatch.setenv(trust.VARIABLE, trust.file_digest(path))
    return path


def test_auto_is_what_a_package_is_compiled_for(gpu_package, tmp_path):
    assert choose_for_file(gpu_package, "auto") == ("auto", [])
    assert choose_for_file(write(tmp_path / "cpu.pt2", {"AOTI_DEVICE_KEY": "cpu"}), "auto") == ("cpu", [])


@pytest.mark.parametrize("capability", [(8, 6), (8, 9)])
def test_a_package_runs_on_the_gpu_that_was_chosen(gpu_package, ran, monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    engine = TorchPackageEngine.open(gpu_package, torch.device("cuda", 1))
    assert ran == [(str(gpu_package), 1)]
    assert "AOTInductor on cuda" in str(engine.info)


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (7, 5)])
def test_code_for_another_gpu_is_not_loaded(gpu_package, ran, monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with pytest.raises(ResourceError, match=r"compute capability 8\.6, and this one has {}\.{}".format(*capability)):
        TorchPackageEngine.open(gpu_package, torch.device("cuda", 0))
    assert not ran


def test_torch_names_instruction_sets_as_we_do():
    here = torch.backends.cpu.get_cpu_capability()
    assert here in INSTRUCTION_SETS or platform.machine() not in ("x86_64", "AMD64")


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        ([], "it has no metadata"),
        (["[1]"], "its metadata are not a table"),
        (["{"], "Expecting property name"),
        ([b"\xff\xff"], "utf-8"),
        ([{"AOTI_DEVICE_KEY": "cpu"}], "was not written by `codetr export`"),
        ([{METADATA_KEY: 1}], "was not written by `codetr export`"),
        ([{METADATA_KEY: "{}"}], "metadata of format"),
        ([{"AOTI_DEVICE_KEY": "cpu"}, {"AOTI_DEVICE_KEY": "cuda"}], "its parts have different metadata"),
    ],
)
def test_bad_packages_are_refused_before_they_are_loaded(tmp_path, ran, tables, reason):
    path = write(tmp_path / "network.pt2", *tables)
    with pytest.raises(CheckpointError, match=reason):
        TorchPackageEngine.open(path, CPU)
    assert not ran


def test_metadata_of_any_size_are_not_read(tmp_path, ran, monkeypatch):
    monkeypatch.setattr(torch_package, "MAX_METADATA", 100)
    path = write(tmp_path / "network.pt2", {"text": "x" * 500})
    with pytest.raises(CheckpointError, match="more than 400 bytes"):
        TorchPackageEngine.open(path, CPU)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no archive", b"\x7fELF"])
def test_other_files_are_refused(tmp_path, ran, content):
    path = tmp_path / "network.pt2"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a package of PyTorch"):
        TorchPackageEngine.open(path, CPU)
    assert not ran


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="not a package of PyTorch"):
        TorchPackageEngine.open(tmp_path / "network.pt2", CPU)


def test_a_library_that_cannot_be_opened_is_an_error_of_the_file(package, monkeypatch):
    def fail(path):
        raise RuntimeError("undefined symbol")

    monkeypatch.setattr(torch._inductor, "aoti_load_package", fail)
    with pytest.raises(CheckpointError, match=r"cannot load .*network\.pt2.*undefined symbol"):
        TorchPackageEngine.open(package, CPU)
