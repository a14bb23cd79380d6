"""The model card, README.md: what a network detects, how well, how it was trained, where it fails, who may use it.

The text is made from `ModelFacts` alone, and says of what is not known that it is not known. Its head is the metadata
that the Hub reads: licence, library, task, base model and the metrics as a model-index.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from codetr_cli import __version__
from codetr_cli.config.schema import Settings
from codetr_cli.errors import counted, listed
from codetr_cli.inference.hub.evaluations import Evaluation
from codetr_cli.inference.hub.facts import ModelFacts
from codetr_cli.inference.tta import size_text
from codetr_cli.markdown import code, plain, table
from codetr_cli.result_files import write_result
from codetr_cli.runs.training_cost import TrainingCost

CARD_NAME = "README.md"
CARD_VERB = "card"
TASK = "object-detection"
HUB_LICENCES = frozenset(
    (
        *("afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear"),
        *("bsl-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0"),
        *(
            "cc-by-nc-nd-3.0",
            "cc-by-nc-nd-4.0",
            "cc-by-nc-sa-2.0",
            "cc-by-nc-sa-3.0",
            "cc-by-nc-sa-4.0",
            "cc-by-nd-4.0",
        ),
        *("cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1"),
        *("eupl-1.2", "gpl-2.0", "gpl-3.0", "isc", "lgpl-2.1", "lgpl-3.0", "mit", "mpl-2.0", "ms-pl", "ncsa", "odbl"),
        *("openrail", "osl-3.0", "pddl", "postgresql", "unlicense", "wtfpl", "zlib"),
    )
)
"""Identifiers of licences that the Hub knows; others are `other` there, with a name."""
METRICS = {
    "AP": "IoU 0.50:0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "APs": "small objects",
    "APm": "medium objects",
    "APl": "large objects",
    "APr": "rare classes",
    "APc": "common classes",
    "APf": "frequent classes",
}
"""Metrics of the card -> what they are over."""
FAMILIES = {"co_dino": "Co-DINO", "co_deformable": "Co-Deformable-DETR"}
BACKBONES = {"resnet": "ResNet", "swin": "Swin Transformer", "vit": "ViT"}
MAX_CLASSES = 100
"""Classes that the card lists by name."""
MAX_ROWS = 400
"""Classes in the table of classes."""
WORST = 3
"""Classes, and types of errors, that the limits name."""
ERROR_NAMES = {
    "loose box": "boxes that do not fit",
    "wrong class": "wrong classes",
    "duplicate": "duplicate detections",
    "background": "detections of nothing",
    "wrong class and loose box": "wrong classes with boxes that do not fit",
    "missed": "missed objects",
}
"""Types of errors in a report -> their names in the card."""
JOULES_PER_KWH = 3.6e6


def model_card(facts: ModelFacts, *, name: str, repository: str = "") -> str:
    """The text of a model card in Markdown, with the metadata of the Hub at its head.

    Args:
        facts: of the checkpoint.
        name: of the model.
        repository: `org/name` on the Hub; empty: the folder is used from a disk.
    """
    head = yaml.safe_dump(card_metadata(facts, name=name), sort_keys=False, allow_unicode=True, width=120)
    sections = {
        "Use": _use(facts, repository),
        "Evaluation": _evaluation(facts),
        "Training": _training(facts),
        "Limits": _limits(facts),
        "Licence": _licence(facts),
        "Files": _files(facts),
    }
    lines = ["---", head.rstrip(), "---", "", f"# {plain(name)}", "", *_summary(facts)]
    for title, content in sections.items():
        lines += ["", f"## {title}", "", *content]
    return "\n".join(lines) + "\n"


def write_card(path: Path, text: str, *, force: bool = False) -> None:
    """Writes a card; one that `codetr card` has written and nobody has edited is replaced.

    Args:
        path: the file.
        text: of the card.
        force: replace also one that another verb has written.

    Raises:
        ConfigError: a file that may not be replaced is there.
        ResourceError: no space left, or the folder cannot be written.
    """
    with write_result(path, by=CARD_VERB, force=force, request=CARD_VERB) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def card_metadata(facts: ModelFacts, *, name: str) -> dict[str, Any]:
    """The metadata at the head of a card, as the Hub names it; arguments as for `model_card`."""
    spdx = (facts.licence.name or "").lower()
    known = next((each for each in (spdx, re.sub(r"-(only|or-later)$", "", spdx)) if each in HUB_LICENCES), None)
    licence: dict[str, Any] = {}
    if facts.licence.name is not None:
        licence = {"license": known} if known else {"license": "other", "license_name": _line(facts.licence.name)}
    return {
        **licence,
        "library_name": "codetr",
        "pipeline_tag": TASK,
        "tags": [TASK, "co-detr", facts.settings.model.family.replace("_", "-"), "codetr"],
        **({"base_model": facts.base_model} if facts.base_model else {}),
        **({"model-index": _model_index(facts, facts.evaluation, name)} if facts.evaluation else {}),
    }


def _model_index(facts: ModelFacts, evaluation: Evaluation, name: str) -> list[dict[str, Any]]:
    data = _line(evaluation.data or facts.validation or facts.data) or "unknown"
    metrics = []
    for prefix, subject in (("", "box"), ("mask_", "mask")):
        for metric, over in METRICS.items():
            value = evaluation.metrics.get(f"{prefix}{metric}", -1.0)
            if value >= 0:
                kind = "mean_average_precision"
                metrics.append({"type": kind, "name": f"{subject} {metric}, {over}", "value": round(value, 4)})
    dataset = {"name": data, "type": re.sub(r"[^a-z0-9._-]+", "-", _line(facts.data or data).lower())}
    result = {"task": {"type": TASK, "name": "Object detection"}, "dataset": dataset, "metrics": metrics}
    return [{"name": _line(name), "results": [result]}]


def _line(text: str) -> str:
    """A text of any origin in one line: a line of dashes would end the metadata, and one of backticks a command."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def _summary(facts: ModelFacts) -> list[str]:
    model = facts.settings.model
    masks = " and their masks" if model.mask.kind != "none" else ""
    names = [plain(name) for name in facts.checkpoint.class_names]
    return [
        f"A {FAMILIES[model.family]} detector with a {BACKBONES[model.backbone.kind]} backbone, made with codetr. It "
        f"finds the boxes of objects{masks} of {len(names):,} {'class' if len(names) == 1 else 'classes'}: "
        f"{listed(names, MAX_CLASSES)}.",
        "",
        "Co-DETR trains a DETR together with auxiliary one-to-many heads "
        "([arXiv 2211.12860](https://arxiv.org/abs/2211.12860)).",
    ]


