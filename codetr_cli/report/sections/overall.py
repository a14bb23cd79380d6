"""AP with its interval and the published figure beside it, and all metrics by name."""

from __future__ import annotations

from markupsafe import Markup

from codetr_cli.evaluation.scoring import MASK_PREFIX
from codetr_cli.report.facts import ReportFacts
from codetr_cli.report.markup import element, joined
from codetr_cli.report.page import Column, Section, Table

Limits = tuple[float, float]
"""Low and high end of an interval."""

LEAD = (
    "AP is the mean of the precision over recalls, IoU thresholds from 0.50 to 0.95 and classes: 1 is perfect. The "
    "interval says how far AP would move with other images of the same kind; a difference inside it may be chance."
)
WORDS = {
    "AP": "over IoU 0.50 to 0.95",
    "AP50": "at IoU 0.50: found at roughly the right place",
    "AP75": "at IoU 0.75: found at the right place",
    "APs": "small objects, under 32² pixels",
    "APm": "medium objects, 32² to 96² pixels",
    "APl": "large objects, over 96² pixels",
    "APr": "rare classes: in up to 10 training images",
    "APc": "common classes: in 11 to 100 training images",
    "APf": "frequent classes: in more than 100 training images",
    "ARs": "recall of small objects",
    "ARm": "recall of medium objects",
    "ARl": "recall of large objects",
}


def meaning(name: str, *, is_lvis: bool = False) -> str:
    """What a metric is, in a few words; by LVIS's rules the detections of all classes in an image count together."""
    plain = name.removeprefix(MASK_PREFIX)
    what = "masks: " if name.startswith(MASK_PREFIX) else ""
    if plain.startswith("AR") and plain[2:].isdigit():
        number = "1 detection" if plain == "AR1" else f"{plain[2:]} detections"
        return (
            f"{what}recall with up to {number} {'' if is_lvis else 'of a class '}per image, mean over classes and IoU"
        )
    if plain.startswith("AP@"):
        return f"{what}AP with up to {plain[3:]} detections per image"
    return what + WORDS.get(plain, "")


def summary_text(facts: ReportFacts, interval: Limits | None, objects: int) -> Markup:
    """The answer in one line; `objects` are those to find."""
    ap = facts.metrics.get("AP", -1.0)
    if ap < 0:
        return element("p", "There is no annotated object to find: AP is not defined.")
    between = "" if interval is None else f", 95 % interval {interval[0]:.3f} to {interval[1]:.3f}"
    masks = facts.metrics.get(f"{MASK_PREFIX}AP", -1.0)
    text = f"AP {ap:.3f}{between}" + (f"; mask AP {masks:.3f}" if masks >= 0 else "")
    return element("p", element("strong", text), f", on {facts.images:,} images with {objects:,} objects.")


def overall_section(facts: ReportFacts, interval: Limits | None, interval50: Limits | None) -> Section:
    """The section of the whole evaluation.

    Args:
        facts: of the evaluation.
        interval: 95 % of AP; None: not computed.
        interval50: 95 % of AP50.
    """
    metrics = facts.metrics
    tiles = [
        _tile("AP", metrics.get("AP"), _between(interval)),
        _tile("AP50", metrics.get("AP50"), _between(interval50)),
    ]
    tiles += [_tile(name, metrics[name]) for name in ("AP75", "AR100", "AR300") if name in metrics]
    if f"{MASK_PREFIX}AP" in metrics:
        tiles.append(_tile("mask AP", metrics[f"{MASK_PREFIX}AP"]))
    published = facts.published_ap
    if published is not None and published.box_ap is not None:
        tiles.append(
            _tile("published AP", published.box_ap / 100, "" if not published.differences else "other protocol")
        )
    parts: list[Table | Markup] = [element("ul", joined(tiles), class_="tiles")]
    if published is not None:
        parts.append(element("p", published.sentence({k: v for k, v in metrics.items() if v >= 0})))
    if interval is not None:
        text = (
            "Interval: the middle 95 % of the APs of data sets of as many images, sampled from these with replacement "
            "(bootstrap). Fewer different images give a higher AP, so these are shifted until their mean is the AP of "
            "all images."
        )
        parts.append(element("p", text, class_="hint"))
    is_lvis = "APr" in metrics
    rows = [(name, None if value < 0 else value, meaning(name, is_lvis=is_lvis)) for name, value in metrics.items()]
    columns = [Column("metric"), Column("value", "score"), Column("meaning", "text prose")]
    parts.append(Table("All metrics", columns, rows))
    return Section("overall", "Overall", LEAD, parts)


def _between(limits: Limits | None) -> str:
    return "" if limits is None else f"{limits[0]:.3f} to {limits[1]:.3f}"


def _tile(name: str, value: float | None, below: str = "") -> Markup:
    shown = "-" if value is None or value < 0 else f"{value:.3f}"
    return element("li", element("span", name), element("b", shown), element("small", below) if below else "")
