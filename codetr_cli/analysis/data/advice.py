"""What the numbers of a data set suggest to set or to check. Each rule has a threshold and states the counts behind it.

No advice is a result, too: none of the rules applies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from codetr_cli.analysis.data.image_copies import CopiedImages
from codetr_cli.analysis.data.input_size import NetworkLimits
from codetr_cli.analysis.data.split_differences import SplitDifference
from codetr_cli.analysis.data.statistics import COUNTED_BY_AP, SMALL, AtInput, DataStatistics, OtherInput
from codetr_cli.errors import counted, listed

TINY_SHARE = 0.05
"""Of the objects, from which on tiny ones matter: they are most of what a good detector misses then."""
ENLARGED = 2.0
"""Images that are enlarged at least so many times have no details that a smaller input would lose."""
SMALL_SHARE = 0.1
"""Of objects that COCO would call small, up to which a smaller input is suggested."""
FEW_IMAGES = 100
"""Classes in more images are frequent in LVIS (arXiv 1908.03195). All of COCO's are, whose recipes repeat nothing."""
IMBALANCE = 20.0
"""Times as many images of the most frequent class: more than the 16 that four repeats make up for."""
RARE_IMAGES = 10
"""Classes in up to so many training images are rare in LVIS."""
FEW_OBJECTS = 10
"""A class with fewer objects in a validation set: one of them is more than ten points of its recall."""
DIFFERENT = 0.1
"""Total variation distance of two splits from which on it matters, if it is more than chance, too."""
SUPPRESSED_SHARE = 0.01
"""Of the objects, that NMS could suppress."""
MAX_QUERIES = 10_000
"""The largest `model.num_queries` and `test.max_detections`."""
SHOWN = 5


@dataclass(frozen=True)
class Advice:
    """What to do, and the numbers that it comes from.

    Attributes:
        rule: name of the rule.
        text: what to do; an option or a setting where there is one.
        because: the counts.
        source: where the threshold comes from.
    """

    rule: str
    text: str
    because: str
    source: str = ""


def advise(
    statistics: Sequence[DataStatistics],
    limits: NetworkLimits,
    *,
    differences: Sequence[SplitDifference] = (),
    copies: CopiedImages | None = None,
) -> list[Advice]:
    """The advice for a data set, most important first; empty if no rule applies.

    Args:
        statistics: of all splits, made with these limits; training images first.
        limits: of the network.
        differences: of the other splits from the training images.
        copies: of images; None: not looked for.
    """
    if not statistics or not any(each.objects for each in statistics):
        return []
    return [
        *_copies(copies),
        *_queries(statistics, limits),
        *_tiny(statistics),
        *_large_input(statistics),
        *_suppressed(statistics),
        *_classes(statistics, limits),
        *_differences(statistics, differences),
    ]


# -------------------------------------------------------------------------------------------------------------- numbers


def _queries(statistics: Sequence[DataStatistics], limits: NetworkLimits) -> Iterator[Advice]:
    most = max((each.most_objects for each in statistics if each.most_objects), key=lambda pair: pair[1])
    seen = [each.at_input for each in statistics]
    over = sum(each.over_queries for each in seen)
    if over:
        need = math.ceil(most[1] / 100) * 100
        more = f"train with more queries: --set model.num_queries={need}, or use --tiles auto"
        text = more if need <= MAX_QUERIES else "use --tiles auto: the largest model.num_queries is not enough"
        yield Advice(
            "queries",
            text,
            f"{_images(over)} more than {limits.num_queries:,} objects (model.num_queries); the most is {most[1]:,}, "
            f"in {most[0]}",
            "a query detects one object",
        )
    over = sum(each.over_detections for each in seen)
    if over:
        need = min(math.ceil(most[1] / 100) * 100, MAX_QUERIES)
        yield Advice(
            "detections",
            f"keep more detections: --set test.max_detections={need}",
            f"{_images(over)} more than {limits.max_detections:,} objects (test.max_detections); the most is "
            f"{most[1]:,}, in {most[0]}",
            "the others of an image cannot be found",
        )
    counted_by_class = [each for each in statistics if each.split != "train" and not _is_lvis(each)]
    over = sum(each.at_input.over_counted for each in counted_by_class)
    if over:
        yield Advice(
            "counted",
            "use --tiles in `codetr eval`, which adds AP at 300 and 500 detections",
            f"{_images(over)} more than {COUNTED_BY_AP} objects of one class, and AP counts the {COUNTED_BY_AP} best "
            "detections of an image and class: it stays below 1 whatever is detected",
            "COCO's rules: maxDets",
        )


