from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.data.batch import collate
from codetr_cli.data.sample import Sample
from codetr_cli.errors import ArgumentError, ConfigError
from codetr_cli.images.regions import ArrayRegions
from codetr_cli.images.tile_grid import tile_grid
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.options import DetectOptions, TileOptions
from codetr_cli.inference.tiling import Tiling, build_tiling
from codetr_cli.models.build import build_postprocess
from codetr_cli.models.postprocess import Detections
from tests.inference.fakes import write_checkpoint
from tests.inference.scenes import Scene, SceneNetwork, coded_picture, scene

CPU = torch.device("cpu")
RAW = ["data.mean=[0,0,0]", "data.std=[1,1,1]"]


def tiling(settings, tiles: str = "100x80", overlap: float = 0.2, **options) -> Tiling:
    return replace(build_tiling(settings, TileOptions.parse(tiles, overlap)), **options)


def detect(of: Scene, settings, network: SceneNetwork | None = None, **options) -> Detections:
    settings = apply_overrides(settings, RAW)
    return tiling(settings, **options).detect_image(
        network or SceneNetwork(of), build_postprocess(settings.test), of, device=CPU
    )


def test_tiles_go_through_the_network_in_batches_and_the_whole_image_alone(tiny_settings) -> None:
    of = scene((170, 260), (70, 60, 130, 100), (5, 5, 20, 20, 1), (10, 10, 240, 160, 2))
    network = SceneNetwork(of, whole=20)
    found = detect(of, tiny_settings, network, batch=4)
    # 3 x 3 tiles of 100 x 80 at the test size, short side 96, then the image.
    assert network.batches == [(4, 3, 96, 120), (4, 3, 96, 120), (1, 3, 96, 120), (1, 3, 96, 147)]
    assert sorted(found.boxes.round().tolist()) == sorted(of.boxes.tolist())
    alone = detect(of, tiny_settings, SceneNetwork(of, whole=20), batch=1)
    assert torch.equal(found.boxes, alone.boxes)


@pytest.mark.parametrize("canvas", [None, 96])
def test_every_object_is_found_once(tiny_settings, canvas) -> None:
    settings = apply_overrides(tiny_settings, [f"test.canvas={canvas}"] if canvas else [])
    of = scene((400, 500), (95, 75, 130, 100), (380, 300, 500, 400), (0, 0, 450, 390, 1), (50, 20, 60, 30, 1))
    for whole in (1, 60):
        found = detect(of, settings, SceneNetwork(of, whole=whole))
        assert sorted(found.boxes.round().tolist()) == sorted(of.boxes.tolist())


def test_a_batch_of_decoded_images(tiny_settings) -> None:
    """As an evaluation has them: padded to the largest of the batch, pixels and all."""
    settings = apply_overrides(tiny_settings, RAW)
    scenes = [scene((170, 260), (70, 60, 130, 100), (240, 150, 260, 170)), scene((90, 300), (95, 5, 105, 88))]
    samples = []
    for of in scenes:
        sample = Sample.from_image(coded_picture(of.size))
        samples.append((sample.image, sample.to_target(image_id=0, orig_size=of.size, pad_divisor=32)))
    for number, of in enumerate(scenes):
        found = tiling(settings).detect(
            SceneNetwork(of),
            build_postprocess(settings.test),
            collate(samples),
            device=CPU,
            mean=(0,) * 3,
            std=(1,) * 3,
        )
        assert sorted(found[number].boxes.round().tolist()) == sorted(of.boxes.tolist())


def test_without_the_whole_image(tiny_settings) -> None:
    of = scene((170, 260), (70, 60, 130, 100))
    network = SceneNetwork(of)
    options = TileOptions(size=(100, 80), whole=False)
    found = detect(of, tiny_settings, network, options=options, batch=100)
    assert network.batches == [(9, 3, 96, 120)]
    assert found.boxes.tolist() == of.boxes.tolist()


def test_an_image_of_one_tile_is_seen_as_it_is(tiny_settings) -> None:
    of = scene((80, 100), (5, 5, 20, 20))
    network = SceneNetwork(of)
    detect(of, tiny_settings, network)
    assert network.batches == [(1, 3, 96, 120)]


