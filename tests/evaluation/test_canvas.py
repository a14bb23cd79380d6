"""Test images on a square canvas (`test.canvas`): evaluation, prediction and benchmark agree on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from codetr_cli.annotations.objects import read_annotations
from codetr_cli.config.overrides import apply_overrides, to_toml
from codetr_cli.config.presets import load_preset
from codetr_cli.config.schema import Settings
from codetr_cli.data.coco import build_dataset
from codetr_cli.data.loading.loader import EvalLoader
from codetr_cli.data.transforms import GREY
from codetr_cli.errors import ConfigError
from codetr_cli.evaluation.evaluator import evaluate
from codetr_cli.evaluation.request import EvalRequest
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.loading import check_image_size
from codetr_cli.runtime.synthetic import synthetic_batch
from tests.conftest import Ran
from tests.inference.fakes import CATEGORY_IDS, CLASS_NAMES, Oracle, evaluated_records, write_checkpoint


@pytest.fixture
def on_canvas(tiny_settings: Settings) -> Settings:
    return apply_overrides(tiny_settings, ["test.canvas=128"])


def test_batches_are_squares_without_padding_mask(on_canvas: Settings, tiny_coco: Path) -> None:
    dataset = build_dataset(on_canvas, split="train", training=False, data=str(tiny_coco))
    batches = list(EvalLoader(dataset, batch_size=2, workers=0))
    assert [tuple(batch.images.shape) for batch in batches] == [(2, 3, 128, 128)] * 2
    for batch in batches:
        assert not batch.padding_mask.any()
        for image, target in zip(batch.images, batch.targets, strict=True):
            assert target["size"] == target["norm_size"] == target["pad_size"] == (128, 128)
            height, width = (
                round(side * factor)
                for side, factor in zip(target["orig_size"], target["scale_factor"][::-1], strict=True)
            )
            assert max(height, width) == 128
            assert (image[:, height:] == GREY).all()
            assert (image[:, :, width:] == GREY).all()


def test_detections_come_back_in_pixels_of_the_file(on_canvas: Settings, tiny_coco: Path) -> None:
    dataset = build_dataset(on_canvas, split="train", training=False, data=str(tiny_coco))
    path = dataset.annotations_path
    request = EvalRequest.resolve(
        on_canvas, read_annotations(path), path, class_names=CLASS_NAMES, category_ids=CATEGORY_IDS
    )
    result = evaluate(Oracle(), EvalLoader(dataset, batch_size=2, workers=0), request, device=torch.device("cpu"))
    assert result.metrics["AP"] == pytest.approx(1.0)


def test_prediction_equals_evaluation(on_canvas: Settings, tiny_coco: Path, tmp_path: Path) -> None:
    detector = Detector.load(write_checkpoint(tmp_path / "model.safetensors", on_canvas))
    dataset = build_dataset(on_canvas, split="train", training=False, data=str(tiny_coco))
    ours = []
    for index, image_id in enumerate(dataset.image_ids):
        ours += detector.predict(dataset.image_path(index), score=0.0).to_coco(image_id)
    assert ours == evaluated_records(detector, dataset)
    # The network sees the padding: an image without it gives other boxes.
    resized = Detector.load(tmp_path / "model.safetensors", overrides=["test.canvas=none"])
    boxes = [d.predict(dataset.image_path(0), score=0.0).boxes for d in (detector, resized)]
    assert boxes[0].shape != boxes[1].shape or not np.allclose(boxes[0], boxes[1])


def test_the_benchmark_measures_the_canvas(on_canvas: Settings, tiny_settings: Settings) -> None:
    assert on_canvas.test.input_size == (128, 128)
    assert tiny_settings.test.input_size == (96, 160)


def test_synthetic_objects_have_masks_where_they_are_learned() -> None:
    batch = synthetic_batch((64, 96), 2, objects=5, masks=True)
    for target in batch.targets:
        assert target["masks"].shape == (5, 64, 96)
        for box, mask in zip(target["boxes"].numpy(), target["masks"].numpy(), strict=True):
            ys, xs = np.nonzero(mask)
            assert [xs.min(), ys.min()] == np.floor(box[:2]).astype(int).tolist()
            assert [xs.max() + 1, ys.max() + 1] == np.ceil(box[2:]).astype(int).tolist()
    assert "masks" not in synthetic_batch((64, 96), 1, objects=5).targets[0]


# ------------------------------------------------------------------------------------------- networks for one size only

ONE_SIZE = """
[model.backbone]
kind = "vit"
embed_dim = 32
depth = 1
num_heads = 2
hidden_dim = 32
global_blocks = [0]
pretrain_size = 64
fixed_size = 64
checkpointing = false
"""


@pytest.fixture
def one_size(tmp_path: Path, tiny_settings: Settings) -> Path:
    """The preset of a network that takes squares of 64 pixels."""
    settings = apply_overrides(tiny_settings, ["model.num_levels=5"])
    head, _, rest = to_toml(settings).partition("[model.backbone]")
    path = tmp_path / "one_size.toml"
    path.write_text(head + ONE_SIZE.strip() + "\n\n[model." + rest.partition("[model.")[2])
    return path


def test_sizes_that_a_network_cannot_take_are_refused_before_images_are_read(
    one_size: Path, tiny_coco: Path, tmp_path: Path, codetr: Callable[..., Ran]
) -> None:
    for image in (tiny_coco / "train2017").iterdir():
        image.write_bytes(b"")  # would be the next error
    words = ("train", "--preset", one_size, "--data", tiny_coco, "--run", tmp_path / "run", "--device", "cpu")
    ran = codetr(*words)
    assert ran.code == 2, ran.err
    assert "squares of 64 pixels only (model.backbone.fixed_size)" in ran.err
    fix = ran.err.replace("\n", " ").partition(": use ")[2].split()
    assert fix == ["--set", "data.augmentation=lsj", "--set", "test.canvas=64", "--set", "data.canvas=64"]
    assert not (tmp_path / "run").exists()
    assert codetr(*words, *fix, "--dry-run").code == 0
    ran = codetr("eval", one_size, "--data", tiny_coco, "--device", "cpu")
    assert ran.code == 2, ran.err
    assert ran.err.rstrip().endswith("but test.canvas is not set: use --set test.canvas=64")


def test_published_networks_of_one_size_get_it() -> None:
    for name in ("co_dino_vit_l_lsj_lvis", "co_dino_vit_l_inst_lsj_lvis", "co_dino_vit_l"):
        check_image_size(load_preset(name), training=True)
    other = load_preset("co_dino_vit_l_lsj_lvis", ["data.canvas=1024", "test.canvas=1024"])
    with pytest.raises(ConfigError, match=r"1536 pixels only .* but test.canvas is 1024 and data.canvas is 1024"):
        check_image_size(other, training=True)
    with pytest.raises(ConfigError, match=r"but test\.canvas is 1024: use --set test\.canvas=1536"):
        check_image_size(other, training=False)
