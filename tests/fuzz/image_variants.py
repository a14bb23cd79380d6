"""Broken variants of a small image of every format; as a program, reads and decodes them within limits.

`python -m tests.fuzz.image_variants SEED COUNT` prints how many of COUNT variants of each image ended how, as JSON. It
ends with an error if one raised something else than an error of the data, took long, or allocated much memory.
"""

from __future__ import annotations

import io
import json
import random
import resource
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, features

from codetr_cli.images.decoder import BrokenImageError, decode_image
from codetr_cli.images.headers import ImageFileError, ImageHeader, header_of

MAX_SECONDS = 2.0
MAX_EXTRA_MB = 300
MAX_PIXELS = 4_000_000
ROWS, COLUMNS = np.mgrid[0:40, 0:60]
RGB = np.stack([COLUMNS * 4, ROWS * 6, (ROWS + COLUMNS) * 2], axis=-1).astype(np.uint8)


def samples() -> dict[str, bytes]:
    """A sound file of every kind."""
    tags = Image.Exif()
    tags[0x112], tags[0x10E] = 6, "text"
    frames = {"save_all": True, "append_images": [Image.fromarray(RGB[::-1].copy())]}
    found = {
        "jpeg": _by_pillow("JPEG", exif=tags),
        "jpeg progressive": _by_pillow("JPEG", progressive=True),
        "jpeg grey": _by_pillow("JPEG", "L"),
        "jpeg cmyk": _by_pillow("JPEG", "CMYK"),
        "png": _by_pillow("PNG", exif=tags),
        "png palette": _by_pillow("PNG", "P"),
        "png bits": _by_pillow("PNG", "1"),
        "png alpha": _by_pillow("PNG", "RGBA"),
        "png frames": _by_pillow("PNG", **frames),
        "png deep": _by_opencv(".png", RGB.astype(np.uint16) * 256),
        "webp": _by_pillow("WEBP", exif=tags),
        "webp lossless": _by_pillow("WEBP", lossless=True),
        "webp alpha": _by_pillow("WEBP", "RGBA"),
        "webp frames": _by_pillow("WEBP", **frames),
        "gif": _by_pillow("GIF", "P"),
        "gif frames": _by_pillow("GIF", "P", **frames),
        "bmp": _by_pillow("BMP"),
        "bmp palette": _by_pillow("BMP", "P"),
        "tiff": _by_pillow("TIFF"),
        "tiff lzw": _by_pillow("TIFF", compression="tiff_lzw"),
        "tiff deflate": _by_pillow("TIFF", compression="tiff_adobe_deflate"),
        "tiff jpeg": _by_pillow("TIFF", compression="jpeg"),
        "tiff fax": _by_pillow("TIFF", "1", compression="group4"),
        "tiff deep": _by_opencv(".tif", RGB.astype(np.uint16) * 256),
        "jpeg2000": _by_pillow("JPEG2000"),
        "jpeg2000 tiles": _by_pillow("JPEG2000", no_jp2=True, tile_size=(32, 32)),
        "ppm": _by_pillow("PPM"),
        "pgm": _by_pillow("PPM", "L"),
        "ppm text": b"P3\n6 4\n255\n" + b"7 " * 72,
        "pfm": _by_opencv(".pfm", (RGB / 255).astype(np.float32)),
        "sun": _by_opencv(".ras", RGB),
    }
    if "avif" in features.get_supported() and cv2.haveImageWriter("a.avif"):
        found["avif"] = _by_pillow("AVIF", exif=tags)
    return found


def _by_pillow(fmt: str, mode: str = "RGB", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(RGB).convert(mode).save(stream, fmt, **options)
    return stream.getvalue()


def _by_opencv(suffix: str, pixels: np.ndarray) -> bytes:
    return cv2.imencode(suffix, pixels)[1].tobytes()


def variants(content: bytes, others: list[bytes], count: int, seed: int | str) -> Iterator[bytes]:
    """Broken variants: cut, with changed, copied, deleted or absurd bytes, or with a part of another file."""
    rng = random.Random(seed)
    for _ in range(count):
        broken, kind = bytearray(content), rng.randrange(7)
        # Mostly in the header, where the numbers are.
        place = rng.randrange(min(len(content), rng.choice([32, 64, 200, 600, len(content)])))
        if kind == 0:
            del broken[rng.randrange(len(content)) :]
        elif kind == 1:
            for _ in range(rng.choice([1, 1, 2, 4, 16])):
                broken[rng.randrange(place + 1)] = rng.randrange(256)
        elif kind == 2:
            size = rng.choice([1, 2, 4, 8])
            broken[place : place + size] = rng.choice([b"\xff", b"\0", b"\x7f", b"\x80", b"\x01"]) * size
        elif kind == 3:
            size, source = rng.randrange(1, 64), rng.randrange(len(content))
            broken[place : place + size] = content[source : source + size]
        elif kind == 4:
            del broken[place : place + rng.randrange(1, 32)]
        elif kind == 5:
            other = rng.choice(others)
            broken[place:] = other[rng.randrange(len(other)) :]
        else:
            number = rng.choice([1 << 16, 1 << 20, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, len(content) + 1])
            broken[place : place + 4] = struct.pack(rng.choice("<>") + "I", number)
        yield bytes(broken)


def ending(content: bytes) -> str:
    """What reading a file ends in: "refused" by its header, "damaged", or "decoded" at the size in its header."""
    header: ImageHeader | None = None
    try:
        header = header_of(content)
    except ImageFileError as error:
        assert len(str(error)) < 300, error  # noqa: PT017
    try:
        pixels = decode_image(content, "image", max_pixels=MAX_PIXELS)
    except BrokenImageError as error:
        assert "decoded" not in error.reason, error.reason  # noqa: PT017
        return "damaged" if header else "refused"
    assert header is not None
    assert pixels.shape == (*header.size, 3)
    return "decoded"


def sweep(count: int, seed: int) -> Counter[str]:
    """How many variants ended how."""
    sound = samples()
    endings: Counter[str] = Counter()
    for name, content in sound.items():
        assert ending(content) == "decoded", name
        before = _peak_mb()
        for index, broken in enumerate(variants(content, list(sound.values()), count, f"{name} {seed}")):
            started = time.process_time()
            try:
                endings[ending(broken)] += 1
                seconds = time.process_time() - started
                assert seconds < MAX_SECONDS, f"{seconds:.1f} s"
                assert _peak_mb() - before < MAX_EXTRA_MB, f"{_peak_mb() - before:.0f} MB"
            except BaseException as error:
                Path(f"broken-{seed}-{index}.bin").write_bytes(broken)
                raise AssertionError(f"{name}, seed {seed}, variant {index}: {error!r}; {broken[:64]!r}") from error
    return endings


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


if __name__ == "__main__":
    cv2.setNumThreads(1)
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    sys.stdout.write(json.dumps(sweep(int(sys.argv[2]), int(sys.argv[1]))))
