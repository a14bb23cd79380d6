"""Precision and recall of `codetr review`, by errors that were planted in demo data sets.

    python -m benchmarks.label_errors --work /tmp/label_errors

5 % of the objects get an error of each kind: no box, a wrong class, a loose box (IoU of 0.5 to 0.72 with the true
one), a second box (half of them of another class), one box around two objects of a class or a crowd flag, and as many
boxes of nothing are added. A finding is right if an error of its kind is there (IoU of 0.5), each error once.

"other images": a small network, trained on the demo set as it is, reviews other demo sets, each with other errors.
"without errors": what is found in these sets as they were before. "folds": `--folds` fine-tunes this network K times on
a further set with errors, so that all of its images are judged by a network that has not seen them. "made-up detector":
without a network, as in the tests: one that misses a tenth of the objects, and one that misses 2 %.
No constant of the suspicions was chosen by these data, but by sets of the seeds 0 to 7
(`results/label_errors_development.json`).

The trainings take some minutes each on two idle cores; the same command continues. The result is kept in
`benchmarks/results/label_errors.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from codetr_cli.analysis.label_errors import KINDS, find_label_errors
from codetr_cli.cli import main as codetr
from codetr_cli.data.demo import write_demo
from codetr_cli.runtime.devices import cpu_name
from tests.analysis.label_scenes import inputs_of
from tests.analysis.planted_errors import Planted, noisy_detections, plant, random_content
from tests.analysis.planted_scores import Finding, judge_findings

ROOT = Path(__file__).resolve().parent.parent
SHARE = 0.05
FIRST = (10, 20, 50)
SIDE = 192
TRAINING = (
    *("train.min_steps=100", "train.micro_batch=4"),
    *(f"data.short_sides=[{SIDE - 12},{SIDE}]", f"data.long_side={SIDE}", f"data.crop_short_sides=[{SIDE}]"),
    *(f"data.crop_size=[{SIDE},{SIDE}]", f"test.short_side={SIDE}", f"test.long_side={SIDE}"),
)
FINE_TUNING = ("train.lr=5e-4",)
SEEDS = (11, 12, 13)
FOLDS_SEED = 21


@dataclass(frozen=True)
class Reviewed:
    """A data set with planted errors, what was found in it, and its number of annotations."""

    findings: list[Finding]
    planted: list[Planted]
    annotations: int


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of data, runs and reviews")
    parser.add_argument("--epochs", type=int, default=10, help="of the network")
    parser.add_argument("--images", type=int, default=300, help="of each set that the network reviews")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--fold-epochs", type=int, default=3, help="of each fold's fine-tuning")
    parser.add_argument("--fold-images", type=int, default=300, help="of the set that the folds review")
    parser.add_argument("--load", default="not recorded", help="what else ran on the machine, for the result")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "label_errors.json")
    arguments = parser.parse_args()
    work, started = arguments.work, time.perf_counter()
    network = train(work, arguments.epochs)
    sets = {seed: write_set(work, seed, "val", arguments.images) for seed in SEEDS}
    found = {seed: review(work / f"review_{seed}", planted, network, data) for seed, (data, planted) in sets.items()}
    result = {
        "command": command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": cpu_name(), "load": arguments.load},
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "numpy", "scipy", "pycocotools")},
        "planted": f"errors of each kind in {SHARE:.0%} of the objects",
        "training": f"co_dino_tiny on 400 images without errors, {arguments.epochs} epochs, {', '.join(TRAINING)}",
        "fine_tuning": f"each of {arguments.folds} folds from this network, {arguments.fold_epochs} epochs, "
        f"{', '.join(FINE_TUNING)}",
        "other_images": {
            "seeds": list(SEEDS),
            "AP50_of_right_annotations": [
                ap50(work, seed, work / f"review_{seed}" / "eval" / "detections.json") for seed in SEEDS
            ],
            **joined(list(found.values())),
            "by_seed": {str(seed): scores([each]) for seed, each in found.items()},
        },
        "without_errors": {str(seed): findings_without_errors(work, seed) for seed in SEEDS},
        "folds": folds(work, network, arguments),
        "made_up_detector": joined([made_up(seed, missed=0.1) for seed in SEEDS]),
        "made_up_detector_of_98_percent": joined([made_up(seed, missed=0.02) for seed in SEEDS]),
    }
    result["seconds"] = round(time.perf_counter() - started, 1)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name in ("other_images", "folds", "made_up_detector", "made_up_detector_of_98_percent"):
        for kind, score in {"all": result[name]["all"], **result[name]["kinds"]}.items():
            sys.stdout.write(f"{name} {kind:>12} {json.dumps(score)}\n")


def command() -> str:
    """How this was called, but for the file of the result."""
    words = [word for before, word in pairwise(["", *sys.argv[1:]]) if "--out" not in (before, word)]
    return shlex.join(["python", "-m", "benchmarks.label_errors", *words])


def train(work: Path, epochs: int) -> Path:
    """The run folder of the network, which is trained now, or continued."""
    run = work / "network"
    if not (work / "demo").is_dir():
        write_demo(work / "demo", train=400, val=60, size=256, seed=0)
    metrics = run / "metrics.jsonl"
    if not (metrics.is_file() and '"end"' in metrics.read_text()):
        words = ("--preset", "co_dino_tiny", "--data", work / "demo", "--run", run, "--no-eval")
        _codetr("train", *words, *_set([f"train.epochs={epochs}", *TRAINING]))
    return run


def write_set(work: Path, seed: int, split: str, images: int) -> tuple[Path, list[Planted]]:
    """A demo set with errors; its right annotations are kept beside it."""
    data, right = work / f"data_{seed}", work / f"right_{seed}.json"
    annotations = data / "annotations" / f"instances_{split}2017.json"
    if not right.is_file():
        counts = {"train": 4, "val": 4, split: images}
        write_demo(data, train=counts["train"], val=counts["val"], size=256, seed=seed)
        shutil.copy(annotations, right)
    wrong, planted = plant(json.loads(right.read_text()), SHARE, seed=seed)
    text = json.dumps(wrong)
    if annotations.read_text() != text:
        annotations.write_text(text)
    return data, planted


def review(out: Path, planted: Sequence[Planted], checkpoint: Path, data: Path, *words: object) -> Reviewed:
    """What the command finds."""
    _codetr("review", checkpoint, "--data", data, "--out", out, "--limit", 100_000, *words)
    table = _read(out / "review.json")
    findings = [Finding(each["kind"], each["image_id"], tuple(each["box_xyxy"])) for each in table["findings"]]
    return Reviewed(findings, list(planted), table["objects"])


def folds(work: Path, network: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The scores of `--folds`, over all images of the set."""
    data, planted = write_set(work, FOLDS_SEED, "train", arguments.fold_images)
    out = work / "review_folds"
    settings = _set([f"train.epochs={arguments.fold_epochs}", *FINE_TUNING])
    found = review(out, planted, network, data, "--folds", arguments.folds, *settings)
    detections = [record for part in sorted(out.glob("folds/*/eval/detections.json")) for record in _read(part)]
    (work / "fold_detections.json").write_text(json.dumps(detections))
    return {
        "seed": FOLDS_SEED,
        "folds": len(list(out.glob("folds/*/eval/detections.json"))),
        "AP50_of_right_annotations": ap50(work, FOLDS_SEED, work / "fold_detections.json"),
        **joined([found]),
    }


