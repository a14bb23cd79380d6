from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from codetr_cli.config.presets import load_preset
from codetr_cli.config.schema import Settings
from codetr_cli.evaluation.protocol import (
    Protocol,
    Published,
    describe_protocol,
    find_published,
    protocol_differences,
)
from codetr_cli.evaluation.request import EvalRequest
from codetr_cli.inference.options import TileOptions
from codetr_cli.inference.tiling import Tiling, build_tiling
from codetr_cli.inference.tta import build_augmentation
from codetr_cli.models.build import build_postprocess
from tests.evaluation.annotation_samples import without_objects


def describe(
    settings: Settings, *, tta: bool = False, tiling: Tiling | None = None, lvis: bool = False, masks: bool = False
) -> Protocol:
    request = EvalRequest(
        settings=settings,
        ground_truth=without_objects(lvis=lvis),
        annotations_path=Path("a.json"),
        category_ids=[1],
        postprocess=build_postprocess(settings.test),
        augmentation=build_augmentation(settings) if tta else tiling,
        masks=masks,
    )
    return describe_protocol(request, scorer="hotcoco 1.3.0", images=5000)


def test_one_line_contains_everything():
    text = str(describe(load_preset("co_dino_r50")))
    for part in (
        "single scale 800x1333",
        "soft-NMS at IoU 0.8 over num_queries",
        "up to 300 detections per image",
        "decoder head",
        "fp32",
        "val, 5000 images",
        "COCO box metrics by hotcoco 1.3.0",
        "100 detections",
    ):
        assert part in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (['test.nms="none"', "test.short_side=640"], "640x1333, no NMS"),
        (['test.nms="hard"', "test.nms_iou=0.7"], ", NMS at IoU 0.7"),
        (["test.canvas=1024"], "single scale 1024x1024 padded"),
        (["test.fixed_size=[608, 800]"], "single scale 800x1333 in 608x800 padded"),
        (["test.head=atss"], "with that head's own NMS, atss head"),
    ],
)
def test_it_follows_the_settings(overrides, expected):
    assert expected in str(describe(load_preset("co_dino_r50", overrides)))


def test_views_are_named_and_how_they_are_merged():
    text = str(describe(load_preset("co_dino_r50"), tta=True))
    assert "TTA of 6 views (600x1000, 800x1333, 1000x1666, each also mirrored), merged by soft-NMS at IoU 0.8" in text
    assert "single scale" not in text
    one = load_preset("co_dino_r50", ["test.tta_scales=[640]", "test.tta_flip=false", "test.head=roi"])
    assert "TTA of 1 view (640x1066), with that head's own NMS, merged by" in str(describe(one, tta=True))


def test_tiles_are_named():
    def tiled(tiles: str, *overrides: str, **options) -> str:
        settings = load_preset("co_dino_r50", overrides)
        return str(describe(settings, tiling=replace(build_tiling(settings, TileOptions.parse(tiles)), **options)))

    text = tiled("640x512", max_detections=500)
    assert text.startswith(
        "tiles of 640x512, overlap 0.2 and of the whole image, each at 800x1333, fragments at borders"
    )
    assert "soft-NMS at IoU 0.8 over num_queries, up to 500 detections per image" in text
    assert "AP@N at N" in text
    assert "tiles of 1333x800 (800x1333 in upright images), overlap" in tiled("auto")
    assert "tiles of 1024x1024, overlap" in tiled("auto", "test.canvas=1024")
    assert "tiles of 800x608, overlap" in tiled("auto", "test.fixed_size=[608, 800]"), "upright images, too"
    alone = tiled("640", options=TileOptions(size=(640, 640), whole=False))
    assert "tiles of 640x640, overlap 0.2, each at" in alone


def test_json_keys_stay_as_documented():
    protocol = replace(describe(load_preset("co_dino_r50")), skipped=3)
    assert "5000 images (3 of 5003 skipped: their files cannot be read)" in str(protocol)
    parts = protocol.as_dict()
    assert (parts["engine"], parts["left_out"]) == ("hotcoco 1.3.0", 3)
    assert not {"scorer", "skipped"} & set(parts)


