from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from codetr_cli.annotations.objects import read_annotations
from codetr_cli.config.overrides import apply_overrides
from codetr_cli.config.presets import load_preset
from codetr_cli.errors import CheckpointError, ConfigError, DatasetError
from codetr_cli.evaluation.request import EvalRequest, expects_masks, match_classes
from codetr_cli.inference.options import TileOptions
from tests.evaluation.annotation_samples import without_objects
from tests.inference.fakes import CATEGORY_IDS, CLASS_NAMES


def test_classes_masks_and_views_are_resolved(tiny_settings, tiny_coco):
    path = tiny_coco / "annotations/instances_train2017.json"
    ground_truth = read_annotations(path, with_outlines=True)
    settings = apply_overrides(tiny_settings, ["model.mask.kind=refine"])
    classes = {"class_names": CLASS_NAMES[::-1], "category_ids": [1, 2, 3]}
    request = EvalRequest.resolve(settings, ground_truth, path, **classes)
    assert request.category_ids == CATEGORY_IDS[::-1]
    assert request.masks
    assert request.ground_truth is ground_truth
    assert request.augmentation is None
    assert request.precision == "fp32"
    for plain in (
        EvalRequest.resolve(settings, ground_truth, path, masks=False, tta=True, **classes),
        EvalRequest.resolve(tiny_settings, ground_truth, path, tta=True, **classes),
    ):
        assert not plain.masks
        assert plain.ground_truth.outlines is None  # or masks would be scored
        assert len(plain.augmentation.views) == 6
        assert not plain.has_tiles
    tiled = EvalRequest.resolve(settings, ground_truth, path, tiles=TileOptions(size=(64, 64)), batch=3, **classes)
    assert tiled.has_tiles
    assert (tiled.augmentation.batch, tiled.augmentation.max_detections) == (3, 500)
    with pytest.raises(ConfigError, match="choose one"):
        EvalRequest.resolve(settings, ground_truth, path, tta=True, tiles=TileOptions(), **classes)


def test_annotations_without_outlines_are_refused_where_masks_are_scored(tiny_settings):
    ground_truth = replace(without_objects(lvis=False), labels=[0])
    classes = {"class_names": ["a"], "category_ids": [1]}
    settings = apply_overrides(tiny_settings, ["model.mask.kind=refine", "model.num_classes=1"])
    with pytest.raises(DatasetError, match=r"1 of 1 objects have no outline.*--boxes-only"):
        EvalRequest.resolve(settings, ground_truth, Path("a.json"), **classes)
    assert not EvalRequest.resolve(settings, ground_truth, Path("a.json"), masks=False, **classes).masks


def test_which_networks_predict_masks():
    inst = load_preset("co_dino_vit_l_inst")
    assert expects_masks(inst)
    assert not expects_masks(apply_overrides(inst, ["test.head=atss"]))
    assert expects_masks(load_preset("co_deformable_mask_r50", ["test.head=roi"]))
    assert not expects_masks(load_preset("co_deformable_mask_r50"))
    assert not expects_masks(load_preset("co_dino_r50"))


def test_classes_are_matched_by_name():
    assert match_classes(["a", "b"], [1, 2], ["a", "b"], [0, 1], "f") == [0, 1]
    assert match_classes(["b", "a"], [1, 2], ["a", "b"], [0, 7], "f") == [7, 0]
    assert match_classes(["a", "a"], [1, 2], ["a", "a"], [1, 2], "f") == [1, 2]
    # A published checkpoint without class names has the classes of annotations with the same ids.
    assert match_classes(["class_1", "class_2"], [1, 2], ["a", "b"], [1, 2], "f") == [1, 2]
    for names, ids in ((["class_1", "class_2"], [1, 3]), (["class_1", "b"], [1, 2]), (["class_1"], [1])):
        with pytest.raises(CheckpointError, match="not the same"):
            match_classes(names, ids, ["a", "c"], [1, 2], "f")


def test_same_names_repeated_in_another_way_are_refused():
    with pytest.raises(CheckpointError):
        match_classes(["a", "a", "b"], [1, 2, 3], ["a", "b", "b"], [1, 2, 3], "f")
