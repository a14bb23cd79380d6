"""Measures the memory of `codetr predict` on a long video, and compares all frames and timestamps with the source.

    python benchmarks/video_memory.py --out benchmarks/results/video_memory.json

The video is synthetic, of a variable frame rate: every frame has its number in its brightness, and four discs move in
it. The network is a small preset with random weights: its detections are meaningless, and many. They are drawn, tracked
and written. Every sixtieth frame is a key frame. The resident size is read in the process that predicts, which is a new
one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch

from codetr_cli.config.presets import load_preset
from codetr_cli.inference.options import DetectOptions
from codetr_cli.models.build import build_model
from codetr_cli.prediction.video.inputs import split_inputs
from codetr_cli.prediction.video.job import VideoJob
from codetr_cli.prediction.video.run import run_videos
from codetr_cli.runtime.devices import cpu_name
from codetr_cli.runtime.timing import memory_in_use
from codetr_cli.weights.checkpoint import save_checkpoint

TIME_BASE = Fraction(1, 90_000)
MARKS = (100, 200, 500, 1000, 1500, 2000)
SMALL = ("test.short_side=160", "test.long_side=320")


def main() -> int:
    """Writes the video, predicts it in a new process, and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="co_dino_tiny")
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--size", default="360x640", help="HEIGHTxWIDTH in pixels")
    parser.add_argument("--load", default="not recorded", help="what else ran on the machine, for the result")
    parser.add_argument("--out", type=Path, help="write the result to this file instead of printing it")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        return predict(arguments.one, arguments.preset)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), arguments)
    text = json.dumps(result, indent=1) + "\n"
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of one video."""
    height, width = (int(side) for side in arguments.size.split("x"))
    pts = write_video(folder / "long.mp4", arguments.frames, height, width)
    started = time.perf_counter()
    command = [sys.executable, __file__, "--one", str(folder), "--preset", arguments.preset]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - started
    rows = json.loads(done.stdout)
    lines = [json.loads(line) for line in (folder / "out" / "long.jsonl").read_text(encoding="utf-8").splitlines()]
    times = drawn_times(folder / "out" / "long.mp4")
    expected = [at * TIME_BASE for at in pts]
    sizes = {row["frames"]: row["resident_mb"] for row in rows if "joined" not in row}
    return {
        "command": f"python benchmarks/video_memory.py --frames {arguments.frames} --size {arguments.size}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {
            "device": cpu_name(),
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "load": arguments.load,
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "av": av.__version__},
        "video": {"frames": arguments.frames, "size": arguments.size, "seconds": float(expected[-1])},
        "lines": len(lines),
        "lines_with_the_timestamp_of_their_frame": sum(
            line["frame"] == number and line["pts"] == at
            for number, (line, at) in enumerate(zip(lines, pts, strict=True))
        ),
        "drawn_frames": len(times),
        "drawn_frames_with_the_timestamp_of_their_frame": sum(a == b for a, b in zip(times, expected, strict=True)),
        "detections": sum(len(line["detections"]) for line in lines),
        "resident_mb": rows,
        "growth_mb_from_frame_200_to_the_end": round(rows[-1]["resident_mb"] - sizes[200], 1) if 200 in sizes else None,
        "wall_seconds": round(seconds, 1),
    }


def write_video(path: Path, count: int, height: int, width: int) -> list[int]:
    """Writes the video; returns its timestamps, 20 to 60 frames a second."""
    steps = np.random.default_rng(0).integers(1500, 4500, count - 1)
    pts = [0, *np.cumsum(steps).tolist()]
    with av.open(str(path), "w", options={"video_track_timescale": str(TIME_BASE.denominator)}) as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast", "g": "60"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = stream.time_base = TIME_BASE
        for number, at in enumerate(pts):
            pixels = np.full((height, width, 3), 20 + 3 * (number % 50), np.uint8)
            for disc in range(4):
                centre = (number * (3 + disc)) % width, height * (disc + 1) // 5
                cv2.circle(pixels, centre, 24, (220, 60 * disc, 40), -1)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = at, TIME_BASE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return pts


def drawn_times(path: Path) -> list[Fraction]:
    """The timestamps of all frames, decoded."""
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def predict(folder: Path, preset: str) -> int:
    """Predicts the video in this process and prints its resident size at some frames."""
    torch.manual_seed(0)
    settings = load_preset(preset, list(SMALL))
    weights = folder / "random.safetensors"
    names = [f"class {number}" for number in range(settings.model.num_classes)]
    save_checkpoint(
        weights,
        build_model(settings.model).state_dict(),
        settings=settings,
        class_names=names,
        category_ids=list(range(1, len(names) + 1)),
    )
    rows: list[dict[str, float | bool]] = []

    @contextmanager
    def show(name: str, total: int | None, done: int) -> Iterator[Callable[[int], object]]:
        count = [done]

        def advance(frames: int) -> None:
            count[0] += frames
            if count[0] in MARKS:
                size = memory_in_use(torch.device("cpu")) or 0
                rows.append({"frames": count[0], "resident_mb": round(size / 1e6, 1)})

        yield advance

    job = VideoJob(
        videos=split_inputs([str(folder / "long.mp4")])[0],
        weights=str(weights),
        options=DetectOptions(score=0.0, max_dets=20),
        track=True,
        out=folder / "out",
    )
    run_videos(job, device=torch.device("cpu"), show=show, warn=lambda text: None)
    size = memory_in_use(torch.device("cpu")) or 0
    rows.append({"frames": rows[-1]["frames"] if rows else 0, "resident_mb": round(size / 1e6, 1), "joined": True})
    sys.stdout.write(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
