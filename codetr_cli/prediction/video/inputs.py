"""Which words of a command are videos, and the names of their results."""

from __future__ import annotations

import glob
import os
import re
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

from codetr_cli.errors import ConfigError, DatasetError, shown
from codetr_cli.escaping import without_credentials
from codetr_cli.prediction.inputs import VIDEO_SUFFIXES, numbered_name
from codetr_cli.reading import check_regular
from codetr_cli.result_files import OwnResults, folded

Kind = Literal["file", "url", "camera", "sequence"]

PLAYLIST_SUFFIXES = frozenset((".m3u8",))
"""Of streams over HTTP; files of this kind are refused, since they name other files."""
_NUMBER = re.compile(r"%(0\d{1,2})?d")
_DURATION = re.compile(r"(?:(?:(\d{1,4}):)?([0-5]?\d):)?(\d{1,7}(?:\.\d{1,9})?)")
MAX_RATE = 1000


@dataclass(frozen=True)
class VideoInput:
    """One video to predict.

    Attributes:
        text: as given: a path, a URL, `camera:N`, or a pattern with `%06d`.
        kind: of it.
        name: of its results, without a suffix; unique among the videos of a command.
        files: of an image sequence, in order; of a file, itself.
        missing: numbers between those of an image sequence that have no image.
    """

    text: str
    kind: Kind
    name: str
    files: tuple[Path, ...] = ()
    missing: int = 0

    @property
    def label(self) -> str:
        """The text for messages and results: without user and password of a URL."""
        return without_credentials(self.text)


def split_inputs(texts: Sequence[str]) -> tuple[list[VideoInput], list[str]]:
    """The videos among the words of a command, and the other words.

    Raises:
        DatasetError: a video that does not exist or is not a regular file, a pattern without files.
    """
    found: list[VideoInput] = []
    others = []
    for text in texts:
        kind = _kind(text)
        if kind is None:
            others.append(text)
        elif kind == "file" and "://" in text:
            raise DatasetError(
                f"{without_credentials(text)}: videos are read from files, cameras, rtsp://, http:// and https://: "
                "copy it, or give such an address"
            )
        elif kind == "sequence":
            files, missing = _sequence(text)
            found.append(VideoInput(text, kind, _sequence_name(text), files, missing))
        elif kind == "file":
            found += [VideoInput(str(path), kind, path.stem, (path,)) for path in _files(text)]
        else:
            found.append(VideoInput(text, kind, _address_name(text)))
    unique = {(video.text, video.files): video for video in found}
    names = _unique([video.name for video in unique.values()])
    return [replace(video, name=name) for video, name in zip(unique.values(), names, strict=True)], others


def _kind(text: str) -> Kind | None:
    scheme, separator, _ = text.partition("://")
    if separator and scheme.lower() in ("rtsp", "rtsps"):
        return "url"
    if separator and scheme.lower() in ("http", "https"):
        suffix = os.path.splitext(urllib.parse.urlsplit(text).path)[1].lower()  # noqa: PTH122 (of a URL)
        return "url" if suffix in VIDEO_SUFFIXES | PLAYLIST_SUFFIXES else None
    if re.fullmatch(r"camera:\d{1,3}", text):
        return "camera"
    path = Path(text)
    if os.path.lexists(path):
        return "file" if path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir() else None
    if _NUMBER.search(path.name):
        return "sequence"
    return "file" if path.suffix.lower() in VIDEO_SUFFIXES else None


def _files(text: str) -> list[Path]:
    """The video of a path, or those of a pattern, without drawn ones."""
    path = Path(text)
    if not os.path.lexists(path) and glob.has_magic(text):
        matches = sorted(Path(match) for match in glob.glob(text))  # noqa: PTH207 - absolute, too
        files = [file for file in matches if file.is_file() and not OwnResults(file.parent).holds(file.name)]
        if not files:
            raise DatasetError(f"no video matches {text!r}: check the pattern, and quote it for the shell")
        return files
    try:
        check_regular(path)
    except OSError as error:
        raise DatasetError(f"cannot read the video {path}: {error.strerror}. Check the path") from error
    return [path]


def _sequence(text: str) -> tuple[tuple[Path, ...], int]:
    """The images of a pattern, in the order of their numbers, and how many numbers between them have none."""
    path = Path(text)
    match = _NUMBER.search(path.name)
    assert match is not None
    digits = int(match[1] or 0)
    start, end = re.escape(path.name[: match.start()]), re.escape(path.name[match.end() :])
    name = re.compile(rf"{start}(\d{{{max(digits, 1)},18}}){end}")
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError as error:
        raise DatasetError(f"cannot read the images {text}: {error.strerror}. Check the folder") from error
    entries = [(found[1], entry) for entry in names if (found := name.fullmatch(entry))]
    # A number has no more digits than its pattern asks for, unless it needs them.
    kept = sorted(
        (int(number), entry) for number, entry in entries if len(number) == max(digits, len(str(int(number))))
    )
    if not kept:
        raise DatasetError(f"there is no image {text}: check the folder and the number of digits")
    missing = kept[-1][0] - kept[0][0] + 1 - len(kept)
    return tuple(path.parent / entry for _, entry in kept), missing


def _sequence_name(text: str) -> str:
    path = Path(text)
    before = _NUMBER.split(path.name)[0].rstrip("-_. ")
    return before or path.absolute().parent.name or "frames"


def _address_name(text: str) -> str:
    parts = urllib.parse.urlsplit(text)
    words = (text if not parts.hostname else f"{parts.hostname}{os.path.splitext(parts.path)[0]}").strip("/")  # noqa: PTH122
    return re.sub(r"[^\w.-]+", "_", words)[:100].strip("._") or "stream"


def _unique(names: Sequence[str]) -> list[str]:
    """Names that any file system can have side by side; a later one gets a number."""
    seen: set[str] = set()
    unique = []
    for name in names:
        number = 1
        candidate = numbered_name(f"{name}.jsonl", 1)
        while folded(candidate) in seen:
            number += 1
            candidate = numbered_name(f"{name}.jsonl", number)
        seen.add(folded(candidate))
        unique.append(candidate.removesuffix(".jsonl"))
    return unique


def parse_time(text: str, option: str) -> Fraction:
    """Seconds of `90`, `1:30` or `0:01:30.5`.

    Raises:
        ConfigError: it is no time.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ConfigError(f"{option} {shown(text)}: give seconds or h:mm:ss, e.g. 90, 1:30 or 0:01:30.5")
    hours, minutes, seconds = match.groups()
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + Fraction(seconds)


def parse_rate(text: str) -> Fraction:
    """Frames per second of `25`, `29.97` or `30000/1001`.

    Raises:
        ConfigError: it is no rate between 0 and 1000.
    """
    try:
        rate = Fraction(text).limit_denominator(1001) if len(text) <= 20 else Fraction(0)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate <= MAX_RATE:
        raise ConfigError(f"--fps {shown(text)}: give frames per second, e.g. 25, 29.97 or 30000/1001")
    return rate
