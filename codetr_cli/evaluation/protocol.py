"""The protocol of an AP in one line, and whether the published AP was measured by the same protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from codetr_cli.config.presets import load_preset, preset_names
from codetr_cli.config.schema import Settings
from codetr_cli.evaluation.request import EvalRequest
from codetr_cli.evaluation.scoring import COCO_CONVENTION, LVIS_CONVENTION, MASK_PREFIX
from codetr_cli.inference.options import TileOptions
from codetr_cli.inference.tiling import Tiling
from codetr_cli.inference.tta import Augmentation, size_text

PUBLISHED_IMAGES = {"coco": ("COCO val2017", 5000), "lvis": ("LVIS v1 val", 19809)}
"""The images of the published numbers, by `data.dataset`; for Objects365 none were published."""

DECISIVE = (
    *("short_side", "long_side", "canvas", "fixed_size"),
    *("max_detections", "candidates", "nms", "nms_iou", "nms_min_score", "head"),
)
"""Test settings that change numbers."""

JSON_KEYS = {"scorer": "engine", "skipped": "left_out"}
"""Keys of `--json` that differ from the attributes of a protocol."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How detections were made and scored.

    Attributes:
        views: "single scale 800x1333", or the views of test-time augmentation, or tiles.
        suppression: which NMS, in words.
        max_detections: kept per image; None where an auxiliary head decides.
        head: the head that detects.
        precision: of the network's arithmetic.
        split: which part of which annotations.
        images: number of scored images.
        metrics: "COCO box", "COCO box and mask", "LVIS box" or "LVIS box and mask".
        scorer: the scoring backend with its version.
        convention: what each column counts.
        skipped: number of images that are not scored, because their files cannot be read.
        runtime: the library that ran an exported file, with its provider and precision; None: a checkpoint in PyTorch.
    """

    views: str
    suppression: str
    max_detections: int | None
    head: str
    precision: str
    split: str
    images: int
    metrics: str
    scorer: str
    convention: str
    skipped: int = 0
    runtime: str | None = None

    def __str__(self) -> str:
        kept = "" if self.max_detections is None else f", up to {self.max_detections} detections per image"
        total = self.images + self.skipped
        without = f" ({self.skipped} of {total} skipped: their files cannot be read)" if self.skipped else ""
        return (
            f"{self.views}, {self.suppression}{kept}, {self.head} head, {self.runtime or self.precision}; "
            f"{self.split}, {self.images} images{without}; {self.metrics} metrics by {self.scorer}: {self.convention}"
        )

    def as_dict(self) -> dict[str, Any]:
        """The parts by name, for `--json`."""
        return {JSON_KEYS.get(name, name): value for name, value in asdict(self).items()}


def metric_names(*, lvis: bool, masks: bool) -> tuple[str, str]:
    """The `metrics` and the `convention` of a protocol."""
    name = f"{'LVIS' if lvis else 'COCO'} box{' and mask' if masks else ''}"
    return name, LVIS_CONVENTION if lvis else COCO_CONVENTION


def describe_protocol(request: EvalRequest, *, scorer: str, images: int, skipped: int = 0) -> Protocol:
    """The protocol of an evaluation; the numbers are as in `Protocol`."""
    postprocess, augmentation = request.postprocess, request.augmentation
    own_nms = postprocess.head != "decoder"
    suppression = {
        "none": "no NMS",
        "hard": f"NMS at IoU {postprocess.nms_iou:g}",
        "soft": f"soft-NMS at IoU {postprocess.nms_iou:g} over {postprocess.candidates}",
    }[postprocess.nms]
    views = f"single scale {size_text(request.settings.test)}"
    if own_nms:
        suppression = "with that head's own NMS"
    max_detections = None if own_nms and augmentation is None else postprocess.max_detections
    if isinstance(augmentation, Tiling):
        views, max_detections = describe_tiles(augmentation), augmentation.max_detections
        suppression = f"fragments at borders of tiles dropped or stitched, repeats matched, {suppression}"
    elif augmentation is not None:
        views = describe_views(augmentation)
        merged = f"merged by soft-NMS at IoU {postprocess.nms_iou:g}"
        suppression = f"{suppression}, {merged}" if own_nms else merged
    metrics, convention = metric_names(lvis=request.ground_truth.is_lvis, masks=request.masks)
    if request.has_tiles and not request.ground_truth.is_lvis:
        convention += "; AP@N at N"
    return Protocol(
        views=views,
        suppression=suppression,
        max_detections=max_detections,
        head=postprocess.head,
        precision=request.precision,
        split=request.split,
        images=images,
        metrics=metrics,
        scorer=scorer,
        convention=convention,
        skipped=skipped,
        runtime=request.runtime,
    )


def describe_tiles(tiling: Tiling) -> str:
    """Tiles in words."""
    height, width = tiling.tile_size((1, 1))
    upright = f" ({height}x{width} in upright images)" if tiling.rotates_tiles and height != width else ""
    whole = " and of the whole image" if tiling.options.whole else ""
    size = size_text(tiling.test)
    return f"tiles of {width}x{height}{upright}, overlap {tiling.options.overlap:g}{whole}, each at {size}"


def describe_views(augmentation: Augmentation) -> str:
    """The views of test-time augmentation in words."""
    sizes = list(dict.fromkeys(view.size for view in augmentation.views))
    mirrored = ", each also mirrored" if any(view.flip for view in augmentation.views) else ""
    count = "1 view" if len(augmentation.views) == 1 else f"{len(augmentation.views)} views"
    return f"TTA of {count} ({', '.join(sizes)}{mirrored})"


COMPARED_PARTS = {
    "views": "",
    "suppression": "",
    "max_detections": "detections per image: ",
    "head": "head: ",
    "runtime": "run by ",
    "precision": "precision: ",
}
"""Parts of a protocol that change detections -> what precedes them in a text."""


def protocol_differences(
    first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str] = ("A", "B")
) -> list[str]:
    """How the detections of two evaluations were made differently, phrases.

    Args:
        first: parts of a protocol as `Protocol.as_dict` has them; empty: not recorded.
        second: of the other.
        names: of both.
    """
    if not first and not second:
        return []
    if not first or not second:
        unknown = names[0] if not first else names[1]
        return [f"how the detections of {unknown} were made is not recorded"]
    return [
        f"{before}{_part(part, first)} ({names[0]}), {_part(part, second)} ({names[1]})"
        for part, before in COMPARED_PARTS.items()
        if first.get(part) != second.get(part)
    ]


def _part(name: str, parts: Mapping[str, Any]) -> str:
    value = parts.get(name)
    if value is not None:
        return str(value)
    return {"runtime": "PyTorch", "max_detections": "as the head decides"}.get(name, "not recorded")


@dataclass(frozen=True)
class Published:
    """The published AP of a preset, and how a measurement differs from its protocol.

    Attributes:
        box_ap: in percent; None if none was published.
        mask_ap: in percent; None if none was published.
        differences: from the published protocol; empty: the numbers are comparable.
    """

    box_ap: float | None
    mask_ap: float | None
    differences: list[str] = field(default_factory=list)

    def sentence(self, metrics: Mapping[str, float]) -> str:
        """The comparison with measured metrics, in [0, 1], in one sentence."""
        numbers = [("box", self.box_ap, metrics.get("AP")), ("mask", self.mask_ap, metrics.get(f"{MASK_PREFIX}AP"))]
        known = [(kind, ap, measured) for kind, ap, measured in numbers if ap is not None]
        if self.differences:
            published = " and ".join(f"{kind} AP {ap:.1f}" for kind, ap, _ in known)
            return f"Not comparable with the published {published}: {'; '.join(self.differences)}."
        return "By the protocol of the published numbers: " + ", ".join(
            f"{kind} AP {ap:.1f} published"
            + (f", {100 * measured:.1f} here ({100 * measured - ap:+.1f})" if measured is not None else "")
            for kind, ap, measured in known
        )

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "comparable": not self.differences}


def find_published(
    settings: Settings,
    *,
    tta: bool,
    tiles: TileOptions | None = None,
    precision: str,
    split: str,
    images: int,
    trained: bool,
) -> Published | None:
    """The AP published for the preset that settings come from, and how a measurement differs from its protocol.

    Args:
        settings: of the evaluation.
        tta: with test-time augmentation.
        tiles: that images were cut into; None: they were seen as a whole.
        precision: of the network's arithmetic.
        split: "val", or the name of an annotation file.
        images: number of scored images.
        trained: whether the weights are not random.

    Returns:
        None if nothing was published for the preset, or the settings have another number of classes.
    """
    if settings.name not in preset_names():
        return None
    preset = load_preset(settings.name)
    source = preset.source
    if (source.box_ap is None and source.mask_ap is None) or settings.model.num_classes != preset.model.num_classes:
        return None
    differences = [] if trained else ["random weights"]
    if tta:
        ap = source.box_ap_tta
        with_tta = "" if ap is None else f" (with TTA, box AP {ap:.1f} by views that were not published)"
        differences.append(f"test-time augmentation instead of a single scale{with_tta}")
    if tiles is not None:
        differences.append(f"{tiles} instead of a single scale")
    for name in DECISIVE:
        ours, theirs = getattr(settings.test, name), getattr(preset.test, name)
        if ours != theirs:
            found, expected = ("unset" if value is None else value for value in (ours, theirs))
            differences.append(f"test.{name} is {found} instead of {expected}")
    if settings.data.dataset != preset.data.dataset:
        differences.append(f"{settings.data.dataset} annotations instead of {preset.data.dataset}")
    data, count = PUBLISHED_IMAGES.get(preset.data.dataset, ("", images))
    if images != count or "val" not in split:
        differences.append(f"{images} images of {split} instead of the {count:,} of {data}")
    if precision != "fp32":
        differences.append(f"{precision} instead of fp32")
    return Published(source.box_ap, source.mask_ap, differences)
