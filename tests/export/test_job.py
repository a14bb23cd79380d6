"""From a checkpoint to a file that stands for it: settings, files, and the same detections."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from codetr_cli.config.overrides import replace_settings
from codetr_cli.errors import CheckpointError, ConfigError, ResourceError
from codetr_cli.export import job
from codetr_cli.export.job import describe, export, export_settings
from codetr_cli.export.options import ExportOptions
from codetr_cli.export.request import WriteRequest
from codetr_cli.export.verify import verify
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.options import TileOptions
from codetr_cli.inference.prediction import Prediction
from codetr_cli.weights.checkpoint import file_sha256
from tests.export import networks
from tests.export.faults import some_images
from tests.export.networks import Exported


def make_image(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


IMAGES = [make_image(90, 150), make_image(150, 90), make_image(96, 160), make_image(40, 300), make_image(200, 200)]


def assert_equal(found: Prediction, expected: Prediction) -> None:
    """Every detection of one has its counterpart in the other, with equal masks."""
    assert len(found) == len(expected) > 0
    assert np.abs(np.sort(found.scores) - np.sort(expected.scores)).max() < 1e-4
    for index in range(len(found)):
        same = np.flatnonzero(expected.labels == found.labels[index])
        distance = np.abs(expected.boxes[same] - found.boxes[index]).max(1)
        distance = np.maximum(distance, 100 * np.abs(expected.scores[same] - found.scores[index]))
        assert distance.min() < 0.02, (index, distance.min())
        if found.masks is not None and expected.masks is not None:
            own, others = found.masks[index], expected.masks[same[distance.argmin()]]
            assert own == others or len(own["counts"]) > 0


@pytest.mark.parametrize("options", [{}, {"batch": 3}, {"nms": "none"}, {"nms": "hard"}, {"max_dets": 5}])
def test_a_file_of_any_size_detects_what_the_checkpoint_detects(any_size: Exported, options: dict[str, Any]):
    ours, theirs = (Detector.load(path, "cpu") for path in (any_size.path, any_size.checkpoint))
    for found, expected in zip(
        ours.predict(IMAGES, score=0, **options), theirs.predict(IMAGES, score=0, **options), strict=True
    ):
        assert_equal(found, expected)


@pytest.mark.parametrize("options", [{}, {"batch": 3}, {"nms": "none"}, {"tiles": "100x64"}])
def test_a_file_of_one_size(swin: Exported, options: dict[str, Any]):
    ours = Detector.load(swin.path, "cpu")
    theirs = Detector.load(swin.checkpoint, "cpu", overrides=["test.fixed_size=[96,160]"])
    for found, expected in zip(
        ours.predict(IMAGES, score=0, **options), theirs.predict(IMAGES, score=0, **options), strict=True
    ):
        assert_equal(found, expected)


@pytest.mark.slow
def test_masks(vit_masks: Exported):
    ours = Detector.load(vit_masks.path, "cpu")
    theirs = Detector.load(vit_masks.checkpoint, "cpu", overrides=["test.fixed_size=[96,160]"])
    for found, expected in zip(ours.predict(IMAGES, score=0.01), theirs.predict(IMAGES, score=0.01), strict=True):
        assert_equal(found, expected)
        assert found.masks is not None
        assert found.mask_scores is not None
        assert np.abs(np.sort(found.mask_scores) - np.sort(expected.mask_scores)).max() < 1e-4
        pairs = list(zip(found.masks, expected.masks, strict=True))
        assert np.mean([own == other for own, other in pairs]) > 0.9


@pytest.mark.slow
def test_more_candidates_than_the_file_keeps(vit_masks: Exported):
    with pytest.raises(ValueError, match=r"90 candidates .* this file keeps 30: export the checkpoint again"):
        Detector.load(vit_masks.path, "cpu").predict(IMAGES[0], max_dets=100, nms="none")


# ------------------------------------------------------------------------------------------------------------- settings


def test_settings_of_one_size(tiny_settings):
    settings = replace_settings(tiny_settings, {"data.pad_divisor": 32})
    assert export_settings(settings, ExportOptions()).test.fixed_size == (96, 160)
    assert export_settings(settings, ExportOptions(size=(90, 130))).test.fixed_size == (96, 160)
    assert export_settings(settings, ExportOptions(dynamic_size=True)).test.fixed_size is None
    fixed = replace_settings(settings, {"test.fixed_size": [64, 64]})
    assert export_settings(fixed, ExportOptions()).test.fixed_size == (64, 64)
    assert export_settings(fixed, ExportOptions(dynamic_size=True)).test.fixed_size is None


def test_settings_with_a_canvas(tiny_settings):
    settings = replace_settings(tiny_settings, {"test.canvas": 128})
    assert export_settings(settings, ExportOptions()).test.canvas == 128
    assert export_settings(settings, ExportOptions(size=(128, 128))).test.fixed_size is None
    for options in (ExportOptions(size=(96, 128)), ExportOptions(dynamic_size=True)):
        with pytest.raises(ConfigError, match=r"--set test\.canvas=SIDE"):
            export_settings(settings, options)


def test_only_the_decoder_is_exported(tiny_settings):
    with pytest.raises(ConfigError, match=r"test\.head=atss: only the decoder's head"):
        export_settings(replace_settings(tiny_settings, {"test.head": "atss"}), ExportOptions())


def test_squares_of_a_vit_with_fixed_tables():
    loaded = networks.load_random(*networks.VIT, "model.backbone.fixed_size=128")
    with pytest.raises(ConfigError, match=r"squares of 128 pixels only.*--set test\.canvas=128"):
        describe(loaded, ExportOptions())
    rule = describe(
        networks.load_random(*networks.VIT, "model.backbone.fixed_size=128", "test.canvas=128"), ExportOptions()
    ).input
    assert (rule.height, rule.width, rule.canvas) == (128, 128, 128)


def test_candidates_are_those_of_the_protocol():
    for overrides, count in (
        ((), 30),
        (("test.candidates=max_detections",), 20),
        (("test.nms=none",), 20),
    ):
        assert describe(networks.load_random(*overrides), ExportOptions()).output.candidates == count


def test_masks_imply_postprocess():
    output = describe(networks.load_random(*networks.VIT, *networks.REFINE), ExportOptions()).output
    assert (output.masks, output.detections) == (True, True)
    fcn = networks.load_random(*networks.DEFORMABLE, "model.mask.kind=fcn", "model.mask.dim=16")
    output = describe(fcn, ExportOptions()).output
    assert (output.masks, output.detections) == (False, False), "only the RoI head has masks"


# ---------------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return networks.write_random(tmp_path / "network.safetensors")


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[WriteRequest]:
    """Writes two short files in the place of a graph."""
    requests: list[WriteRequest] = []

    def write(request: WriteRequest) -> None:
        requests.append(request)
        request.path.write_bytes(b"graph")
        request.path.with_name(f"{request.path.name}.data").write_bytes(b"weights")

    monkeypatch.setitem(job.WRITERS, "onnx", write)
    return requests


def test_result(checkpoint: Path, written: list[WriteRequest], tmp_path: Path):
    steps: list[str] = []
    path = tmp_path / "new" / "folder" / "network.onnx"
    tiles = TileOptions(size=(1024, 768), overlap=0.1)
    result = export(checkpoint, ExportOptions(tiles=tiles, batch=4), path, step=steps.append)
    assert [file.read_bytes() for file in result.files] == [b"graph", b"weights"]
    assert sorted(path.parent.iterdir()) == [path.parent / ".codetr_results", *result.files]
    assert steps == ["loading the checkpoint"]
    metadata = result.metadata
    assert metadata.weights.file == "network.safetensors"
    assert metadata.weights.sha256 == file_sha256(checkpoint)
    assert metadata.tiles is not None
    assert (metadata.tiles.size, metadata.tiles.overlap) == ((1024, 768), 0.1)
    assert (metadata.class_names, metadata.category_ids) == (networks.CLASS_NAMES, networks.CATEGORY_IDS)
    assert metadata.input.batch == 4
    assert not any(parameter.requires_grad for parameter in written[0].model.parameters())
    assert written[0].model.optimized_for_inference


def test_own_files_are_replaced_with_force_only(checkpoint: Path, written: list[WriteRequest], tmp_path: Path):
    path = tmp_path / "network.onnx"
    export(checkpoint, ExportOptions(), path)
    with pytest.raises(ConfigError, match=r"network\.onnx already exists: .*--force"):
        export(checkpoint, ExportOptions(), path)
    export(checkpoint, ExportOptions(), path, force=True)
    assert len(written) == 2


@pytest.mark.parametrize("name", ["network.onnx", "network.onnx.data"])
def test_other_files_are_never_replaced(checkpoint: Path, written: list[WriteRequest], tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"somebody's")
    with pytest.raises(ConfigError, match=f"{name} already exists, not as codetr has written it"):
        export(checkpoint, ExportOptions(), tmp_path / "network.onnx", force=True)
    assert (tmp_path / name).read_bytes() == b"somebody's"
    left = {file.name for file in tmp_path.iterdir()}
    assert left == {name, "network.safetensors"}


@pytest.mark.parametrize(
    ("error", "raised"),
    [(OSError(errno.ENOSPC, "No space left"), ResourceError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_full_disk_and_a_signal_leave_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, raised: type
):
    def write(request: WriteRequest) -> None:
        request.path.write_bytes(b"half")
        raise error

    monkeypatch.setitem(job.WRITERS, "onnx", write)
    with pytest.raises(raised, match="no space left" if raised is ResourceError else None):
        export(checkpoint, ExportOptions(), tmp_path / "network.onnx")
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_the_suffix_is_that_of_the_format(checkpoint: Path, written: list[WriteRequest], tmp_path: Path):
    with pytest.raises(ConfigError, match=r"--format onnx ends in \.onnx.*network\.onnx"):
        export(checkpoint, ExportOptions(), tmp_path / "network.bin")
    assert not written


def test_a_file_of_any_size_passes_its_verification(any_size: Exported, monkeypatch: pytest.MonkeyPatch):
    """Three sizes of input, one the transpose of another, and batches of all of them."""
    monkeypatch.setattr("codetr_cli.export.verify.synthetic_images", some_images)
    report = verify(any_size.checkpoint, any_size.path, device=torch.device("cpu"))
    assert report.verdict == "equal", report.sentence
    sizes = [case.input_size for case in report.cases]
    assert sizes[0] == sizes[1][::-1]
    assert len(set(sizes)) >= 3


def test_an_exported_file_is_not_exported_again(any_size: Exported, tmp_path: Path):
    with pytest.raises(CheckpointError, match="is an exported file: export the checkpoint it was made from"):
        export(any_size.path, ExportOptions(), tmp_path / "again.onnx")


@pytest.mark.parametrize(
    ("options", "notes"),
    [
        ({"size": (96, 160)}, ["upright images are reduced to a height of 96"]),
        ({"size": (90, 150)}, ["96x160 (height x width): 90x150 rounded up to multiples of 32", "upright images"]),
        ({"size": (160, 160)}, []),
        ({"dynamic_size": True}, []),
    ],
)
def test_notes(checkpoint: Path, written: list[WriteRequest], tmp_path: Path, options: dict, notes: list[str]):
    result = export(checkpoint, ExportOptions(**options), tmp_path / "network.onnx")
    assert len(result.notes) == len(notes)
    for note, text in zip(result.notes, notes, strict=True):
        assert text in note


def test_default_tiles(any_size: Exported, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    image = make_image(300, 300)
    detector = Detector.load(any_size.path, "cpu")
    whole, tiled = detector.predict(image, score=0), detector.predict(image, score=0, tiles="128x128")
    metadata = any_size.metadata.model_copy(update={"tiles": job.TilesRule(size=(128, 128), overlap=0.2)})
    monkeypatch.setattr(any_size.engine, "metadata", metadata)
    monkeypatch.setattr("codetr_cli.inference.exported.load.open_engine", lambda *asked: any_size.engine)
    detector = Detector.load(any_size.path, torch.device("cpu"))
    assert np.array_equal(detector.predict(image, score=0).boxes, tiled.boxes)
    assert np.array_equal(detector.predict(image, score=0, tiles="none").boxes, whole.boxes)
    assert len(detector.predict(image, score=0, tiles="200x200")) not in (len(whole),)
