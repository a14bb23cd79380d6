"""The kernel as a static library with PyTorch's C interface."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from codetr_cli.ops import package_kernel
from codetr_cli.ops.compile_kernel import CompilerError, defines
from codetr_cli.ops.deform_attn_cpu import NUMBERS, POINTERS, SAMPLES_PER_THREAD
from codetr_cli.ops.package_kernel import SEARCH_PATH, SHIM, linked_kernel, why_not_package

C_WORDS = ("const", "void", "int64_t")


def test_the_problem_has_the_fields_of_the_kernel():
    body = re.search(r"struct Problem \{(.*?)\};", SHIM.read_text(), re.DOTALL)
    assert body is not None
    declarations = [line.strip().split(None, 2) for line in body[1].replace("\n", " ").split(";") if line.strip()]
    names = [name for words in declarations for name in re.findall(r"\w+", " ".join(words)) if name not in C_WORDS]
    assert names == [*POINTERS, *NUMBERS]
    assert f"SAMPLES_PER_THREAD = {SAMPLES_PER_THREAD};" in SHIM.read_text()


@pytest.mark.slow
@pytest.mark.skipif(why_not_package() is not None, reason=str(why_not_package()))
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm, which lists the names in a library")
def test_the_library_has_the_declared_function(monkeypatch):
    monkeypatch.setenv(SEARCH_PATH, "/elsewhere")
    with linked_kernel() as options:
        folder, elsewhere = os.environ[SEARCH_PATH].split(os.pathsep)
        assert elsewhere == "/elsewhere"
        (name,) = options["aot_inductor.custom_op_libs"]
        command = ["nm", "--defined-only", f"{folder}/lib{name}.a"]
        names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        assert "aoti_torch_cpu_deform_attn" in names
    assert os.environ[SEARCH_PATH] == "/elsewhere"
    assert not os.path.exists(folder)  # noqa: PTH110


def test_a_missing_compiler_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(package_kernel, "compile_objects", lambda *arguments: [])
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(package_kernel, "HOST_COMPILERS", ("no-such-compiler",))
    with pytest.raises(CompilerError, match=r"no C\+\+ compiler was found \(no-such-compiler"):
        package_kernel.build_archive(tmp_path)


def test_flags_declare_the_instruction_sets():
    assert defines({"base": (), "avx2": ("-mavx2",)}) == ["-DHAVE_BASE", "-DHAVE_AVX2"]


def test_a_torch_without_links_to_operators_is_named(monkeypatch):
    monkeypatch.setattr(package_kernel, "OPTION", "no_such_option")
    assert "torch 2.8 and newer can" in str(why_not_package())
