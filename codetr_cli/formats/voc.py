"""Pascal VOC's annotation files, one an image, in the published folder or in any other.

Which folders and lists: `voc_published`, `voc_folders`; what is read of a file: `voc_xml`. Without lists, folders such
as train/, valid/ and test/ are the splits. Classes are in alphabetical order, as the published twenty are, with ids
from 1. Objects marked difficult are crowd regions (iscrowd 1): not trained on, ignored in evaluation. An annotation
file without objects makes its image background; an image without an annotation file is not used, and counted.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.findings import Findings
from codetr_cli.annotations.survey import Survey, folder_of, stem_of
from codetr_cli.class_names import alike_names
from codetr_cli.errors import DatasetError, listed
from codetr_cli.formats import voc_published
from codetr_cli.formats.folder_splits import by_split, split_folder
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.intermediate import (
    MAX_CLASSES,
    MAX_SHARE,
    SHOWN,
    THREADS,
    ParsedBox,
    ParsedDataset,
    ParsedImage,
    size_of,
)
from codetr_cli.formats.linked_folders import unused_links, with_links
from codetr_cli.formats.split_names import split_of_folder, splits_of_folders
from codetr_cli.formats.splits import choose_splits
from codetr_cli.formats.voc_folders import ImageFinder, find_lists, list_paths
from codetr_cli.formats.voc_published import ANNOTATIONS, IMAGES
from codetr_cli.formats.voc_xml import ROOT, VocFile, read_file
from codetr_cli.formats.xml_text import likely_names, root_of

KEY = "voc"
TITLE = "Pascal VOC"
_COPY = re.compile(r"(?i)\.xml[^/]+(?<!\.xml)$")
"""Copies that editors keep: a.xml.bak, a.xml~."""


def evidence(survey: Survey) -> str:
    """The file that shows the layout: an annotation file; empty if there is none, or if it is in an inner data set."""
    survey = with_links(survey)
    roots = voc_published.roots(survey)
    if "" in roots:
        return roots[""]
    if roots and not _are_splits(roots) and any(_is_found_alone(root) for root in roots):
        return ""
    names = likely_names(survey.with_suffix(".xml"))
    return survey.first_with_head(names, lambda head: root_of(head).lower() == ROOT, len(names)) or ""


def files_read(survey: Survey, names: NameRule) -> Iterable[Path]:
    """The files and folders that decide the result of `read`, except the content of images."""
    survey, published = _place(survey)
    folder, xmls = survey.folder, survey.with_suffix(".xml")
    if published:
        yield from (folder / ANNOTATIONS, folder / IMAGES)
        yield from voc_published.list_files(folder)
    yield from (folder / name for name in dict.fromkeys(folder_of(name) for name in (*survey.images, *xmls)))
    yield from (folder / name for name in xmls)
    yield from (folder / name for name in survey.linked)
    yield from (folder / name for name in list_paths(survey))
    if published and names.allow_outside:
        lists = voc_published.read_lists(survey, names).values()
        stems = (stem for each in lists for part in each.values() for stem in part if "/" in stem)
        yield from (voc_published.annotation_path(folder, stem) for stem in stems)


def read(survey: Survey, names: NameRule, options: ReadOptions) -> ParsedDataset:
    """Reads all images in the lists; without lists, all that have an annotation file.

    Args:
        survey: of the data set's folder.
        names: what names in the lists may lead to.
        options: how it is read.

    Raises:
        DatasetError: broken files, names without an annotation file or image, names that lead out of the folder, boxes
            whose corners are swapped, several data sets in one folder.
    """
    survey, published = _place(survey)
    found = _read_published(survey, names, options) if published else _read_folders(survey, options)
    _report_unused(found, survey)
    class_names = sorted({item.name for key in found.images for item in found.files[key].objects})
    if not class_names:
        raise DatasetError(f"no file of {found.where} has an object: check that the folder is the right one")
    if len(class_names) > MAX_CLASSES:
        raise DatasetError(
            f"the files of {found.where} name {len(class_names):,} classes, {MAX_CLASSES:,} are possible"
        )
    for alike in alike_names(class_names):
        found.findings.add("alike_class_names", found.place, " and ".join(alike))
    labels = {name: label for label, name in enumerate(class_names)}
    images = {key: _image(found, key, image, labels) for key, image in found.images.items()}
    return ParsedDataset(
        title=TITLE,
        images_dir=found.images_dir,
        class_names=class_names,
        first_id=1,
        splits={name: [images[key] for key in keys if key in images] for name, keys in found.chosen.items()},
        skipped=found.skipped,
        places=found.places,
        val_is_test=found.val_is_test,
        notes=[*found.notes, *_from_zero(found)],
        findings=found.findings,
    )


@dataclass
class _Found:
    """The files of a folder.

    Attributes:
        where: the folder of the annotation files, for errors.
        place: the same, for findings.
        images_dir: what the names of images are relative to.
        files: content of the annotation files, by key.
        images: the image of each key, relative to `images_dir`.
        all_images: every image there.
        chosen: keys by split.
        places: the list or folder of each split.
        unused: files of `.xml` that are no annotations.
        unlisted: images whose annotation files are in no list.
    """

    where: Path
    place: str
    images_dir: Path
    files: dict[str, VocFile] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    all_images: list[str] = field(default_factory=list)
    chosen: dict[str, list[str]] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    val_is_test: bool = False
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    unused: list[str] = field(default_factory=list)
    unlisted: set[str] = field(default_factory=set)

    def choose(self, lists: Mapping[str, list[str]], places: Mapping[str, str]) -> None:
        """Chooses the keys of each split from those of some lists, whose places are given."""
        self.chosen, origins, notes = choose_splits(lists)
        self.places = {name: places[origin] for name, origin in origins.items()}
        self.val_is_test = origins.get("val") == "test"
        self.notes += notes

    def skip_without_image(self, *, skip_bad: bool, where: str) -> None:
        """Records the annotation files without an image as skipped; `where` are the lists, for the advice.

        Raises:
            DatasetError: there are some; where skipping is allowed, too many.
        """
        absent = [key for key in self.files if key not in self.images]
        if absent and (not skip_bad or len(absent) > MAX_SHARE * len(self.files)):
            lists = f"remove their names from {where}" if where else "remove their annotation files"
            raise DatasetError(
                f"{len(absent):,} of {len(self.files):,} images are missing in {self.images_dir}: "
                f"{listed(absent, SHOWN)}. Copy them there, or {lists}"
            )
        self.skipped += [f"{key} (no such file)" for key in absent]


# ------------------------------------------------------------------------------------------------------------- folders


def _are_splits(roots: Iterable[str]) -> bool:
    """Whether published folders are the parts of one data set: train/, valid/, ..."""
    return len(list(roots)) > 1 and all(split_of_folder(root) for root in roots)


def _is_found_alone(root: str) -> bool:
    """Whether `open.find_parser` looks into a folder itself."""
    return root.count("/") == 0 or (root.count("/") == 1 and root.rpartition("/")[2].startswith("VOC"))


def _place(survey: Survey) -> tuple[Survey, bool]:
    """The survey of the published folder in a survey, or of the whole folder; and whether it is a published one.

    Raises:
        DatasetError: there are several published folders.
    """
    survey = with_links(survey)
    roots = voc_published.roots(survey)
    if "" in roots:
        return survey, True
    if not roots or _are_splits(roots):
        return survey, False
    if len(roots) > 1:
        names = listed([str(survey.folder / root) for root in roots], SHOWN)
        several = " ".join(f"--data {shlex.quote(str(survey.folder / root))}" for root in list(roots)[:SHOWN])
        raise DatasetError(
            f"{survey.folder} contains several data sets: {names}. Give the folder of one of them, or to train and "
            f"eval, which merge them, several: {several}"
        )
    return survey.below(next(iter(roots))), True


def _read_published(survey: Survey, names: NameRule, options: ReadOptions) -> _Found:
    folder = survey.folder
    found = _Found(folder / ANNOTATIONS, f"{ANNOTATIONS}/", folder / IMAGES)
    by_list = voc_published.read_lists(survey, names) or _other_lists(found, survey)
    lists = {split: [stem for stems in each.values() for stem in stems] for split, each in by_list.items()}
    places = {split: next(iter(each)) for split, each in by_list.items()}
    if not lists:
        lists, places = {"all": voc_published.stems_of(survey)}, {"all": f"{ANNOTATIONS}/"}
    found.choose(lists, places)
    stems = list(dict.fromkeys(stem for part in found.chosen.values() for stem in part))
    if not stems:
        raise DatasetError(f"the lists in {folder / 'ImageSets' / 'Main'} are empty. Fill or delete them")
    voc_published.check_present(survey, stems)
    found.files = _read_files(voc_published.annotation_paths(survey, stems))
    others = [stem for stem, file in found.files.items() if not file.is_annotation]
    if others and by_list:
        raise DatasetError(
            f"{len(others):,} files of {found.where} are in the lists of images, but are no annotation files: "
            f"{listed([f'{stem}.xml (<{found.files[stem].root}>)' for stem in others], SHOWN)}. Replace them, or "
            "remove their names from the lists"
        )
    for stem in others:
        del found.files[stem]
    if others:
        found.unused += [f"{stem}.xml" for stem in others]
        found.choose({"all": [stem for stem in lists["all"] if stem in found.files]}, places)
    found.images, found.all_images = voc_published.find_images(folder, list(found.files))
    unnamed = [stem for stem in found.files if stem not in found.images]
    if unnamed:
        finder = ImageFinder(found.all_images, [f"{stem}.xml" for stem in found.files])
        for stem in unnamed:
            image = finder.find(f"{stem}.xml", found.files[stem])
            if image is not None:
                found.images[stem] = image
        _refuse_shared(found)
    found.skip_without_image(skip_bad=options.skip_bad, where="ImageSets/Main" if by_list else "")
    if by_list:
        in_lists = {stem for part in lists.values() for stem in part}
        unlisted = [stem for stem in voc_published.stems_of(survey) if stem not in in_lists]
        found.unlisted = set(voc_published.find_images(folder, unlisted)[0].values())
        _add_all(found, "unlisted_annotation", unlisted)
    found.unused += [name for name in survey.with_suffix(".xml") if not name.startswith(f"{ANNOTATIONS}/")]
    return found


def _other_lists(found: _Found, survey: Survey) -> dict[str, dict[str, list[str]]]:
    """The lists of a published folder that are in another place than the published one, as names without suffix."""
    prefix = f"{ANNOTATIONS}/"
    lists, others = find_lists(survey, [name for name in survey.with_suffix(".xml") if name.startswith(prefix)])
    found.notes += [_unused_list(path) for path in others]
    return {
        split: {path: [stem_of(name.removeprefix(prefix)) for name in names] for path, names in each.items()}
        for split, each in lists.items()
    }


def _unused_list(path: str) -> str:
    return f"{path} is not used: it names none of the annotation files"


def _read_folders(survey: Survey, options: ReadOptions) -> _Found:
    """As `_read_published`, of folders with any names: keys are the names of annotation files."""
    names = survey.with_suffix(".xml")
    common = os.path.commonpath([folder_of(name) for name in names]) if names else ""
    found = _Found(survey.folder, f"{common or survey.folder.name}/", survey.folder)
    lists, others = find_lists(survey, names)
    found.notes += [_unused_list(path) for path in others]
    resolved = {split: list(dict.fromkeys(n for part in each.values() for n in part)) for split, each in lists.items()}
    known = set(names)
    absent = [line for part in resolved.values() for line in part if line not in known]
    if absent:
        where = listed([path for each in lists.values() for path in each], SHOWN)
        raise DatasetError(
            f"{len(absent):,} of the {sum(map(len, resolved.values())):,} names of {where} in {survey.folder} have no "
            f"annotation file, or several: {listed(absent, SHOWN)}. Add NAME.xml for each or remove them from the lists"
        )
    if lists:
        in_lists = {name for part in resolved.values() for name in part}
        names = sorted(in_lists)
    files = _read_files({name: survey.folder / name for name in names})
    found.unused += [name for name, file in files.items() if not file.is_annotation]
    found.files = {name: file for name, file in files.items() if file.is_annotation}
    found.all_images = survey.images
    finder = ImageFinder(found.all_images, known.difference(found.unused))
    matches = {name: finder.find(name, file) for name, file in found.files.items()}
    found.images = {name: image for name, image in matches.items() if image is not None}
    _refuse_shared(found)
    if lists:
        unlisted = [name for name in known if name not in in_lists]
        _add_all(found, "unlisted_annotation", sorted(unlisted))
        found.unlisted = {image for name in unlisted if (image := finder.find(name, VocFile((0, 0), [])))}
    found.skip_without_image(skip_bad=options.skip_bad, where="the lists" if lists else "")
    if lists:
        places = {split: next(iter(each)) for split, each in lists.items()}
    else:
        of_files = splits_of_folders(map(folder_of, found.images))
        of_images = splits_of_folders(map(folder_of, found.images.values()))
        folders = {
            name: of_files[folder_of(name)] or of_images[folder_of(image)] for name, image in found.images.items()
        }
        resolved, outside = by_split(found.images, folders)
        _add_all(found, "outside_splits", outside)
        places = {split: _folder_place(found, split, part) for split, part in resolved.items()}
    found.choose(resolved, places)
    return found


def _folder_place(found: _Found, split: str, names: list[str]) -> str:
    """The folder of a split, for messages."""
    first = names[0]
    folder = split_folder(folder_of(first)) or split_folder(folder_of(found.images[first])) or folder_of(first)
    return f"{folder}/" if folder and split != "all" else found.place


def _refuse_shared(found: _Found) -> None:
    """Raises a DatasetError for images with several annotation files."""
    owners: dict[str, str] = {}
    for name, image in found.images.items():
        other = owners.setdefault(image, name)
        if other != name:
            raise DatasetError(
                f"{found.images_dir / image} has two annotation files, {other} and {name}. Remove or rename one of them"
            )


def _read_files(paths: Mapping[str, Path]) -> dict[str, VocFile]:
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(paths, pool.map(read_file, paths.values()), strict=True))


# ------------------------------------------------------------------------------------------------------------- content


def _image(found: _Found, key: str, image: str, labels: Mapping[str, int]) -> ParsedImage:
    file = found.files[key]
    height, width = size_of(file.size, found.images_dir / image)
    return ParsedImage(
        file_name=image,
        height=height,
        width=width,
        label_file=key if key.endswith(".xml") else f"{key}.xml",
        boxes=[ParsedBox(labels[item.name], item.corners, item.difficult, item.outline) for item in file.objects],
    )


def _from_zero(found: _Found) -> list[str]:
    """A note on boxes that start at pixel 0, if there are any."""
    objects = (item for key in found.images for item in found.files[key].objects)
    count = sum(item.counts_from_one and min(item.corners[:2]) < 0 for item in objects)
    if not count:
        return []
    boxes = "1 box starts" if count == 1 else f"{count:,} boxes start"
    return [
        f"{boxes} at pixel 0, so the tool that wrote them counts from 0; they are read as the layout specifies, "
        "from 1, and are one pixel off at their left and upper edges"
    ]


def _report_unused(found: _Found, survey: Survey) -> None:
    """Adds findings on what was found and is not used."""
    _add_all(found, "other_xml", [*found.unused, *(name for name in survey.names if _COPY.search(name))])
    _add_all(found, "linked_folder", (link for link in unused_links(survey) if link != IMAGES))
    for key in found.images:
        for name in found.files[key].boxless:
            found.findings.add("object_without_box", found.place, f"{name} in {key}")
        if found.files[key].deleted:
            found.findings.add("deleted_object", found.place, key, found.files[key].deleted)
    used = {*found.images.values(), *found.unlisted}
    folders = {folder_of(image) for image in used}
    for image in sorted(found.all_images):
        if image not in used:
            in_use = folder_of(image) in folders
            found.findings.add("image_without_annotation" if in_use else "unlisted_file", found.place, image)


def _add_all(found: _Found, kind: str, names: Iterable[str]) -> None:
    for name in names:
        found.findings.add(kind, found.place, name)