def ap50(work: Path, seed: int, detections: Path) -> float:
    """AP50 of detections by the annotations without errors."""
    truth = COCO(str(work / f"right_{seed}.json"))
    evaluation = COCOeval(truth, truth.loadRes(_read(detections)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return round(float(evaluation.stats[1]), 3)


def findings_without_errors(work: Path, seed: int) -> dict[str, int]:
    """How many annotations there are, and how many findings of each kind, where no error was planted."""
    out = work / f"review_right_{seed}"
    detections = work / f"review_{seed}" / "eval" / "detections.json"
    images = work / f"data_{seed}" / "val2017"
    words = ("--ann", work / f"right_{seed}.json", "--images", images, "--limit", 100_000, "--out", out)
    _codetr("review", "--detections", detections, *words)
    table = _read(out / "review.json")
    return {"annotations": table["objects"], **table["counts"]}


def made_up(seed: int, *, missed: float) -> Reviewed:
    """What is found by the detector that the tests use, which misses a share of the objects."""
    content = random_content(300, seed=seed)
    wrong, planted = plant(content, SHARE, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        found = find_label_errors(inputs_of(Path(folder), wrong, noisy_detections(content, seed=seed, missed=missed)))
    findings = [Finding(error.kind, error.image_id, error.box_xyxy) for error in found]
    return Reviewed(findings, planted, len(wrong["annotations"]))


def joined(sets: Sequence[Reviewed]) -> dict[str, Any]:
    """Counts and scores of several sets, each with its own list."""
    return {"annotations": sum(each.annotations for each in sets), **scores(sets)}


def scores(sets: Sequence[Reviewed]) -> dict[str, Any]:
    """Precision and recall of each kind and of all, and precision of the first findings of each set's list."""
    judged = [judge_findings(each.findings, each.planted) for each in sets]
    planted = Counter(error.kind for each in sets for error in each.planted)
    return {
        "all": _score([[finding.is_right for finding in each] for each in judged], sum(planted.values())),
        "kinds": {
            kind: {
                **_score([[f.is_right for f in each if f.kind == kind] for each in judged], planted[kind]),
                "on_errors_of_other_kinds": sum(f.kind == kind and f.is_other for each in judged for f in each),
            }
            for kind in KINDS
        },
    }


def _score(orders: Sequence[Sequence[bool]], planted: int) -> dict[str, Any]:
    """From whether each finding is right, the most suspicious first, in each set."""
    found, right = sum(map(len, orders)), sum(map(sum, orders))
    first = {count: [value for order in orders for value in order[:count]] for count in FIRST}
    return {
        "planted": planted,
        "found": found,
        "precision": _share(right, found),
        "recall": _share(right, planted),
        **{f"precision_of_first_{count}": _share(sum(values), len(values)) for count, values in first.items()},
    }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 3) if whole else None


def _set(settings: Sequence[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _codetr(*words: object) -> None:
    device = () if "--detections" in words else ("--device", "cpu")
    code = codetr([*map(str, words), *device])
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
