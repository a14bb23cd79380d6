from __future__ import annotations

import json
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import codetr_cli
from codetr_cli.config.overrides import apply_overrides
from codetr_cli.data.coco import build_dataset
from codetr_cli.errors import CheckpointError, ConfigError, DatasetError, ResourceError
from codetr_cli.images import large_images
from codetr_cli.images.decoder import read_image
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.given_pixels import to_pixels
from codetr_cli.inference.prediction import Detection
from tests.inference.fakes import CATEGORY_IDS, CLASS_NAMES, evaluated_records, write_checkpoint, write_run


@pytest.fixture
def detector(tmp_path: Path, tiny_settings) -> Detector:
    return Detector.load(write_checkpoint(tmp_path / "m.safetensors", tiny_settings), device="cpu")


@pytest.fixture
def photo(tiny_coco: Path) -> Path:
    return sorted((tiny_coco / "train2017").glob("*.jpg"))[0]


def same(ours, theirs) -> bool:
    columns = ("boxes", "scores", "labels", "category_ids")
    return all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in columns)


def test_predictions_are_typed(detector, photo):
    found = detector.predict(photo, score=0.0)
    assert len(found) == 20
    assert (found.boxes.dtype, found.boxes.shape) == (np.float32, (20, 4))
    assert (found.scores.dtype, found.labels.dtype, found.category_ids.dtype) == (np.float32, np.int64, np.int64)
    assert found.image_size == read_image(photo, max_pixels=10**6).shape[:2]
    assert (np.diff(found.scores) <= 0).all()
    first = next(iter(found))
    assert first == Detection(
        box=tuple(found.boxes[0].tolist()),
        score=float(found.scores[0]),
        label=int(found.labels[0]),
        category_id=CATEGORY_IDS[found.labels[0]],
        class_name=CLASS_NAMES[found.labels[0]],
    )
    assert [d.class_name for d in found] == found.class_names


