"""`codetr convert-data`: writes COCO JSON files of a Pascal VOC or YOLO dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from codetr_cli.data.formats.converted import Converted

EXAMPLES = (
    "codetr convert-data VOCdevkit/VOC2007 --out voc_as_coco",
    "codetr convert-data my_yolo --split val --out instances_val.json",
)


def convert_data(
    context: typer.Context,
    path: Annotated[str | None, typer.Argument(metavar="DIR", help="A Pascal VOC or YOLO dataset.")] = None,
    data: opt.SameDataOption = None,
    split: Annotated[
        str | None,
        opt.option("--split", "NAME", "train, val or test. Default: all, or val for one .json file.", opt.INPUT),
    ] = None,
    out: Annotated[
        Path | None, opt.option("--out", "PATH", "A folder, or one .json file for one split.", opt.OUTPUT)
    ] = None,
    force: opt.ReplaceOption = False,
    json_output: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
) -> None:
    """Write a VOC or YOLO dataset as COCO JSON files.

    For other tools: codetr reads such datasets in place. File names are relative to the folder of the images, which is
    printed. Nothing is written into DIR.
    """
    console.set_mode(json=json_output, quiet=quiet)
    given = opt.argument_or_option(context, "path", "data")
    if given is None or out is None:
        raise ConfigError("give the dataset and where to write: codetr convert-data DIR --out PATH")
    folder = Path(given)
    from codetr_cli.data.formats.converted import find_converted

    if not folder.is_dir():
        raise DatasetError(f"there is no folder {folder}: give the folder of the dataset")
    converted = find_converted(folder)
    if converted is None:
        raise DatasetError(
            f"{folder} is neither a Pascal VOC folder (Annotations/*.xml and JPEGImages/) nor a YOLO one (data.yaml, "
            "or images/ and labels/): nothing is written. `codetr prepare` reports more about a folder"
        )
    targets = _targets(converted, out, split)
    present = [str(path) for path in targets.values() if path.exists()]
    if present and not force:
        raise ConfigError(f"{', '.join(present)} already exists: choose another path, or replace it with --force")
    for sentence in converted.sentences():
        console.info(sentence)
    rows = [[name, *_write(converted, name, path), path] for name, path in targets.items()]
    images_dir = next(iter(converted.splits.values())).images_dir
    console.table(f"{converted.title} dataset {folder}", ["split", "images", "boxes", "classes", "written"], rows)
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
    """The file to write for each split."""
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
