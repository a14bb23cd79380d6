"""Compiles the Triton kernels ahead of time, without a GPU, and lists the resources that they would use on one.

    python benchmarks/compile_triton.py

For every kernel, dtype of the values, block shape and target: registers per thread, bytes of stack (spilled registers),
shared memory, size of the generated code, instructions of one level (the loop) and of the rest, resident warps per
multiprocessor, and the memory instructions. Writes benchmarks/results/triton_kernels.json, the source of
docs/triton_kernels.md. Needs Triton only, which includes assembler and disassembler; AMD figures are those in LLVM's
assembly.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from codetr_cli.ops import deform_attn_triton, deform_attn_triton_kernels

ROOT = Path(__file__).resolve().parent.parent
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
KERNELS = {
    "forward": deform_attn_triton_kernels.forward_kernel,
    "backward": deform_attn_triton_kernels.backward_kernel,
    "backward, ordered": deform_attn_triton_kernels.backward_kernel,
    "ordered sum": deform_attn_triton_kernels.ordered_value_kernel,
}
LAYER = {"HEADS": 8, "CHANNELS": 32, "LEVELS": 5, "POINTS": 4, "REFERENCE": 2}
PADDED = {"CHANNELS_PAD": 32, "LEVELS_PAD": 8, "POINTS_PAD": 4, "TERMS_PAD": 32, "NEEDS_REFERENCE": False, "BLOCK": 16}
COLUMNS = (
    "kernel",
    "values",
    "target",
    "block",
    "warps",
    "registers",
    "stack",
    "shared",
    "code",
    "loop",
    "rest",
    "resident_warps",
)
VALUE_POINTERS = ("value", "output", "grad_output")
POSITION_POINTERS = ("reference", "sampling", "scores", "grad_sampling", "grad_scores")


def main() -> None:
    """Compiles everything, prints a table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "triton_kernels.json")
    arguments = parser.parse_args()
    rows = []
    sys.stdout.write("".join(f"{name:>15}" for name in COLUMNS) + "\n")
    for kernel, values, target, (block, warps) in cases():
        row = describe(kernel, values, target, block, warps)
        rows.append(row)
        sys.stdout.write("".join(f"{row[name]!s:>15}" for name in COLUMNS) + "\n")
        sys.stdout.flush()
    result = {
        "command": "python benchmarks/compile_triton.py",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__},
        "layer": LAYER,
        "note": "compiled without a device; nothing has been run. Positions are float32 unless values are float64",
        "kernels": rows,
    }
    lines = json.dumps(result | {"kernels": []}, indent=1).removesuffix("[]\n}")
    table = ",\n".join("  " + json.dumps(row) for row in rows)
    arguments.out.write_text(f"{lines}[\n{table}\n ]\n}}\n", encoding="utf-8")


def cases() -> list[tuple[str, str, str, tuple[int, int]]]:
    """Kernel, dtype of the values, target and block: all blocks for fp32 and bf16, else the default one."""
    found = []
    for target in TARGETS:
        for values in ("fp32", "bf16", "fp16", "fp64"):
            blocks = deform_attn_triton.BLOCKS if values in ("fp32", "bf16") else (deform_attn_triton.DEFAULT_BLOCK,)
            found += [(kernel, values, target, block) for kernel in ("forward", "backward") for block in blocks]
            found.append(("backward, ordered", values, target, deform_attn_triton.DEFAULT_BLOCK))
            found.append(("ordered sum", values, target, (1, 1)))
    return found


