"""Compiles the Triton kernels ahead of time, without a GPU, and lists the resources that they would use on one.

    python benchmarks/compile_triton.py

For every kernel, dtype of the values, block shape and target: registers per thread, bytes of stack (spilled registers),
shared memory, instructions of one level (the loop) and of the rest, and of all warps for one query, resident warps per
multiprocessor, and the memory instructions. Writes benchmarks/results/triton_kernels.json, the source of
docs/triton_kernels.md. Needs Triton only, which includes assembler and disassembler; AMD figures are those in LLVM's
assembly.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from codetr_cli.ops.deform_attn_triton import COMPILER_OPTIONS
from codetr_cli.ops.deform_attn_triton_kernels import backward_kernel, forward_kernel
from codetr_cli.ops.deform_attn_triton_ordered import ordered_value_kernel
from codetr_cli.ops.deform_attn_triton_tuning import CANDIDATES, DEFAULT, Candidate

ROOT = Path(__file__).resolve().parent.parent
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
KERNELS = {
    "forward": forward_kernel,
    "backward": backward_kernel,
    "backward, ordered": backward_kernel,
    "ordered sum": ordered_value_kernel,
}
LAYER = {"HEADS": 8, "CHANNELS": 32, "LEVELS": 5, "POINTS": 4, "REFERENCE": 2}
PADDED = {"CHANNELS_PAD": 32, "LEVELS_PAD": 8, "POINTS_PAD": 4, "TERMS_PAD": 32, "NEEDS_REFERENCE": False, "BLOCK": 16}
COLUMNS = (
    "kernel",
    "values",
    "target",
    "candidate",
    "registers",
    "stack",
    "shared",
    "loop",
    "rest",
    "per_query",
    "resident_warps",
)
VALUE_POINTERS = ("value", "output", "grad_output")
POSITION_POINTERS = ("reference", "sampling", "scores", "grad_sampling", "grad_scores")


def main() -> None:
    """Compiles everything, prints a table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "triton_kernels.json")
    parser.add_argument("--target", choices=TARGETS, action="append", help="Only this one. Repeatable.")
    parser.add_argument("--values", choices=("fp32", "bf16", "fp16", "fp64"), action="append", help="Likewise.")
    parser.add_argument("--kernel", choices=KERNELS, action="append", help="Likewise.")
    parser.add_argument("--candidate", type=Candidate.parse, action="append", help="Likewise; need not be in the list.")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    sys.stdout.write(line({name: name for name in COLUMNS}))
    for case in cases(arguments.target, arguments.values, arguments.kernel, arguments.candidate):
        rows.append(describe(*case))
        sys.stdout.write(line(rows[-1]))
        sys.stdout.flush()
        write(rows, arguments.out)


def write(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes the kernels compiled so far, one a line."""
    result = {
        "command": "python benchmarks/compile_triton.py",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__},
        "layer": LAYER,
        "note": "compiled without a device; nothing has been run. Positions are float32 unless values are float64. "
        "per_query: instructions of all warps for one query and head, with the loop once for each level",
        "kernels": [],
    }
    lines = json.dumps(result, indent=1).removesuffix("[]\n}")
    table = ",\n".join("  " + json.dumps(row) for row in rows)
    path.write_text(f"{lines}[\n{table}\n ]\n}}\n", encoding="utf-8")


def line(row: Mapping[str, Any]) -> str:
    """A row of the printed table."""
    return "".join(f"{row[name]!s:>{24 if name == 'candidate' else 15}}" for name in COLUMNS) + "\n"


def cases(
    targets: Sequence[str] | None,
    dtypes: Sequence[str] | None,
    kernels: Sequence[str] | None,
    candidates: Sequence[Candidate] | None,
) -> Iterator[tuple[str, str, str, Candidate]]:
    """Kernel, dtype of the values, target and candidate: all candidates for fp32 and bf16, else the default one."""
    for target, values, kernel in itertools.product(
        targets or TARGETS, dtypes or ("fp32", "bf16", "fp16", "fp64"), kernels or KERNELS
    ):
        tuned = kernel in ("forward", "backward") and values in ("fp32", "bf16")
        default = Candidate(1, 1, 1) if kernel == "ordered sum" else DEFAULT
        for candidate in (candidates or CANDIDATES[kernel]) if tuned else (default,):
            yield kernel, values, target, candidate


def describe(name: str, values: str, target: str, candidate: Candidate) -> dict[str, Any]:
    """Compiles one kernel and reads its resource usage."""
    kernel = KERNELS[name]
    wide = values == "fp64"
    constants: dict[str, Any] = LAYER | PADDED | candidate.constants | {"ORDERED": name == "backward, ordered"}
    constants |= {"ACC": tl.float64 if wide else tl.float32, "INDEX": tl.int32}
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    signature, alignment = {}, {}
    for position, argument in enumerate(kernel.arg_names):
        pointer = pointed_type(argument, values, ordered_sum=name == "ordered sum")
        signature[argument] = "constexpr" if argument in constants else pointer or "i32"
        if pointer or argument.endswith("_stride"):
            alignment[position,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, alignment)
    options = {"num_warps": candidate.warps, "num_stages": 1, **COMPILER_OPTIONS}
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    row = {"kernel": name, "values": values, "target": target, "candidate": str(candidate)}
    row["shared"] = compiled.metadata.shared
    usage = amd_usage(compiled.asm) if target == "gfx942" else nvidia_usage(compiled, candidate.warps)
    levels = 1 if candidate.together else LAYER["LEVELS"]
    instructions = usage["loop"] * levels + usage["rest"]
    return row | usage | {"per_query": round(instructions * candidate.warps / candidate.queries)}


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
    loop, rest = count_amd_instructions(text)
    return {
        "registers": registers,
        "stack": spilled * 4,
        "loop": loop,
        "rest": rest,
        "resident_warps": None,
        "instructions": dict(Counter(instructions)),
    }


def count_amd_instructions(assembly: str) -> tuple[int, int]:
    """As `count_instructions`, for LLVM's assembly of AMD."""
    labels: dict[str, int] = {}
    count = longest = 0
    for line in assembly.splitlines():
        if label := re.match(r"(\.LBB\w+):", line):
            labels[label[1]] = count
        if re.match(r"\s+(?:[vs]_|ds_|global_|buffer_|flat_|scratch_)\w+", line):
            count += 1
            if branch := re.search(r"s_c?branch\w*\s+(\.LBB\w+)", line):
                longest = max(longest, count - labels.get(branch[1], count))
    return longest, count - longest


if __name__ == "__main__":
    main()
