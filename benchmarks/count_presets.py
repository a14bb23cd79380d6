"""Counts parameters and GFLOPs of every preset and writes them to presets/figures.json, for `codetr presets`.

    python benchmarks/count_presets.py

Takes a minute on a CPU; no network runs, see codetr_cli/benchmark/flops.py. A test counts some of them again.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from codetr_cli.benchmark.flops import measure
from codetr_cli.config.presets import load_preset, preset_names, presets_dir


def figures_of(name: str) -> dict[str, Any]:
    """The entry of one preset."""
    counted = measure(load_preset(name))
    return {
        "parameters": counted.parameters,
        "detection_parameters": counted.detection_parameters,
        "gflops": round(counted.gflops, 1 if counted.gflops > 10 else 3),
        "size": list(counted.size),
    }


def main() -> int:
    """Writes the file, one line per preset."""
    lines = [f" {json.dumps(name)}: {json.dumps(figures_of(name))}" for name in preset_names()]
    (presets_dir() / "figures.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
