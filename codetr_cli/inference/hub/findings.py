"""What the report of an evaluation adds to a model card: the interval of the AP, and which errors cost most.

Only a report of the same weights counts; `codetr eval --report` writes the hash of the checkpoint's content into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codetr_cli.reading import parse_json, read_bytes
from codetr_cli.runs.lineage import run_of
from codetr_cli.runs.metrics_log import has_numbers

REPORT_NAME = "report*.json"
REPORT_KIND = "codetr report"
MAX_REPORT_BYTES = 256 << 20
MAX_REPORTS = 100
SAME_AP = 1e-5


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a report says about an evaluation.

    Attributes:
        ap: box AP of the report, in [0, 1].
        ap_interval: 95 % interval of it by resampling the images; None: it has none.
        error_costs: AP50 in [0, 1] that is lost by each type of error, the most first.
        threshold: score with the best F1-score over all classes; None: it has none.
    """

    ap: float
    ap_interval: tuple[float, float] | None = None
    error_costs: Mapping[str, float] = field(default_factory=dict)
    threshold: float | None = None


def find_findings(weights: Path, *, content: str | None, ap: float) -> Findings | None:
    """What a report beside a checkpoint says; None: there is none of these weights and this AP.

    Args:
        weights: the checkpoint's file, possibly in a run folder.
        content: hash of its content.
        ap: box AP of the evaluation that the card shows.
    """
    place = run_of(weights) or weights.parent
    paths = sorted({*place.glob(REPORT_NAME), *place.glob(f"eval/**/{REPORT_NAME}")})[:MAX_REPORTS]
    for path in paths if content else ():
        found = _read(path, content)
        if found is not None and abs(found.ap - ap) < SAME_AP:
            return found
    return None


def _read(path: Path, content: str | None) -> Findings | None:
    try:
        table = parse_json(read_bytes(path, MAX_REPORT_BYTES))
    except (OSError, ValueError):
        return None
    if not isinstance(table, dict) or table.get("kind") != REPORT_KIND:
        return None
    facts, metrics, analysis = (_table(table, name) for name in ("facts", "metrics", "analysis"))
    if facts.get("weights") != content or not has_numbers(metrics, "AP"):
        return None
    costs = _table(_table(analysis, "errors"), "delta_ap")
    known = {name: float(costs[name]) for name in costs if has_numbers(costs, name) and costs[name] > 0}
    interval = analysis.get("ap_interval")
    ends = dict(enumerate(interval)) if isinstance(interval, list) and len(interval) == 2 else {}
    is_interval = has_numbers({str(key): value for key, value in ends.items()}, "0", "1")
    return Findings(
        ap=float(metrics["AP"]),
        ap_interval=(float(ends[0]), float(ends[1])) if is_interval else None,
        error_costs=dict(sorted(known.items(), key=lambda item: -item[1])),
        threshold=float(analysis["threshold"]) if has_numbers(analysis, "threshold") else None,
    )


def _table(parent: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = parent.get(name)
    return value if isinstance(value, dict) else {}
