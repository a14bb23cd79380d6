"""The YAML description of a YOLO data set (data.yaml): the subset of YAML that exporters write."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TypeAlias

from codetr_cli.errors import DatasetError

KEYS = ("names", "path", "train", "val", "test")

Value: TypeAlias = str | list[str] | dict[str, str]


def find_description(folder: Path) -> Path | None:
    """The description of a folder: data.yaml first, then any other YAML file with class names and images."""
    paths = sorted((*folder.glob("*.yaml"), *folder.glob("*.yml")), key=lambda path: (path.stem != "data", path.name))
    for path in paths:
        text = path.read_text("utf-8-sig", "replace")[:100_000]
        if re.search(r"^names\s*:", text, re.MULTILINE) and re.search(r"^(train|val)\s*:", text, re.MULTILINE):
            return path
    return None


def read_description(path: Path) -> dict[str, Value]:
    """The keys of `KEYS` in a YAML file: texts, lists and maps of texts, on one line or one entry a line.

    Raises:
        DatasetError: one of them has another form.
    """
    blocks: dict[str, list[str]] = {}
    key = None
    for raw in path.read_text("utf-8-sig", "replace").splitlines():
        line = _without_comment(raw)
        if not line.strip():
            continue
        match = re.match(r"([A-Za-z_][\w-]*)\s*:(?:\s+(.*))?$", line)
        if match:
            key = match[1]
            blocks[key] = [match[2] or ""]
        elif key is not None:
            blocks[key].append(line.strip())
    return {key: _value(blocks[key], f"{path}: {key}") for key in KEYS if key in blocks and any(blocks[key])}


def _value(lines: list[str], where: str) -> Value:
    head, entries = lines[0].strip(), [line for line in lines[1:] if line]
    whole = " ".join([head, *entries]).strip()
    if head[:1] in ("[", "{"):
        if whole[-1:] != {"[": "]", "{": "}"}[head[0]]:
            raise _unreadable(where, whole)
        parts = _parts(whole[1:-1], where)
        return [_scalar(part, where) for part in parts] if head[0] == "[" else _map(parts, where)
    if head and not entries:
        return _scalar(head, where)
    if head:
        raise _unreadable(where, whole)
    if all(entry.startswith("- ") for entry in entries):
        return [_scalar(entry[2:], where) for entry in entries]
    return _map(entries, where)


def _map(entries: list[str], where: str) -> dict[str, str]:
    table = {}
    for entry in entries:
        key, colon, value = entry.partition(":")
        if not colon or not value.strip():
            raise _unreadable(where, entry)
        table[_scalar(key, where)] = _scalar(value, where)
    return table


def _parts(text: str, where: str) -> list[str]:
    """The text between commas outside quotes."""
    parts = re.findall(r"""((?:"(?:\\.|[^"\\])*"|'(?:''|[^'])*'|[^,"'])+)(?:,|$)|(.)""", text)
    if any(stray.strip(" ,") for _, stray in parts):
        raise _unreadable(where, text)
    return [part.strip() for part, _ in parts if part.strip()]


def _scalar(text: str, where: str) -> str:
    text = text.strip()
    if text[:1] == '"':
        try:
            value = json.loads(text)
        except ValueError:
            raise _unreadable(where, text) from None
        return str(value)
    if text[:1] == "'":
        if len(text) < 2 or text[-1] != "'":
            raise _unreadable(where, text)
        return text[1:-1].replace("''", "'")
    if text[:1] in tuple("|>&*!%@`[{") or text.startswith("- "):
        raise _unreadable(where, text)
    return text


def _without_comment(line: str) -> str:
    match = re.match(r"""((?:"(?:\\.|[^"\\])*"|(?<!\w)'(?:''|[^'])*'|(?<!\s)\#|[^\#])*)""", line)
    return "" if line.lstrip().startswith("#") else (match[1] if match else line).rstrip()


def _unreadable(where: str, text: str) -> DatasetError:
    return DatasetError(
        f"{where}: {text!r:.80} is YAML syntax that is not supported here. Write lists as [a, b], one `- a` a line, or "
        "one `0: a` a line, and paths as plain text"
    )
