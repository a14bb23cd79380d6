"""The YAML description of a YOLO data set (data.yaml), as texts, lists and tables of texts.

All scalars stay text: in YAML 1.1 the class names `no`, `1` and `null` would become False, 1 and None. Values are built
from the parser's events, so that nothing in a file can construct objects; what an alias repeats counts as if it were
written again, and nesting and size are limited. libyaml's time is linear in the size, but for `%TAG` lines, which are
refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from codetr_cli.annotations.encodings import decode_text
from codetr_cli.annotations.survey import Survey, folder_of, stem_of
from codetr_cli.errors import DatasetError, listed
from codetr_cli.reading import read_bytes

SPLITS = ("train", "val", "test")
KEYS = (*SPLITS, "names", "nc", "path", "kpt_shape", "task")
"""Those that are read; others may have any values."""
MAX_BYTES = 1 << 20 if yaml.__with_libyaml__ else 1 << 17  # without libyaml, parsing is a hundred times slower
MAX_DEPTH = 20
MAX_NODES = 200_000
"""Texts, lists and tables in a description, as far as aliases repeat them too; 50,000 classes need half."""
MAX_DESCRIPTIONS = 50
"""YAML files of a folder that are read to find the description."""

Value: TypeAlias = "str | list[Value] | dict[str, Value]"

_LOADER: Any = yaml.CBaseLoader if yaml.__with_libyaml__ else yaml.BaseLoader
_CODING = re.compile(rb"^[ \t]*#.*?coding[:=][ \t]*([-\w.]{1,40})", re.MULTILINE)
_TABS = re.compile(r"(?m)^ *\t[ \t]*")
_TAG_LINE = re.compile(r"(?m)^%(?!YAML )")
_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map"))
_LOOKS_SO = (re.compile(r"(?m)^names[ \t]*:"), re.compile(r"(?m)^(?:train|val|test)[ \t]*:"))


@dataclass(frozen=True)
class YamlFile:
    """A description: its path, its name in the survey, what is in it, and the names of others that are not used."""

    path: Path
    name: str
    table: dict[str, Value]
    others: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether it has images and class names; otherwise it has names only."""
        return any(split in self.table for split in SPLITS)


def find_description(survey: Survey) -> YamlFile | None:
    """The description of a folder: the one that the user named, else data.yaml, else the only other one.

    A description has class names (or their number), and images of a split. Without one, a data.yaml with names only is
    the result. It may be in a subfolder that has no images itself.

    Raises:
        DatasetError: there are several, or data.yaml cannot be read.
    """
    if survey.chosen:
        return YamlFile(survey.folder / survey.chosen, survey.chosen, read_description(survey.folder / survey.chosen))
    names = [name for name in survey.with_suffix(".yaml", ".yml") if name.count("/") <= 1]
    names = [name for name in names if "/" not in name or not _has_images(survey, folder_of(name))]
    names.sort(key=lambda name: (name.count("/"), _is_usual(name) is False, name))
    found: list[YamlFile] = []
    unreadable: DatasetError | None = None
    for name in names[:MAX_DESCRIPTIONS]:
        try:
            file = YamlFile(survey.folder / name, name, read_description(survey.folder / name))
        except DatasetError as error:
            if _is_usual(name) and "/" not in name:
                raise
            if all(pattern.search(survey.head(name)) for pattern in _LOOKS_SO):
                unreadable = unreadable or error
            continue
        if _describes(file) and (file.is_complete or _is_usual(name)):
            found.append(file)
    complete = [file for file in found if file.is_complete]
    if not complete and unreadable is not None:
        raise unreadable
    first = next(iter(complete or found), None)
    rivals = [file.name for file in complete[1:] if first and file.table != first.table]
    if first is not None and rivals and not _is_usual(first.name):
        raise DatasetError(
            f"{survey.folder} has several descriptions of a YOLO data set: {listed([first.name, *rivals], 5)}. Give "
            f"one of them instead of the folder, as in --data {first.path}, or rename it to data.yaml"
        )
    return None if first is None else replace(first, others=tuple(rivals))


def _describes(file: YamlFile) -> bool:
    """Whether a table is a description, and not the settings of a run or the layers of a network."""
    table = file.table
    if "names" in table:
        return isinstance(table["names"], (list, dict, str))
    return "nc" in table and any(split in table for split in SPLITS) and "backbone" not in table


