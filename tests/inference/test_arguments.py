"""Arguments of the Python API: one picture in every form, and whatever is wrong is named."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from codetr_cli.errors import ArgumentError, ConfigError, DatasetError
from codetr_cli.images.decoder import BrokenImageError
from codetr_cli.inference.arguments import check_count, check_device, check_score, for_python
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.given_pixels import to_pixels, to_regions
from codetr_cli.inference.prediction import Detection
from tests.inference.fakes import write_checkpoint

ROWS, COLUMNS = np.mgrid[0:24, 0:32]
RGB = np.stack([COLUMNS * 8, ROWS * 10, (ROWS + COLUMNS) * 4], axis=-1).astype(np.uint8)
ALPHA = (COLUMNS * 8).astype(np.uint8)
DEEP = RGB.astype(np.uint16) * 256 + 99


LOADED: dict[str, Detector] = {}
"""A detector serves all tests, which do not change it."""


@pytest.fixture
def detector(tmp_path, tiny_settings) -> Detector:
    if not LOADED:
        LOADED["tiny"] = Detector.load(write_checkpoint(tmp_path / "m.safetensors", tiny_settings), device="cpu")
    return LOADED["tiny"]


def saved(path: Path, mode: str, **options: Any) -> Path:
    """The picture in a mode of Pillow's."""
    pictures = {
        "RGBA": lambda: Image.fromarray(np.dstack([RGB, ALPHA])),
        "LA": lambda: Image.fromarray(np.dstack([RGB[..., 0], ALPHA])),
        "P": lambda: Image.fromarray(RGB).quantize(64),
        "I;16": lambda: Image.fromarray(DEEP[..., 0]),
        "F": lambda: Image.fromarray((RGB[..., 0] / 255).astype(np.float32)),
    }
    picture = pictures[mode]() if mode in pictures else Image.fromarray(RGB).convert(mode)
    picture.save(path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("a.png", "RGB", {}),
        ("a.png", "RGBA", {}),
        ("a.png", "LA", {}),
        ("a.png", "P", {}),
        ("a.png", "P", {"transparency": 3}),
        ("a.png", "L", {}),
        ("a.png", "1", {}),
        ("a.png", "I;16", {}),
        ("a.tif", "RGB", {}),
        ("a.tif", "RGBA", {}),
        ("a.tif", "LA", {}),
        ("a.tif", "P", {}),
        ("a.tif", "1", {}),
        ("a.tif", "I;16", {}),
        ("a.tif", "F", {}),
        ("a.tif", "CMYK", {}),
        ("a.jpg", "RGB", {}),
        ("a.jpg", "L", {}),
        ("a.jpg", "CMYK", {}),
        ("a.webp", "RGBA", {"lossless": True, "exact": True}),
        ("a.gif", "P", {}),
        ("a.bmp", "RGB", {}),
    ],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_file_is_the_same_by_path_and_by_pillow(tmp_path, name, mode, options, orientation):
    if orientation != 1:
        exif = Image.Exif()
        exif[0x0112] = orientation
        if name in ("a.gif", "a.bmp"):
            pytest.skip("the format has no EXIF")
        options = {**options, **({"tiffinfo": {0x0112: orientation}} if name == "a.tif" else {"exif": exif})}
    path = saved(tmp_path / name, mode, **options)
    by_path = to_pixels(path)
    assert by_path.shape[:2] == ((24, 32) if orientation == 1 else (32, 24))
    # Not by its path: some releases of Pillow mix up rows and columns of a turned TIFF that they map into memory.
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        by_pillow = to_pixels(image)
    assert np.array_equal(by_path, by_pillow)
    assert np.array_equal(by_path, to_pixels(str(path)))
    assert np.array_equal(by_path, to_pixels(torch.from_numpy(by_path.copy()).permute(2, 0, 1)))


@pytest.mark.parametrize(
    "pixels",
    [
        RGB,
        RGB[..., 0],
        RGB[..., :1],
        np.dstack([RGB, ALPHA]),
        np.dstack([RGB[..., 0], ALPHA]),
        DEEP,
        DEEP[..., 0],
        DEEP.astype(">u2"),
        np.dstack([DEEP, DEEP[..., 0]]),
        RGB / 255,
        (RGB / 255).astype(np.float32),
        (RGB / 255).astype(np.float16),
        RGB[..., 0] > 100,
    ],
    ids=lambda pixels: f"{pixels.dtype}-{'x'.join(map(str, pixels.shape))}",
)
def test_arrays_and_tensors_are_the_same(tmp_path, pixels):
    found = to_pixels(pixels)
    assert np.abs(found[..., 0].astype(int) - (RGB[..., 0] if pixels.dtype != bool else pixels * 255)).max() <= 1
    native = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("=")))
    tensor = torch.from_numpy(native if native.ndim == 2 else np.ascontiguousarray(native.transpose(2, 0, 1)))
    assert np.array_equal(found, to_pixels(tensor))
    if pixels.dtype in (np.uint8, np.uint16) and pixels.shape[2:] != (2,):
        colours = native[..., [2, 1, 0, 3][: native.shape[2]]] if native.ndim == 3 and native.shape[2] > 1 else native
        assert cv2.imwrite(str(tmp_path / "a.png"), colours)
        assert cv2.imwrite(str(tmp_path / "a.tif"), colours)
        assert np.array_equal(found, to_pixels(tmp_path / "a.png"))
        assert np.array_equal(found, to_pixels(tmp_path / "a.tif"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5, 7.0])