def _tiny(statistics: Sequence[DataStatistics]) -> Iterator[Advice]:
    """Tiles, a larger input, or larger photographs, for objects of which the network sees a few cells only."""
    seen = [each.at_input for each in statistics]
    objects = sum(each.objects for each in statistics)
    tiny = sum(each.tiny for each in seen)
    if tiny < TINY_SHARE * objects:
        return
    below = seen[0].tiny_below
    because = (
        f"{_share(tiny, objects)} of the objects would be under {below:g} pixels at the input size "
        f"{seen[0].input_size} ({tiny:,} of {objects:,})"
    )
    source = f"{below:g} pixels are two cells of the finest map"
    tiled = sum(each.tiny_in_tiles for each in seen)
    if 2 * tiled <= tiny:
        cut = sum(each.cut_images for each in seen)
        yield Advice(
            "tiles",
            "cut large images: --tiles auto in predict and eval, and convert-data --slice for training",
            f"{because}; in tiles {_share(tiled, objects)} would be. {_images(cut, '')} cut",
            source,
        )
        return
    for larger in _summed(seen):
        if larger.factor > 1 and 2 * larger.tiny <= tiny:
            yield Advice(
                "larger input",
                f"use a larger input: {larger.words}",
                f"{because}; with {larger.factor:g} times the input {_share(larger.tiny, objects)} would be, at "
                f"{larger.factor**2:.3g} times the computation",
                source,
            )
            return
    yield Advice(
        "resolution",
        "take photographs of a higher resolution, or nearer",
        f"{because}, and tiles or twice the input would not halve that: they are tiny in the files, too",
        source,
    )


def _large_input(statistics: Sequence[DataStatistics]) -> Iterator[Advice]:
    scales = [each.at_input.scales for each in statistics]
    lowest = min((each.low for each in scales if each is not None), default=0.0)
    objects = sum(each.objects for each in statistics)
    smaller = next(each for each in _summed([each.at_input for each in statistics]) if each.factor < 1)
    if lowest < ENLARGED or smaller.small > SMALL_SHARE * objects:
        return
    few = f"only {_share(smaller.small, objects)}" if 100 * smaller.small >= objects else "fewer than 1 %"
    yield Advice(
        "smaller input",
        f"try a smaller input, which is faster: {smaller.words}",
        f"at the input size {statistics[0].at_input.input_size} 95 % of the images are enlarged {lowest:.3g} times or "
        f"more, and at half of it {few} of the objects would be under {SMALL:g} pixels",
        "enlarging adds no detail, but computation; 32 pixels: COCO's small objects",
    )


def _suppressed(statistics: Sequence[DataStatistics]) -> Iterator[Advice]:
    over = sum(each.at_input.over_nms for each in statistics)
    compared = sum(each.compared_objects for each in statistics)
    if not over or over < SUPPRESSED_SHARE * compared:
        return
    yield Advice(
        "nms",
        "evaluate with --nms none, too: the decoder does not need NMS",
        f"{_share(over, compared)} of the objects overlap another one of their class by more than IoU "
        f"{statistics[0].at_input.nms_iou:g} (test.nms_iou): {over:,} of {compared:,}. If these are objects that are "
        "annotated twice, remove the second",
        "NMS takes the second for a copy of the first",
    )


# --------------------------------------------------------------------------------------------------- classes and splits