def test_automatic_tiles_have_the_size_of_the_network(tiny_settings) -> None:
    auto = tiling(tiny_settings, "auto")  # 96 x 160
    assert auto.tile_size((500, 900)) == (96, 160)
    assert auto.tile_size((900, 500)) == (160, 96)
    assert auto.tiles((120, 200)) == []  # 1.25 times as large
    assert auto.tiles((121, 200)) == list(tile_grid((121, 200), (96, 160), 0.2))
    assert auto.tiles((200, 120)) == []
    canvas = tiling(apply_overrides(tiny_settings, ["test.canvas=128"]), "auto")
    assert canvas.tile_size((900, 500)) == (128, 128)
    one_size = tiling(apply_overrides(tiny_settings, ["test.fixed_size=[128, 160]"]), "auto")
    assert one_size.tile_size((900, 500)) == one_size.tile_size((500, 900)) == (128, 160), "the input does not turn"
    assert not one_size.rotates_tiles
    fixed = tiling(tiny_settings, "100x80")
    assert fixed.tile_size((900, 500)) == (80, 100)
    assert fixed.tiles((80, 100)) == []
    assert len(fixed.tiles((81, 100))) == 2


def test_too_many_tiles_are_refused_before_any_is_read(tiny_settings) -> None:
    with pytest.raises(ConfigError, match="more than 100,000: use larger tiles"):
        tiling(tiny_settings, "32", 0.9).tiles((20_000, 20_000))
    assert len(tiling(tiny_settings, "1024").tiles((20_000, 20_000))) == 625


def test_a_read_error_ends_the_detection(tiny_settings) -> None:
    class Broken(ArrayRegions):
        def read(self, left, top, width, height):
            if top:
                raise OSError("the disk is gone")
            return super().read(left, top, width, height)

    of = scene((170, 260))
    broken = Broken(np.zeros((170, 260, 3), np.uint8))
    settings = tiny_settings
    with pytest.raises(OSError, match="the disk is gone"):
        tiling(settings).detect_image(SceneNetwork(of), build_postprocess(settings.test), broken, device=CPU)


def test_tiles_that_the_memory_cannot_hold_together_are_divided(tiny_settings) -> None:
    of = scene((170, 260), (70, 60, 130, 100), (5, 5, 20, 20, 1))

    class Small(SceneNetwork):
        def detect(self, images, padding_mask, metas, postprocess):
            if len(images) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().detect(images, padding_mask, metas, postprocess)

    network = Small(of)
    found = detect(of, tiny_settings, network, batch=9)
    assert [shape[0] for shape in network.batches] == [2, 2, 2, 1, 2, 1]
    assert sorted(found.boxes.round().tolist()) == sorted(of.boxes.tolist())

    class Full(SceneNetwork):
        def detect(self, images, padding_mask, metas, postprocess):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        detect(of, tiny_settings, Full(of), batch=9)


def test_memory_does_not_grow_with_the_image(tiny_settings) -> None:
    """Tiles are read as they are needed."""
    waiting, most = set(), [0]

    class Counted(Scene):
        def read(self, left, top, width, height):
            waiting.add((left, top))
            most[0] = max(most[0], len(waiting))
            return super().read(left, top, width, height)

    class Network(SceneNetwork):
        def _one(self, image, meta):
            waiting.discard(next(iter(waiting), None))
            return super()._one(image, meta)

    plain = scene((2000, 2000))
    of = Counted(plain.size, plain.boxes, plain.labels)
    detect(of, tiny_settings, Network(of), batch=3)
    assert most[0] <= 2 * 3


# ---------------------------------------------------------------------------------------------------- a real network


@pytest.fixture
def detector(tmp_path, tiny_settings) -> Detector:
    return Detector.load(write_checkpoint(tmp_path / "m.safetensors", tiny_settings), device="cpu")


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (130, 220, 3), dtype=np.uint8)


def test_tiles_are_predictions_of_their_crops_moved(detector: Detector) -> None:
    """With tiles that share nothing, so that all detections but those at borders stay as they are."""
    picture = np.random.default_rng(1).integers(0, 256, (200, 240, 3), dtype=np.uint8)
    options = TileOptions(size=(120, 100), overlap=0.0, whole=False)
    found = detector.predict(picture, score=0.0, nms="none", max_dets=10_000, tiles=options)
    compared = 0
    for left, top in ((0, 0), (120, 0), (0, 100), (120, 100)):
        alone = detector.predict(picture[top : top + 100, left : left + 120], score=0.0, nms="none")
        inner = (alone.boxes[:, 0] > 5) | (left == 0)
        inner &= (alone.boxes[:, 1] > 5) | (top == 0)
        inner &= (alone.boxes[:, 2] < 115) | (left == 120)
        inner &= (alone.boxes[:, 3] < 95) | (top == 100)
        for one in alone[inner]:
            same = (found.labels == one.label) & (np.abs(found.scores - one.score) < 1e-5)
            distance = np.abs(found.boxes[same] - np.float32([left, top, left, top]) - one.box)
            assert distance.max(1, initial=0).min(initial=np.inf) < 1e-3
            compared += 1
    assert compared > 10