def test_values_that_are_refused_are_refused_alike(tmp_path, value):
    pixels = np.full((24, 32), 0.5, np.float32)
    pixels[3, 4] = value
    path = tmp_path / "a.tif"
    Image.fromarray(pixels).save(path)
    words = set()
    for image in (pixels, torch.from_numpy(pixels), torch.from_numpy(pixels).bfloat16(), Image.open(path), path):
        with pytest.raises(ValueError, match=r"not finite|in \[0, 1\]") as caught:
            to_pixels(image)
        words.add(str(caught.value).partition(": ")[2])
    assert len(words) == 1


@pytest.mark.parametrize(
    "image",
    [
        *(None, 7, b"bytes", {}, object(), "", "nowhere.jpg", Path("nowhere.jpg")),
        *(np.zeros((0, 4, 3), np.uint8), np.zeros(5), np.zeros((2, 9, 9, 3)), np.zeros((40, 60, 7), np.uint8)),
        *(np.zeros((3, 40, 60), np.uint8), np.zeros((40, 60, 3), np.int32), np.zeros((40, 60), object)),
        *(torch.zeros(40, 60, 3), torch.zeros(1, 3, 40, 60), torch.zeros(3, 0, 60), torch.zeros(3, 4, 5).long()),
        *(torch.zeros(3, 4, 5, dtype=torch.complex64), torch.zeros(3, 4, 5).to_sparse(), torch.zeros(())),
        *(Image.new("I", (9, 9)), Image.new("LAB", (9, 9)), Image.new("HSV", (9, 9)), Image.new("RGB", (0, 9))),
    ],
    ids=lambda image: f"{type(image).__name__}-{getattr(image, 'shape', getattr(image, 'size', ''))}",
)
def test_what_is_no_image_is_named(detector, image):
    with pytest.raises(ValueError, match="image") as caught:
        detector.predict(image)
    assert isinstance(caught.value, ConfigError)
    assert_python_words(str(caught.value))


def assert_python_words(text: str) -> None:
    """No advice of the command line or of data sets."""
    assert not re.search(r"--[a-z]|`codetr |annotations", text), text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"score": 30}, "score=30: it is a number from 0 to 1; 30 per cent are 0.3"),
        ({"score": -0.1}, "score=-0.1"),
        ({"score": float("nan")}, "score=nan"),
        ({"score": float("inf")}, "score=inf"),
        ({"score": "0.5"}, "score='0.5'"),
        ({"score": None}, "score=None"),
        ({"score": True}, "score=True"),
        ({"class_scores": {"ring": 2}}, r"class_scores\['ring'\]=2: it is a number from 0 to 1"),
        ({"class_scores": {"rin": 0.2}}, "class_scores has 'rin': there is no such class; did you mean 'ring'"),
        ({"max_dets": -1}, "max_dets=-1: it is a whole number from 1"),
        ({"max_dets": 0}, "max_dets=0"),
        ({"max_dets": 2.0}, "max_dets=2.0"),
        ({"max_dets": "5"}, "max_dets='5'"),
        ({"max_dets": True}, "max_dets=True"),
        ({"nms": "softt"}, "nms='softt': it is one of 'none', 'hard', 'soft' .did you mean 'soft'"),
        ({"nms": ""}, "nms=''"),
        ({"nms": 1}, "nms=1"),
        ({"nms": ["soft"]}, "nms="),
    ],
)
def test_wrong_arguments_of_a_prediction(detector, arguments, words):
    for image in (RGB, [], [RGB]):
        with pytest.raises(ArgumentError, match=words):
            detector.predict(image, **arguments)


@pytest.mark.parametrize("score", [0, 1, 0.5, np.float32(0.5), np.float64(1), np.int64(0)])
def test_scores(score):
    assert check_score(score) == score


