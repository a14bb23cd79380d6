"""Peak of live memory of training steps at full size, on the emulated GPU of the tests, beside the memory check's need.

    python -m benchmarks.strict_memory                                # co_dino_r50 and co_dino_vit_l, 800x1333
    python -m benchmarks.strict_memory --presets co_dino_tiny --size 256x320 --check

Tensors have sizes and no values, so that a large network needs no memory: a step takes seconds. Forward pass, backward
pass and AdamW run as in a training, with its losses; conditions are fulfilled by all elements, an upper bound. Not
counted: cuDNN's and cuBLAS's workspaces, the kernels themselves (about 0.5 GiB), fragmentation. `--check` repeats each
step with values.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.config.presets import load_preset
from codetr_cli.config.schema import Settings
from codetr_cli.models.codetr import CoDETR
from codetr_cli.training.memory_check import WorstBatch, measure
from codetr_cli.training.recomputation import all_checkpointing, set_checkpointing
from tests.strict.workloads import STAGES, Work, random_network, training_step
from tests.strict_device import Recorder, strict_device

GIB = 2**30
KEPT = (
    "model.encoder_checkpointing=0", "model.decoder_checkpointing=false", "model.aux_checkpointing=false",
    "model.backbone.checkpointing=false", "train.ema_momentum=0",
)  # fmt: skip
OUT = Path(__file__).parent / "results" / "strict_memory.json"


def main(argv: list[str] | None = None) -> int:
    """Writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["co_dino_r50", "co_dino_vit_l"])
    parser.add_argument("--size", default="800x1333", help="HEIGHTxWIDTH")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--check", action="store_true", help="repeat each step with values, which needs the memory")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    height, width = map(int, args.size.split("x"))
    rows = []
    for preset in args.presets:
        plain = load_preset(preset, [*KEPT, f"train.precision={args.precision}"])
        recomputed = apply_overrides(plain, [f"{key}={json.dumps(on)}" for key, on in all_checkpointing(plain).items()])
        for batch in args.batches:
            work = Work(size=(height, width), images=batch, precision=args.precision)
            for settings in (plain, recomputed):
                row = {"preset": preset, "batch": batch, "recomputed": settings is recomputed}
                rows.append({**row, **_row(settings, work, check=args.check)})
                sys.stdout.write(f"{json.dumps(rows[-1])}\n")
                sys.stdout.flush()
    table: dict[str, Any] = {
        "what": "emulated peak of live memory of a training step; need of the memory check; GiB",
        "command": " ".join(["python -m benchmarks.strict_memory", *(sys.argv[1:] if argv is None else argv)]),
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "size": [height, width],
        "precision": args.precision,
        "rows": rows,
    }
    args.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return 0


def _row(settings: Settings, work: Work, *, check: bool) -> dict[str, float]:
    """Memory of a step in GiB; each step on a GPU of its own, so that no constants are shared."""
    with strict_device(sizes_only=True, index=1, total_memory=2**50) as gpu:
        device = torch.device("cuda", 1)
        torch.cuda.set_device(device)
        model = random_network(settings).to(device)
        weights = gpu.bytes_now
        peak = _peak(gpu, model, settings, work, device)
        model.zero_grad(set_to_none=True)
        gc.collect()
        need = measure(model, settings, WorstBatch(work.size, work.images, work.objects), device)
        assert need is not None
    found = {"weights": weights, "peak": peak, "memory_check": need.needed}
    del model
    if check:
        with strict_device() as gpu:
            device = torch.device("cuda", 0)
            found["peak_with_values"] = _peak(gpu, random_network(settings).to(device), settings, work, device)
    return {name: round(count / GIB, 3) for name, count in found.items()}


def _peak(gpu: Recorder, model: CoDETR, settings: Settings, work: Work, device: torch.device) -> int:
    """Of the second step, which has the optimizer's state from its start."""
    set_checkpointing(model, settings.model)
    workload, _ = training_step(model, settings, work, device)
    model.zero_grad(set_to_none=True)  # as a training does before its forward pass
    gc.collect()
    torch.cuda.reset_peak_memory_stats(device)
    for _, run_stage in zip(STAGES, workload._stages(), strict=True):
        run_stage()
    return gpu.bytes_peak


if __name__ == "__main__":
    sys.exit(main())
