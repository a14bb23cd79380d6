"""The CPU kernel on ARM's 64-bit processors (Apple, servers): compiled by a cross compiler, run by an emulator."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from codetr_cli.ops import compile_kernel

COMPILER = "aarch64-linux-gnu-gcc"
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
SYSTEM = Path("/usr/aarch64-linux-gnu")  # the emulated program's C library, as Debian's packages install it

needs_compiler = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no cross compiler here ({COMPILER})")

# Calls the library on one problem with boxes as references, and prints output and gradients. The included source gives
# the type of a problem; its functions get names that nothing calls.
DRIVER = r"""
#define VARIANT unused
#include "deform_attn.c"
#include <stdio.h>

enum { BATCH = 2, HEADS = 2, CHANNELS = 33, LEVELS = 3, POINTS = 4, TOKENS = 9 * 8 + 3 * 4 + 1, QUERIES = TOKENS };
enum { VALUES = BATCH * TOKENS * HEADS * CHANNELS, SAMPLES = BATCH * QUERIES * HEADS * LEVELS * POINTS };
enum { REFERENCES = BATCH * QUERIES * LEVELS * 4 };
static const int64_t shapes[] = {9, 8, 3, 4, 1, 1};
static uint32_t state = 1;

static double number(void) { /* in [0, 1) */
    state = state * 1664525u + 1013904223u;
    return (state >> 8) / 16777216.0;
}

#define RUN(TYPE)                                                                                                     \
    extern int codetr_forward_##TYPE##_base(Problem *), codetr_backward_##TYPE##_base(Problem *);                     \
    static TYPE value_##TYPE[VALUES], reference_##TYPE[REFERENCES], sampling_##TYPE[2 * SAMPLES];                     \
    static TYPE scores_##TYPE[SAMPLES], grad_##TYPE[VALUES], out_##TYPE[4][VALUES + 2 * SAMPLES];                     \
    static void run_##TYPE(void) {                                                                                    \
        for (int i = 0; i < VALUES; i++) value_##TYPE[i] = number() - 0.5, grad_##TYPE[i] = number() - 0.5;           \
        for (int i = 0; i < REFERENCES; i++) reference_##TYPE[i] = number();                                          \
        for (int i = 0; i < 2 * SAMPLES; i++) sampling_##TYPE[i] = 4 * number() - 2;                                  \
        for (int i = 0; i < SAMPLES; i++) scores_##TYPE[i] = 4 * number() - 2;                                        \
        Problem p = {                                                                                                 \
            .value = value_##TYPE, .reference = reference_##TYPE, .sampling = sampling_##TYPE,                        \
            .scores = scores_##TYPE, .grad_output = grad_##TYPE, .output = out_##TYPE[0],                             \
            .grad_value = out_##TYPE[1], .grad_sampling = out_##TYPE[2], .grad_scores = out_##TYPE[3],                \
            .shapes = shapes, .batch = BATCH, .tokens = TOKENS, .heads = HEADS, .channels = CHANNELS,                 \
            .queries = QUERIES, .levels = LEVELS, .points = POINTS, .reference_size = 4, .heads_at_once = 1};         \
        if (codetr_forward_##TYPE##_base(&p)) exit(1);                                                                \
        p.next_task = 0;                                                                                              \
        if (codetr_backward_##TYPE##_base(&p)) exit(1);                                                               \
        const int counts[4] = {VALUES, VALUES, 2 * SAMPLES, SAMPLES};                                                 \
        for (int k = 0; k < 4; k++)                                                                                   \
            for (int i = 0; i < counts[k]; i++) printf("%.17g\n", (double)out_##TYPE[k][i]);                          \
    }

RUN(float)
RUN(double)
extern const char *codetr_instruction_set(void);

int main(void) {
    fprintf(stderr, "%s", codetr_instruction_set());
    run_float();
    run_double();
    return 0;
}
"""


def build(folder: Path, compiler: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The driver, linked with the library as users get it."""
    monkeypatch.setenv("CC", compiler)
    folder.mkdir()
    library = compile_kernel.compile_kernel(folder / compile_kernel.LIBRARY.name)
    source, program = folder / "driver.c", folder / "driver"
    source.write_text(DRIVER)
    options = ["-O1", "-std=gnu11", f"-I{compile_kernel.SOURCE.parent}", f"-Wl,-rpath,{folder}"]
    subprocess.run([compiler, *options, str(source), str(library), "-o", str(program), "-lm"], check=True)
    return program


@needs_compiler
def test_the_library_is_for_arm_and_has_no_x86_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CC", COMPILER)
    data = compile_kernel.compile_kernel(tmp_path / "kernel.so").read_bytes()
    assert int.from_bytes(data[18:20], "little") == 183  # the processor in the header of an ELF file: AArch64
    assert b"codetr_forward_float_base" in data
    assert b"avx" not in data


@needs_compiler
@pytest.mark.skipif(EMULATOR is None, reason="no emulator of ARM here (qemu-aarch64)")
def test_the_numbers_equal_those_of_this_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    results = []
    for name, compiler, prefix in (("here", "cc", []), ("arm", COMPILER, [EMULATOR, "-L", str(SYSTEM)])):
        program = build(tmp_path / name, compiler, monkeypatch)
        ran = subprocess.run([*prefix, str(program)], capture_output=True, text=True, check=True)
        results.append(np.array(ran.stdout.split(), np.float64))
        assert name == "here" or ran.stderr == "base"
    ours, theirs = results
    half = len(ours) // 2
    assert np.abs(ours[:half]).max() > 0.1
    np.testing.assert_allclose(
        theirs[:half], ours[:half], rtol=0, atol=2e-5
    )  # float, sums of 12 samples and 33 channels
    np.testing.assert_allclose(theirs[half:], ours[half:], rtol=0, atol=1e-12)
