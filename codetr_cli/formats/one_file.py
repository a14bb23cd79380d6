"""One annotation file of COCO's kind, under any name, with one folder of images: `--ann FILE --images DIR`."""

from __future__ import annotations

from pathlib import Path

from codetr_cli.annotations.layouts import SplitFiles
from codetr_cli.annotations.survey import HEAD_BYTES
from codetr_cli.errors import ConfigError, DatasetError, listed
from codetr_cli.files import real_path
from codetr_cli.formats.adapted import adapt
from codetr_cli.formats.coco_json import PARTLY, TITLE, is_annotations, sample_of
from codetr_cli.formats.found import FoundDataset, ReadOptions
from codetr_cli.formats.image_places import has_other_names, probe_near
from codetr_cli.formats.intermediate import SHOWN
from codetr_cli.formats.json_sample import read_start
from codetr_cli.formats.split_names import split_in

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst")


def open_file(path: Path, options: ReadOptions) -> FoundDataset:
    """The images of an annotation file as a data set for training, whatever its name.

    Args:
        path: an existing file.
        options: how it is read; `images` is the folder of its images, else found by the file names in it.

    Raises:
        ConfigError: the folder of images is a file.
        DatasetError: not an annotation file of COCO's kind, or its images are not found. What is wrong within a JSON
            file is reported where it is read as annotations.
    """
    if path.suffix.lower() in ARCHIVES:
        raise DatasetError(f"{path} is a file: unpack it and give the folder with its content")
    is_known = is_annotations(path, read_start(path, HEAD_BYTES))
    if path.suffix.lower() != ".json" and not is_known:
        raise DatasetError(
            f"{path} is a file, but no annotation file of COCO's kind (an object with `images`, `annotations` and "
            "`categories`): give such a file, or the folder of the data set"
        )
    sample = sample_of(path)
    if is_known and sample.kind in PARTLY:
        raise DatasetError(f"{path} has {PARTLY[sample.kind]}: give annotations in COCO's instances format")
    images = check_images(options.images) if options.images else _find_images(path, sample.names)
    folder = real_path(path)
    splits = {"train": SplitFiles("train", images, path, str(path))}
    is_respelled = has_other_names(images, sample.names)
    splits, changes = adapt(folder, splits, [sample.categories], ["train"] if is_respelled else [])
    notes = [] if options.images else [f"the images of {path.name} are in {images}"]
    return FoundDataset(title=TITLE, evidence=path.name, folder=folder, splits=splits, notes=[*notes, *changes])


def check_images(folder: Path) -> Path:
    """The folder of images that the user named.

    Raises:
        ConfigError: it is a file.
        DatasetError: it does not exist.
    """
    if folder.is_file():
        raise ConfigError(f"--images {folder} is a file: give the folder of the images")
    if not folder.is_dir():
        raise DatasetError(f"no such folder: {folder}. --images is the folder of the images")
    return folder


def check_annotations_file(path: Path) -> Path:
    """The annotation file that the user named.

    Raises:
        ConfigError: it is a folder.
        DatasetError: it does not exist.
    """
    if path.is_dir():
        raise ConfigError(
            f"--ann {path} is a folder: give the annotation file, or the folder of a data set with --data"
        )
    if not path.exists():
        raise DatasetError(f"no such file: {path}. --ann is the annotation file, in COCO's format")
    return path


def _find_images(path: Path, names: list[str]) -> Path:
    """The folder near an annotation file that has its images."""
    if not names:
        return path.absolute().parent
    places, _ = probe_near(path, names, split_in(path.stem))
    if not places:
        raise DatasetError(
            f"the images of {path}, e.g. {names[0]}, are neither in its folder nor near it: give their folder with "
            "--images DIR"
        )
    if len(places) > 1:
        raise DatasetError(
            f"the images of {path} are in several folders alike: {listed(places, SHOWN)}. Choose one with --images DIR"
        )
    return places[0]