def test_detections_of_the_image_at_another_size(detector, photo):
    found = detector.predict(photo, score=0.0)
    height, width = found.image_size
    half = found.resized((height // 2, width * 2))
    assert half.image_size == (height // 2, width * 2)
    scale = [2, height // 2 / height, 2, height // 2 / height]
    np.testing.assert_allclose(half.boxes, found.boxes * scale, rtol=1e-6)
    assert same(found.resized(found.image_size), found)
    assert half.draw(np.zeros((height // 2, width * 2, 3), np.uint8)).size == (width * 2, height // 2)
    with pytest.raises(ValueError, match="whole pixels from 1"):
        found.resized((0, 5))


def test_tiles_of_a_large_file_are_read_one_by_one(detector, tmp_path, monkeypatch):
    rasterio = pytest.importorskip("rasterio")
    monkeypatch.setattr(large_images, "WHOLE_PIXELS", 1000)
    pixels = np.random.default_rng(0).integers(0, 256, (150, 260, 3)).astype(np.uint8)
    path = tmp_path / "a.tif"
    layout = {"height": 150, "width": 260, "count": 3, "dtype": "uint8", "blockxsize": 32, "blockysize": 32}
    with warnings.catch_warnings(action="ignore"), rasterio.open(path, "w", tiled=True, compress="lzw", **layout) as f:
        f.write(np.moveaxis(pixels, -1, 0))
    whole = detector.predict(pixels, tiles="100x80", score=0.0)
    monkeypatch.setattr(large_images, "read_image", None)
    found = detector.predict(path, tiles="100x80", score=0.0)
    assert found.image_size == (150, 260)
    assert len(found) > 20
    assert found.boxes[:20] == pytest.approx(whole.boxes[:20], abs=0.5)  # the whole image is resized by rows
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"cannot read image .*a\.tif: the file is damaged"):
        detector.predict(path, tiles="100x80")


def test_classes_may_have_scores_of_their_own(detector, photo):
    found = detector.predict(photo, score=0.0)
    name = found.class_names[len(found) // 2]
    limit = float(found.scores[len(found) // 2])
    kept = detector.predict(photo, score=0.0, class_scores={name: limit})
    rows = [row for row, one in enumerate(found) if one.class_name != name or one.score >= limit]
    assert same(kept, found[rows])
    assert len(kept) < len(found) or all(score >= limit for score in found.scores.tolist())
    one_class = detector.predict(photo, score=1.0, class_scores={name: 0.0})
    assert same(one_class, found[[row for row, each in enumerate(found.class_names) if each == name]])
    with pytest.raises(ValueError, match=rf"no such class; did you mean '{name}'"):
        detector.predict(photo, class_scores={name.upper(): 0.5})
    for wrong in (0.5, {name: 2}, {name: "x"}, {3: 0.5}):
        with pytest.raises(ValueError, match="score"):
            detector.predict(photo, class_scores=wrong)


def test_every_kind_of_image_gives_the_same_numbers(detector, photo):
    pixels = read_image(photo, max_pixels=10**6)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    expected = detector.predict(photo, score=0.0)
    for image in (str(photo), pixels, pixels[:, :, ::-1][:, :, ::-1], Image.fromarray(pixels), tensor, tensor / 255):
        assert same(detector.predict(image, score=0.0), expected), type(image)


def test_the_numbers_are_those_of_an_evaluation(detector, tiny_coco, tiny_settings):
    dataset = build_dataset(tiny_settings, split="train", training=False, data=str(tiny_coco))
    ours = []
    for index, image_id in enumerate(dataset.image_ids):
        ours += detector.predict(dataset.image_path(index), score=0.0).to_coco(image_id)
    assert ours == evaluated_records(detector, dataset)


def test_a_list_gives_what_its_images_give_alone(detector, tiny_coco):
    photos = sorted((tiny_coco / "train2017").glob("*.jpg"))
    together = detector.predict(photos, score=0.0)
    assert isinstance(together, list)
    assert all(same(one, detector.predict(path, score=0.0)) for one, path in zip(together, photos, strict=True))


def test_score_and_number_limit_what_comes_out(detector, photo):
    everything = detector.predict(photo, score=0.0)
    middle = float(everything.scores[7])
    assert len(detector.predict(photo, score=middle)) == np.count_nonzero(everything.scores >= middle)
    assert same(detector.predict(photo, score=0.0, max_dets=5), everything[:5])
    assert len(detector.predict(photo, score=0.0, max_dets=25)) == 25  # more than the settings' 20
    assert len(detector.predict(photo, score=1.0)) == 0
    assert list(detector.predict(photo, score=1.0)) == []


def test_nms_changes_what_comes_out(detector, photo):
    by_kind = {kind: detector.predict(photo, score=0.0, max_dets=90, nms=kind) for kind in ("none", "hard", "soft")}
    assert len(by_kind["hard"]) <= len(by_kind["none"]) == 90
    assert same(by_kind["soft"], detector.predict(photo, score=0.0, max_dets=90))


def test_masks_choose_detections(detector, photo):
    found = detector.predict(photo, score=0.0)
    chosen = found[found.labels == found.labels[3]]
    assert set(chosen.class_names) == {found.class_names[3]}
    assert len(chosen) == np.count_nonzero(found.labels == found.labels[3])
    assert found[np.array([4, 2])].class_names == [found.class_names[4], found.class_names[2]]


@pytest.mark.parametrize("head", ["roi", "atss"])
def test_auxiliary_heads_detect_too(tmp_path, tiny_settings, photo, head):
    path = write_checkpoint(tmp_path / "m.safetensors", tiny_settings)
    detector = Detector.load(path, device="cpu", overrides=[f"test.head={head}"])
    found = detector.predict(photo, score=0.0, max_dets=10)
    assert found.boxes.shape[1] == 4
    assert len(found) <= 10


def test_the_docstring_example_runs(tmp_path, tiny_settings, photo, monkeypatch, capsys):
    settings = tiny_settings.model_copy(update={"test": tiny_settings.test.model_copy(update={"nms": "none"})})
    write_run(tmp_path / "runs/co_dino_r50/1", settings, "best")
    Image.open(photo).save(tmp_path / "street.jpg")
    monkeypatch.chdir(tmp_path)
    text = textwrap.dedent(Detector.__doc__.split("Example:\n")[1].split("\n\n    Args:")[0])
    assert "from codetr_cli import Detector" in text
    exec(text.replace('"person"', '"bar"').replace("score=0.5", "score=0.01"))
    assert "all boxes: (" in capsys.readouterr().out
    with Image.open("street_detections.jpg") as drawn, Image.open("street.jpg") as original:
        assert drawn.size == original.size


def test_the_package_offers_the_detector():
    assert codetr_cli.Detector is Detector


def test_an_exif_rotation_is_applied_to_pil_images(photo, tmp_path):
    with Image.open(photo) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(tmp_path / "turned.jpg", exif=exif)
    with Image.open(tmp_path / "turned.jpg") as turned:
        assert to_pixels(turned).shape == to_pixels(tmp_path / "turned.jpg").shape
        assert to_pixels(turned).shape[:2] == turned.size


def test_grey_images_become_three_channels():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    expected = np.stack([grey] * 3, axis=2)
    for image in (grey, grey[:, :, None], Image.fromarray(grey), torch.from_numpy(grey)[None]):
        assert np.array_equal(to_pixels(image), expected)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((3, 40, 60), np.uint8),
        np.full((3, 4, 3), 9, np.float32),
        np.zeros((0, 4, 3), np.uint8),
        torch.zeros(40, 60, 3),
        torch.full((3, 4, 5), 7.0),
        torch.zeros(3, 4, 5, dtype=torch.int64),
        7,
    ],
)
def test_wrong_arrays_are_explained(image):
    with pytest.raises(ValueError, match="image"):
        to_pixels(image)


def test_broken_files_are_named(tmp_path):
    (tmp_path / "bad.jpg").write_text("no image")
    with pytest.raises(DatasetError, match=r"bad\.jpg"):
        to_pixels(tmp_path / "bad.jpg")


def test_loading_explains_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"none\.safetensors"):
        Detector.load("none.safetensors")
    with pytest.raises(ConfigError, match="tpu"):
        Detector.load("none.safetensors", device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ResourceError, match="cuda"):
            Detector.load("none.safetensors", device="cuda")


@pytest.fixture(params=["fcn", "refine"])
def masking(request, tmp_path: Path, tiny_settings) -> Detector:
    """A detector whose detections have masks."""
    overrides = [f"model.mask.kind={request.param}", "model.mask.dim=16", "model.mask.iou_fc_dim=8"]
    if request.param == "fcn":
        overrides.append("test.head=roi")
    settings = apply_overrides(tiny_settings, overrides)
    return Detector.load(write_checkpoint(tmp_path / "m.safetensors", settings), device="cpu")


def test_masks_come_in_the_pixels_of_the_image(masking, photo):
    found = masking.predict(photo, score=0.0)
    size = found.image_size
    bitmaps = found.bitmaps()
    assert bitmaps.shape == (len(found), *size)
    assert bitmaps.any()
    for bitmap, (x1, y1, x2, y2) in zip(bitmaps, found.boxes, strict=True):
        rows, columns = bitmap.nonzero()
        if len(rows):
            assert y1 - 1 <= rows.min() <= rows.max() <= y2
            assert x1 - 1 <= columns.min() <= columns.max() <= x2
    chosen = found[found.scores >= found.scores[3]][:2]
    assert np.array_equal(chosen.bitmaps(), bitmaps[:2])
    records = found.to_coco(7)
    assert json.loads(json.dumps(records)) == records
    assert [record["segmentation"]["size"] for record in records] == [list(size)] * len(found)
    first = next(iter(found))
    assert first.mask == found.masks[0]
    if found.mask_scores is not None:
        assert first.mask_score == pytest.approx(found.mask_scores[0])
        assert records[0]["mask_score"] == pytest.approx(found.mask_scores[0], abs=1e-6)
    drawn = np.asarray(found.draw(photo))
    assert drawn.shape == (*size, 3)


def test_a_smallest_score_changes_no_mask_above_it(masking, photo):
    every = masking.predict(photo, score=0.0)
    score = float(every.scores[5])
    some = masking.predict(photo, score=score)
    expected = every[every.scores >= score]
    assert same(some, expected)
    assert some.masks == expected.masks
    nothing = masking.predict(photo, score=1.0)
    assert len(nothing) == 0
    assert nothing.bitmaps().shape == (0, *nothing.image_size)


def test_without_masks_there_are_none(detector, photo):
    found = detector.predict(photo, score=0.0)
    assert found.masks is None
    assert found.mask_scores is None
    assert found.bitmaps().shape == (0, *found.image_size)
    assert "segmentation" not in found.to_coco(1)[0]
    assert next(iter(found)).mask is None