def test_lvis_has_other_columns():
    text = str(describe(load_preset("co_dino_r50_lvis"), lvis=True, masks=True))
    assert "LVIS box and mask metrics" in text
    assert "300 best detections of an image over all classes" in text


def find(settings: Settings, *, images: int = 5000, **changes) -> Published | None:
    protocol = {"tta": False, "precision": "fp32", "split": "val", "trained": True, **changes}
    return find_published(settings, images=images, **protocol)


def test_the_same_protocol_is_compared():
    published = find(load_preset("co_dino_r50"))
    assert published.differences == []
    assert published.as_dict() == {"box_ap": 52.1, "mask_ap": None, "differences": [], "comparable": True}
    text = published.sentence({"AP": 0.5231})
    assert "box AP 52.1 published, 52.3 here (+0.2)" in text
    lvis = find(load_preset("co_dino_vit_l_inst_lsj_lvis"), images=19809, split="lvis_v1_val")
    text = lvis.sentence({"AP": 0.673, "mask_AP": 0.6})
    assert "box AP 67.3 published, 67.3 here (+0.0), mask AP 60.7 published, 60.0 here (-0.7)" in text


@pytest.mark.parametrize(
    ("overrides", "changes", "expected"),
    [
        (["test.short_side=640"], {}, "test.short_side is 640 instead of 800"),
        (["test.nms=none"], {}, "test.nms is none instead of soft"),
        (["test.canvas=1024"], {}, "test.canvas is 1024 instead of unset"),
        (["test.fixed_size=[608, 800]"], {}, "test.fixed_size is"),
        ([], {"images": 79}, "79 images of val instead of the 5,000 of COCO val2017"),
        ([], {"split": "train"}, "5000 images of train"),
        ([], {"precision": "bf16"}, "bf16 instead of fp32"),
        ([], {"tta": True}, "test-time augmentation instead of a single scale"),
        ([], {"tiles": TileOptions(size=(640, 512))}, "tiles of 640x512, overlap 0.2, and the whole image instead of"),
        ([], {"trained": False}, "random weights"),
    ],
)
def test_differences_of_the_protocol_are_named(overrides, changes, expected):
    published = find(load_preset("co_dino_r50", overrides), **changes)
    assert [expected in difference for difference in published.differences] == [True]
    text = published.sentence({"AP": 0.5})
    assert text.startswith("Not comparable with the published box AP 52.1: ")
    assert "50.0" not in text
    assert not published.as_dict()["comparable"]


def test_published_numbers_with_unpublished_views_are_distinguished():
    published = find(load_preset("co_dino_vit_l"), tta=True)
    assert "65.9 by views that were not published" in published.differences[0]


def test_nothing_published_gives_nothing(tiny_settings):
    assert find(tiny_settings) is None
    assert find(load_preset("co_dino_tiny")) is None
    assert find(load_preset("co_dino_r50", ["model.num_classes=3"])) is None  # fine-tuned on other classes


def test_differences_between_two_protocols():
    first = describe(load_preset("co_dino_r50")).as_dict()
    assert protocol_differences(first, first) == []
    assert protocol_differences({}, {}) == []
    assert protocol_differences(first, {}) == ["how the detections of B were made is not recorded"]
    assert protocol_differences({}, first, ("B", "C")) == ["how the detections of B were made is not recorded"]
    tta = replace(describe(load_preset("co_dino_r50"), tta=True), precision="bf16", scorer="pycocotools 2").as_dict()
    views, suppression, precision = protocol_differences(first, tta, ("A", "C"))
    assert views.startswith("single scale 800x1333 (A), TTA of ")
    assert suppression.endswith("(C)")
    assert precision == "precision: fp32 (A), bf16 (C)"
    exported = {**first, "runtime": "ONNX Runtime 1.20, CPU", "max_detections": None}
    assert protocol_differences(first, exported) == [
        "detections per image: 300 (A), as the head decides (B)",
        "run by PyTorch (A), ONNX Runtime 1.20, CPU (B)",
    ]
    assert protocol_differences({"views": "x"}, {"views": "x", "head": "roi"}) == ["head: not recorded (A), roi (B)"]
