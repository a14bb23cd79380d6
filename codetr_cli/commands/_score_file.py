"""`codetr eval --detections`: scores a file of detections of any detector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codetr_cli import console
from codetr_cli.commands._data import show_matching
from codetr_cli.commands._scores import show_scores

if TYPE_CHECKING:
    from codetr_cli.annotations.objects import Annotations
    from codetr_cli.commands._options import ScorerName
    from codetr_cli.commands._report import RequestedReport
    from codetr_cli.evaluation.detection_records import MatchedDetections
    from codetr_cli.formats.resolve import DataPaths


def score_file(
    file: Path,
    paths: DataPaths,
    *,
    overrides: Sequence[str],
    masks: bool,
    max_images: int | None,
    scorer: ScorerName | None,
    protocol: bool,
    per_class: bool,
    report: RequestedReport | None,
) -> None:
    """Scores a file of detections by the rules of the dataset that the annotations belong to, and prints the numbers.

    Args:
        file: of detections in COCO's format.
        paths: of the data; only the annotations are needed.
        overrides: settings as `key=value`.
        masks: score masks too where the file has some.
        max_images: only the first ones; None: all.
        scorer: the backend; None: the fastest one.
        protocol: print the protocol.
        per_class: print the AP of every class.
        report: to write; None: none.
    """
    from codetr_cli.evaluation.backends import choose_backend, scorer_version
    from codetr_cli.evaluation.protocol import metric_names
    from codetr_cli.evaluation.scoring import score_detections

    matched, ground_truth, masks = _read(file, paths, overrides, masks=masks)
    detections = matched.table
    show_matching(matched)
    chosen = choose_backend(scorer, len(detections))
    image_ids = ground_truth.image_ids[:max_images].tolist()
    scores = score_detections(ground_truth, detections, image_ids, where=str(paths.annotations_path), scorer=chosen)
    metrics, convention = metric_names(lvis=ground_truth.is_lvis, masks=masks)
    described = (
        f"{len(detections)} detections of {file}; {paths.annotations_path.stem}, {scores.images} images; {metrics} "
        f"metrics by {scorer_version(chosen)}: {convention}"
    )
    show_scores(scores.metrics, scores.per_class if per_class else [], f"{file.name}, {scores.images} images")
    if protocol:
        console.result(f"Protocol: {described}.")
    written: dict[str, Any] = {}
    if report is not None:
        written["report"] = report.of_file(
            file,
            detections,
            scores,
            ground_truth,
            paths,
            image_ids=image_ids,
            protocol=described,
            notes=[f"{note}." for note in (*matched.notes, *matched.hints)],
        )
        console.result(f"Report: {written['report']['html']}")
    console.result_json(
        {
            **scores.metrics,
            "annotations": str(paths.annotations_path),
            "images": scores.images,
            "objects": scores.objects,
            "protocol": described,
            "per_class": [score.as_dict() for score in scores.per_class],
            "detections": str(file),
            "notes": matched.notes,
            "warnings": matched.hints,
            **written,
        }
    )


def _read(
    file: Path, paths: DataPaths, overrides: Sequence[str], *, masks: bool
) -> tuple[MatchedDetections, Annotations, bool]:
    """The detections, the annotations that they belong to, and whether masks are scored."""
    from codetr_cli.annotations.objects import check_kind, read_annotations
    from codetr_cli.evaluation.data_choice import data_config
    from codetr_cli.evaluation.detection_files import read_detection_file
    from codetr_cli.evaluation.detection_records import has_masks, match_detections

    config, named = data_config(overrides)
    content = read_detection_file(file)
    masks = masks and has_masks(content)
    ground_truth = read_annotations(paths.annotations_path, with_outlines=masks)
    if "data.dataset" in named:
        check_kind(ground_truth, config.dataset, paths.annotations_path)
    return match_detections(content, ground_truth, str(paths.annotations_path), with_masks=masks), ground_truth, masks
