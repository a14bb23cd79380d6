from __future__ import annotations

import itertools
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.errors import ArgumentError, DatasetError
from codetr_cli.images.decoder import read_image
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.prediction import Prediction
from tests.conftest import REPOSITORY
from tests.inference.fakes import write_checkpoint, write_run

COLUMNS = ("boxes", "scores", "labels", "category_ids")


@pytest.fixture
def detector(tmp_path: Path, tiny_settings) -> Detector:
    return Detector.load(write_checkpoint(tmp_path / "m.safetensors", tiny_settings), device="cpu")


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Of two shapes, in turn."""
    generator = np.random.default_rng(0)
    paths = []
    for number in range(7):
        pixels = generator.integers(0, 255, (96, 128, 3) if number % 3 else (112, 96, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def same(ours: Prediction, theirs: Prediction) -> bool:
    equal = all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in COLUMNS)
    scores = (ours.mask_scores, theirs.mask_scores)
    return equal and ours.masks == theirs.masks and (scores[0] is None or np.array_equal(*scores))


def check_near(ours: Prediction, theirs: Prediction) -> None:
    """Every detection has one of the same class within 1e-3 pixels; those of nearly equal scores may change places."""
    assert len(ours) == len(theirs)
    for box, score, label in zip(theirs.boxes, theirs.scores, theirs.labels, strict=True):
        of_class = ours.labels == label
        distances = np.abs(ours.boxes[of_class] - box).max(axis=1)
        near = distances < 1e-3
        assert near.any(), distances.min()
        assert np.abs(ours.scores[of_class][near] - score).min() < 1e-5


@pytest.mark.parametrize(
    ("overrides", "tta"),
    [
        ([], False),
        ([], True),
        (["test.head=roi"], False),
        (["test.head=atss"], False),
        (["model.mask.kind=fcn", "model.mask.dim=16", "model.mask.iou_fc_dim=8", "test.head=roi"], False),
        (["model.mask.kind=refine", "model.mask.dim=16", "model.mask.iou_fc_dim=8"], False),
        (["model.mask.kind=refine", "model.mask.dim=16", "model.mask.iou_fc_dim=8"], True),
        (["test.canvas=128"], False),
    ],
)
def test_exact_is_one_by_one_to_the_last_bit_and_batches_are_near(tmp_path, tiny_settings, photos, overrides, tta):
    path = write_checkpoint(tmp_path / "m.safetensors", apply_overrides(tiny_settings, overrides))
    detector = Detector.load(path, device="cpu", overrides=["test.nms=none"], tta=tta)
    photos = photos[:4] if tta else photos
    alone = [detector.predict(photo, score=0.0) for photo in photos]
    for exact in (
        detector.predict(photos, score=0.0, batch=4, exact=True),
        detector.predict(photos, score=0.0),  # on a CPU
        list(detector.stream(photos, score=0.0, batch=4, exact=True, workers=3)),
    ):
        assert all(same(one, other) for one, other in zip(exact, alone, strict=True))
    together = detector.predict(photos, score=0.0, batch=4)
    for one, other in zip(together, alone, strict=True):
        check_near(one, other)


def test_images_of_any_kind_and_any_number(detector, photos):
    pixels = [read_image(path, max_pixels=10**6) for path in photos]
    expected = [detector.predict(path, score=0.0) for path in photos[:5]]
    with Image.open(photos[3]) as opened:
        kinds = [str(photos[0]), photos[1], pixels[2], opened, torch.from_numpy(pixels[4]).permute(2, 0, 1)]
        for images in (kinds, tuple(kinds), iter(kinds)):
            found = list(detector.stream(images, score=0.0))
            assert all(same(one, other) for one, other in zip(found, expected, strict=True))
    endless = detector.stream(itertools.cycle(photos[:2]), score=0.0)
    assert [len(found) for found in itertools.islice(endless, 30)] == [20] * 30
    endless.close()
    assert list(detector.stream([])) == detector.predict([]) == []
    assert same(detector.predict(photos[:1], score=0.0)[0], expected[0])


def test_an_image_that_is_given_twice_is_read_once_at_a_time(detector, photos):
    with Image.open(photos[0]) as image:
        first, *others = detector.predict([image] * 6, score=0.0)
    assert same(first, detector.predict(photos[0], score=0.0))
    assert all(same(first, other) for other in others)


def test_images_in_memory_may_be_overwritten(detector, photos, tmp_path):
    expected = [detector.predict(path, score=0.0) for path in photos if photos.index(path) % 3]

    def camera():
        buffer = np.zeros((96, 128, 3), np.uint8)
        for path in photos:
            pixels = read_image(path, max_pixels=10**6)
            if pixels.shape == buffer.shape:
                buffer[:] = pixels
                yield buffer

    found = list(detector.stream(camera(), score=0.0, workers=3))
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))
    frames = [Image.fromarray(read_image(path, max_pixels=10**6)) for path in photos if photos.index(path) % 3]
    frames[0].save(tmp_path / "film.tif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "film.tif") as film:
        found = list(detector.stream(ImageSequence.Iterator(film), score=0.0, workers=3))
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))


def test_an_image_that_cannot_be_used_is_named(detector, photos, tmp_path):
    (tmp_path / "bad.jpg").write_text("no image")
    images = [photos[0], tmp_path / "bad.jpg", np.zeros((3, 4, 5, 6)), "", photos[1], 7]
    with pytest.raises(DatasetError, match=r"bad\.jpg"):
        detector.predict(images)
    stream = detector.stream(images)
    assert isinstance(next(stream), Prediction)
    with pytest.raises(DatasetError, match=r"bad\.jpg"):
        next(stream)
    assert list(stream) == []
    found = list(detector.stream(images, on_error="yield"))
    assert [type(one).__name__ for one in found] == [
        *("Prediction", "ImageError", "ArgumentError", "ArgumentError", "Prediction", "ArgumentError")
    ]
    assert "bad.jpg" in str(found[1])
    assert all(isinstance(found[place], ValueError) for place in (1, 2, 3, 5))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"images": "photo.jpg"}, "predict"),
        ({"images": np.zeros((4, 4, 3), np.uint8)}, "predict"),
        ({"images": 7}, "images=7"),
        ({"images": [], "batch": 0}, "batch=0"),
        ({"images": [], "workers": 1.5}, "workers=1.5"),
        ({"images": [], "exact": 1}, "exact=1"),
        ({"images": [], "on_error": "skip"}, "'raise', 'yield'"),
        ({"images": [], "score": 30}, "score=30"),
    ],
)
def test_wrong_arguments_are_errors_at_once(detector, given, words):
    with pytest.raises(ArgumentError, match=words):
        detector.stream(**given)


def test_the_example_of_the_documentation_runs(tmp_path, tiny_settings, photos, monkeypatch, capsys):
    text = (REPOSITORY / "docs/predict.md").read_text(encoding="utf-8")
    (example,) = [part for part in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "on_error" in part]
    write_run(tmp_path / "runs/co_dino_r50/1", tiny_settings, "best")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/bad.jpg").write_text("no image")
    Image.fromarray(read_image(photos[0], max_pixels=10**6)).save(tmp_path / "photos/good.jpg")
    monkeypatch.chdir(tmp_path)
    exec(example.replace("detector.predict(paths)", "detector.predict(paths[1:])"))
    printed = capsys.readouterr().out
    assert "photos/bad.jpg cannot read image" in printed
    assert "photos/good.jpg 0" in printed


def test_no_thread_stays(detector, photos):
    for _ in detector.stream(photos):
        break
    detector.predict(photos)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("codetr-")]