def test_an_image_that_is_not_cut_has_the_plain_prediction(detector: Detector, picture: np.ndarray) -> None:
    plain = detector.predict(picture, score=0.0)
    for tiles in ("220x130", "4000", TileOptions(size=(300, 200))):
        same = detector.predict(picture, score=0.0, tiles=tiles)
        np.testing.assert_array_equal(same.boxes, plain.boxes)
        np.testing.assert_array_equal(same.scores, plain.scores)


def test_the_whole_image_is_the_plain_view(detector: Detector, picture: np.ndarray) -> None:
    """Resized by its reader, it is what the transform of test images makes of it."""
    options = DetectOptions(score=0.0, tiles=TileOptions(size=(100, 100)))
    sample = build_tiling(detector.loaded.settings, options.tiles)._sample(ArrayRegions(picture), None)
    plain = detector.prepare(picture)
    np.testing.assert_array_equal(sample[0], plain.image)
    assert sample[1]["scale_factor"] == plain.target["scale_factor"]
    assert sample[1]["orig_size"] == plain.target["orig_size"]


@pytest.mark.parametrize("head", ["roi", "atss"])
def test_auxiliary_heads_see_tiles(tmp_path, tiny_settings, picture, head) -> None:
    path = write_checkpoint(tmp_path / "m.safetensors", tiny_settings)
    detector = Detector.load(path, device="cpu", overrides=[f"test.head={head}"])
    found = detector.predict(picture, score=0.0, tiles="100x100")
    assert found.image_size == (130, 220)
    assert (np.diff(found.scores) <= 0).all()


def test_a_batch_may_have_images_of_both_kinds(detector: Detector, picture: np.ndarray) -> None:
    options = DetectOptions(score=0.0, tiles=TileOptions(size=(130, 130)))
    images = [picture[:, :120], picture, picture[:, 50:170]]
    found = detector.detect([detector.prepare(image, options) for image in images], options)
    alone = [detector.detect([detector.prepare(image, options)], options)[0] for image in images]
    assert [len(each) for each in found] == [len(each) for each in alone]
    assert torch.equal(found[1].boxes, alone[1].boxes)


def test_tiles_and_test_time_augmentation_are_refused(tmp_path, tiny_settings, picture) -> None:
    detector = Detector.load(write_checkpoint(tmp_path / "m.safetensors", tiny_settings), device="cpu", tta=True)
    with pytest.raises(ArgumentError, match="choose one"):
        detector.predict(picture, tiles="100")


@pytest.mark.parametrize(
    ("tiles", "message"),
    [
        ("10x10", "at least 32"),
        ("100x", "width and height in pixels"),
        ("big", "width and height in pixels"),
        ("", "width and height in pixels"),
        (100, "it is a text"),
        (True, "it is a text"),
    ],
)
def test_tiles_that_are_not_allowed(detector: Detector, picture: np.ndarray, tiles, message) -> None:
    with pytest.raises(ArgumentError, match=message):
        detector.predict(picture, tiles=tiles)


@pytest.mark.parametrize("overlap", [-0.1, 0.95, float("nan")])
def test_overlaps_that_are_not_allowed(overlap: float) -> None:
    with pytest.raises(ConfigError, match="overlap"):
        TileOptions(overlap=overlap)


@pytest.mark.parametrize("wrong", [{"size": (100,)}, {"size": (100.0, 100)}, {"size": 100}, {"overlap": "0.2"}])
def test_options_of_other_types(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="tiles"):
        TileOptions(**wrong)


def test_the_number_of_detections_counts_those_that_the_scores_of_classes_keep(detector: Detector, picture) -> None:
    """The best detections are of a class that needs more than they have."""
    every = detector.predict(picture, score=0.0, tiles="100x80")
    scores = {every.class_names[0]: 1.0}
    kept = detector.predict(picture, score=0.0, class_scores=scores, tiles="100x80")
    few = detector.predict(picture, score=0.0, class_scores=scores, tiles="100x80", max_dets=3)
    assert len(kept) > 3
    np.testing.assert_array_equal(few.boxes, kept.boxes[:3])


def test_options_in_words() -> None:
    assert str(TileOptions.parse("1024x768", 0.25)) == "tiles of 1024x768, overlap 0.25, and the whole image"
    assert str(TileOptions.parse("auto")) == "tiles of automatic size, overlap 0.2, and the whole image"
    assert TileOptions.parse("512").size == (512, 512)