def describe(name: str, values: str, target: str, block: int, warps: int) -> dict[str, Any]:
    """Compiles one kernel and reads its resource usage."""
    kernel = KERNELS[name]
    wide = values == "fp64"
    constants: dict[str, Any] = LAYER | PADDED | {"BLOCK_Q": block, "ORDERED": name == "backward, ordered"}
    constants |= {"ACC": tl.float64 if wide else tl.float32, "INDEX": tl.int32}
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    signature, alignment = {}, {}
    for position, argument in enumerate(kernel.arg_names):
        pointer = pointed_type(argument, values, ordered_sum=name == "ordered sum")
        signature[argument] = "constexpr" if argument in constants else pointer or "i32"
        if pointer or argument.endswith("_stride"):
            alignment[position,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, alignment)
    options = {"num_warps": warps, "num_stages": 1, **deform_attn_triton.COMPILER_OPTIONS}
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    row = {"kernel": name, "values": values, "target": target, "block": block, "warps": warps}
    row["shared"] = compiled.metadata.shared
    return row | (amd_usage(compiled.asm) if target == "gfx942" else nvidia_usage(compiled, warps))


def pointed_type(argument: str, values: str, *, ordered_sum: bool) -> str | None:
    """Triton's name for the type of a tensor argument; None for numbers."""
    arithmetic = "fp64" if values == "fp64" else "fp32"
    if argument == "grad_value":
        return f"*{values if ordered_sum else arithmetic}"
    if argument in VALUE_POINTERS:
        return f"*{values}"
    if argument in (*POSITION_POINTERS, "shares", "grad_reference"):
        return f"*{arithmetic}"
    return {"levels": "*i32", "base_cells": "*i32", "bounds": "*i64", "order": "*i64"}.get(argument)


def nvidia_usage(compiled: Any, warps: int) -> dict[str, Any]:
    """Registers, stack and instructions of the assembled kernel, and the memory instructions of its PTX."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = run_tool("cuobjdump", "--dump-resource-usage", cubin.name)
        loop, rest = count_instructions(run_tool("nvdisasm", "-c", cubin.name))
    registers, stack = (int(re.findall(rf"{name}:(\d+)", usage)[-1]) for name in ("REG", "STACK"))
    ptx = compiled.asm["ptx"]
    instructions = re.findall(r"\b((?:ld|st|red|atom)\.global[\w.:]*|shfl\.sync|bar\.sync)", ptx)
    return {
        "registers": registers,
        "stack": stack,
        "code": len(ptx),
        "loop": loop,
        "rest": rest,
        "resident_warps": resident_warps(registers, warps),
        "instructions": dict(Counter(re.sub(r"\.(gpu|relaxed|L1::\w+)", "", name) for name in instructions)),
    }


def run_tool(name: str, *arguments: str) -> str:
    """The output of one of the tools that Triton includes."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([str(tool), *arguments], capture_output=True, text=True, check=True).stdout


def count_instructions(assembly: str) -> tuple[int, int]:
    """Instructions inside the longest loop of a disassembled kernel, and outside it."""
    labels: dict[str, int] = {}
    count = longest = 0
    for line in assembly.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = count
        if re.search(r"/\*[0-9a-f]{4,}\*/", line):
            count += 1
            if branch := re.search(r"BRA\S*\s+.*(\.L_x_\d+)", line):
                longest = max(longest, count - labels.get(branch[1], count))
    return longest, count - longest


def resident_warps(registers: int, warps: int) -> int:
    """Warps that fit a multiprocessor: 65 536 registers, allocated to warps in units of 256, at most 64 warps.

    The limits of NVIDIA's compute capabilities 8.0 and 9.0; 32 blocks at most.
    """
    by_warp = -(-registers * 32 // 256) * 256
    blocks = min(65536 // (by_warp * warps), 64 // warps, 32)
    return blocks * warps


def amd_usage(assembly: dict[str, Any]) -> dict[str, Any]:
    """Vector registers and spills from the metadata of LLVM's assembly."""
    text = assembly["amdgcn"]
    registers, spilled = (
        int(re.findall(rf"\.{name}:\s+(\d+)", text)[-1]) for name in ("vgpr_count", "vgpr_spill_count")
    )
    instructions = re.findall(r"\b((?:global|buffer)_(?:load|store|atomic)_\w+)", text)
    return {
        "registers": registers,
        "stack": spilled * 4,
        "code": len(text),
        "loop": None,
        "rest": None,
        "resident_warps": None,
        "instructions": dict(Counter(instructions)),
    }


if __name__ == "__main__":
    main()
