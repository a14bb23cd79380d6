"""The model card: every number in it is one that was measured, and the parser of the Hub accepts it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from codetr_cli.config.presets import load_preset
from codetr_cli.inference.hub.card import HUB_LICENCES, card_metadata, model_card
from codetr_cli.inference.hub.evaluations import Evaluation
from codetr_cli.inference.hub.facts import ModelFacts
from codetr_cli.inference.hub.findings import Findings
from codetr_cli.runs.training_cost import TrainingCost
from codetr_cli.weights.checkpoint import Checkpoint
from codetr_cli.weights.licence import Licence, stated_licence

EVALUATION = Evaluation(
    metrics={"AP": 0.5321, "AP50": 0.7489, "APs": 0.1, "APl": 0.7, "APm": -1.0, "AR100": 0.6},
    protocol="single scale 96x160, soft-NMS, up to 100 detections per image; val, 60 images",
    data="instances_val",
    images=60,
    per_class=[
        {"name": name, "objects": 1200, "AP": ap, "AP50": 0.9}
        for name, ap in (("disc", 0.9), ("bar|x", 0.2), ("ring", 0.4), ("cup", -1), ("hat", 0.3))
    ],
    source="measured by `codetr eval`",
)


@pytest.fixture
def facts(tiny_settings) -> ModelFacts:
    return ModelFacts(
        checkpoint=Checkpoint({}, tiny_settings, ["disc", "bar|x", "ring"], [1, 2, 3], {"step": "1010"}),
        licence=stated_licence("Apache-2.0"),
        content="c" * 64,
        evaluation=EVALUATION,
        data="cells",
        data_digest="abc123",
        validation="instances_val",
        origin="coco/7",
        base_model="my-lab/base",
    )


def head_of(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def section(text: str, title: str) -> str:
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def test_the_hub_parses_the_card(facts: ModelFacts):
    hub = pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")
    card = hub.ModelCard(model_card(facts, name="cells", repository="my-lab/cells"))
    data = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "codetr", "object-detection")
    assert (data.base_model, data.model_name) == ("my-lab/base", "cells")
    assert data.tags == ["object-detection", "co-detr", "co-dino", "codetr"]
    results = {result.metric_name: result.metric_value for result in data.eval_results}
    assert results == {
        "box AP, IoU 0.50:0.95": 0.5321,
        "box AP50, IoU 0.50": 0.7489,
        "box APs, small objects": 0.1,
        "box APl, large objects": 0.7,
    }
    (kinds,) = {(each.task_type, each.dataset_type, each.dataset_name, each.metric_type) for each in data.eval_results}
    assert kinds == ("object-detection", "cells", "instances_val", "mean_average_precision")
    assert hub.ModelCard(str(card)).data.to_dict() == data.to_dict()


def test_the_numbers_of_the_evaluation(facts: ModelFacts):
    text = section(model_card(facts, name="cells"), "Evaluation")
    assert "| AP | IoU 0.50:0.95 | 53.2 |" in text
    assert "| APm | medium objects | - |" in text
    assert "on instances_val, 60 images, measured by 'codetr eval'" in text
    assert f"Protocol: {EVALUATION.protocol}." in text
    assert text.index("| disc | 1,200 | 90.0 | 90.0 |") < text.index("| bar\\|x | 1,200 | 20.0 | 90.0 |")
    assert "Published" not in text
    published = replace(facts, evaluation=replace(EVALUATION, published=52.1))
    assert "by the same protocol: box AP 52.1." in model_card(published, name="cells")


def test_masks_have_a_column(facts: ModelFacts):
    metrics = {"AP": 0.5, "mask_AP": 0.25}
    text = model_card(replace(facts, evaluation=replace(EVALUATION, metrics=metrics)), name="cells")
    assert "| AP | IoU 0.50:0.95 | 50.0 | 25.0 |" in text
    names = [each["name"] for each in head_of(text)["model-index"][0]["results"][0]["metrics"]]
    assert names == ["box AP, IoU 0.50:0.95", "mask AP, IoU 0.50:0.95"]


def test_without_an_evaluation_there_are_no_numbers(facts: ModelFacts):
    text = model_card(replace(facts, evaluation=None), name="cells")
    assert "model-index" not in head_of(text)
    assert "No evaluation of these weights is known." in section(text, "Evaluation")
    assert "How well it detects is not known." in section(text, "Limits")


def test_limits_come_from_the_evaluation(facts: ModelFacts):
    text = section(model_card(facts, name="cells"), "Limits")
    assert "box AP 10.0 for small ones and 70.0 for large ones" in text
    assert "lowest box AP are bar|x (20.0), hat (30.0), ring (40.0)" in text
    assert "resized to 96x160" in text
    assert "At most 20 detections" in text


def test_the_training(facts: ModelFacts, tiny_settings):
    text = section(model_card(facts, name="cells"), "Training")
    assert "Data: cells. Digest of its annotations: `abc123`. Validation: instances_val." in text
    assert "started from my-lab/base." in text
    assert "| steps | 1,010 |" in text
    assert "codetr train" not in text  # no preset has the name `tiny`
    tiny = load_preset("co_dino_tiny", ["train.epochs=3"])
    shipped = replace(facts, checkpoint=replace(facts.checkpoint, settings=tiny))
    command = "codetr train --preset co_dino_tiny --data DATA --weights hf://my-lab/base --set train.epochs=3"
    assert command in section(model_card(shipped, name="cells"), "Training")


def test_converted_weights(facts: ModelFacts):
    extra = {"source_file": "co_dino.pth", "source_sha256": "e" * 64}
    converted = replace(facts, checkpoint=replace(facts.checkpoint, extra=extra))
    text = section(model_card(converted, name="cells"), "Training")
    assert "published file co_dino.pth" in text
    assert "codetr train" not in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("MIT", {"license": "mit"}),
        ("GPL-3.0-or-later", {"license": "gpl-3.0"}),
        ("Our own", {"license": "other", "license_name": "Our own"}),
        (None, {}),
    ],
)
def test_the_licence_in_the_words_of_the_hub(facts: ModelFacts, name: str | None, expected: dict[str, str]):
    metadata = card_metadata(replace(facts, licence=Licence(name, "why")), name="cells")
    assert {key: value for key, value in metadata.items() if key.startswith("license")} == expected
    assert f"Weights: {name or 'unknown'} (why)." in model_card(replace(facts, licence=Licence(name, "why")), name="x")
    assert all(each == each.lower() for each in HUB_LICENCES)


def test_names_of_strangers_are_no_markup(facts: ModelFacts):
    names = ["<script>", "[a](http://x)", "---\nlicense: mit"]
    checkpoint = replace(facts.checkpoint, class_names=names)
    text = model_card(replace(facts, checkpoint=checkpoint, data="`x`\n---"), name="a\n---\nb: c", repository="")
    assert head_of(text)["license"] == "apache-2.0"
    assert "<script>" not in text.split("---\n", 2)[2]
    assert "\\[a](http:\\//x)" in text
    settings = load_preset("co_dino_tiny")
    origin = replace(facts, checkpoint=replace(checkpoint, settings=settings), base_model="", origin="x\n```\n# y")
    assert "--weights 'x ``` # y'\n```\n" in model_card(origin, name="a")


def test_how_to_use_it(facts: ModelFacts, tmp_path: Path):
    text = section(model_card(facts, name="cells", repository="my-lab/cells"), "Use")
    assert "pip install 'codetr-cli[hub]'" in text
    assert 'Detector.from_pretrained("my-lab/cells")' in text
    assert 'pipeline("object-detection", model="my-lab/cells")' in text
    settings = facts.settings.model_copy(update={"test": facts.settings.test.model_copy(update={"head": "atss"})})
    other = replace(facts, checkpoint=replace(facts.checkpoint, settings=settings))
    assert "which transformers cannot use" in model_card(other, name="cells")


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (None, "How long the training took is not recorded."),
        (TrainingCost(seconds=20), "took less than a minute, without"),
        (TrainingCost(seconds=460, device="cpu", processes=2), "took about 8 minutes on CPUs, without"),
        (TrainingCost(seconds=9000, device="GPU <x>"), "took about 2.5 hours on GPU &lt;x>, without"),
        (
            TrainingCost(seconds=4e5, evaluation_seconds=600, device="NVIDIA H200", processes=8),
            "took about 4.6 days on 8 x NVIDIA H200, of which 10 minutes of evaluations, without interruptions. Its "
            "energy was not measured.",
        ),
        (TrainingCost(seconds=9000, energy_joules=9e6), "Its GPUs used 2.5 kWh, as their driver counts it"),
    ],
)
def test_time_and_energy(facts: ModelFacts, cost: TrainingCost | None, expected: str):
    assert expected in section(model_card(replace(facts, cost=cost), name="cells"), "Training")


def test_what_a_report_has_found(facts: ModelFacts):
    found = Findings(
        ap=0.5321,
        ap_interval=(0.51, 0.55),
        error_costs={"missed": 0.11, "wrong class and loose box": 0.05, "new <type>": 0.02, "duplicate": 0.01},
        threshold=0.35,
    )
    text = model_card(replace(facts, findings=found), name="cells")
    assert "95 % interval of the box AP: 51.0 to 55.0" in section(text, "Evaluation")
    limits = section(text, "Limits")
    assert "missed objects (11.0), wrong classes with boxes that do not fit (5.0), new &lt;type> (2.0)." in limits
    assert "0.35 had the best F1-score" in limits
    without = model_card(facts, name="cells")
    assert "interval" not in without
    assert "TIDE" not in without
