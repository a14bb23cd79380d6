"""`codetr convert-data`: writes a data set of any layout in another one, whole or in part, or cut into tiles."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.commands._option_values import argument_or_option, data_settings, refuse_both
from codetr_cli.errors import ConfigError, DatasetError
from codetr_cli.files import check_folder
from codetr_cli.formats.layout_names import LISTED, LayoutName

if TYPE_CHECKING:
    from codetr_cli.config.data_settings import DataConfig
    from codetr_cli.data.writers.options import WriteOptions
    from codetr_cli.data.writers.slicing import SliceRule
    from codetr_cli.data.writers.write import Written
    from codetr_cli.formats.found import FoundDataset

EXAMPLES = (
    "codetr convert-data VOCdevkit/VOC2007 --out voc_as_coco",
    "codetr convert-data my_coco --to yolo --out my_yolo",
    "codetr convert-data aerial --slice 1024x1024 --overlap 0.2 --out aerial_tiles",
    "codetr convert-data my_yolo --split val --out instances_val.json",
)
CHOICE = "What is written"
Images = Literal["copy", "link", "symlink", "none"]
_SIZE = re.compile(r"\s*(\d{1,6})\s*(?:[xX*,]\s*(\d{1,6}))?\s*")


def convert_data(
    context: typer.Context,
    path: Annotated[str | None, typer.Argument(metavar="DIR", help="A dataset in any layout.")] = None,
    data: opt.SameDataOption = None,
    format: opt.FormatOption = None,
    val_fraction: opt.ValFractionOption = None,
    annotations: opt.AnnotationsOption = None,
    images: opt.ImagesOption = None,
    to: Annotated[LayoutName, opt.option("--to", "LAYOUT", f"{LISTED}.", opt.OUTPUT)] = "coco",
    out: Annotated[
        Path | None, opt.option("--out", "PATH", "A new folder, or a .json file for one split of COCO.", opt.OUTPUT)
    ] = None,
    save_images: Annotated[
        Images | None,
        opt.option(
            "--save-images",
            "HOW",
            "copy, link, symlink or none. Default: copy; none for COCO, whose names stay relative to the source.",
            opt.OUTPUT,
        ),
    ] = None,
    outlines: Annotated[
        bool, opt.flag("--outlines", "Write polygons, not boxes, to YOLO, labelme, CVAT and Label Studio.", opt.OUTPUT)
    ] = False,
    split: Annotated[
        str | None,
        opt.option(
            "--split",
            "NAMES",
            "train, val, test or several: train,val. Default: all. A .json file holds one of them.",
            CHOICE,
        ),
    ] = None,
    classes: Annotated[
        list[str] | None,
        opt.option("--classes", "NAMES", "Only these classes, e.g. cat,dog, and images with them.", CHOICE),
    ] = None,
    sample: Annotated[
        int | None,
        opt.option("--sample", "N", "Only N images, always the same, with every class if possible.", CHOICE, min=1),
    ] = None,
    slice_size: Annotated[
        str | None, opt.option("--slice", "WxH", "Cut images into tiles of this size, in pixels.", CHOICE)
    ] = None,
    overlap: Annotated[
        float, opt.option("--overlap", "SHARE", "Of a tile, repeated in the next one.", CHOICE, min=0, max=0.9)
    ] = 0.2,
    min_visible: Annotated[
        float,
        opt.option("--min-visible", "SHARE", "Of an object, for a tile to have it.", CHOICE, min=0, max=1),
    ] = 0.1,
    keep_empty: Annotated[
        bool | None,
        opt.flag(
            "--keep-empty/--drop-empty",
            "Images and tiles without objects. Default: kept, but with --classes only images with objects.",
            CHOICE,
        ),
    ] = None,
    force: opt.ReplaceOption = False,
    json_output: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
    overrides: opt.SetOption = None,
) -> None:
    """Write a dataset in another layout, whole, in part, or cut into tiles.

    For other tools: codetr reads all layouts in place. Reports what the new layout cannot hold. Nothing is written
    into DIR. Into a folder, a set without validation images is written in two parts; --val-fraction 0 keeps it whole.
    With --slice, a tile has an object if it shows at least --min-visible of what a tile can show of it.
    """
    console.set_mode(json=json_output, quiet=quiet)
    given = argument_or_option(context, "path", "data")
    refuse_both(annotations, given)
    if (given is None and annotations is None) or out is None:
        raise ConfigError("give the dataset and where to write: codetr convert-data DIR --out PATH")
    check_folder(out.parent if out.suffix.lower() == ".json" else out, "--out")
    from codetr_cli.config.overrides import apply_overrides
    from codetr_cli.config.schema import Settings
    from codetr_cli.data.writers.options import WriteOptions
    from codetr_cli.formats.resolve import data_root

    if val_fraction is None and split is None and out.suffix.lower() == ".json":
        val_fraction = 0.0  # one file of all images, unless a part of them is asked for
    overrides = data_settings(
        format=format, val_fraction=val_fraction, annotations=annotations, images=images, overrides=overrides
    )
    config = apply_overrides(Settings(name="convert-data"), overrides).data
    rule = _slice_rule(slice_size, overlap, min_visible)
    options = WriteOptions(
        layout=to,
        images=save_images or ("none" if to == "coco" and rule is None else "copy"),
        outlines=outlines,
        slicing=rule,
        sample=sample,
        classes=classes,
        keep_empty=keep_empty,
        skip_bad=config.bad_files == "skip",
        max_pixels=config.max_pixels,
    )
    _check_options(options, out)
    source = data_root(config, given)
    found = _open(source, out, config)
    _convert(found, source, out, split, options, config, force=force)


def _slice_rule(text: str | None, overlap: float, min_visible: float) -> SliceRule | None:
    from codetr_cli.data.writers.slicing import SliceRule

    if text is None:
        return None
    found = _SIZE.fullmatch(text)
    width, height = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if min(width, height) < 1:
        raise ConfigError(f"--slice {text}: give width and height of a tile in pixels, e.g. --slice 1024x1024")
    return SliceRule(width, height, overlap, min_visible)


def _check_options(options: WriteOptions, out: Path) -> None:
    """Raises a ConfigError for options that exclude each other."""
    is_file = out.suffix.lower() == ".json"
    if is_file and options.layout != "coco":
        raise ConfigError(f"--to {options.layout} writes a folder, and --out {out} is a file: give a folder")
    if is_file and options.images != "none":
        raise ConfigError(f"--out {out} is one file: with images, or with --slice, give a folder")
    if options.slicing is not None and options.images != "copy":
        raise ConfigError(f"--slice writes new images, so it cannot be combined with --save-images {options.images}")


def _open(folder: Path, out: Path, config: DataConfig) -> FoundDataset:
    """The data set of a folder, or of one annotation file.

    Raises:
        DatasetError: there is none.
        ConfigError: the output would be inside it.
    """
    from codetr_cli.annotations.data_files import check_length
    from codetr_cli.data.writers.folder import check_outside
    from codetr_cli.formats.found import ReadOptions
    from codetr_cli.formats.open import open_dataset

    check_length(folder)
    if not folder.exists():
        raise DatasetError(f"there is no folder {folder}: give the folder of the dataset")
    if folder.is_dir():
        check_outside(out, folder)
    found = open_dataset(folder, ReadOptions.of(config))
    if found is None:
        raise DatasetError(
            f"{folder} has no layout that is known: nothing is written. `codetr prepare` reports more about a folder"
        )
    for split in found.splits.values():
        check_outside(out, split.images_dir)
    return found


def _convert(
    found: FoundDataset,
    folder: Path,
    out: Path,
    split: str | None,
    options: WriteOptions,
    config: DataConfig,
    *,
    force: bool,
) -> None:
    from codetr_cli.annotations.file_names import NameRule
    from codetr_cli.data.writers.write import read_content, write_folder, write_tables

    targets = _targets(found, out, split)
    with_images = options.layout != "coco" or options.images != "none"
    for sentence in found.sentences():
        console.info(sentence)
    for warning in found.warnings():
        console.warn(warning)
    names = NameRule.of(
        folder, *(each.images_dir for each in found.splits.values()), allow_outside=config.allow_outside
    )
    content = read_content(found, list(targets), names, options)
    for note in content.written.notes:
        console.info(note)
    if with_images:
        made = {"layout": options.layout, "source": str(found.folder)}
        with console.progress("writing images", content.images) as advance:
            written = write_folder(content, out, options, force=force, made=made, advance=advance)
        targets = dict.fromkeys(targets, out)
    else:
        request = f"{found.folder} {found.title} {sorted(targets)} {options}"
        written = write_tables(content, targets, options, request=request, force=force)
    _report(found, folder, written, targets, options, out if with_images else None)


def _targets(found: FoundDataset, out: Path, split: str | None) -> dict[str, Path]:
    """The file to write for each split, as for COCO."""
    chosen = None if split is None else list(dict.fromkeys(part.strip() for part in split.split(",") if part.strip()))
    unknown = [name for name in chosen or () if name not in found.splits]
    if unknown or chosen == []:
        raise ConfigError(f"--split {split}: the folder has {', '.join(found.splits)}; choose one of these")
    if out.suffix.lower() != ".json":
        return {name: out / f"instances_{name}.json" for name in chosen or found.splits}
    names = chosen or list(found.splits)
    if len(names) > 1:
        raise ConfigError(
            f"--out {out} is one file, and there are {', '.join(names)}: choose one with --split {'|'.join(names)}, or "
            "give a folder"
        )
    return {names[0]: out}


def _report(
    found: FoundDataset,
    folder: Path,
    written: Written,
    targets: Mapping[str, Path],
    options: WriteOptions,
    images_dir: Path | None,
) -> None:
    """Prints what was written, and what was not."""
    count = len(written.classes)
    rows: list[list[Any]] = [
        [name, *written.splits.get(name, (0, 0)), count, target] for name, target in targets.items()
    ]
    console.table(f"{found.title} dataset {folder}", ["split", "images", "boxes", "classes", "written"], rows)
    for sentence in written.sentences():
        console.result(sentence)
    places = {name: images_dir or found.splits[name].images_dir for name in targets}
    if options.layout == "coco":
        for place in dict.fromkeys(places.values()):
            console.result(f"images are relative to {place}")
    if options.images == "none":
        console.result("the image files are not written, and not checked: `codetr prepare` checks them")
    console.result_json(
        {
            "layout": found.title,
            "to": options.layout,
            "images_dir": next(iter(places.values())),
            "notes": list(found.sentences()),
            "classes": written.classes,
            "counts": {kind: number for kind, number in written.counts.items() if number},
            "splits": {
                str(name): {
                    "images": images,
                    "boxes": boxes,
                    "classes": classes,
                    "file": path,
                    "images_dir": places[name],
                }
                for name, images, boxes, classes, path in rows
            },
        }
    )
