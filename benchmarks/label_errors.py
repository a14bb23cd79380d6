"""Precision and recall of suspected label errors, by errors that were planted in the demo data set.

    python -m benchmarks.label_errors --work /tmp/label_errors

5 % of the objects get an error of each kind: no box, a wrong class, a loose box (IoU of 0.5 to 0.72 with the true
one), a second box (half of them of another class), one box around two objects of a class, or a crowd flag. The tiny
network is trained on the wrong annotations of all images but those of a part, and judges that part, as `codetr review
--folds` does ("held out"); then it judges the images that it was trained on ("seen"). A finding is right if an error of
its kind is there (IoU of 0.5), each error once.

Then a network that was trained on right annotations of other images judges images with planted errors ("other images"),
and a made-up detector without a network, which the tests use.

The trainings take some 3 minutes each on two idle cores. The same command continues; `--trained 1` trains one network
and not one for each part.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from codetr_cli.analysis.label_errors import KINDS, LabelError, find_label_errors
from codetr_cli.cli import main as codetr
from codetr_cli.data.demo import write_demo
from codetr_cli.runtime.devices import cpu_name
from tests.analysis.label_scenes import inputs_of
from tests.analysis.planted_errors import Planted, noisy_detections, plant, random_content
from tests.analysis.planted_scores import score_findings

ROOT = Path(__file__).resolve().parent.parent
SHARE = 0.05
IMAGES = 400
TRAINING = ("train.epochs=10", "train.min_steps=100")


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of data, runs and detections")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--trained", type=int, help="number of networks; default: one for each part")
    parser.add_argument("--load", default="not recorded", help="what else ran on the machine, for the result")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "label_errors.json")
    arguments = parser.parse_args()
    started = time.perf_counter()
    trained = arguments.trained or arguments.folds
    wrong, planted = write_folds(arguments.work, arguments.folds)
    held_out, seen = [], []
    for number in range(trained):
        folder = arguments.work / f"fold{number}"
        train(folder, arguments.work / f"run{number}")
        for split, name, parts in (("val", "eval", held_out), ("train", "seen", seen)):
            out = arguments.work / f"{name}{number}"
            if not (out / "detections.json").is_file():
                _codetr("eval", arguments.work / f"run{number}", "--data", folder, "--split", split, "--out", out)
            parts.append((content_of(folder, split), json.loads((out / "detections.json").read_text())))
    result = {
        "command": " ".join(["python", "-m", "benchmarks.label_errors", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": cpu_name(), "load": arguments.load},
        "data": f"demo set of {IMAGES} images, {len(wrong['annotations'])} annotations after planting",
        "planted": f"{SHARE:.0%} of the objects, errors of each kind",
        "training": f"co_dino_tiny, {', '.join(TRAINING)}, {trained} of {arguments.folds} parts",
        "held_out": joined(held_out, planted),
        "seen": joined(seen[:1], planted),
        "other_images": other_images(arguments.work),
        "made_up_detector": made_up(),
    }
    result["seconds"] = round(time.perf_counter() - started, 1)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name in ("held_out", "seen", "other_images", "made_up_detector"):
        for kind, score in result[name]["kinds"].items():
            sys.stdout.write(f"{name:>16} {kind:>12} {json.dumps(score)}\n")


def write_folds(work: Path, folds: int) -> tuple[dict[str, Any], list[Planted]]:
    """The demo set with planted errors, divided: image by image, since no two are alike."""
    data = work / "data"
    if not (data / "annotations" / "instances_train2017.json").is_file():
        write_demo(data, train=IMAGES, val=4, size=256, seed=0)
    right = json.loads((data / "annotations" / "instances_train2017.json").read_text())
    wrong, planted = plant(right, SHARE)
    for number in range(folds):
        folder = work / f"fold{number}"
        (folder / "annotations").mkdir(parents=True, exist_ok=True)
        held_out = {image["id"] for index, image in enumerate(wrong["images"]) if index % folds == number}
        for split, keep in (("train", False), ("val", True)):
            part = {
                **wrong,
                "images": [image for image in wrong["images"] if (image["id"] in held_out) == keep],
                "annotations": [each for each in wrong["annotations"] if (each["image_id"] in held_out) == keep],
            }
            (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(part))
            link = folder / f"{split}2017"
            if not link.is_symlink():
                link.symlink_to((data / "train2017").absolute())
    return wrong, planted


def other_images(work: Path) -> dict[str, Any]:
    """The scores of a network that was trained on the demo set as it is, on 300 images with planted errors."""
    fresh = work / "fresh"
    annotations = fresh / "annotations" / "instances_val2017.json"
    if not annotations.is_file():
        write_demo(fresh, train=4, val=300, size=256, seed=7)
    train(work / "data", work / "run_right")
    out = work / "eval_right"
    if not (out / "detections.json").is_file():
        _codetr("eval", work / "run_right", "--data", fresh, "--out", out)
    wrong, planted = plant(json.loads(annotations.read_text()), SHARE, seed=1)
    return reviewed(wrong, json.loads((out / "detections.json").read_text()), planted)


def train(folder: Path, run: Path) -> None:
    """Trains, or continues; nothing where it is finished."""
    metrics = run / "metrics.jsonl"
    if metrics.is_file() and '"end"' in metrics.read_text():
        return
    settings = [word for setting in TRAINING for word in ("--set", setting)]
    _codetr("train", "--preset", "co_dino_tiny", "--data", folder, "--run", run, "--no-eval", *settings)


def _codetr(*words: object) -> None:
    code = codetr([*map(str, words), "--device", "cpu"])
    if code:
        sys.exit(code)


def content_of(folder: Path, split: str) -> dict[str, Any]:
    """The annotations of a part."""
    content: dict[str, Any] = json.loads((folder / "annotations" / f"instances_{split}2017.json").read_text())
    return content


def joined(parts: Sequence[tuple[dict[str, Any], list[dict[str, Any]]]], planted: Sequence[Planted]) -> dict[str, Any]:
    """The scores of parts that are reviewed together."""
    content = {
        "categories": parts[0][0]["categories"],
        "images": [image for part, _ in parts for image in part["images"]],
        "annotations": [each for part, _ in parts for each in part["annotations"]],
    }
    return reviewed(content, [record for _, records in parts for record in records], planted)


def made_up() -> dict[str, Any]:
    """The scores of the detector that the tests use."""
    content = random_content(300, seed=1)
    wrong, planted = plant(content, SHARE, seed=2)
    return reviewed(wrong, noisy_detections(content, seed=3), planted)


def reviewed(content: dict[str, Any], records: list[dict[str, Any]], planted: Sequence[Planted]) -> dict[str, Any]:
    """Counts, precision and recall of each kind."""
    images = {image["id"] for image in content["images"]}
    here = [error for error in planted if error.image_id in images]
    with tempfile.TemporaryDirectory() as folder:
        inputs = inputs_of(Path(folder), content, records)
        found: list[LabelError] = find_label_errors(inputs)
        everything = find_label_errors(inputs, listed_from=0.0)
    scores, of_all = score_findings(found, here), score_findings(everything, here)
    return {
        "images": len(images),
        "annotations": len(content["annotations"]),
        "kinds": {
            kind: {
                "planted": scores[kind].planted,
                "found": len(scores[kind].order),
                "precision": round(scores[kind].precision, 3),
                "recall": round(scores[kind].recall, 3),
                "precision_of_first_10": round(sum(scores[kind].order[:10]) / max(len(scores[kind].order[:10]), 1), 3),
                "recall_of_as_many_as_planted": round(
                    sum(of_all[kind].order[: scores[kind].planted]) / max(scores[kind].planted, 1), 3
                ),
                "on_errors_of_other_kinds": scores[kind].other_errors,
            }
            for kind in KINDS
        },
    }


if __name__ == "__main__":
    main()