def _use(facts: ModelFacts, repository: str) -> list[str]:
    place = repository or "path/to/this/folder"
    lines = [
        "```bash",
        "pip install 'codetr-cli[hub]'" if repository else "pip install codetr-cli",
        "```",
        "",
        "```python",
        "from codetr_cli import Detector",
        "",
        f'detector = Detector.from_pretrained("{place}")',
        'for detection in detector.predict("image.jpg", score=0.3):',
        "    print(detection.class_name, round(detection.score, 2), detection.box)  # x1, y1, x2, y2 in pixels",
        "```",
        "",
    ]
    if facts.settings.test.head != "decoder":
        return [
            *lines,
            f"It detects with the auxiliary head {facts.settings.test.head}, which transformers cannot use.",
        ]
    boxes = ", without masks" if facts.settings.model.mask.kind != "none" else ""
    return [
        *lines,
        f"With the pipeline of transformers (`pip install 'codetr-cli[transformers]'`), the same detections in whole "
        f"pixels{boxes}:",
        "",
        "```python",
        "import codetr_cli.integrations.transformers  # registers the architecture",
        "from transformers import pipeline",
        "",
        f'detect = pipeline("{TASK}", model="{place}")',
        'detect("image.jpg", threshold=0.3)',
        "```",
    ]


