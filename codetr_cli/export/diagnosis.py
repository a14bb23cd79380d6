"""What is wrong with an exported file, as far as its detections show it.

Every explanation says how the file's detections, or the checkpoint's, have to be changed for the two to agree. The
first one that makes nearly all agree is the finding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from codetr_cli.config.overrides import replace_settings
from codetr_cli.errors import counted, listed
from codetr_cli.export.agreement import Agreement, compare
from codetr_cli.export.seen import ALL_SCORES, Seen, detect_all, prepare
from codetr_cli.export.tolerances import Tolerance
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.exported.engine import Engine
from codetr_cli.inference.options import DetectOptions, Nms
from codetr_cli.inference.prediction import Prediction

EXPLAINED = 0.2
"""Share of the detections that may still differ when an explanation is right."""
FEW = 0.1
"""Share of the detections that is too small for a cause: with a fault of the graph more differ."""
IMAGES = 3
"""Images that explanations are tried on that run the checkpoint again."""

NORMALISATIONS: dict[str, dict[str, Any]] = {
    "the input is not normalised": {"data.mean": (0.0, 0.0, 0.0), "data.std": (1.0, 1.0, 1.0)},
    "the input is in [0, 1], without mean and standard deviation": {
        "data.mean": (0.0, 0.0, 0.0),
        "data.std": (255.0, 255.0, 255.0),
    },
    "the input is in [-1, 1], without mean and standard deviation": {
        "data.mean": (127.5, 127.5, 127.5),
        "data.std": (127.5, 127.5, 127.5),
    },
    "the input is not divided by the standard deviation": {"data.std": (1.0, 1.0, 1.0)},
}


def explain(
    seen: Sequence[Seen],
    passed: Collection[tuple[str, int]],
    reference: Detector,
    tolerance: Tolerance,
    engine: Engine | None = None,
    *,
    is_explained: bool = False,
) -> list[str]:
    """Sentences on what differs, and what is the cause as far as it can be known.

    Args:
        seen: all images of the verification.
        passed: (shape, batch) of those whose differences are allowed.
        reference: the checkpoint.
        tolerance: of the differences.
        engine: of the file.
        is_explained: a cause is known already, e.g. other weights, so that none is guessed.
    """
    failed = [one for one in seen if (one.shape, one.batch) not in passed and one.agreement.compared]
    found = _where(seen, failed, passed)
    single = {shape for shape, batch in passed if batch == 1}
    if not any(one.batch == 1 for one in failed) and single:
        return [found, _batch_cause(failed, tolerance)]
    if _disagreement([one.agreement for one in failed]) <= FEW:  # every change that changes little would explain it
        return [found, _inexact(engine)]
    causes: Iterator[str | None] = (
        cause(failed, tolerance) for cause in (_class_cause, _box_cause, _shift_cause, _score_cause)
    )
    cause = next((text for text in causes if text), None) or _rerun_cause(failed, reference, tolerance)
    if cause is None and single:
        cause = f"{listed(sorted(single))} images agree: the graph was made for the size of their input.".capitalize()
    if cause is None and is_explained:
        return [found]
    return [found, cause or _unknown_cause(engine)]


def _where(seen: Sequence[Seen], failed: Sequence[Seen], passed: Collection[tuple[str, int]]) -> str:
    """The largest differences, and which images they are in."""
    agreements = [one.agreement for one in failed]
    scores = max((float(np.abs(one.score_differences).max(initial=0)) for one in agreements), default=0.0)
    boxes = max((float(np.abs(one.box_differences).max(initial=0)) for one in agreements), default=0.0)
    wrong, compared = sum(one.wrong for one in agreements), sum(one.compared for one in agreements)
    alone = sum(len(one.missing) + len(one.extra) for one in agreements)
    cases = dict.fromkeys((one.shape, one.batch, one.input_size) for one in failed)
    names = [f"{shape} images{f' in batches of {batch}' if batch > 1 else ''}" for shape, batch, _ in cases]
    only = f" Only {listed(list(dict.fromkeys(names)), 4)} differ." if passed else ""
    return (
        f"{wrong} of {counted(compared, 'detection')} differ: {alone} without counterpart, scores by up to "
        f"{scores:.3g}, boxes by up to {boxes:.3g} pixels.{only}"
    )


def _agree(pairs: Sequence[Agreement]) -> bool:
    """Whether nearly all detections agree."""
    return _disagreement(pairs) <= EXPLAINED


def _disagreement(pairs: Sequence[Agreement]) -> float:
    """The share of the detections that do not agree."""
    compared = sum(one.compared for one in pairs)
    return sum(one.wrong for one in pairs) / compared if compared else 1.0


def _changed(
    failed: Sequence[Seen], tolerance: Tolerance, change: Callable[[Seen, Prediction], Prediction]
) -> list[Agreement]:
    """The agreement of the checkpoint with changed detections of the file."""
    return [
        compare(one.agreement.reference, change(one, one.agreement.other), tolerance, scale=one.reading.scale)
        for one in failed
    ]


# -------------------------------------------------------------------------------------------- changes of the detections


def _class_cause(failed: Sequence[Seen], tolerance: Tolerance) -> str | None:
    loose = [
        compare(one.agreement.reference, one.agreement.other, tolerance, scale=one.reading.scale, any_class=True)
        for one in failed
    ]
    labels: Counter[tuple[int, int]] = Counter()
    for one in loose:
        pairs = zip(one.reference.labels[one.rows[:, 0]], one.other.labels[one.rows[:, 1]], strict=True)
        labels.update((int(first), int(second)) for first, second in pairs)
    becomes: dict[int, int] = {}
    for (first, second), _ in labels.most_common():
        becomes.setdefault(first, second)
    moved = {first: second for first, second in becomes.items() if first != second}
    back = {second: first for first, second in becomes.items()}
    if not moved:
        return None

    def restore(_: Seen, prediction: Prediction) -> Prediction:
        return replace(
            prediction, labels=np.array([back.get(int(row), int(row)) for row in prediction.labels], np.int64)
        )

    if not _agree(_changed(failed, tolerance, restore)):
        return None
    names = failed[0].agreement.reference.classes
    texts = [f"{names[first]} of the checkpoint is {names[second]} of the file" for first, second in moved.items()]
    return f"The classes of the outputs are in another order: {listed(texts, 4)}; boxes and scores agree."


def _box_cause(failed: Sequence[Seen], tolerance: Tolerance) -> str | None:
    def padded(one: Seen) -> np.ndarray:
        height, width = one.input_size
        valid = one.reading.reference.target["size"]
        return np.array([width / valid[1], height / valid[0]] * 2, np.float32)

    def scale(one: Seen) -> np.ndarray:
        return np.array(one.reading.scale * 2, np.float32)

    def sides(one: Seen) -> np.ndarray:
        height, width = one.agreement.reference.image_size
        return np.array([width, height] * 2, np.float32)

    swapped = [1, 0, 3, 2]
    changes: dict[str, Callable[[Seen, np.ndarray], np.ndarray]] = {
        "x and y of the boxes are swapped": lambda one, boxes: (boxes / sides(one))[:, swapped] * sides(one),
        "x and y of the boxes in pixels are swapped": lambda _, boxes: boxes[:, swapped],
        "its boxes are relative to the padded input instead of the image": lambda one, boxes: boxes * padded(one),
        "its boxes are relative to the image instead of the padded input": lambda one, boxes: boxes / padded(one),
        "its boxes are in pixels of the input instead of the image": lambda one, boxes: boxes / scale(one),
    }
    for text, change in changes.items():
        if _agree(_changed(failed, tolerance, partial(_with_boxes, change))):
            return f"The boxes are in another form: {text}; classes and scores agree."
    return None


def _with_boxes(change: Callable[[Seen, np.ndarray], np.ndarray], one: Seen, prediction: Prediction) -> Prediction:
    return replace(prediction, boxes=change(one, prediction.boxes))


def _shift_cause(failed: Sequence[Seen], tolerance: Tolerance) -> str | None:
    """Classes and scores agree, rank by rank, and boxes do not."""
    ranked = [_ranked_box_differences(one, tolerance) for one in failed]
    count = sum(int((one.agreement.reference.scores >= one.agreement.floor).sum()) for one in failed)
    differences = np.concatenate(ranked)
    if len(differences) < (1 - EXPLAINED) * max(count, 1):
        return None
    shift = np.median(differences, axis=0)  # (4,) in pixels of the input
    if np.abs(differences).max() < tolerance.box_px:
        return None
    return (
        "Classes and scores agree, and boxes do not: x1, y1, x2, y2 differ by "
        f"{', '.join(f'{value:+.2f}' for value in shift)} pixels of the input (median)."
    )


def _ranked_box_differences(one: Seen, tolerance: Tolerance) -> np.ndarray:
    """Differences (N, 4), in pixels of the input, of boxes whose rank, class and score agree, wherever they are."""
    ours, theirs = one.agreement.reference, one.agreement.other
    count = min(len(ours), len(theirs))
    same = (ours.labels[:count] == theirs.labels[:count]) & (
        np.abs(ours.scores[:count] - theirs.scores[:count]) <= tolerance.score * ours.scores[:count]
    )
    differences = (theirs.boxes[:count] - ours.boxes[:count])[same & (ours.scores[:count] >= one.agreement.floor)]
    scaled: np.ndarray = differences * np.array(one.reading.scale * 2)
    return scaled


def _score_cause(failed: Sequence[Seen], tolerance: Tolerance) -> str | None:
    """Boxes agree and scores do not."""
    scores = np.concatenate([one.agreement.score_differences for one in failed])
    boxes = np.concatenate([np.abs(one.agreement.box_differences) for one in failed])
    if not len(scores) or (boxes.max(axis=1) > tolerance.box_px).mean() > EXPLAINED:
        return None
    median = float(np.median(scores))
    same = float((np.abs(scores - median) < abs(median) / 2).mean())
    if abs(median) <= tolerance.score * 0.05 or same < 1 - EXPLAINED:
        return None
    return f"The boxes agree, and the scores are {'higher' if median > 0 else 'lower'} by about {abs(median):.3g}."


# -------------------------------------------------------------------------------------------------- batches and sizes


def _batch_cause(failed: Sequence[Seen], tolerance: Tolerance) -> str:
    """Every image alone agrees."""
    loose = replace(tolerance, box_px=20 * tolerance.box_px)
    for one in failed:
        for other in failed:
            if other.group is one.group and other.row != one.row:
                pair = compare(_in_thousandths(other.agreement.reference), _in_thousandths(one.agreement.other), loose)
                if _agree([pair]) and not _agree([one.agreement]):
                    return (
                        f"The file mixes the images of a batch: image {one.row + 1} gets the detections of image "
                        f"{other.row + 1}. Alone, every image agrees."
                    )
    return (
        "Alone, every image agrees: the graph was made for one image, or its results depend on the other images of the "
        "batch."
    )


def _in_thousandths(prediction: Prediction) -> Prediction:
    height, width = prediction.image_size
    return replace(prediction, boxes=prediction.boxes * np.array([1000 / width, 1000 / height] * 2, np.float32))


# -------------------------------------------------------------------------------------------- changes of the checkpoint


def _rerun_cause(failed: Sequence[Seen], reference: Detector, tolerance: Tolerance) -> str | None:
    """What the checkpoint would have to do to detect the same as the file."""
    some = [one for one in failed if one.batch == 1][:IMAGES]
    detect: dict[str, Callable[[Seen], Prediction]] = {}

    def swapped(one: Seen) -> Prediction:
        image = replace(one.reading.image, pixels=np.ascontiguousarray(one.reading.image.pixels[..., ::-1]))
        return detect_all(reference, [prepare(reference, image)])[0]

    detect["the input is taken as BGR instead of RGB"] = swapped
    for text, changes in NORMALISATIONS.items():
        settings = replace_settings(reference.loaded.settings, changes)
        changed = Detector(replace(reference.loaded, settings=settings), device=reference.device)
        detect[text] = partial(_detect_again, changed, ALL_SCORES)
    kinds: tuple[Nms, ...] = ("none", "hard", "soft")
    for nms in kinds:
        if nms != reference.loaded.settings.test.nms:
            options = replace(ALL_SCORES, nms=nms)
            detect[f"NMS is {nms!r}"] = partial(_detect_again, reference, options)

    def disagreement(text: str) -> float:
        return _disagreement(
            [compare(detect[text](one), one.agreement.other, tolerance, scale=one.reading.scale) for one in some]
        )

    shares = {text: disagreement(text) for text in detect}
    best = min(shares, key=lambda text: shares[text])
    if shares[best] > EXPLAINED:
        return None
    return f"What differs is that {best}: the checkpoint detects the same when it does so."


def _detect_again(detector: Detector, options: DetectOptions, one: Seen) -> Prediction:
    return detect_all(detector, one.group, options)[one.row]


def _inexact(engine: Engine | None) -> str:
    return (
        "All others agree, so that classes, boxes and preprocessing are right: the arithmetic of "
        f"{_library(engine)}, or its sampling (GridSample), is less exact than this precision should be."
    )


def _library(engine: Engine | None) -> str:
    return "the library that runs it" if engine is None else engine.info.library


def _unknown_cause(engine: Engine | None) -> str:
    return (
        "Neither classes, boxes, colours, a missing normalisation nor NMS explain it: the graph computes something "
        "else, because of other numbers of the normalisation, the size it was made for, its sampling (GridSample) or "
        f"the arithmetic of {_library(engine)}."
    )
