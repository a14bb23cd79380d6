from __future__ import annotations

import pytest

from codetr_cli.ops import compile_kernel


def test_the_digest_covers_the_source_and_how_it_is_compiled(tmp_path, monkeypatch):
    seen = {compile_kernel.source_digest()}
    with monkeypatch.context() as changed:
        changed.setattr(compile_kernel, "FLAGS", (*compile_kernel.FLAGS, "-g"))
        seen.add(compile_kernel.source_digest())
    with monkeypatch.context() as changed:
        changed.setitem(compile_kernel.X86_SETS, "avx2", ("-mavx2",))
        seen.add(compile_kernel.source_digest())
    with monkeypatch.context() as changed:
        other = tmp_path / "deform_attn.c"
        other.write_bytes(compile_kernel.SOURCE.read_bytes() + b" ")
        changed.setattr(compile_kernel, "SOURCE", other)
        seen.add(compile_kernel.source_digest())
    assert len(seen) == 4
    assert compile_kernel.source_digest() in seen


def test_a_place_that_cannot_be_written_is_a_compiler_error(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "true")
    with pytest.raises(compile_kernel.CompilerError, match=r"kernel\.so cannot be written: .*missing"):
        compile_kernel.compile_kernel(tmp_path / "missing" / "kernel.so")