@pytest.mark.parametrize("number", [None, 1, 10**9, np.int64(3)])
def test_numbers_of_detections(number):
    assert check_count("max_dets", number, "as in the settings") == number


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"device": "tpu"}, "device='tpu': unknown device 'tpu'"),
        ({"device": ""}, "device='': unknown device"),
        ({"device": 0}, "device=0"),
        ({"device": None}, "device=None"),
        ({"precision": "fp8"}, "precision='fp8': it is one of 'auto', 'fp32'"),
        ({"precision": torch.float16}, "precision="),
        ({"tta": "yes"}, "tta='yes'"),
        ({"tta": 1}, "tta=1"),
        ({"overrides": "test.nms=none"}, "overrides='test.nms=none': it is a list"),
        ({"overrides": [1]}, "overrides has 1"),
        ({"overrides": ["test.nms"]}, "not of the form key=value"),
        ({"overrides": ["test.head=rio"]}, "test.head"),
        ({"overrides": ["test.hed=roi"]}, "test.hed"),
        ({"overrides": ["test.batch_size=0"]}, "test.batch_size"),
        ({"overrides": ["test.tta_scales=-1"]}, "tta_scales"),
        ({"path": None}, "path=None"),
        ({"path": ""}, "path=''"),
        ({"path": "co_dino_r51"}, "did you mean 'co_dino_r50"),
    ],
)
def test_wrong_arguments_of_loading(tmp_path, tiny_settings, arguments, words):
    path = write_checkpoint(tmp_path / "m.safetensors", tiny_settings)
    with pytest.raises(ValueError, match=words) as caught:
        Detector.load(**{"path": path, "device": "cpu", **arguments})
    assert_python_words(str(caught.value))


@pytest.mark.parametrize("path", ["nowhere/a.safetensors", "co_dino_r50", "empty"])
def test_what_cannot_be_loaded_is_named_without_the_command_line(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))
    Path("empty").mkdir()
    with pytest.raises(Exception, match=path) as caught:
        Detector.load(path, device="cpu")
    assert_python_words(str(caught.value))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("use --set test.canvas=640 --set data.canvas=640.", "use overrides=['test.canvas=640', 'data.canvas=640']"),
        ("no GPU. Or use --device cpu.", 'no GPU. Or use device="cpu".'),
        ("not in the cache: run `codetr download co_dino_r50`.", "download the weights of co_dino_r50 first."),
    ],
)
def test_advice_of_the_command_line_is_worded_anew(text, words):
    assert words in for_python(text)
    assert_python_words(for_python(text))


def test_files_that_cannot_be_read(detector, tmp_path):
    (tmp_path / "bad.jpg").write_text("no image")
    (tmp_path / "large.png").write_bytes(cv2.imencode(".png", np.zeros((20_000, 9_000), np.uint8))[1].tobytes())
    for name, words in (("bad.jpg", "bad.jpg: text: 'no image'"), ("large.png", "data.max_pixels=180000000")):
        with pytest.raises(DatasetError, match=re.escape(words)) as caught:
            detector.predict(tmp_path / name)
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, BrokenImageError)
        assert_python_words(str(caught.value))


def test_detections_by_number(detector):
    found = detector.predict(RGB, score=0.0)
    every = list(found)
    assert len(every) == len(found) > 5
    for number in (0, 3, -1, -len(found), np.int64(2), np.array(4)):
        assert found[number] == every[int(number)]
        assert isinstance(found[number], Detection)
    for number in (len(found), -len(found) - 1):
        with pytest.raises(IndexError, match=f"there is no detection {number}: there are {len(found)}"):
            found[number]
    with pytest.raises(IndexError):
        found[:0][0]
    assert list(found[1:4]) == every[1:4]
    assert list(found[::-1]) == every[::-1]
    assert list(found[[4, 2]]) == [every[4], every[2]]
    assert list(found[[]]) == []
    assert list(found[found.scores < -1]) == []
    assert list(reversed(found)) == every[::-1]
    assert every[2] in found
    for wrong in ("a", 1.5, None, np.array([0.5]), np.zeros((2, 2), int)):
        with pytest.raises(TypeError):
            found[wrong]
    with pytest.raises(IndexError):
        found[np.ones(len(found) + 1, bool)]


def test_drawing_needs_the_predicted_image(detector):
    found = detector.predict(RGB)
    assert found.draw(RGB).size == (32, 24)
    with pytest.raises(ArgumentError, match="image has 31 x 24 pixels, the predicted one had 32 x 24"):
        found.draw(RGB[:, :31])


RARE = {
    "gif": lambda path: Image.fromarray(RGB).quantize(17).save(path, transparency=3),
    "jp2": lambda path: cv2.imwrite(str(path), np.tile(DEEP, (6, 5, 1))[..., ::-1]),
    "pgm": lambda path: cv2.imwrite(str(path), DEEP[..., 0]),
    "ppm": lambda path: cv2.imwrite(str(path), DEEP[..., ::-1]),
    "tif": lambda path: Image.fromarray(RGB).convert("LAB").save(path),
    "tiff": lambda path: Image.fromarray(RGB).convert("YCbCr").save(path, compression="tiff_lzw"),
}
"""Files that Pillow decodes in another way."""