def _classes(statistics: Sequence[DataStatistics], limits: NetworkLimits) -> Iterator[Advice]:
    train = statistics[0]
    used = train.used_classes
    if len(used) > 1:
        rarest, most = min(used, key=lambda each: each.images), max(used, key=lambda each: each.images)
        repeats = train.oversampling
        is_rare = rarest.images <= FEW_IMAGES and most.images >= IMBALANCE * rarest.images
        if is_rare and repeats is not None and limits.oversample_threshold is None:
            yield Advice(
                "oversampling",
                f"repeat images of rare classes: --set data.oversample_threshold={repeats.threshold:g}",
                f"the rarest class, {rarest.name}, has {counted(rarest.objects, 'object')} in "
                f"{counted(rarest.images, 'image')}, 1/{most.images / rarest.images:.3g} of the most frequent, "
                f"{most.name}. Images of {_classes_text(repeats.repeated_classes)} would be repeated: an epoch of "
                f"{repeats.images:,} images instead of {repeats.images_before:,}",
                "the repeat factors of LVIS, arXiv 1908.03195",
            )
    few = sorted((each for each in used if each.images <= RARE_IMAGES), key=lambda each: each.images)
    if few:
        yield Advice(
            "few examples",
            "annotate more images of rare classes, or merge or drop these",
            f"{_classes_text(len(few))} of {train.split} {'is' if len(few) == 1 else 'are'} in at most {RARE_IMAGES} "
            f"images: {listed([f'{each.name} ({each.images})' for each in few], SHOWN)}",
            "LVIS's rare classes",
        )
    for other in statistics[1:]:
        rare = sorted((each for each in other.used_classes if each.objects < FEW_OBJECTS), key=lambda e: e.objects)
        if rare:
            yield Advice(
                "few to evaluate",
                f"do not compare the AP of single classes on {other.split}",
                f"{_classes_text(len(rare))} {'has' if len(rare) == 1 else 'have'} fewer than {FEW_OBJECTS} objects "
                f"there: {listed([f'{each.name} ({each.objects})' for each in rare], SHOWN)}",
                "one object is more than ten points of recall",
            )


def _differences(statistics: Sequence[DataStatistics], differences: Sequence[SplitDifference]) -> Iterator[Advice]:
    for each in differences:
        if each.missing:
            names = [f"{name} ({count:,})" for name, count in each.missing]
            yield Advice(
                "missing classes",
                f"divide the images again, so that {each.second} has all classes",
                f"{_classes_text(len(names))} of {each.first} "
                f"{'has' if len(names) == 1 else 'have'} no object in {each.second}, so that no AP is computed: "
                f"{listed(names, SHOWN)}",
                "AP is the mean over classes with objects",
            )
        if each.extra:
            names = [f"{name} ({count:,})" for name, count in each.extra]
            yield Advice(
                "unknown classes",
                f"move images with these classes to {each.first}",
                f"{_classes_text(len(names))} of {each.second} {'has' if len(names) == 1 else 'have'} no object in "
                f"{each.first}, so that AP of each is 0: {listed(names, SHOWN)}",
                "a detector finds only what it was trained on",
            )
        for what, distance in each.distances:
            if distance.value >= DIFFERENT and distance.is_more_than_chance:
                yield Advice(
                    "different splits",
                    f"check that {each.second} is what {each.first} is for",
                    f"the {what} differ: total variation distance {distance.value:.2f}, where 95 % of random divisions "
                    f"of the same images have at most {distance.by_chance:.2f}",
                    f"from {DIFFERENT:g} on, if it is more than chance",
                )


def _copies(copies: CopiedImages | None) -> Iterator[Advice]:
    if copies is None or not copies.across:
        return
    names = [f"{each.split}: {each.name} = {each.first_split}: {each.first_name}" for each in copies.examples]
    yield Advice(
        "copies",
        "remove copies from one of the splits: AP is too high with them",
        f"{counted(copies.across, 'image')} of a split {'is a copy' if copies.across == 1 else 'are copies'} of an "
        f"image of another one: {listed(names, 2, count=copies.across)}",
        "a detector that was trained on an image knows its copy",
    )


# ---------------------------------------------------------------------------------------------------------------- texts


def _summed(seen: Sequence[AtInput]) -> list[OtherInput]:
    """Objects at other inputs, of all splits together."""
    return [
        OtherInput(parts[0].factor, parts[0].words, sum(part.tiny for part in parts), sum(part.small for part in parts))
        for parts in zip(*(each.other_inputs for each in seen), strict=True)
    ]


def _is_lvis(statistics: DataStatistics) -> bool:
    """Whether LVIS's rules apply: they count the best 300 detections of an image, of all classes together."""
    return any(each.frequency is not None for each in statistics.classes)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.3g} %"


def _images(number: int, verb: str = "have") -> str:
    has = {"have": (" has", " have"), "": (" is", " are")}[verb]
    return counted(number, "image") + has[number != 1]


def _classes_text(number: int) -> str:
    return "1 class" if number == 1 else f"{number:,} classes"
