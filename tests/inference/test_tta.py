from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.config.presets import load_preset
from codetr_cli.config.schema import Settings
from codetr_cli.data.batch import Batch, collate
from codetr_cli.data.sample import Sample
from codetr_cli.data.transforms import build_transforms
from codetr_cli.inference.pipeline import detect, inference
from codetr_cli.inference.tta import Augmentation, build_augmentation, flip_detections, join, merge, size_text
from codetr_cli.models.build import build_model, build_postprocess
from codetr_cli.models.postprocess import Detections
from tests.inference.fakes import Masked
from tests.postprocessing import post_process

CPU = torch.device("cpu")


def batch_of(*images: np.ndarray, boxes: np.ndarray | None = None) -> Batch:
    """Images as decoded, each with the same boxes (G, 4) xyxy and labels 0, 1, ..."""
    samples = []
    for number, image in enumerate(images):
        sample = Sample.from_image(image)
        if boxes is not None:
            sample = replace(
                sample,
                boxes=boxes.astype(np.float32),
                labels=np.arange(len(boxes)),
                iscrowd=np.zeros(len(boxes), np.int64),
                area=np.zeros(len(boxes), np.float32),
            )
        target = sample.to_target(image_id=number, orig_size=image.shape[:2], pad_divisor=1)
        samples.append((np.ascontiguousarray(sample.image), target))
    return collate(samples)


@pytest.fixture
def images() -> list[np.ndarray]:
    """Two images of different sizes."""
    generator = np.random.default_rng(0)
    return [generator.integers(0, 255, (h, w, 3), dtype=np.uint8) for h, w in ((60, 90), (100, 70))]


@pytest.fixture
def detect_views(tiny_settings):
    """Detects in the views of the settings."""

    def detect_views(
        model: nn.Module, batch: Batch, *overrides: str, settings: Settings | None = None
    ) -> list[Detections]:
        settings = apply_overrides(settings or tiny_settings, list(overrides))
        augmentation, data = build_augmentation(settings), settings.data
        postprocess = build_postprocess(settings.test)
        with inference(model, CPU, "fp32"):
            return augmentation.detect(model, postprocess, batch, device=CPU, mean=data.mean, std=data.std)

    return detect_views


def plain(model: nn.Module, settings: Settings, images: list[np.ndarray]) -> list[Detections]:
    """The detections of a single view at the size of the settings."""
    transform = build_transforms(settings.data, settings.test, train=False)
    samples = []
    for number, image in enumerate(images):
        sample = transform(Sample.from_image(image), np.random.default_rng(0))
        target = sample.to_target(image_id=number, orig_size=image.shape[:2], pad_divisor=settings.data.pad_divisor)
        samples.append((np.ascontiguousarray(sample.image), target))
    postprocess = build_postprocess(settings.test)
    with inference(model, CPU, "fp32"):
        return detect(model, postprocess, collate(samples), mean=settings.data.mean, std=settings.data.std)


