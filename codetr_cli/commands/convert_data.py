"""`codetr convert-data`: a Pascal VOC or YOLO folder in, COCO's JSON files out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codetr_cli import console
from codetr_cli.commands._options import JsonOption, QuietOption
from codetr_cli.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from codetr_cli.data.formats.converted import Converted


def convert_data(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A Pascal VOC or YOLO folder.")],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="PATH", help="A folder, for one file a split, or the .json file of one split."),
    ],
    split: Annotated[
        str | None,
        typer.Option("--split", metavar="NAME", help="train, val or test. Without it: all; in one .json file, val."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write COCO JSON files of a Pascal VOC or YOLO folder, for other tools: codetr reads such folders as they lie.

    File names are relative to the folder of the images, which is printed. Nothing is written into DIR.
    """
    console.set_mode(json=json_output, quiet=quiet)
    from codetr_cli.data.formats.converted import find_converted

    if not folder.is_dir():
        raise DatasetError(f"there is no folder {folder}: give the one of the data set")
    converted = find_converted(folder)
    if converted is None:
        raise DatasetError(
            f"{folder} is neither a Pascal VOC folder (Annotations/*.xml and JPEGImages/) nor a YOLO one (data.yaml, "
            "or images/ and labels/): nothing is written. `codetr prepare` says more of a folder"
        )
    targets = _targets(converted, out, split)
    present = [str(path) for path in targets.values() if path.exists()]
    if present and not force:
        raise ConfigError(f"{', '.join(present)} exists already: name another place, or replace it with --force")
    for sentence in converted.sentences():
        console.info(sentence)
    rows = [[name, *_write(converted, name, path), path] for name, path in targets.items()]
    images_dir = next(iter(converted.splits.values())).images_dir
    console.table(f"{converted.title} data set {folder}", ["split", "images", "boxes", "classes", "written"], rows)
    console.result(f"images are relative to {images_dir}")
    console.result_json(
        {
            "layout": converted.title,
            "images_dir": images_dir,
            "notes": list(converted.sentences()),
            "splits": {
                str(name): {"images": images, "boxes": boxes, "classes": classes, "file": path}
                for name, images, boxes, classes, path in rows
            },
        }
    )


def _targets(converted: Converted, out: Path, split: str | None) -> dict[str, Path]:
    """The file of each split that is written."""
    if split is not None and split not in converted.splits:
        raise ConfigError(f"--split {split}: the folder has {', '.join(converted.splits)}; choose one of these")
    if out.suffix.lower() != ".json":
        names = [split] if split else list(converted.splits)
        return {name: out / f"instances_{name}.json" for name in names}
    if split is None and len(converted.splits) > 1 and "val" not in converted.splits:
        raise ConfigError(f"--out {out} is one file: choose its images with --split {'|'.join(converted.splits)}")
    return {split or ("val" if "val" in converted.splits else next(iter(converted.splits))): out}


def _write(converted: Converted, name: str, path: Path) -> tuple[int, int, int]:
    """Writes a split; returns its numbers of images, boxes and classes."""
    import json

    from codetr_cli import files

    table = json.loads(converted.splits[name].annotations_path.read_text(encoding="utf-8"))
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(table))
    return len(table["images"]), len(table["annotations"]), len(table["categories"])
