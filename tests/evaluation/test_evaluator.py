from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from codetr_cli.annotations.objects import read_annotations
from codetr_cli.config.overrides import apply_overrides
from codetr_cli.config.schema import Settings
from codetr_cli.data.coco import CocoDataset
from codetr_cli.data.loading.loader import EvalLoader
from codetr_cli.data.transforms import Keep, build_transforms
from codetr_cli.errors import CheckpointError, ConfigError, DatasetError
from codetr_cli.evaluation.evaluator import evaluate
from codetr_cli.evaluation.request import EvalRequest
from codetr_cli.evaluation.results import LocalCollector, RankResults
from codetr_cli.evaluation.scoring import LVIS_METRICS
from codetr_cli.models.build import build_model
from tests.evaluation.annotation_samples import make_lvis
from tests.inference.fakes import CATEGORY_IDS, CLASS_NAMES, Blind, Masked, Oracle

CPU = torch.device("cpu")


class Gathered(LocalCollector):
    """Passes the results of this process through a function that stands for the exchange between processes."""

    def __init__(self, gather) -> None:
        super().__init__()
        self._exchange = gather

    def gather(self) -> list[RankResults]:
        gathered = super().gather()
        return gathered if self._exchange is None else self._exchange(*gathered)


@pytest.fixture
def run(tiny_coco: Path, tiny_settings):
    """Evaluates a model on a split of the tiny data set."""

    def run(
        model, split="train", batch_size=3, rank=0, world_size=1, settings=None, progress=None, gather=None, **options
    ):
        settings = settings or tiny_settings
        annotations_path = tiny_coco / f"annotations/instances_{split}2017.json"
        ground_truth = read_annotations(annotations_path, with_outlines=True)
        options = {"class_names": CLASS_NAMES, "category_ids": CATEGORY_IDS, "split": split, **options}
        request = EvalRequest.resolve(settings, ground_truth, annotations_path, **options)
        dataset = CocoDataset(
            images_dir=tiny_coco / f"{split}2017",
            annotations_path=annotations_path,
            transform=Keep() if request.augmentation else build_transforms(settings.data, settings.test, train=False),
            training=False,
            annotations=ground_truth,
        )
        loader = EvalLoader(dataset, batch_size=batch_size, workers=0, rank=rank, world_size=world_size)
        return evaluate(model, loader, request, device=CPU, progress=progress, collector=Gathered(gather))

    return run


def test_perfect_boxes_give_ap_one(run):
    """Holes in the category ids, a crowd, an image without objects, images of different sizes in one batch."""
    result = run(Oracle())
    assert result.metrics["AP"] == result.metrics["AP50"] == result.metrics["AR100"] == 1.0
    assert [score.category_id for score in result.per_class] == CATEGORY_IDS
    assert {record["category_id"] for record in result.detections.to_records()} <= set(CATEGORY_IDS)
    assert (result.images, result.objects, len(result.detections)) == (4, 7, 7)


def test_wrong_boxes_lower_ap(run):
    assert 0 < run(Oracle(wrong=3)).metrics["AP50"] < 1


def test_no_detections_at_all(run):
    result = run(Blind())
    assert result.metrics["AP"] == 0
    assert len(result.detections) == 0


def test_a_network_with_random_weights_runs_to_the_end(run, tiny_settings):
    model = build_model(tiny_settings.model)
    result = run(model, split="val", batch_size=2)
    assert 0 <= result.metrics["AP"] <= 1
    assert len(result.detections)
    assert result.speed.images == 2
    assert result.speed.postprocess_ms > 0
    assert result.speed.images_per_second == pytest.approx(2 / result.speed.seconds)
    parts = result.speed.data_ms + result.speed.model_ms + result.speed.postprocess_ms
    assert parts * 2 / 1000 == pytest.approx(result.speed.seconds)


def test_batches_change_nothing_but_padding_can(run, tiny_settings):
    """Boxes of an image alone and in a padded batch agree closely: the padding is masked everywhere."""
    model = build_model(tiny_settings.model).double()
    single = run(model.float(), batch_size=1).detections
    assert {record["image_id"] for record in single.to_records()} == {
        record["image_id"] for record in run(model).detections.to_records()
    }


def test_the_training_mode_is_restored(run):
    model = Oracle().train()
    run(model)
    assert model.modes == [False, False]
    assert model.training


def test_reports_progress_by_image(run):
    seen: list[int] = []
    run(Oracle(), progress=seen.append)
    assert seen == [3, 1]


def test_results_of_several_processes_are_scored_together(run):
    gathered: list[RankResults] = []

    def gather(results: RankResults) -> list[RankResults]:
        gathered.append(results)
        return []

    without_scores = run(Oracle(), rank=0, world_size=2, gather=gather)
    assert without_scores.metrics == {}
    assert without_scores.speed.images == 3
    run(Oracle(), rank=1, world_size=2, gather=gather)
    assert [len(results.image_ids) for results in gathered] == [3, 1]
    whole = run(Oracle(), rank=1, world_size=2, gather=lambda results: [gathered[0], results])
    alone = run(Oracle())
    assert whole.metrics == alone.metrics
    assert whole.images == 4


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_the_number_of_processes_changes_no_detection_and_no_number(run, tiny_settings, world_size, batch_size):
    """Four images, so that six processes are too many; images of a batch differ in size and are padded."""
    torch.manual_seed(0)
    model = build_model(tiny_settings.model)
    whole: list[RankResults] = []
    alone = run(model, batch_size=batch_size, gather=lambda results: whole.append(results) or whole)
    gathered: list[RankResults] = []

    def gather(of_rank: RankResults) -> list[RankResults]:
        gathered.append(of_rank)
        return gathered if len(gathered) == world_size else []

    results = [
        run(model, batch_size=batch_size, rank=rank, world_size=world_size, gather=gather) for rank in range(world_size)
    ]
    assert sorted(image for of_rank in gathered for image in of_rank.image_ids) == sorted(whole[0].image_ids)
    assert len(whole[0].image_ids) == 4
    assert [bool(result.metrics) for result in results] == [False] * (world_size - 1) + [True]
    assert results[-1].metrics == alone.metrics
    assert results[-1].detections.to_json() == alone.detections.to_json()