def assert_same(ours: Detections, theirs: Detections) -> None:
    for name in ("boxes", "scores", "labels"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


@pytest.mark.parametrize("override", ["test.canvas=128", "test.nms=none", "test.nms=soft", "test.head=roi"])
def test_one_view_that_is_not_mirrored_gives_the_plain_result(detect_views, tiny_settings, images, override):
    settings = apply_overrides(tiny_settings, [override])
    model = build_model(settings.model)
    views = detect_views(model, batch_of(*images), "test.tta_scales=[1.0]", "test.tta_flip=false", settings=settings)
    for ours, theirs in zip(views, plain(model, settings, images), strict=True):
        assert_same(ours, theirs)


def test_one_view_at_another_size_is_the_plain_result_there(detect_views, tiny_settings, images):
    model = build_model(tiny_settings.model)
    views = detect_views(model, batch_of(*images), "test.tta_scales=[64]", "test.tta_flip=false")
    smaller = apply_overrides(tiny_settings, ["test.short_side=64", "test.long_side=107"])
    for ours, theirs in zip(views, plain(model, smaller, images), strict=True):
        assert_same(ours, theirs)


def mirrored_only(settings: Settings) -> Augmentation:
    """The mirrored view at the size of the settings, alone."""
    augmentation = build_augmentation(apply_overrides(settings, ["test.tta_scales=[1.0]"]))
    return replace(augmentation, views=[view for view in augmentation.views if view.flip])


class Bright(nn.Module):
    """Detects the brightest column of its input, with a mask of the left half of the box."""

    def detect(self, images, padding_mask, metas, postprocess):
        self.seen = images
        found = []
        for image, meta in zip(images, metas, strict=True):
            column = int(image.mean((0, 1)).argmax())
            box = torch.tensor([[column, 0.0, column + 1.0, meta["norm_size"][0]]])
            masks = torch.tensor([[[1.0, 0.0]]])
            box = box / torch.tensor(meta["scale_factor"] * 2)
            found.append(Detections(box, torch.tensor([0.9]), torch.tensor([0]), masks, torch.tensor([0.5])))
        return found


@pytest.mark.parametrize("canvas", [None, 80])
def test_detections_of_a_mirrored_view_are_mirrored_back(tiny_settings, canvas):
    """On a canvas too, where the padding must stay at the right of the mirrored image."""
    image = np.zeros((60, 40, 3), np.uint8)
    image[:, 9] = 255
    size = ["test.canvas=60"] if canvas else ["test.short_side=40", "test.long_side=60"]
    settings = apply_overrides(tiny_settings, size)
    model, data = Bright(), settings.data
    with inference(model, CPU, "fp32"):
        (found,) = mirrored_only(settings).detect(
            model, build_postprocess(settings.test), batch_of(image), device=CPU, mean=data.mean, std=data.std
        )
    assert found.boxes[0, [0, 2]].tolist() == [9, 10]
    assert found.masks.tolist() == [[[0.0, 1.0]]]
    assert found.mask_scores.tolist() == [0.5]
    assert int(model.seen[0].mean((0, 1)).argmax()) == 30
    assert model.seen.shape[-1] == (60 if canvas else 40)


def test_a_mirrored_view_of_a_network_is_the_plain_result_of_the_mirrored_image(tiny_settings, images):
    model, data = build_model(tiny_settings.model), tiny_settings.data
    with inference(model, CPU, "fp32"):
        views = mirrored_only(tiny_settings).detect(
            model, build_postprocess(tiny_settings.test), batch_of(*images), device=CPU, mean=data.mean, std=data.std
        )
    mirrored = plain(model, tiny_settings, [image[:, ::-1] for image in images])
    for ours, theirs, image in zip(views, mirrored, images, strict=True):
        back = flip_detections(theirs, image.shape[1])
        assert torch.equal(ours.labels, back.labels)
        assert ours.boxes.numpy() == pytest.approx(back.boxes.numpy(), abs=1e-3)
        assert ours.scores.numpy() == pytest.approx(back.scores.numpy(), abs=1e-5)


def test_mirroring_twice_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    found = Detections(
        torch.rand(5, 4, generator=generator).mul(64).round(),
        torch.rand(5, generator=generator),
        torch.arange(5),
        torch.rand(5, 7, 7, generator=generator),
        torch.rand(5, generator=generator),
    )
    once = flip_detections(found, 100)
    assert not torch.equal(once.boxes, found.boxes)
    assert torch.equal(once.masks, found.masks.flip(-1))
    assert (once.boxes[:, 2] - once.boxes[:, 0]).tolist() == (found.boxes[:, 2] - found.boxes[:, 0]).tolist()
    twice = flip_detections(once, 100)
    assert torch.equal(twice.boxes, found.boxes)
    assert torch.equal(twice.masks, found.masks)


def test_views_are_merged_in_pixels_of_the_original(detect_views, images):
    """The views are merged into the annotated boxes, mirrored and resized back."""
    boxes = np.array([[4, 6, 30, 50], [35, 10, 65, 33]])
    found = detect_views(Masked(share=0.4), batch_of(*images, boxes=boxes), "test.tta_scales=[0.5,1.0,100]")
    for item in found:
        best = item[:2]
        assert best.labels.tolist() == [0, 1]
        assert best.boxes.numpy() == pytest.approx(boxes, abs=1e-3)
        assert best.scores.tolist() == pytest.approx([0.9, 0.5])


def test_merging_decays_what_overlaps_within_a_class():
    def one(box, score, label, mask_score):
        return Detections(
            torch.tensor([box]),
            torch.tensor([score]),
            torch.tensor([label]),
            torch.full((1, 4, 4), score),
            torch.tensor([mask_score]),
        )

    same, other = [0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0]
    nothing = join([one(same, 0.5, 0, 0.5)])[:0]
    views = [one(same, 0.8, 0, 0.4), one(other, 0.6, 0, 0.3), one(same, 0.7, 1, 0.7), nothing]
    merged = merge(views, post_process(nms_iou=0.8))
    assert merged.labels.tolist() == [0, 1, 0]
    assert merged.scores.tolist() == pytest.approx([0.8, 0.7, 0.06])
    assert merged.mask_scores.tolist() == pytest.approx([0.4, 0.7, 0.03])
    assert merged.masks[:, 0, 0].tolist() == pytest.approx([0.8, 0.7, 0.6])
    assert len(merge(views, post_process(nms_iou=0.8, max_detections=2))) == 2
    assert len(merge(views, post_process(nms_iou=0.8, nms_min_score=0.1))) == 2
    assert len(merge([nothing, nothing], post_process())) == 0


def test_scales_are_factors_or_short_sides(tiny_settings):
    def sizes(*overrides):
        augmentation = build_augmentation(apply_overrides(tiny_settings, list(overrides)))
        return [view.size for view in augmentation.views if not view.flip], len(augmentation.views)

    assert sizes() == (["72x120", "96x160", "120x200"], 6)
    assert sizes("test.tta_scales=[1.0,48]", "test.tta_flip=false") == (["48x80", "96x160"], 2)
    assert sizes("test.canvas=128") == (["96x96 padded", "128x128 padded", "160x160 padded"], 6)
    assert sizes("test.canvas=128", "data.pad_divisor=32", "test.tta_scales=[0.7,0.8]") == (["96x96 padded"], 2)
    framed = ["test.fixed_size=[96, 128]", "data.pad_divisor=32", "test.tta_flip=false"]
    assert sizes(*framed, "test.tta_scales=[1.0,1.4]") == (
        ["96x160 in 96x128 padded", "134x224 in 128x192 padded"],
        2,
    )
    assert size_text(tiny_settings.test) == "96x160"


def test_a_network_of_one_size_is_only_mirrored():
    settings = load_preset("co_dino_vit_l_lsj_lvis")
    side = settings.test.canvas
    assert settings.model.backbone.fixed_size == side
    views = build_augmentation(settings).views
    assert [(view.size, view.flip) for view in views] == [
        (f"{side}x{side} padded", False),
        (f"{side}x{side} padded", True),
    ]
