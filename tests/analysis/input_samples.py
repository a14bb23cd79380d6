"""Small inputs of analyses, with everything that evaluators differ in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.objects import read_annotations
from codetr_cli.formats.resolve import DataPaths
from codetr_cli.inference.detections import DetectionTable
from tests.evaluation.annotation_samples import write_material


def inputs_of(path: Path, detections: DetectionTable, *, masks: bool = False, images: Any = None) -> AnalysisInputs:
    """The inputs of an annotation file; `images` chooses some."""
    paths = DataPaths(path.parent, path, NameRule((str(path.parent),)))
    return AnalysisInputs.of(read_annotations(path, with_outlines=masks), detections, paths, images)


def material(folder: Path, *, seed: int = 0, lvis: bool = False, masks: bool = False) -> AnalysisInputs:
    """Crowds, equal scores and equal IoUs, images without objects, and detections in classes that are not there."""
    detections = write_material(folder / "a.json", seed=seed, lvis=lvis, masks=masks)
    return inputs_of(folder / "a.json", detections, masks=masks)