@pytest.mark.parametrize("suffix", RARE)
def test_an_opened_file_is_decoded_as_its_path(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    RARE[suffix](path)
    by_path = to_pixels(path)
    with Image.open(path) as image:
        for _ in range(2):
            assert np.array_equal(to_pixels(image), by_path)
        image.load()  # still usable
    with path.open("rb") as file, Image.open(file) as image:
        assert np.array_equal(to_pixels(image), by_path)


def test_what_was_changed_or_chosen_in_an_opened_file_counts(tmp_path):
    path = tmp_path / "a.gif"
    Image.fromarray(RGB).save(path, save_all=True, append_images=[Image.fromarray(255 - RGB)])
    with Image.open(path) as image:
        image.seek(1)
        assert abs(to_pixels(image).astype(int) - (255 - RGB)).mean() < 20
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    with Image.open(path) as image:
        image.paste((1, 2, 3), (0, 0, 5, 5))
        assert to_pixels(image)[4, 4].tolist() == [1, 2, 3]
    path = tmp_path / "a.jpg"
    Image.fromarray(np.tile(RGB, (8, 8, 1))).save(path)
    with Image.open(path) as image:
        image.draft("RGB", (image.width // 4, image.height // 4))
        assert to_pixels(image).shape[:2] == (image.height, image.width)
    with Image.open(path) as image:
        image.getexif()[0x0112] = 6
        assert to_pixels(image).shape[:2] == (image.width, image.height)


def closed(path: Path) -> Image.Image:
    Image.fromarray(RGB).save(path)
    image = Image.open(path)
    image.close()
    return image


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: torch.zeros(3, 5, 5, device="meta"), "meta"),
        (lambda path: torch.zeros(5, 5).to_sparse_csr(), "sparse_csr"),
        (lambda path: torch.nested.nested_tensor([torch.zeros(3, 5), torch.zeros(3, 4)]), "nested"),
        (lambda path: np.ma.masked_array(RGB, RGB > 3), "masked"),
        (lambda path: "", "empty"),
        (closed, "closed"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_images_without_values_are_named(tmp_path, make, words):
    with pytest.raises(ValueError, match=f"image.*{words}"):
        to_pixels(make(tmp_path / "a.bmp"))


def test_a_negated_view_is_a_tensor_like_others():
    values = torch.rand(3, 4, 5)
    assert np.array_equal(to_pixels(torch._neg_view(-values)), to_pixels(values))


@pytest.mark.parametrize("image_id", [None, "x", 1.7, True, 2**70])
def test_ids_of_images(detector, image_id):
    found = detector.predict(RGB, score=0, max_dets=2)
    with pytest.raises(ValueError, match="image_id="):
        found.to_coco(image_id)
    assert found.to_coco(np.int64(7))[0]["image_id"] == 7


def test_a_detector_from_a_loaded_network(detector):
    assert Detector(detector.loaded, device="cpu").device == torch.device("cpu")
    for arguments, words in (
        ({"loaded": None, "device": "cpu"}, "loaded=None"),
        ({"loaded": detector.loaded, "device": None}, "device=None"),
    ):
        with pytest.raises(ValueError, match=words):
            Detector(**arguments)


def test_the_cpu_may_have_a_number():
    assert check_device(torch.device("cpu", 0)) == "cpu"
    assert check_device(torch.device("cuda", 1)) == "cuda:1"


def test_detections_by_tensors(detector):
    found = detector.predict(RGB, score=0, max_dets=3)
    assert found[torch.tensor([0, 2])].scores.tolist() == found[[0, 2]].scores.tolist()
    assert found[torch.tensor([True, False, True])].scores.tolist() == found[[0, 2]].scores.tolist()
    assert found[torch.tensor(1)] == found[1]
    for wrong in (True, np.True_, torch.tensor(True)):
        with pytest.raises(TypeError, match="numbers or booleans"):
            found[wrong]


def test_regions_of_an_image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), pixels, Image.fromarray(pixels)):
        regions = to_regions(image)
        assert regions.size == (30, 40)
        assert np.array_equal(regions.read(5, 7, 20, 10), pixels[7:17, 5:25])
    for wrong in (tmp_path / "b.png", tmp_path):
        with pytest.raises(DatasetError, match="cannot read image"):
            to_regions(wrong)
    with pytest.raises(ArgumentError, match="empty text"):
        to_regions("")
    with pytest.raises(DatasetError, match=r'overrides=\["data.max_pixels=1200"\]'):
        to_regions(tmp_path / "a.png", max_pixels=100)