def _evaluation(facts: ModelFacts) -> list[str]:
    evaluation = facts.evaluation
    if evaluation is None:
        return ["No evaluation of these weights is known."]
    rows = [
        (metric, over, _percent(evaluation.metrics.get(metric)), _percent(evaluation.metrics.get(f"mask_{metric}")))
        for metric, over in METRICS.items()
        if metric in evaluation.metrics
    ]
    has_masks = any(name.startswith("mask_") for name in evaluation.metrics)
    columns = 4 if has_masks else 3
    data = evaluation.data or facts.validation
    on = f" on {plain(data)}" if data else ""
    images = "" if evaluation.images is None else f", {counted(evaluation.images, 'image')}"
    lines = [
        f"Average precision in percent{on}{images}, {plain(evaluation.source)}:",
        "",
        *table(("metric", "over", "box", "mask")[:columns], [row[:columns] for row in rows]),
        "",
        f"Protocol: {plain(evaluation.protocol)}." if evaluation.protocol else "The protocol is not recorded.",
    ]
    if facts.findings is not None and facts.findings.ap_interval is not None:
        low, high = facts.findings.ap_interval
        lines += [
            "",
            f"95 % interval of the box AP: {_percent(low)} to {_percent(high)}, by resampling the images: so far it "
            "may differ on other images of the same kind.",
        ]
    if evaluation.published is not None:
        lines += [
            "",
            f"Published by the authors of the network, by the same protocol: box AP {evaluation.published:.1f}.",
        ]
    if evaluation.per_class:
        shown = sorted(evaluation.per_class, key=lambda each: -each["AP"])[:MAX_ROWS]
        header = ("class", "objects", "box AP", "box AP50", *(("mask AP",) if has_masks else ()))
        values = [
            (each["name"], f"{each['objects']:,}", _percent(each["AP"]), _percent(each.get("AP50")))
            + ((_percent(each.get("mask_AP")),) if has_masks else ())
            for each in shown
        ]
        lines += ["", *table(header, values)]
        if len(shown) < len(evaluation.per_class):
            lines += ["", f"And {len(evaluation.per_class) - len(shown):,} more classes, with a lower AP."]
    return lines


def _training(facts: ModelFacts) -> list[str]:
    if facts.is_converted:
        extra = facts.checkpoint.extra
        return [
            f"The weights are those of the published file {plain(extra.get('source_file', ''))} (SHA-256 "
            f"{code(extra['source_sha256'])}), converted by `codetr convert`, with the preset "
            f"{plain(facts.settings.name)}."
        ]
    data = [f"Data: {plain(facts.data)}." if facts.data else "The data is not recorded."]
    if facts.data_digest:
        data.append(f"Digest of its annotations: {code(facts.data_digest)}.")
    if facts.validation:
        data.append(f"Validation: {plain(facts.validation)}.")
    start = facts.base_model or facts.origin
    begin = f"The training started from {plain(start)}." if start else "No checkpoint that it started from is recorded."
    lines = [" ".join(data), begin]
    lines += ["", _cost(facts.cost)]
    if facts.command:
        lines += ["", "A training with the same settings:", "", "```bash", _line(facts.command), "```"]
    return [*lines, "", *table(("setting", "value"), _recipe(facts.settings, facts.step))]


def _cost(cost: TrainingCost | None) -> str:
    """Time and energy of the training, or that they are not known."""
    if cost is None:
        return "How long the training took is not recorded."
    devices = f"{cost.processes} x {plain(cost.device)}" if cost.processes > 1 else plain(cost.device)
    on = " on CPUs" if cost.device == "cpu" else f" on {devices}" if cost.device else ""
    minutes = f", of which {_duration(cost.evaluation_seconds)} of evaluations" if cost.evaluation_seconds >= 60 else ""
    time = f"about {_duration(cost.seconds)}" if cost.seconds >= 60 else "less than a minute"
    taken = f"The training took {time}{on}{minutes}, without interruptions."
    if cost.energy_joules is None:
        return f"{taken} Its energy was not measured."
    return (
        f"{taken} Its GPUs used {cost.energy_joules / JOULES_PER_KWH:.3g} kWh, as their driver counts it: processors, "
        "memory and cooling are not in it. What that means in carbon dioxide depends on the power grid."
    )


