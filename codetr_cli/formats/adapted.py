"""Copies of annotation files in the cache where a file cannot be read exactly as it is.

Roboflow's first category stands for the project: it has the id 0, no category above it, and its name is the
supercategory of all others. Where no object of any part of the data set has it, it is no class. And names of images may
be written as on another system or computer; a copy has them as they are on this one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from codetr_cli.annotations.annotation_json import UnusableFileError, read_json_file
from codetr_cli.annotations.cache import cache_folder, find_conversion, finish_conversion, write_json, writing_to_cache
from codetr_cli.annotations.image_names import ImageNames
from codetr_cli.annotations.layouts import SplitFiles, image_name
from codetr_cli.images.image_files import list_images

FORMAT = "2"
"""Changes whenever the same files would give other copies."""
SHAPE = {"notes": [str]}
"""The shape of a summary, see `cache.has_shape`."""


def placeholder_name(categories: Sequence[Any]) -> str | None:
    """The name of the category that looks like a placeholder; None if there is none."""
    if len(categories) < 2 or not all(isinstance(record, dict) for record in categories):
        return None
    first = [record for record in categories if record.get("id") == 0 and type(record.get("id")) is int]
    others = [record for record in categories if record.get("id") != 0]
    if len(first) != 1 or first[0].get("supercategory") not in (None, "", "none"):
        return None
    name = first[0].get("name")
    return name if isinstance(name, str) and all(each.get("supercategory") == name for each in others) else None


def adapt(
    folder: Path,
    splits: dict[str, SplitFiles],
    categories: Sequence[Sequence[Any]],
    respelled: Collection[str] = (),
) -> tuple[dict[str, SplitFiles], list[str]]:
    """The splits without a placeholder and with the right names of images, and notes on that; else the same splits.

    Args:
        folder: of the data set.
        splits: by name.
        categories: records of the categories of each split, as far as they are known; decide whether files are read.
        respelled: the splits with names of images that are written in another way.

    Raises:
        DatasetError: a folder of images cannot be read.
        ResourceError: the cache cannot be written.
    """
    found = {placeholder_name(records) for records in categories if records}
    placeholder = found.pop() if len(found) == 1 else None
    if placeholder is None and not respelled:
        return splits, []
    listings = {key: sorted(list_images(splits[key].images_dir, follow_links=True)) for key in respelled}
    target = cache_folder() / f"{folder.name}-{_fingerprint(splits, listings)}"
    summary = find_conversion(target, SHAPE)
    if summary is None:
        tables = _tables(splits)
        if tables is None:
            return splits, []
        notes = [*_drop(tables, placeholder), *_respell(tables, listings, splits)]
        with writing_to_cache():
            summary = _write(target, folder, splits, tables, notes)
    if not summary["notes"]:
        return splits, []
    copies = {key: replace(split, annotations_path=target / f"instances_{key}.json") for key, split in splits.items()}
    return copies, summary["notes"]


def _fingerprint(splits: Mapping[str, SplitFiles], listings: Mapping[str, list[str]]) -> str:
    digest = hashlib.sha256(f"adapted{FORMAT}".encode())
    for name, split in splits.items():
        stat = split.annotations_path.stat()
        state = f"\0{name}\0{split.annotations_path.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}"
        digest.update(state.encode(errors="surrogateescape"))
    for name, images in listings.items():
        digest.update("\0".join(("", name, *images)).encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _tables(splits: Mapping[str, SplitFiles]) -> dict[str, dict[str, Any]] | None:
    """The content of each file; None if one cannot be read, which is explained where it is read as annotations."""
    tables = {}
    for key, split in splits.items():
        try:
            table = read_json_file(split.annotations_path)
        except UnusableFileError:
            return None
        if not isinstance(table, dict):
            return None
        tables[key] = table
    return tables


def _drop(tables: Mapping[str, dict[str, Any]], name: str | None) -> list[str]:
    """Removes the placeholder from all tables, if it has no objects in any; returns a note."""
    if name is None:
        return []
    for table in tables.values():
        records, objects = table.get("categories"), table.get("annotations")
        if not isinstance(records, list) or not isinstance(objects, list) or placeholder_name(records) != name:
            return []
        if any(isinstance(entry, dict) and entry.get("category_id") in (0, "0") for entry in objects):
            return []
    for table in tables.values():
        table["categories"] = [record for record in table["categories"] if record.get("id") != 0]
    return [
        f"the category {name!r} with id 0 is not a class: it is the supercategory of all others and has no objects, as "
        "Roboflow writes it"
    ]


def _respell(
    tables: Mapping[str, dict[str, Any]], listings: Mapping[str, list[str]], splits: Mapping[str, SplitFiles]
) -> list[str]:
    """Replaces the names of images that no file has by those of the files that they mean; returns notes."""
    notes = []
    for key, listing in listings.items():
        count, first = 0, ""
        records = tables[key].get("images")
        named = [
            (record, name)
            for record in (records if isinstance(records, list) else ())
            if isinstance(record, dict) and isinstance(name := image_name(record), str)
        ]
        stated = [(name, "") for _, name in named]
        names = ImageNames(listing, partial(list, stated))
        meant = Counter(image for name in {name for _, name in named} if (image := names.find(name)) is not None)
        for record, name in named:
            image = names.find(name)
            if image is not None and image != name and meant[image] == 1:  # else it is not known which of them it is
                record["file_name"] = image
                count, first = count + 1, first or f"{name!r} is {image!r}"
        if count:
            notes.append(
                f"{splits[key].where}: {count:,} {'name of an image is' if count == 1 else 'names of images are'} "
                f"written in another way than {'its file' if count == 1 else 'their files'}, e.g. {first}"
            )
    return notes


def _write(
    target: Path,
    folder: Path,
    splits: Mapping[str, SplitFiles],
    tables: Mapping[str, dict[str, Any]],
    notes: list[str],
) -> dict[str, Any]:
    target.mkdir(parents=True, exist_ok=True)
    if not notes:  # the files themselves are used
        tables = {}
    for key, table in tables.items():
        write_json(target / f"instances_{key}.json", table)
    summary = {
        "images_dir": str(next(iter(splits.values())).images_dir),
        "folders": [str(folder)],
        "names": {key: str(splits[key].annotations_path) for key in tables},
        "notes": notes,
    }
    return finish_conversion(target, [f"instances_{key}.json" for key in tables], summary)
