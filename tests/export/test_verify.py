"""Files that are right pass; every planted fault is found and named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from codetr_cli.config.overrides import replace_settings
from codetr_cli.errors import CheckpointError
from codetr_cli.export import diagnosis
from codetr_cli.export import verify as module
from codetr_cli.export.accuracy import find_images
from codetr_cli.export.tolerances import TOLERANCES
from codetr_cli.export.verify import AccuracyPair, verify, verify_detectors
from codetr_cli.export.verify_images import VerifyImage
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.exported.engine import Engine, open_engine
from codetr_cli.inference.exported.metadata import METADATA_KEY
from codetr_cli.inference.exported.network import ExportedNetwork
from codetr_cli.inference.loading import LoadedModel
from codetr_cli.models.build import build_postprocess
from tests.export import networks
from tests.export.faults import FaultyEngine, exported_detector, reference_of, some_images, verified
from tests.export.networks import Exported
from tests.inference.fakes import Blind

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def exported(folder: Path) -> Exported:
    """A right ONNX file for inputs of 96 x 160 pixels, any number at once."""
    return networks.export(folder / "verify")


@pytest.fixture(scope="module")
def loaded(exported: Exported) -> LoadedModel:
    return exported.loaded


@pytest.fixture(scope="module")
def engine(exported: Exported) -> Engine:
    engine: Engine = exported.engine
    return engine


@pytest.fixture(autouse=True)
def _few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "synthetic_images", lambda side: some_images(side))


def logits(change: Any) -> Any:
    return lambda outputs, images, sizes: {**outputs, "logits": change(outputs["logits"])}


def boxes(change: Any) -> Any:
    return lambda outputs, images, sizes: {**outputs, "boxes": change(outputs["boxes"], images, sizes)}


def pixels(engine: Engine, change: Any) -> Any:
    """Changes the pixels, 0 to 255, of a normalised input outside of its padding."""
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in (engine.metadata.input.mean, engine.metadata.input.std)
    )
    return lambda images, sizes: (change(images * std + mean, mean, std) * (images != 0), sizes)


# ------------------------------------------------------------------------------------------------------ what is right


def test_a_right_file_passes_with_random_weights(loaded, engine):
    report = verified(loaded, engine)
    assert report.verdict == "equal"
    assert report.passed
    assert not report.findings
    assert [(case.shape, case.batch) for case in report.cases] == [
        ("landscape", 1), ("upright", 1), ("square", 1), ("all shapes", 3)
    ]  # fmt: skip
    assert all(case.detections and case.passed for case in report.cases)
    assert all(case.score_max < 1e-5 and case.box_max < 1e-2 for case in report.cases)
    assert set(report.latency_ms) == {"checkpoint", "file"}
    assert min(report.latency_ms.values()) > 0
    assert json.loads(json.dumps(report.to_json()))["verdict"] == "equal"
    assert report.engine["provider"] == "CPUExecutionProvider"


def test_images_without_objects_are_compared_by_their_best_detections(loaded, engine):
    grey = [VerifyImage(f"grey {n}", np.full((96 + n, 128, 3), 114, np.uint8)) for n in range(3)]
    report = verify_detectors(reference_of(loaded, engine.metadata), exported_detector(engine), grey)
    assert report.verdict == "equal"
    assert report.cases[0].detections >= 60


def test_nothing_is_not_equal(loaded, engine, monkeypatch):
    """Neither side detects anything."""
    reference = reference_of(loaded, engine.metadata)
    deaf = Detector(replace(reference.loaded, model=Blind()), device="cpu")
    monkeypatch.setattr(ExportedNetwork, "detect", Blind().detect)
    report = verify_detectors(deaf, exported_detector(engine), some_images())
    assert report.verdict == "nothing compared"
    assert not report.passed
    assert report.sentence.startswith("Nothing was compared")
    assert "--data" in report.sentence


# ---------------------------------------------------------------------------------------------------- planted faults


def found(report: Any) -> str:
    assert report.verdict == "different"
    assert not report.passed
    assert "differ" in report.findings[0]
    text: str = " ".join(report.findings)
    return text


def test_class_channels_in_another_order(loaded, engine):
    text = found(verified(loaded, FaultyEngine(engine, after=logits(lambda values: values[..., [1, 2, 0]]))))
    assert "classes of the outputs are in another order" in text
    assert "disc of the checkpoint is ring of the file" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values, mean, std: (values.flip(1) - mean) / std, "taken as BGR"),
        (lambda values, mean, std: values, "not normalised"),
        (lambda values, mean, std: (values - 100) / 50, "other numbers of the normalisation"),
    ],
    ids=["BGR", "no normalisation", "other mean"],
)
def test_pixels_that_are_prepared_in_another_way(loaded, engine, change, words):
    assert words in found(verified(loaded, FaultyEngine(engine, before=pixels(engine, change))))


def test_boxes_relative_to_the_padded_input(loaded, engine):
    def change(values, images, sizes):
        height, width = images.shape[2:]
        return values * torch.stack([sizes[:, 1] / width, sizes[:, 0] / height] * 2, -1)[:, None]

    assert "relative to the padded input" in found(verified(loaded, FaultyEngine(engine, after=boxes(change))))


def test_x_and_y_swapped(loaded, engine):
    faulty = FaultyEngine(engine, after=boxes(lambda values, images, sizes: values[..., [1, 0, 3, 2]]))
    assert "x and y of the boxes are swapped" in found(verified(loaded, faulty))


def test_boxes_shifted_by_a_pixel(loaded, engine):
    def change(values, images, sizes):
        one = torch.stack([1 / sizes[:, 1], 1 / sizes[:, 0]], -1)
        return values + torch.cat([one, torch.zeros_like(one)], -1)[:, None]

    assert "differ by +1.00, +1.00, +1.00, +1.00 pixels" in found(
        verified(loaded, FaultyEngine(engine, after=boxes(change)))
    )


def test_scores_shifted(loaded, engine):
    faulty = FaultyEngine(engine, after=logits(lambda values: torch.logit((values.sigmoid() + 0.05).clamp(max=0.999))))
    assert "scores are higher by about 0.05" in found(verified(loaded, faulty))


def test_few_detections(loaded, engine, monkeypatch):
    """Too many for float32, and too few for a cause."""
    monkeypatch.setattr("codetr_cli.export.diagnosis.FEW", 0.15)  # soft-NMS passes on the change of one

    def change(values):
        return values + 0.5 * (values == values.amax((1, 2), keepdim=True))

    text = found(verified(loaded, FaultyEngine(engine, after=logits(change))))
    assert "All others agree" in text
    assert "padded" not in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: value.roll(1, 0), "image 1 gets the detections of image 3"),
        (lambda value: value[:1].expand_as(value), "image 2 gets the detections of image 1"),
        (lambda value: value if len(value) == 1 else value + 0.03 * value.mean(0, keepdim=True), "Alone, every image"),
    ],
    ids=["rolled", "the first one for all", "mixed"],
)
def test_a_batch_that_mixes_its_images(loaded, engine, change, words):
    faulty = FaultyEngine(engine, after=lambda outputs, *_: {name: change(value) for name, value in outputs.items()})
    report = verified(loaded, faulty)
    assert words in found(report)
    assert [case.passed for case in report.cases] == [True, True, True, False]


def test_a_graph_that_was_made_for_the_size_of_landscape_images(loaded, engine):
    """Of an upright image it sees the pixels of each row in the wrong place."""

    def baked(images, sizes):
        upright = (sizes[:, 0] > sizes[:, 1])[:, None, None, None]
        return torch.where(upright, images.transpose(2, 3).reshape(images.shape), images), sizes

    report = verified(loaded, FaultyEngine(engine, before=baked))
    assert "landscape, square images agree" in found(report).lower()
    assert "made for the size" in found(report)


def test_an_input_of_another_size(exported, tmp_path):
    """The metadata ask for a size that the graph does not take."""

    def change(metadata):
        metadata["input"]["height"] = 128
        metadata["settings"]["test"]["fixed_size"] = [128, 160]

    report = verify(exported.checkpoint, _rewritten(exported.path, tmp_path, change), device=CPU)
    assert report.verdict == "different"
    assert "cannot run on the input that it says it takes" in report.sentence
    assert "\n" not in report.sentence


def test_classes_and_normalisation_of_the_metadata(exported, tmp_path):
    def change(metadata):
        metadata["class_names"] = ["bar", "disc", "ring"]
        metadata["category_ids"] = [3, 2, 7]
        for table in (metadata["settings"]["data"], metadata["input"]):
            table["mean"] = [127.5, 127.5, 127.5]

    report = verify(exported.checkpoint, _rewritten(exported.path, tmp_path, change), device=CPU)
    assert report.verdict == "different"
    assert "its classes in another order: class 0 is bar (3) in the file and disc (2)" in report.sentence
    assert "data.mean is [127.5, 127.5, 127.5] in the file and [123.675" in report.sentence
    assert "detections differ" in report.sentence


def test_a_missing_nms(loaded, engine):
    settings = replace_settings(loaded.settings, {"test.nms": "hard", "test.nms_iou": 0.02})
    strict = replace(loaded, settings=settings, postprocess=build_postprocess(settings.test))
    assert verified(strict, engine, nms="hard", nms_iou=0.02).passed
    assert "NMS is 'none'" in found(verified(strict, engine, nms="none", nms_iou=0.02))


@pytest.mark.parametrize(("attribute", "value", "words"), [
    ("mode", b"nearest", "by mode 'nearest' instead of bilinearly"),
    ("align_corners", 1, "align_corners=1 instead of 0"),
])  # fmt: skip
def test_sampling_that_is_silently_wrong(exported, tmp_path, attribute, value, words):
    onnx = pytest.importorskip("onnx", reason="the fault is planted by the optional package onnx")
    model = onnx.load(exported.path)
    for node in (node for node in model.graph.node if node.op_type == "GridSample"):
        for entry in (entry for entry in node.attribute if entry.name == attribute):
            entry.CopyFrom(onnx.helper.make_attribute(attribute, value))
    wrong = tmp_path / "wrong.onnx"
    onnx.save(model, wrong)
    assert "GridSample" in found(verified(exported.loaded, open_engine(wrong, CPU)))  # by its detections
    report = verify(exported.checkpoint, wrong, device=CPU)
    assert report.verdict == "different"
    assert words in report.findings[0]


@pytest.mark.parametrize("is_explained", [False, True])
def test_no_cause_is_guessed_where_one_is_known(monkeypatch, is_explained):
    """Of other weights, say."""
    for name in ("_class_cause", "_box_cause", "_shift_cause", "_score_cause", "_rerun_cause"):
        monkeypatch.setattr(diagnosis, name, lambda *arguments: None)
    monkeypatch.setattr(diagnosis, "_where", lambda *arguments: "9 of 9 detections differ.")
    monkeypatch.setattr(diagnosis, "_disagreement", lambda pairs: 1.0)
    seen: Any = [SimpleNamespace(shape="square", batch=1, agreement=SimpleNamespace(compared=9))]
    reference: Any = None
    found = diagnosis.explain(seen, [], reference, TOLERANCES["fp32"], is_explained=is_explained)
    assert len(found) == (1 if is_explained else 2)


def test_noise_that_changes_the_checkpoint_as_much_is_a_near_tie(loaded, engine, monkeypatch):
    faulty = FaultyEngine(engine, after=logits(lambda values: values + 0.01))
    assert not verified(loaded, faulty).passed
    monkeypatch.setattr(module, "is_near_tie", lambda seen, reference, tolerance: True)
    report = verified(loaded, faulty)
    assert report.passed
    assert "near ties" in report.sentence
    assert sum(case.near_ties for case in report.cases) == 6


# ------------------------------------------------------------------------------------------ from files, and with data


def _rewritten(file: Path, folder: Path, change: Any) -> Path:
    """A copy of a file with other metadata."""
    onnx = pytest.importorskip("onnx", reason="the fault is planted by the optional package onnx")
    model = onnx.load(file)
    (entry,) = (entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    metadata = json.loads(entry.value)
    change(metadata)
    entry.value = json.dumps(metadata)
    onnx.save(model, folder / "rewritten.onnx")
    return folder / "rewritten.onnx"


def test_files_and_what_their_metadata_say(exported):
    steps: list[str] = []
    overrides = ["test.nms=none", "test.short_side=64"]
    report = verify(exported.checkpoint, exported.path, device=CPU, overrides=overrides, step=steps.append)
    assert "test.nms is 'soft' in the file and 'none' in the checkpoint" in report.sentence
    assert "test.short_side is 96 in the file and 64 in the checkpoint" in report.sentence
    assert "verify with the same --set" in report.sentence
    assert steps[0] == "loading both networks"


def test_other_weights(exported, tmp_path):
    other = networks.write_random(tmp_path / "other.safetensors", "test.max_detections=19")
    report = verify(other, exported.path, device=CPU)
    assert "made from other weights: network.safetensors with SHA-256" in report.sentence


def test_what_is_no_pair(exported):
    with pytest.raises(CheckpointError, match="is an exported file itself"):
        verify(exported.path, exported.path, device=CPU)
    with pytest.raises(CheckpointError, match="is a checkpoint, not an exported file"):
        verify(exported.checkpoint, exported.checkpoint, device=CPU)


def test_ap_with_data(exported, tiny_coco):
    report = verify(exported.checkpoint, exported.path, device=CPU, data=find_images(tiny_coco, "train"))
    assert report.passed, report.sentence
    assert report.accuracy is not None
    assert report.accuracy.images == 4
    assert report.accuracy.checkpoint == pytest.approx(report.accuracy.file, abs=0.1)
    assert len(report.images) >= 8
    assert {image["shape"] for image in report.images} == {"landscape", "upright", "square"}


def test_ap_that_differs_too_much():
    assert not AccuracyPair(4, 50.0, 49.8, 0.1).passed
    assert AccuracyPair(4, 50.0, 49.8, 0.3).passed
