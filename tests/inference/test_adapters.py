from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from codetr_cli.errors import ResourceError
from codetr_cli.inference.prediction import Prediction
from codetr_cli.inference.rle import encode_crop

SIZE = (60, 80)


def prediction(count: int = 2, *, masks: bool = False) -> Prediction:
    pixels = np.zeros((2, *SIZE), bool)
    pixels[0, 10:20, 5:25] = True
    pixels[1, 30:60, 40:80] = True
    found = Prediction(
        boxes=np.array([[5, 10, 25, 20], [39.6, 29.7, 81, 60.5]], np.float32),
        scores=np.array([0.75, 0.5], np.float32),
        labels=np.array([2, 0]),
        category_ids=np.array([7, 2]),
        class_names=["ring", "disc"],
        image_size=SIZE,
        masks=[encode_crop(mask, 0, 0, SIZE) for mask in pixels] if masks else None,
        mask_scores=np.array([0.5, 0.25], np.float32) if masks else None,
    )
    return found[:count]


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("masks", [False, True])
def test_torchvision(count, masks):
    found = prediction(count, masks=masks).to_torchvision()
    assert {name: (tuple(value.shape), value.dtype) for name, value in found.items()} == {
        "boxes": ((count, 4), torch.float32),
        "labels": ((count,), torch.int64),
        "scores": ((count,), torch.float32),
        **({"masks": ((count, 1, *SIZE), torch.uint8)} if masks else {}),
    }
    assert found["labels"].tolist() == [7, 2][:count]
    assert prediction(count).to_torchvision(labels="index")["labels"].tolist() == [2, 0][:count]
    if masks:
        assert found["masks"].sum(dim=(1, 2, 3)).tolist() == [200, 1200][:count]


def test_torchvision_draws_and_filters_them():
    from torchvision.ops import nms
    from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

    found = prediction(masks=True).to_torchvision()
    assert nms(found["boxes"], found["scores"], 0.5).tolist() == [0, 1]
    image = torch.zeros((3, *SIZE), dtype=torch.uint8)
    assert draw_bounding_boxes(image, found["boxes"].clamp(0, 60)).any()
    assert draw_segmentation_masks(image, found["masks"][:, 0].bool()).any()


def test_torchvision_with_other_labels_is_refused():
    with pytest.raises(ValueError, match="labels='name'"):
        prediction().to_torchvision(labels="name")


@pytest.mark.parametrize("masks", [False, True])
def test_supervision(masks):
    sv = pytest.importorskip("supervision", reason="supervision is not installed")
    found = prediction(masks=masks).to_supervision()
    assert isinstance(found, sv.Detections)
    assert found.xyxy.tolist() == prediction().boxes.tolist()
    assert found.class_id.tolist() == [2, 0]
    assert found.confidence.tolist() == [0.75, 0.5]
    assert found["class_name"].tolist() == ["ring", "disc"]
    assert found["category_id"].tolist() == [7, 2]
    assert (None if found.mask is None else found.mask.sum(axis=(1, 2)).tolist()) == ([200, 1200] if masks else None)
    assert found[found.confidence > 0.6]["class_name"].tolist() == ["ring"]
    merged = sv.Detections.merge([found, prediction(0, masks=masks).to_supervision()])
    assert len(merged) == 2
    scene = sv.BoxAnnotator().annotate(np.zeros((*SIZE, 3), np.uint8), found)
    assert scene.any()


@pytest.mark.parametrize("masks", [False, True])
def test_supervision_without_detections(masks):
    sv = pytest.importorskip("supervision", reason="supervision is not installed")
    found = prediction(0, masks=masks).to_supervision()
    assert len(found) == 0
    assert found.xyxy.shape == (0, 4)
    assert isinstance(found.area, np.ndarray)
    assert not sv.BoxAnnotator().annotate(np.zeros((*SIZE, 3), np.uint8), found).any()


@pytest.mark.parametrize("count", [0, 2])
def test_pandas(count):
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    table = prediction(count).to_pandas()
    assert isinstance(table, pd.DataFrame)
    assert table.columns.tolist() == ["x1", "y1", "x2", "y2", "score", "label", "category_id", "class_name"]
    assert len(table) == count
    assert table["class_name"].tolist() == ["ring", "disc"][:count]
    assert table[table.score > 0.6][["x1", "y1", "x2", "y2"]].to_numpy().tolist() == [[5, 10, 25, 20]][:count]
    assert table.dtypes[["x1", "score", "label"]].tolist() == [np.float32, np.float32, np.int64]


def test_pandas_with_masks():
    pytest.importorskip("pandas", reason="pandas is not installed")
    found = prediction(masks=True)
    table = found.to_pandas()
    assert table["mask"].tolist() == found.masks
    assert table["mask_score"].tolist() == [0.5, 0.25]
    assert prediction(0, masks=True).to_pandas().columns.tolist() == table.columns.tolist()


def test_fiftyone():
    fo = pytest.importorskip("fiftyone", reason="fiftyone is not installed")
    found = prediction(masks=True).to_fiftyone()
    assert isinstance(found, fo.Detections)
    first, second = found.detections
    assert (first.label, first.confidence, first["category_id"]) == ("ring", 0.75, 7)
    assert first.bounding_box == pytest.approx([5 / 80, 10 / 60, 20 / 80, 10 / 60])
    assert second.bounding_box == pytest.approx([39.6 / 80, 29.7 / 60, 1 - 39.6 / 80, 1 - 29.7 / 60], abs=1e-6)
    assert [detection.mask.shape for detection in (first, second)] == [(10, 20), (30, 40)]
    assert first.mask.all()
    assert second.mask.all()
    full = second.to_segmentation(frame_size=(80, 60)).mask
    assert (full > 0).sum() == pytest.approx(1200, abs=80)
    assert prediction(0, masks=True).to_fiftyone().detections == []
    assert prediction().to_fiftyone().detections[0].mask is None


@pytest.mark.parametrize("package", ["supervision", "fiftyone", "pandas"])
def test_a_missing_package_is_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ResourceError, match=f"to_{package} needs the package {package}: pip install {package}"):
        getattr(prediction(), f"to_{package}")()


def test_a_package_that_is_broken_shows_its_own_error(monkeypatch, tmp_path):
    (tmp_path / "fiftyone.py").write_text("import a_module_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fiftyone", raising=False)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        prediction().to_fiftyone()
