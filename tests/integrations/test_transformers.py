"""Co-DETR in transformers: its pipeline and Auto classes give the detections of `Detector.predict`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.errors import CheckpointError, ConfigError
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.hub.folder import FILES
from codetr_cli.inference.prediction import Prediction
from tests.conftest import REPOSITORY
from tests.inference.fakes import write_checkpoint
from tests.inference.hub.conftest import local_hub
from tests.inference.hub.hub_server import TOKEN, Hub, Repository
from tests.losses.batches import SMALL_MASKS

transformers = pytest.importorskip("transformers", reason="the extra transformers is not installed")
ours = pytest.importorskip("codetr_cli.integrations.transformers")

THRESHOLD = 0.001
"""Random weights give low scores."""
VARIANTS: dict[str, tuple[str, ...]] = {
    "co_dino": (),
    "co_deformable": ("model.family=co_deformable",),
    "canvas": ("test.canvas=128", "data.canvas=128"),
    "divisor": ("data.pad_divisor=32",),
    "fixed size": ("test.fixed_size=[96,128]",),
    "no NMS": ("test.nms=none", "test.max_detections=7"),
    "hard NMS": ("test.nms=hard", "test.nms_iou=0.3"),
    "masks": ("model.mask.kind=refine", *SMALL_MASKS),
    "other colours": ("data.mean=[1,2,3]", "data.std=[50,60,70]"),
}


def images() -> list[Image.Image]:
    """Images of four sizes, upright and wide, one of them grey and one with alpha."""
    generator = np.random.default_rng(0)
    sizes = [(96, 128), (128, 96), (70, 201), (96, 128), (50, 60)]
    found = [Image.fromarray(generator.integers(0, 255, (h, w, 3), dtype=np.uint8)) for h, w in sizes]
    return [*found[:-1], found[-1].convert("L"), found[0].convert("RGBA")]


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path, tiny_settings) -> Path:
    settings = apply_overrides(tiny_settings, list(getattr(request, "param", ())))
    Detector.load(write_checkpoint(tmp_path / "a.safetensors", settings), device="cpu").save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def rows(found: Prediction) -> list[tuple[Any, ...]]:
    """The detections as the pipeline gives them."""
    boxes = [tuple(box) for box in found.boxes.astype(np.int32).tolist()]
    return list(zip(found.class_names, found.scores.tolist(), boxes, strict=True))


def pipeline_rows(found: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    names = ("xmin", "ymin", "xmax", "ymax")
    return [(each["label"], each["score"], tuple(each["box"][name] for name in names)) for each in found]


@pytest.mark.parametrize("folder", VARIANTS.values(), ids=VARIANTS, indirect=True)
def test_the_pipeline_gives_the_same_detections(folder: Path):
    detector = Detector.load(folder, device="cpu")
    detect = transformers.pipeline("object-detection", model=str(folder), device="cpu")
    for image in images():
        expected = rows(detector.predict(image, score=THRESHOLD))
        assert len(expected) > 3
        assert pipeline_rows(detect(image, threshold=THRESHOLD)) == expected


def test_the_threshold_is_the_lowest_score(folder: Path):
    detector = Detector.load(folder, device="cpu")
    detect = transformers.pipeline("object-detection", model=str(folder), device="cpu")
    image = images()[0]
    scores = detector.predict(image, score=0).scores
    middle = float(scores[len(scores) // 2])
    expected = rows(detector.predict(image, score=middle))
    assert 0 < len(expected) < len(scores)
    assert pipeline_rows(detect(image, threshold=middle)) == expected


@pytest.mark.parametrize("folder", [VARIANTS[name] for name in ("co_dino", "divisor", "fixed size")], indirect=True)
def test_batches_of_different_sizes(folder: Path):
    """A batch rounds differently: as `Detector.predict` with a batch."""
    detector = Detector.load(folder, device="cpu")
    detect = transformers.pipeline("object-detection", model=str(folder), device="cpu")
    expected = [rows(found) for found in detector.predict(images(), score=THRESHOLD, exact=True)]
    for batch_size in (2, 6):
        found = [pipeline_rows(each) for each in detect(images(), threshold=THRESHOLD, batch_size=batch_size)]
        for ours, theirs in zip(found, expected, strict=True):
            assert [(label, box) for label, _, box in ours] == [(label, box) for label, _, box in theirs]
            assert [score for _, score, _ in ours] == pytest.approx([score for _, score, _ in theirs], abs=1e-5)


@pytest.mark.parametrize("folder", [VARIANTS[name] for name in ("co_dino", "canvas", "divisor")], indirect=True)
def test_the_auto_classes(folder: Path):
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = transformers.AutoModelForObjectDetection.from_pretrained(folder)
    given = images()
    inputs = processor(images=given, return_tensors="pt")
    assert inputs["pixel_values"].shape[:2] == (len(given), 3)
    assert inputs["pixel_mask"].shape == inputs["pixel_values"].shape[:1] + inputs["pixel_values"].shape[2:]
    outputs = model(**inputs)
    assert outputs.logits.shape == (len(given), 30, 3)
    sizes = torch.tensor([image.size[::-1] for image in given])
    found = processor.post_process_object_detection(outputs, threshold=THRESHOLD, target_sizes=sizes)
    detector = Detector.load(folder, device="cpu")
    for each, image in zip(found, given, strict=True):
        expected = detector.predict(image, score=THRESHOLD)
        assert each["labels"].tolist() == expected.labels.tolist()
        assert np.allclose(each["boxes"], expected.boxes, atol=1e-3)
        assert np.allclose(each["scores"], expected.scores, atol=1e-5)
    assert model(**inputs, return_dict=False)[0].shape == outputs.logits.shape


def test_what_the_model_knows(folder: Path):
    model = transformers.AutoModelForObjectDetection.from_pretrained(folder)
    assert model.config.id2label == {0: "disc", 1: "bar", 2: "ring"}
    assert model.config.label2id == {"disc": 0, "bar": 1, "ring": 2}
    assert (model.config.num_labels, model.config.category_ids) == (3, [2, 3, 7])
    assert model.config.model_type == "codetr"
    assert (model.device.type, model.dtype, model.training) == ("cpu", torch.float32, False)
    config = transformers.AutoConfig.from_pretrained(folder)
    assert config.id2label == model.config.id2label
    random = transformers.AutoModelForObjectDetection.from_config(config)
    assert random.state_dict().keys() == model.state_dict().keys()


def test_boxes_without_sizes_are_relative(folder: Path):
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = transformers.AutoModelForObjectDetection.from_pretrained(folder)
    (image, *_) = images()
    outputs = model(**processor(image))
    (relative,) = processor.post_process_object_detection(outputs, threshold=0)
    (absolute,) = processor.post_process_object_detection(outputs, threshold=0, target_sizes=[image.size[::-1]])
    width, height = image.size
    assert torch.allclose(relative["boxes"] * torch.tensor([width, height] * 2), absolute["boxes"], atol=1e-3)
    with pytest.raises(ValueError, match="2 target_sizes for the outputs of 1 images"):
        processor.post_process_object_detection(outputs, target_sizes=[(1, 1), (1, 1)])


def test_the_image_processor_can_be_changed(folder: Path):
    processor = transformers.AutoImageProcessor.from_pretrained(folder, short_side=64, long_side=64)
    assert processor(images()[0])["pixel_values"].shape == (1, 3, 48, 64)
    assert processor(images()[:2], do_pad=False)["pixel_values"][1].shape == (3, 64, 48)
    assert isinstance(processor(images()[0], return_tensors="np")["pixel_values"], np.ndarray)
    with pytest.raises(ConfigError, match=r"test\.short_side"):
        transformers.AutoImageProcessor.from_pretrained(folder, short_side=-3)
    with pytest.raises(ValueError, match="do_resize"):
        processor(images()[0], do_resize=False)
    with pytest.raises(ValueError, match="return_tensors='tf'"):
        processor(images()[0], return_tensors="tf")


def test_the_image_processor_is_saved_as_transformers_does(folder: Path, tmp_path: Path):
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    processor.save_pretrained(tmp_path / "again")
    written, again = (
        json.loads((place / "preprocessor_config.json").read_text()) for place in (folder, tmp_path / "again")
    )
    assert {name: again.get(name) for name in written} == written  # without values that are None
    loaded = transformers.AutoImageProcessor.from_pretrained(tmp_path / "again")
    assert loaded.to_dict() == processor.to_dict()


def test_what_the_model_does_not_do(folder: Path, tiny_settings, tmp_path: Path):
    model = transformers.AutoModelForObjectDetection.from_pretrained(folder)
    with pytest.raises(ValueError, match="codetr train"):
        model(torch.zeros(1, 3, 64, 64), labels=[])
    with pytest.raises(ConfigError, match="Detector"):
        model.save_pretrained(tmp_path / "x")
    with pytest.raises(ValueError, match="precision"):
        ours.CodetrForObjectDetection.from_pretrained(folder, dtype=torch.float16)
    with pytest.raises(ValueError, match="one device"):
        ours.CodetrForObjectDetection.from_pretrained(folder, device_map={"network": 0, "x": 1})
    settings = apply_overrides(tiny_settings, ["test.head=atss"])
    write_checkpoint(tmp_path / "atss/model.safetensors", settings)
    with pytest.raises(ConfigError, match="head atss"):
        ours.CodetrForObjectDetection.from_pretrained(tmp_path / "atss")


def test_a_pickle_in_the_place_of_the_weights_is_not_opened(folder: Path):
    (folder / "model.safetensors").write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    with pytest.raises(CheckpointError):
        transformers.pipeline("object-detection", model=str(folder), device="cpu")


def test_code_beside_the_model_is_not_executed(folder: Path):
    """Also where config.json names it."""
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "evil.A", "AutoModelForObjectDetection": "evil.B", "AutoImageProcessor": "evil.C"}
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": names}))
    (folder / "evil.py").write_text("raise SystemExit('executed')")
    detect = transformers.pipeline("object-detection", model=str(folder), device="cpu")
    assert len(detect(images()[0], threshold=THRESHOLD)) > 3


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    yield from local_hub(tmp_path, monkeypatch)


def test_a_repository_of_the_hub(folder: Path, hub: Hub):
    files = {name: (folder / name).read_bytes() for name in FILES}
    hub.repositories["my-lab/cells"] = Repository({**files, "modeling.py": b"raise SystemExit"}, private=True)
    detect = transformers.pipeline("object-detection", model="my-lab/cells", device="cpu", token=TOKEN)
    image = images()[0]
    expected = Detector.load(folder, device="cpu").predict(image, score=THRESHOLD)
    assert pipeline_rows(detect(image, threshold=THRESHOLD)) == rows(expected)
    assert not any("modeling.py" in request for request in hub.requests)


@pytest.mark.slow
def test_nothing_is_reported_on_the_way(folder: Path, tmp_path: Path):
    """The pipeline works in a fresh process, with the import line alone, and logs neither an error nor a warning."""
    images()[0].save(tmp_path / "a.png")
    program = (
        "import codetr_cli.integrations.transformers\n"
        "from transformers import pipeline\n"
        f"detect = pipeline('object-detection', model={str(folder)!r}, device='cpu')\n"
        f"print(len(detect({str(tmp_path / 'a.png')!r}, threshold={THRESHOLD})))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 3
    assert not [
        line for line in ran.stderr.splitlines() if "not supported" in line or "arning" in line or "rror" in line
    ]
