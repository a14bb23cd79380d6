"""A comparison of runs from what the user gives to its numbers; all others are compared with the first."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from codetr_cli.analysis.bootstrap import SAMPLES
from codetr_cli.analysis.common_ground import common_ground
from codetr_cli.analysis.differences import Difference
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.jsonable import jsonable
from codetr_cli.analysis.run_comparison import RunComparison, class_caution, compare_runs
from codetr_cli.analysis.run_numbers import STEPS, RunNumbers, measure_run
from codetr_cli.evaluation.protocol import protocol_differences
from codetr_cli.files import real_path
from codetr_cli.formats.resolve import DataPaths
from codetr_cli.report.compared_inputs import read_sides
from codetr_cli.report.result_sources import ResultSource
from codetr_cli.report.stored_numbers import check_same_data, fingerprint_of, numbers_of_report, with_samples

TOLERANCE = 1e-6
"""Between an AP that is recorded and the same measured again."""


@dataclass(frozen=True, kw_only=True)
class ComparedRuns:
    """Runs and their comparison.

    Attributes:
        sources: in the order given.
        names: "A", "B", ...
        numbers: of each run.
        pairs: of each run but the first, with the first.
        protocol: of each pair, how the detections were made differently.
        fingerprint: digest of the compared images and objects.
        notes: on how files were read, and on what is not compared; sentences.
        warnings: on what is probably wrong, sentences.
    """

    sources: Sequence[ResultSource]
    names: list[str]
    numbers: list[RunNumbers]
    pairs: list[RunComparison]
    protocol: list[list[str]]
    fingerprint: str
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def cautions(self) -> list[list[str]]:
        """Of each pair, those that no earlier pair has."""
        seen: set[str] = set()
        found = []
        for pair in self.pairs:
            found.append([each for each in pair.cautions if each not in seen])
            seen.update(pair.cautions)
        return found

    @property
    def images(self) -> int:
        """Number of compared images."""
        return self.numbers[0].scores.images

    @property
    def inputs(self) -> AnalysisInputs | None:
        """Detections of a run with the images and annotations; None: all runs are reports without detections."""
        return next((each.inputs for each in self.numbers if each.inputs is not None), None)

    @property
    def annotations(self) -> str:
        """The file of the annotations that the runs are compared on."""
        if self.inputs is not None:
            return str(self.inputs.paths.annotations_path)
        return str(next((each.annotations for each in self.sources if each.annotations is not None), ""))


def letters(count: int) -> list[str]:
    """A, B, ..., Z, AA, AB, ..."""
    names = [*string.ascii_uppercase, *map("".join, product(string.ascii_uppercase, repeat=2))]
    return names[:count]


def steps(count: int) -> int:
    """How often `compare_results` calls `done` with so many runs."""
    return count * (STEPS + 1)


def compare_results(
    sources: Sequence[ResultSource],
    paths: DataPaths | None,
    *,
    chosen: bool,
    masks: bool = True,
    samples: int = SAMPLES,
    done: Callable[[], object] = lambda: None,
) -> ComparedRuns:
    """Compares results with those of the first source.

    Args:
        sources: at least two, all evaluated.
        paths: of images and annotations; None: all sources are reports without detections.
        chosen: as of `read_sides`.
        masks: whether masks are compared, if all have them.
        samples: resamples of the images; reports without detections have a number of their own.
        done: is called after each of `steps`.

    Raises:
        DatasetError: files cannot be read, or are not comparable.
    """
    names = letters(len(sources))
    stored = {name: numbers_of_report(each.report) for name, each in zip(names, sources, strict=True) if each.report}
    notes = [f"{note}." for source in sources for note in source.notes]
    counts = {len(each.samples["AP"]) for each in stored.values() if each.samples}
    if counts and min(counts) < samples:
        samples = min(counts)
        notes.append(f"Resamples: {samples:,}, as many as the reports have.")
    measured: dict[str, RunNumbers] = {}
    warnings, digest = list[str](), ""
    having = [(name, source) for name, source in zip(names, sources, strict=True) if source.report is None]
    if having:
        assert paths is not None
        of_files = [name for name, _ in having]
        read = read_sides([source for _, source in having], of_files, paths, chosen=chosen, masks=masks, done=done)
        ground = common_ground(read.sides, of_files)
        digest = ground.fingerprint
        notes += [*read.notes, *(f"{note[0].upper()}{note[1:]}." for note in ground.notes)]
        warnings += read.warnings
        for (name, source), before, inputs in zip(having, read.sides, ground.inputs, strict=True):
            measured[name] = measure_run(inputs, samples=samples, masks=read.masks, done=done)
            warnings += _changed_since(source, name, before, measured[name])
    numbers = [measured[name] if name in measured else with_samples(stored[name], samples, masks) for name in names]
    check_same_data(names, sources, numbers, digest)
    return ComparedRuns(
        sources=sources,
        names=names,
        numbers=numbers,
        pairs=[
            compare_runs(numbers[0], other, (names[0], name))
            for other, name in zip(numbers[1:], names[1:], strict=True)
        ],
        protocol=[
            protocol_differences(sources[0].protocol, other.protocol, (names[0], name))
            for other, name in zip(sources[1:], names[1:], strict=True)
        ],
        fingerprint=digest or next(filter(None, (fingerprint_of(each) for each in sources)), ""),
        notes=notes,
        warnings=warnings,
    )


def _changed_since(source: ResultSource, name: str, before: AnalysisInputs, numbers: RunNumbers) -> list[str]:
    """A warning if the AP that an evaluation recorded is not that of its files now.

    Args:
        source: of the detections.
        name: of the run.
        before: its detections, before they were reduced to what all runs have in common.
        numbers: measured after.
    """
    recorded, now = source.metrics.get("AP"), numbers.scores.metrics["AP"]
    after = numbers.inputs
    assert after is not None
    is_same = (
        source.annotations is not None
        and real_path(source.annotations) == real_path(before.paths.annotations_path)
        and len(before.image_ids) == len(after.image_ids)
        and len(before.ground_truth.category_ids) == len(after.ground_truth.category_ids)
    )
    if recorded is None or not is_same or abs(recorded - now) <= TOLERANCE:
        return []
    return [
        f"{name}: its evaluation recorded AP {recorded:.4f}, and its detections have {now:.4f} on the annotations as "
        "they are now: one of the files has changed since."
    ]


# ----------------------------------------------------------------------------------------------------------------- JSON


def comparison_table(compared: ComparedRuns) -> dict[str, Any]:
    """Every number of a comparison, for `--json`."""
    first = compared.numbers[0]
    runs = [
        {
            "name": name,
            "given": source.given,
            "kind": source.kind,
            "detections": source.detections and str(source.detections),
            "report": source.report and str(source.report.path),
            "checkpoint": source.weights and str(source.weights),
            "metrics": {key: None if value < 0 else value for key, value in numbers.scores.metrics.items()},
            "max_detections": numbers.max_detections,
        }
        for name, source, numbers in zip(compared.names, compared.sources, compared.numbers, strict=True)
    ]
    table = {
        "runs": runs,
        "annotations": compared.annotations,
        "images": compared.images,
        "objects": int(first.scores.objects),
        "fingerprint": compared.fingerprint,
        "samples": len(first.samples.get("AP", ())),
        "comparisons": [
            _pair_table(pair, (compared.names[0], name), protocol)
            for pair, name, protocol in zip(compared.pairs, compared.names[1:], compared.protocol, strict=True)
        ],
        "notes": compared.notes,
        "warnings": compared.warnings,
    }
    found: dict[str, Any] = jsonable(table, keep_minus_one=True)  # a difference may be -1
    return found


def _pair_table(pair: RunComparison, names: tuple[str, str], protocol: list[str]) -> dict[str, Any]:
    return {
        "first": names[0],
        "second": names[1],
        "verdict": " ".join(pair.verdict),
        "conclusion": pair.metrics["AP"].conclusion,
        "metrics": {name: difference_table(difference) for name, difference in pair.metrics.items()},
        "per_class": [
            {
                "name": each.name,
                "category_id": each.category_id,
                "objects": each.objects,
                **difference_table(each.ap),
                "clear_among_classes": each.is_clear,
            }
            for each in pair.classes
        ],
        "errors": [
            {
                "name": each.name,
                "AP50_cost": difference_table(each.ap),
                "per_100_images": difference_table(each.per_100_images),
            }
            for each in pair.errors
        ],
        "changed_images": [
            {"image_id": each.image_id, "file_name": each.file_name, "first": each.first, "second": each.second}
            for each in pair.changed
        ],
        "better_images": pair.better_images,
        "worse_images": pair.worse_images,
        "same_detections": pair.same_detections,
        "protocol_differences": protocol,
        "cautions": [*pair.cautions, *filter(None, [class_caution(pair.classes)])],
    }


def difference_table(difference: Difference) -> dict[str, Any]:
    """A difference for JSON."""
    return {
        "first": difference.first,
        "second": difference.second,
        "difference": difference.value,
        "interval": [difference.low, difference.high],
        "conclusion": difference.conclusion,
        "paired": difference.is_sampled,
    }
