"""The class names of a YOLO data set: of its description, a file with one name a line, or Label Studio's notes.json.

Files with names are classes.txt (labelImg, Label Studio), obj.names and other .names files (Darknet, CVAT), names.txt,
_darknet.labels (Roboflow), in any folder; several must agree.
"""

from __future__ import annotations

from pathlib import Path

from codetr_cli.annotations.encodings import decode_text
from codetr_cli.annotations.survey import Survey
from codetr_cli.errors import DatasetError
from codetr_cli.formats.intermediate import MAX_CLASSES, MAX_LETTERS
from codetr_cli.formats.yolo_yaml import Value
from codetr_cli.reading import parse_json, read_bytes

FILES = ("classes.txt", "names.txt", "class_names.txt", "obj.names", "_darknet.labels")
SUFFIXES = (".names", ".labels")
NOTES = "notes.json"
MAX_BYTES = 8 << 20
MAX_FILES = 20
"""Files of class names in one data set that are compared."""


def is_names_file(name: str) -> bool:
    """Whether a file holds class names, by its own name."""
    name = name.rpartition("/")[2].lower()
    return name in FILES or name.endswith(SUFFIXES)


def find_names(survey: Survey) -> tuple[list[str], Path] | None:
    """The class names of a folder without a description, and their file: the outermost one; None if there is none.

    Raises:
        DatasetError: a file cannot be read, has an empty line between names, or differs from another one.
    """
    files = sorted(
        (name for name in survey.with_suffix(".txt", *SUFFIXES) if is_names_file(name)),
        key=lambda name: (name.count("/"), _rank(name), name),
    )
    known: tuple[list[str], str] | None = None
    for name in files[:MAX_FILES]:
        names = read_names(survey.folder / name)
        if known is not None and names != known[0]:
            raise DatasetError(
                f"{survey.folder}: {known[1]} and {name} have different class names, so that the numbers in label "
                "files are ambiguous. Give the folder of one of them, or remove the file that is wrong"
            )
        known = known or (names, name)
    if known is not None:
        return known[0], survey.folder / known[1]
    notes = next((name for name in survey.with_suffix(".json") if name.rpartition("/")[2] == NOTES), None)
    return None if notes is None else (_of_notes(survey.folder / notes), survey.folder / notes)


def _rank(name: str) -> int:
    name = name.rpartition("/")[2].lower()
    return FILES.index(name) if name in FILES else len(FILES)


def read_names(path: Path) -> list[str]:
    """The names of a file with one name a line, in UTF-8, UTF-16 or GB18030.

    Raises:
        DatasetError: the file cannot be read, has no names, or has an empty line between names.
    """
    lines = [line.strip() for line in _read(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    if "" in lines:
        raise DatasetError(
            f"{path}, line {lines.index('') + 1}, is empty, so that the numbers of the names below are ambiguous. "
            "Write the name, or remove the line if the labels do not count it"
        )
    return check_names(lines, path)


def _read(path: Path) -> str:
    try:
        text = decode_text(read_bytes(path, MAX_BYTES))
        if "\0" in text:
            raise ValueError("it has zero bytes, so that it is not text. Replace it")
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}. Replace or remove it") from error
    except ValueError as error:
        raise DatasetError(f"{path}: {error}") from None
    return text


def _of_notes(path: Path) -> list[str]:
    """The names in Label Studio's notes.json: {"categories": [{"id": 0, "name": "car"}, ...]}."""
    try:
        table = parse_json(_read(path))
        categories = table["categories"]
        numbers = {each["id"]: each["name"] for each in categories}
        names = [numbers[number] for number in range(len(categories))]
    except (ValueError, KeyError, TypeError, IndexError):
        raise DatasetError(
            f"{path} does not have categories with the ids 0, 1, 2, ... and their names. Write the names into "
            f"{path.with_name('classes.txt')}, one a line in the order of their numbers"
        ) from None
    return check_names(names, path)


def names_of(table: dict[str, Value], path: Path, survey: Survey, notes: list[str]) -> tuple[list[str], Path]:
    """The class names of a description, and the file that has them; adds notes.

    Raises:
        DatasetError: there are none, or their numbers have gaps.
    """
    value, number = table.get("names"), table.get("nc", "")
    count = int(number) if isinstance(number, str) and number.isdecimal() and len(number) < 7 else None
    if value is None and count:
        check_names(["a"] * count, path)
        found = find_names(survey)
        if found is not None and len(found[0]) == count:
            notes.append(f"{path.name} has no class names: those of {found[1].name} are used")
            return found
        notes.append(f"{path.name} has no class names: the {count:,} classes are called class_0, class_1, ...")
        return [f"class_{number}" for number in range(count)], path
    if isinstance(value, str) and value:
        place = path.parent / Path(value.replace("\\", "/")).name  # a name of a file, as the first versions had it
        if is_names_file(value) and place.is_file():
            return read_names(place), place
    names = check_names(_in_order(value, path), path)
    if count is not None and count != len(names):
        notes.append(f"{path.name} says nc: {count:,}, but names {len(names):,} classes: the names are used")
    _compare(names, path, survey, notes)
    return names, path


def _compare(names: list[str], path: Path, survey: Survey, notes: list[str]) -> None:
    """Adds a note if a file of names beside a description has other names."""
    try:
        found = find_names(survey)
    except DatasetError as error:
        notes.append(f"the class names are those of {path.name}. Of other files: {error}")
        return
    if found is not None and found[0] != names:
        notes.append(f"the class names are those of {path.name}; {found[1].name} has others, which are not used")


def _in_order(value: Value | None, path: Path) -> Value | None:
    if not isinstance(value, dict):
        return value
    numbers = {int(key): name for key, name in value.items() if key.isdecimal() and len(key) < 10}
    if sorted(numbers) != list(range(len(value))):
        raise DatasetError(f"{path}: the keys of names must be 0, 1, 2, ... without a gap")
    return [numbers[number] for number in range(len(value))]


def check_names(value: object, path: Path) -> list[str]:
    """A list of texts that can be class names.

    Raises:
        DatasetError: it is not one, is empty, or is too large.
    """
    if not isinstance(value, list) or not value or not all(isinstance(name, str) and name for name in value):
        raise DatasetError(f"{path} has no class names: write them as `names: [first, second]`")
    if len(value) > MAX_CLASSES or len(max(value, key=len)) > MAX_LETTERS:
        raise DatasetError(
            f"{path} has {len(value):,} class names of up to {len(max(value, key=len)):,} letters; {MAX_CLASSES:,} of "
            f"{MAX_LETTERS:,} are possible"
        )
    return value
