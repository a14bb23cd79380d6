"""Counts kernels and waits of one training step, one evaluated batch or one prediction on an emulated GPU.

    python -m tests.strict_counts train co_dino_r50 --size 192x256 --padded
    python -m tests.strict_counts eval co_dino_r50 --size 192x256 --batch 1
    python -m tests.strict_counts predict co_dino_r50 --size 192x256 --compare
    python -m tests.strict_counts update [NAME ...]  # lowers the limits in tests/strict_counts.json, never raises one
    python -m tests.strict_counts check [NAME ...]   # the same without writing

`--compare` runs the same on the CPU and prints the differences.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codetr_cli.benchmark.model import TrainingWorkload
from codetr_cli.config.presets import load_preset
from tests.strict import ratchet
from tests.strict.workloads import Work, evaluated_batch, predicted_image, random_network, training_step
from tests.strict_device import Recorder, strict_device, values, why_not

CPU = torch.device("cpu")


def main(argv: list[str] | None = None) -> int:
    """Prints what was counted."""
    args = _parse(argv)
    torch.set_num_threads(1)
    if why_not():
        sys.exit(f"no emulation here: {why_not()}")
    if args.what in ("check", "update"):
        sys.stdout.write("\n".join([*ratchet.update(args.preset or ratchet.WORK, write=args.what == "update"), ""]))
        return 0
    settings = load_preset(" ".join(args.preset) or "co_dino_r50", args.set)
    height, width = map(int, args.size.split("x"))
    work = Work(
        size=(height, width),
        images=args.batch,
        precision=args.precision,
        padded=args.padded,
        objects=args.objects,
        optimized=not args.unoptimized,
    )
    model = random_network(settings)
    reference = copy.deepcopy(model) if args.compare else None
    device = torch.device("cuda", args.index)
    with strict_device(index=args.index) as gpu:
        torch.cuda.set_device(device)
        started = time.perf_counter()
        with torch.autograd.set_detect_anomaly(args.anomaly, check_nan=False):
            result = _RUNS[args.what](model.to(device), settings, work, device)
        seconds = time.perf_counter() - started
        lines = [gpu.report(args.top)]
        if args.dump:
            args.dump.write_text(json.dumps(_dump(gpu), indent=1), encoding="utf-8")
    if args.what == "train":
        lines += [f"kernels {result[1].kernels}", f"waits {result[1].waits}"]
    lines.append(f"{seconds:.1f} s")
    if reference is not None:
        expected = _RUNS[args.what](reference, settings, work, CPU)
        lines.append(_gradients(result[0], expected[0]) if args.what == "train" else _detections(result, expected))
    sys.stdout.write("\n".join([*lines, ""]))
    return 0


_RUNS: dict[str, Callable[..., Any]] = {
    "train": training_step,
    "eval": evaluated_batch,
    "predict": predicted_image,
}


def _gradients(ours: TrainingWorkload, theirs: TrainingWorkload) -> str:
    pairs = zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True)
    largest, name = max(
        (float((values(a.grad) - b.grad).abs().max() / (b.grad.abs().max() + 1e-12)), name)
        for (name, a), b in pairs
        if b.grad is not None
    )
    return (
        f"loss {float(values(ours.loss)):.9g}, on the CPU {float(theirs.loss):.9g}; largest difference of gradients, "
        f"relative to the largest value: {largest:.2g} of {name}"
    )


def _detections(ours: Any, theirs: Any) -> str:
    if len(ours) != len(theirs):
        return f"{len(ours)} detections, on the CPU {len(theirs)}"
    boxes = "boxes_xywh" if hasattr(ours, "boxes_xywh") else "boxes"
    worst = [float(np.abs(getattr(ours, of) - getattr(theirs, of)).max(initial=0)) for of in (boxes, "scores")]
    return f"{len(ours)} detections, largest difference of a box {worst[0]:.2g} px, of a score {worst[1]:.2g}"


def _dump(gpu: Recorder) -> dict[str, object]:
    return {
        "kernels": gpu.kernels.most_common(),
        "waits": [[*key, number] for key, number in gpu.syncs.most_common()],
        "operators": [[*key, number] for key, number in gpu.ops.most_common()],
        "timeline": gpu.timeline,
        "peak_bytes": gpu.bytes_peak,
    }


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.strict_counts", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("what", choices=[*_RUNS, "update", "check"])
    parser.add_argument("preset", nargs="*", metavar="PRESET | NAME")
    parser.add_argument("--size", default="256x256", help="HEIGHTxWIDTH")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--objects", type=int, default=7, help="per training image")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--padded", action="store_true", help="the last image is smaller than the batch")
    parser.add_argument("--index", type=int, default=0, help="of the GPU")
    parser.add_argument("--compare", action="store_true", help="with the CPU")
    parser.add_argument("--unoptimized", action="store_true", help="detection with the network as in training")
    parser.add_argument("--anomaly", action="store_true", help="count kernels of the backward pass by forward line")
    parser.add_argument("--top", type=int, default=40, help="lines of each table")
    parser.add_argument("--dump", type=Path, help="write all counts to this file")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
