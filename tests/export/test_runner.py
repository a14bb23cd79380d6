"""The file that people copy: equal to `Detector`, in a process that has neither PyTorch nor codetr."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx", reason="the optional package onnx writes the files")
pytest.importorskip("onnxruntime", reason="the optional package ONNX Runtime runs the files")

import cv2

from codetr_cli.export import runner
from codetr_cli.inference.detector import Detector
from tests.inference.exported import handmade

HOOK = """
import sys
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ImportError(name + " is not installed here")
sys.meta_path.insert(0, Forbidden())
sys.argv = ["runner.py", *sys.argv[1:]]
import runpy
runpy.run_path("runner.py", run_name="__main__")
"""

FILES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "raw": ([], {}),
    "any_size": ([], {"dynamic_size": True}),
    "boxes": ([], {"postprocess": True, "preprocess": True, "batch": 3}),
    "canvas": (["test.canvas=128"], {"preprocess": True}),
    "hard": (["test.nms=hard", "test.nms_iou=0.3"], {"size": (128, 128)}),
    "none": (["test.nms=none", "test.max_detections=12"], {"dynamic_size": True, "postprocess": True}),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twenty files: wide, upright, small, twice the size, grey, with alpha, with a palette, rotated."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    sizes = [(90, 150), (150, 90), (96, 160), (192, 320), (40, 60), (60, 40), (300, 200), (33, 217), (128, 128), (7, 9)]
    paths = []
    for number in range(20):
        height, width = sizes[number % len(sizes)]
        coarse = random.integers(0, 256, (6, 8, 3), np.uint8)
        pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        image, options = Image.fromarray(pixels), {}
        if number in (3, 11):
            image = image.convert("L")
        if number in (4, 12):
            image.putalpha(Image.fromarray(pixels[..., 0]))
        if number == 13:
            image = image.convert("P")
        if number in (5, 14, 15):
            exif = image.getexif()
            exif[0x0112] = {5: 6, 14: 3, 15: 8}[number]
            options["exif"] = exif
        path = folder / f"{number:02}{'.png' if image.mode in ('RGBA', 'P') or number % 2 else '.jpg'}"
        image.save(path, **options)
        paths.append(path)
    return paths


def run_runner(folder: Path, model: Path, images: list[Path], *missing: str) -> list[list[dict[str, Any]]]:
    """The detections of the runner in a process of its own, where some packages are missing."""
    shutil.copy(runner.__file__, folder / "runner.py")
    (folder / "hook.py").write_text(HOOK.format(names=("torch", "codetr_cli", *missing)))
    words = [sys.executable, "hook.py", str(model), *map(str, images), "--score", "0.05"]
    ran = subprocess.run(words, cwd=folder, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}, check=False)
    assert ran.returncode == 0, ran.stderr
    return [entry["detections"] for entry in json.loads(ran.stdout)]


def assert_equal(detector: Detector, images: list[Path], found: list[list[dict[str, Any]]]) -> None:
    total = 0
    for path, ours in zip(images, found, strict=True):
        expected = detector.predict(path, score=0.05)
        assert [detection["label"] for detection in ours] == expected.labels.tolist(), path
        assert [detection["class_name"] for detection in ours] == expected.class_names
        assert [detection["category_id"] for detection in ours] == expected.category_ids.tolist()
        np.testing.assert_allclose([detection["score"] for detection in ours], expected.scores, atol=1e-5)
        np.testing.assert_allclose([detection["box"] for detection in ours], expected.boxes, atol=1e-3)
        total += len(ours)
    assert total > 5 * len(images)


@pytest.mark.parametrize("name", FILES)
def test_equal_to_the_detector(name: str, images: list[Path], tmp_path: Path):
    overrides, options = FILES[name]
    model = handmade.write_onnx(tmp_path / "model.onnx", *overrides, **options)
    assert_equal(Detector.load(model, device="cpu"), images, run_runner(tmp_path, model, images))


def test_without_opencv(images: list[Path], tmp_path: Path):
    model = handmade.write_onnx(tmp_path / "model.onnx")
    assert_equal(Detector.load(model, device="cpu"), images, run_runner(tmp_path, model, images, "cv2"))


def test_numpy_resizes_to_the_pixels_of_opencv(monkeypatch: pytest.MonkeyPatch):
    random = np.random.default_rng(0)
    for number in range(150):
        height, width = random.integers(1, 70, 2).tolist()
        new_height, new_width = random.integers(1, 110, 2).tolist()
        if number % 5 == 0:
            new_height, new_width, height, width = height, width, 2 * height, 2 * width
        image = random.integers(0, 256, (height, width, 3), np.uint8)
        expected = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
        with monkeypatch.context() as patch:
            patch.setattr(runner, "cv2", None)
            found = runner.resize_bilinear(image, new_height, new_width)
        assert np.array_equal(found, expected), (height, width, new_height, new_width)


def test_files_of_others(tmp_path: Path):
    import onnx

    onnx.save_model(handmade.build_model(None), str(tmp_path / "model.onnx"))
    with pytest.raises(ValueError, match="was not written by `codetr export`"):
        runner.Runner(str(tmp_path / "model.onnx"))
    text = json.dumps({"format": "codetr-export-2"})
    onnx.save_model(handmade.build_model(handmade.metadata_of(), text=text), str(tmp_path / "model.onnx"))
    with pytest.raises(ValueError, match="a newer runner"):
        runner.Runner(str(tmp_path / "model.onnx"))


def test_masks_of_boxes():
    mask = np.zeros((4, 4), np.float32)
    mask[:, :2] = 1
    pasted = runner.paste(mask, np.array([10, 20, 30, 40], np.float32), (50, 60))
    assert pasted.shape == (50, 60)
    rows, columns = np.nonzero(pasted)
    assert (rows.min(), rows.max()) == (20, 39)
    assert columns.min() == 10
    assert columns.max() in (18, 19, 20)


def test_it_is_printed(codetr):
    ran = codetr("export", "--runner")
    assert (ran.code, ran.out) == (0, Path(runner.__file__).read_text(encoding="utf-8"))
    assert len(ran.out.splitlines()) <= 250
    assert "Apache License, Version 2.0" in ran.out
    compile(ran.out, "runner.py", "exec")


def test_names_and_broken_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """OpenCV opens no file itself: on Windows it cannot open names with other letters than ASCII."""
    path, empty = tmp_path / "ä b.png", tmp_path / "empty.png"
    pixels = np.arange(90, dtype=np.uint8).reshape(5, 6, 3)
    Image.fromarray(pixels).save(path)
    empty.touch()
    monkeypatch.setattr(cv2, "imread", lambda *arguments: None)
    assert np.array_equal(runner.load_image(str(path)), pixels)
    monkeypatch.setattr(runner, "Runner", lambda model: None)
    for name, reason in ((empty, "cannot be read as an image"), (tmp_path / "none.png", "No such file")):
        monkeypatch.setattr(sys, "argv", ["runner.py", "model.onnx", str(name)])
        with pytest.raises(SystemExit, match=f"error: .*{reason}"):
            runner.main()