def _is_usual(name: str) -> bool:
    return stem_of(name).rpartition("/")[2].lower() in ("data", "dataset")


def _has_images(survey: Survey, folder: str) -> bool:
    return bool(survey.below(folder).images)


def read_description(path: Path) -> dict[str, Value]:
    """The table of a YAML file; keys without a value have "".

    Raises:
        DatasetError: the file cannot be read, is not a table, or one of `KEYS` is given twice with different values.
    """
    try:
        content = read_bytes(path, MAX_BYTES)
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}. Replace or remove it") from error
    declared = _CODING.search(content[:1000])
    try:
        text = decode_text(content, declared[1].decode() if declared else None)
        return _table(text)
    except ValueError as error:
        raise DatasetError(f"{path}: {error}") from None


def _table(text: str) -> dict[str, Value]:
    """The table of a text.

    Raises:
        ValueError: it is not a table in YAML, or too large; the message is the problem and what to do.
    """
    if _TAG_LINE.search(text):
        raise ValueError("a line starts with %: such directives of YAML are not supported. Remove it")
    if "\t" in text:  # YAML forbids tabs before keys, which editors insert
        text = _TABS.sub(lambda match: match[0].expandtabs(4), text)
    try:
        value = _Builder(yaml.parse(text, Loader=_LOADER)).build()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "a character that YAML forbids"
        raise ValueError(
            f"it is not YAML: {problem:.200}{where}. Put names and paths with special characters into single quotes"
        ) from None
    if not isinstance(value, dict):
        raise ValueError("it has no keys such as names, train and val. Add them")
    return value


@dataclass
class _Builder:
    """Builds the value of the first document from its events."""

    events: Iterator[Any]
    nodes: int = 0
    anchors: dict[str, tuple[Value, int]] = field(default_factory=dict)

    def build(self) -> Value:
        """The value.

        Raises:
            ValueError: it is nested too deeply, too large, or has tags of other types than texts, lists and tables.
        """
        value: Value = ""
        documents = 0
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise ValueError("it has several documents, separated by ---. Keep one of them")
                value = self._value(next(self.events), 1, "")
        return value

    def _value(self, event: Any, depth: int, key: str) -> Value:
        """The value that starts with an event; `key` is the key of the whole table that it belongs to."""
        self._count(1)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise ValueError(f"*{event.anchor:.80} refers to nothing above. Write the value itself")
            value, nodes = self.anchors[event.anchor]
            self._count(nodes)
            return value
        if event.tag is not None and event.tag not in _PLAIN_TAGS and event.tag != "!":
            raise ValueError(f"the tag {event.tag!r:.80} is YAML syntax that is not supported here. Remove it")
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep. Remove what is not the description")
        before = self.nodes
        if isinstance(event, yaml.ScalarEvent):
            value = _text(event.value)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = [self._value(each, depth + 1, key) for each in self._until(yaml.SequenceEndEvent)]
        else:
            value = self._map(depth, key)
        if event.anchor is not None:
            self.anchors[event.anchor] = value, self.nodes - before
        return value

    def _map(self, depth: int, key: str) -> dict[str, Value]:
        table: dict[str, Value] = {}
        for event in self._until(yaml.MappingEndEvent):
            name = self._value(event, depth + 1, key)
            if not isinstance(name, str):
                raise ValueError("one of its keys is a list or a table. Write keys as plain words")
            if name == "<<":
                raise ValueError("<< is YAML syntax that is not supported here. Write the keys themselves")
            value = self._value(next(self.events), depth + 1, key or name)
            if (key or name) in KEYS and table.get(name, value) != value:
                raise ValueError(f"{f'{key}: ' if key else ''}{name:.80} is given twice. Remove one of them")
            table[name] = value
        return table

    def _until(self, end: type) -> Iterator[Any]:
        while not isinstance(event := next(self.events), end):
            yield event

    def _count(self, nodes: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            raise ValueError(f"it has more than {MAX_NODES:,} values, the limit for a description. Remove others")


def _text(value: str) -> str:
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"{value!r:.80} has characters that no name can have. Remove them")
    return value
