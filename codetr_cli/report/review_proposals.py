"""Proposed corrections as a file for a labelling tool, where somebody decides about each.

It has the images with findings, their annotations as they are and, marked, the proposals beside them. No annotation is
changed or removed.

COCO: proposals are annotations with new ids and the key `proposed`, those in question have the key `suspected`.
CVAT and labelme: proposals and those in question say so in the attribute `review`, or in their description.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.label_errors import Action, LabelError
from codetr_cli.annotations.annotation_json import UnusableFileError, id_number, part_of_table, read_json_file
from codetr_cli.annotations.objects import Annotations
from codetr_cli.annotations.run_length_codes import OutlineError
from codetr_cli.data.writers.content import WrittenClasses, WrittenImage, WrittenObject
from codetr_cli.data.writers.folder import check_replaceable, receipt_of, record_folder
from codetr_cli.data.writers.names import NamePlan
from codetr_cli.data.writers.write import WRITERS
from codetr_cli.errors import DatasetError
from codetr_cli.files import replace_folder

ProposalFormat = Literal["coco", "cvat", "labelme"]
FORMATS: tuple[ProposalFormat, ...] = get_args(ProposalFormat)
NAMES: Mapping[ProposalFormat, str] = {
    "coco": "proposals.json",
    "cvat": "proposals_cvat",
    "labelme": "proposals_labelme",
}
"""File or folder of each format."""
BY = "review"
BOX_DIGITS = 2
NOTES: Mapping[Action, str] = {"split": "several objects?", "unmark crowd": "one object, no crowd?"}
"""What is asked about an annotation or a proposal, by the action that corrects it; of others the kind is."""


@dataclass(frozen=True)
class Proposal:
    """A box that is proposed.

    Attributes:
        error: what it corrects.
        number: of the finding, from 1.
        box_xyxy: pixels.
    """

    error: LabelError
    number: int
    box_xyxy: tuple[float, float, float, float]


def proposals_of(error: LabelError, number: int) -> list[Proposal]:
    """The boxes that a finding proposes; none where an annotation is to be removed."""
    if error.action == "remove":
        return []
    return [Proposal(error, number, box) for box in error.parts_xyxy or [error.box_xyxy]]


def coco_proposals(errors: Sequence[LabelError], inputs: AnalysisInputs) -> str:
    """The text of a COCO file: annotations of the images with findings, and the proposals.

    Args:
        errors: the findings, the most suspicious first.
        inputs: what was reviewed; with outlines where annotations have them.

    Raises:
        DatasetError: the annotations cannot be read any more.
    """
    return json.dumps(_coco(_by_image(errors), inputs), indent=1) + "\n"


def write_proposals(
    folder: Path,
    layout: ProposalFormat,
    errors: Sequence[LabelError],
    inputs: AnalysisInputs,
    *,
    request: str = "",
    force: bool = False,
) -> None:
    """Writes proposals in a layout that is a folder.

    Args:
        folder: of the results.
        layout: of the files, not COCO.
        errors: as of `coco_proposals`.
        inputs: as of `coco_proposals`.
        request: see `result_files.Result`.
        force: replace what codetr has written.

    Raises:
        ConfigError: a file that codetr did not make is in its place.
        DatasetError: the layout cannot have a name.
        ResourceError: no space left, or the folder cannot be written.
    """
    path = folder / NAMES[layout]
    check_replaceable(path, force=force or (bool(request) and receipt_of(path).get("request") == request))
    with replace_folder(path) as temporary:
        _write_layout(temporary, path, layout, _by_image(errors), inputs)
        record_folder(temporary, {"layout": layout, "request": request}, by=BY, request=request)


def _by_image(errors: Sequence[LabelError]) -> Mapping[int, list[tuple[int, LabelError]]]:
    """Findings with their numbers from 1, by the number of their image."""
    found: dict[int, list[tuple[int, LabelError]]] = defaultdict(list)
    for number, error in enumerate(errors, 1):
        found[error.image].append((number, error))
    return found


# ------------------------------------------------------------------------------------------------------------- COCO


def _coco(by_image: Mapping[int, list[tuple[int, LabelError]]], inputs: AnalysisInputs) -> dict[str, Any]:
    """The tables of the annotation file, of images with findings, and the proposals."""
    path = inputs.paths.annotations_path
    try:
        table = read_json_file(path)
    except UnusableFileError as problem:
        raise DatasetError(f"{path} has changed while it was reviewed: {problem.detail}") from problem
    truth = inputs.ground_truth
    marks = _marks(by_image, truth)
    entry_ids = [record.get("id") for record in table["annotations"]]
    has_outlines = truth.outlines is not None and bool(truth.outlines.present.any())
    free = max((number for each in entry_ids if (number := id_number(each)) is not None), default=0) + 1
    marked = [{**record, **marks.get(entry, {})} for entry, record in enumerate(table["annotations"])]
    ids = {inputs.image_ids[image].item() for image in by_image}
    part = part_of_table({**table, "annotations": marked}, ids, keep=True)
    for findings in by_image.values():
        for number, error in findings:
            replaces = None if error.object_row is None else entry_ids[_entry(truth, error.object_row)]
            for proposal in proposals_of(error, number):
                part["annotations"].append(_record(proposal, free, replaces, has_outlines=has_outlines))
                free += 1
    info = {"description": "proposals of `codetr review`: annotations with the key proposed are no annotations yet"}
    return {**part, "info": info}


def _marks(by_image: Mapping[int, list[tuple[int, LabelError]]], truth: Annotations) -> dict[int, dict[str, Any]]:
    """What is added to the records of annotations in question, by their number in the file."""
    return {
        _entry(truth, error.object_row): {
            "suspected": error.kind,
            "action": error.action,
            "suspicion": round(error.score, 4),
            "finding": number,
            "explanation": error.explanation,
        }
        for findings in by_image.values()
        for number, error in reversed(findings)  # of several, the most suspicious one stays
        if error.object_row is not None
    }


def _record(proposal: Proposal, number: int, replaces: Any, *, has_outlines: bool) -> dict[str, Any]:
    """The record of a proposal; its outline is the box where annotations have outlines, as pycocotools needs one.

    Where they have none, nor has it: CVAT's reader makes a polygon of any outline, and a box without one.
    """
    error = proposal.error
    x1, y1, x2, y2 = proposal.box_xyxy
    box = [round(value, BOX_DIGITS) for value in (x1, y1, x2 - x1, y2 - y1)]
    return {
        "id": number,
        "image_id": error.image_id,
        "category_id": error.category_id,
        "bbox": box,
        "area": round(box[2] * box[3], BOX_DIGITS),
        "iscrowd": 0,
        "segmentation": [_corners(box)] if has_outlines else [],
        "score": round(error.score, 4),
        "proposed": error.kind,
        "action": error.action,
        "replaces": replaces,
        "finding": proposal.number,
        "explanation": error.explanation,
    }


def _corners(box_xywh: Sequence[float]) -> list[float]:
    """The corners of a box (x, y, width, height), one after the other, as pycocotools makes an outline of a box."""
    x1, y1, width, height = box_xywh
    x2, y2 = round(x1 + width, BOX_DIGITS), round(y1 + height, BOX_DIGITS)
    return [x1, y1, x1, y2, x2, y2, x2, y1]


def _entry(truth: Annotations, row: int) -> int:
    """Number in the annotation file of an annotation."""
    return row if truth.outlines is None else int(truth.outlines.entries[row])


# ---------------------------------------------------------------------------------------------------- CVAT, labelme


def _write_layout(
    folder: Path,
    final: Path,
    layout: ProposalFormat,
    by_image: Mapping[int, list[tuple[int, LabelError]]],
    inputs: AnalysisInputs,
) -> None:
    """Writes a folder of labels.

    Args:
        folder: where to.
        final: where it is later, which paths of images are relative to.
        layout: cvat or labelme.
        by_image: findings with their numbers.
        inputs: what was reviewed.
    """
    truth = inputs.ground_truth
    categories = [
        {"id": category_id, "name": name}
        for category_id, name in zip(truth.category_ids, truth.class_names, strict=True)
    ]
    classes = WrittenClasses(truth.class_names, truth.category_ids, {"": categories})
    writer = WRITERS[layout](folder, classes, Counter(), outlines=True)
    names = NamePlan(by_stem=layout == "labelme")
    with closing(writer):
        for image in sorted(by_image):
            height, width = inputs.image_size(image)
            name = names.assign("", inputs.file_name(image))
            label_folder = (final / name).parent.absolute()
            file = os.path.relpath(inputs.image_path(image).absolute(), label_folder) if layout == "labelme" else ""
            objects = [*_current(inputs, image, by_image[image]), *_proposed(truth, by_image[image])]
            writer.add(WrittenImage("", name, width, height, objects, file=file.replace(os.sep, "/")))
        writer.finish()


def _current(inputs: AnalysisInputs, image: int, findings: Sequence[tuple[int, LabelError]]) -> list[WrittenObject]:
    """The annotations of an image; those in question have a note."""
    truth = inputs.ground_truth
    rows = (truth.image_rows == inputs.file_rows[image]).nonzero()[0]
    notes = {error.object_row: _note(error, number) for number, error in reversed(findings)}
    objects = []
    for row in rows.tolist():
        x, y, width, height = truth.boxes_xywh[row].tolist()
        item = WrittenObject(
            int(truth.labels[row]),
            (x, y, x + width, y + height),
            bool(truth.iscrowd[row] or truth.ignore[row]),
            _outline(truth, row),
        )
        objects.append(replace(item, note=notes.get(row, "")))
    return objects


def _outline(truth: Annotations, row: int) -> Any:
    """The outline of an annotation, if it is there and can be read."""
    if truth.outlines is None or not truth.outlines.present[row]:
        return None
    try:
        return truth.outlines.parse(row)
    except OutlineError:
        return None


def _proposed(truth: Annotations, findings: Sequence[tuple[int, LabelError]]) -> list[WrittenObject]:
    labels = {category_id: label for label, category_id in enumerate(truth.category_ids)}
    return [
        WrittenObject(
            labels[error.category_id],
            proposal.box_xyxy,
            score=error.score,
            note=f"proposed: {_note(error, number)}",
            is_proposed=True,
        )
        for number, error in findings
        for proposal in proposals_of(error, number)
    ]


def _note(error: LabelError, number: int) -> str:
    question = NOTES.get(error.action, f"{error.kind}?")
    return f"{question} finding {number}, suspicion {error.score:.2f}: {error.explanation}"