def _duration(seconds: float) -> str:
    """A time of a minute or more."""
    minutes = round(seconds / 60)
    if minutes < 120:
        return counted(minutes, "minute")
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def _recipe(settings: Settings, step: int | None) -> list[tuple[str, str]]:
    train, data = settings.train, settings.data
    canvas = data.augmentation == "lsj" and data.canvas is not None
    size = (
        f"canvas of {data.canvas}" if canvas else f"short side {_sides(data.short_sides)}, long side {data.long_side}"
    )
    rows = [("preset", settings.name), ("steps", "" if step is None else f"{step:,}")]
    rows += [("epochs", f"{train.epochs}" if train.max_steps is None else "")]
    rows += [("images per step", f"{train.batch_size}"), ("learning rate", f"{train.lr:g}, {train.lr_schedule}")]
    rows += [("weight decay", f"{train.weight_decay:g}"), ("augmentation", data.augmentation), ("training size", size)]
    rows += [("precision", train.precision), ("seed", f"{train.seed}")]
    rows += [("weights' average", f"EMA with momentum {train.ema_momentum:g}" if train.ema_momentum else "none")]
    return [(name, value) for name, value in rows if value]


def _sides(sides: Sequence[int]) -> str:
    return f"{min(sides)} to {max(sides)}" if len(set(sides)) > 1 else f"{sides[0]}"


def _limits(facts: ModelFacts) -> list[str]:
    test, evaluation = facts.settings.test, facts.evaluation
    threshold = None if facts.findings is None else facts.findings.threshold
    lines = [
        "- It knows the classes above only: other objects are missed, or taken for one of them.",
        f"- Images are resized to {size_text(test)} pixels (short side x long side, or a square). What is a few pixels "
        'large after that is missed; large images can be cut: `detector.predict(image, tiles="auto")`.',
        f"- At most {test.max_detections} detections per image.",
        "- Scores order detections; they are no probabilities. Choose a threshold on images of your own"
        + ("." if threshold is None else f"; in the evaluation, {threshold:.2f} had the best F1-score."),
    ]
    if evaluation is None:
        return [*lines, "- How well it detects is not known."]
    sizes = [(word, evaluation.metrics.get(name, -1.0)) for word, name in (("small", "APs"), ("large", "APl"))]
    if all(value >= 0 for _, value in sizes):
        found = " and ".join(f"{_percent(value)} for {word} ones" for word, value in sizes)
        lines.append(f"- Small objects, below 32 x 32 pixels, and large ones, above 96 x 96, differ: box AP {found}.")
    if facts.findings is not None and facts.findings.error_costs:
        costs = list(facts.findings.error_costs.items())[:WORST]
        named = ", ".join(f"{ERROR_NAMES.get(name, plain(name))} ({_percent(cost)})" for name, cost in costs)
        lines.append(f"- What costs most box AP50, by TIDE's types of errors: {named}.")
    scored = sorted((each for each in evaluation.per_class if each["AP"] >= 0), key=lambda each: each["AP"])
    if len(scored) > WORST:
        worst = [f"{plain(each['name'])} ({_percent(each['AP'])})" for each in scored[:WORST]]
        lines.append(f"- The classes with the lowest box AP are {', '.join(worst)}.")
    return [*lines, "- The metrics are those of one data set; images from elsewhere can give others."]


def _licence(facts: ModelFacts) -> list[str]:
    name = "unknown" if facts.licence.name is None else plain(facts.licence.name)
    return [
        f"Weights: {name} ({plain(facts.licence.reason)}).",
        "",
        "Training data: its licence is not recorded in the weights and can limit their use; it is not stated here."
        if not facts.is_converted
        else "Training data: see the publication of the weights; the licence of its images can limit their use.",
    ]


def _files(facts: ModelFacts) -> list[str]:
    content = f" Hash of the checkpoint that they were published from: {code(facts.content)}." if facts.content else ""
    return [
        "`model.safetensors` holds the weights with all settings, class names and category ids, and is a checkpoint of "
        f"codetr: `codetr predict IMAGES --checkpoint FOLDER`.{content} `config.json` and `preprocessor_config.json` "
        f"are for transformers. Written by codetr {__version__}; no file has code that is executed.",
    ]


def _percent(value: float | None) -> str:
    return "-" if value is None or value < 0 else f"{100 * value:.1f}"