def test_a_checkpoint_whose_ids_are_off_by_one_scores_the_same(run):
    result = run(Oracle(), category_ids=[1, 2, 6])
    assert result.metrics["AP"] == 1.0
    assert {record["category_id"] for record in result.detections.to_records()} <= set(CATEGORY_IDS)


def test_other_classes_are_refused_with_both_differences(run):
    with pytest.raises(CheckpointError) as caught:
        run(Oracle(), class_names=["disc", "bar", "cat", "dog"], category_ids=[1, 2, 3, 4])
    text = str(caught.value)
    assert "4 classes" in text
    assert "instances_train2017.json has 3" in text
    assert "Only in the model: cat, dog." in text
    assert "Only in the annotations: ring." in text


def test_fp16_on_a_cpu_is_refused_before_anything_runs(run):
    model = Oracle()
    with pytest.raises(ConfigError, match="fp16"):
        run(model, precision="fp16")
    assert model.modes == []


def test_bf16_runs_close_to_fp32(run, tiny_settings):
    model = build_model(tiny_settings.model)
    exact, rough = (run(model, precision=precision) for precision in ("fp32", "bf16"))
    assert "bf16" in str(rough.protocol)
    assert exact.detections.to_records() != rough.detections.to_records()
    scores = [np.mean([record["score"] for record in result.detections.to_records()]) for result in (exact, rough)]
    assert scores[0] == pytest.approx(scores[1], rel=0.05)


def test_a_missing_hotcoco_changes_no_number(run, monkeypatch):
    expected = run(Oracle(wrong=3))
    assert "hotcoco" in str(expected.protocol)
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    result = run(Oracle(wrong=3))
    assert "pycocotools" in str(result.protocol)
    assert result.metrics == expected.metrics


def with_masks(settings: Settings) -> Settings:
    return apply_overrides(settings, ['model.mask.kind="refine"'])


def test_perfect_masks_give_mask_ap_one(run, tiny_settings):
    """The annotated outlines are the boxes, so full masks in perfect boxes are perfect."""
    result = run(Masked(), settings=with_masks(tiny_settings))
    assert result.metrics["AP"] == result.metrics["mask_AP"] == result.metrics["mask_AR100"] == 1.0
    assert [score.mask_AP for score in result.per_class if score.objects] == [1.0, 1.0, 1.0]
    assert "COCO box and mask metrics" in str(result.protocol)
    assert set(result.detections.to_records()[0]) >= {"bbox", "score", "segmentation", "mask_score"}


def test_half_masks_lower_mask_ap_only(run, tiny_settings):
    result = run(Masked(share=0.6), settings=with_masks(tiny_settings))
    assert result.metrics["AP"] == 1.0
    assert 0 < result.metrics["mask_AP"] < 0.5


def test_masks_rank_by_their_own_scores(run, tiny_settings):
    plain = run(Masked(share=0.6, wrong=2), settings=with_masks(tiny_settings)).metrics
    ranked = run(Masked(share=0.6, wrong=2, wrong_mask_score=0.01), settings=with_masks(tiny_settings)).metrics
    assert plain["AP"] == ranked["AP"]
    assert plain["mask_AP"] < ranked["mask_AP"]


def test_masks_can_be_skipped(run, tiny_settings):
    result = run(Masked(), settings=with_masks(tiny_settings), masks=False)
    assert "mask_AP" not in result.metrics
    assert result.detections.masks is None


def test_annotations_without_outlines_are_refused_before_anything_runs(run, tiny_settings, tiny_coco):
    path = tiny_coco / "annotations/instances_train2017.json"
    table = json.loads(path.read_text())
    del table["annotations"][1]["segmentation"]
    path.write_text(json.dumps(table))
    model = Masked()
    with pytest.raises(DatasetError, match=r"1 of 7 objects have no outline.*--boxes-only"):
        run(model, settings=with_masks(tiny_settings))
    assert model.modes == []
    assert run(Masked(), settings=with_masks(tiny_settings), masks=False).metrics["AP"] == 1.0


def test_lvis_annotations_need_lvis_settings_and_the_reverse(run, tiny_settings, tiny_coco):
    lvis = apply_overrides(tiny_settings, ["data.dataset=lvis"])
    with pytest.raises(DatasetError, match="not an LVIS annotation file"):
        run(Oracle(), settings=lvis)
    path = tiny_coco / "annotations/instances_train2017.json"
    make_lvis(path)
    with pytest.raises(DatasetError, match=r"data\.dataset=lvis"):
        run(Oracle())
    result = run(Oracle(), settings=lvis)
    assert result.metrics["AP"] == 1.0
    assert tuple(result.metrics) == LVIS_METRICS
    assert "LVIS box metrics" in str(result.protocol)
    assert {score.frequency for score in result.per_class} == {"r", "c", "f"}


def test_test_time_augmentation_detects_what_one_view_detects(run, tiny_settings):
    settings = apply_overrides(tiny_settings, ["test.tta_scales=[0.5,1.0]"])
    result = run(Oracle(), settings=settings, tta=True)
    assert result.metrics["AP"] == 1.0
    assert "TTA of 4 views" in str(result.protocol)
