from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from codetr_cli.config import Settings, apply_overrides
from codetr_cli.data.coco import build_dataset
from codetr_cli.data.loader import build_eval_loader
from codetr_cli.engine.evaluator import Share, describe_protocol, evaluate, match_classes, merge_shares
from codetr_cli.errors import CheckpointError, ConfigError
from codetr_cli.models.build import build_model, build_postprocess
from codetr_cli.models.postprocess import PostProcess
from tests.engine.detectors import CATEGORY_IDS, CLASS_NAMES, Blind, Oracle

CPU = torch.device("cpu")


@pytest.fixture
def run(tiny_coco: Path, tiny_settings):
    """Evaluates a model on a split of the tiny data set."""

    def run(model, split="train", batch_size=3, rank=0, world_size=1, **options):
        dataset = build_dataset(tiny_settings, split=split, training=False, data=str(tiny_coco))
        loader = build_eval_loader(dataset, batch_size=batch_size, workers=0, rank=rank, world_size=world_size)
        options = {"class_names": CLASS_NAMES, "category_ids": CATEGORY_IDS, "device": CPU, **options}
        return evaluate(
            model,
            build_postprocess(tiny_settings.test),
            loader,
            settings=tiny_settings,
            annotations_path=tiny_coco / f"annotations/instances_{split}2017.json",
            **options,
        )

    return run


def test_perfect_boxes_give_ap_one(run):
    """Holes in the category ids, a crowd, an image without objects, images of different sizes in one batch."""
    result = run(Oracle())
    assert result.metrics["AP"] == result.metrics["AP50"] == result.metrics["AR100"] == 1.0
    assert [score.category_id for score in result.per_class] == CATEGORY_IDS
    assert {record["category_id"] for record in result.detections} <= set(CATEGORY_IDS)
    assert (result.images, result.objects, len(result.detections)) == (4, 7, 7)


def test_wrong_boxes_lower_ap(run):
    assert 0 < run(Oracle(wrong=3)).metrics["AP50"] < 1


def test_no_detections_at_all(run):
    result = run(Blind())
    assert result.metrics["AP"] == 0
    assert result.detections == []


def test_a_network_with_random_weights_runs_to_the_end(run, tiny_settings):
    model = build_model(tiny_settings.model)
    result = run(model, split="val", batch_size=2)
    assert 0 <= result.metrics["AP"] <= 1
    assert result.detections
    assert result.speed.images == 2
    assert result.speed.postprocess_ms > 0
    assert result.speed.images_per_second == pytest.approx(2 / result.speed.seconds)
    parts = result.speed.data_ms + result.speed.model_ms + result.speed.postprocess_ms
    assert parts * 2 / 1000 == pytest.approx(result.speed.seconds)


def test_batches_change_nothing_but_padding_can(run, tiny_settings):
    """Boxes of an image alone and in a padded batch agree closely: the padding is masked everywhere."""
    model = build_model(tiny_settings.model).double()
    single = run(model.float(), batch_size=1).detections
    assert {record["image_id"] for record in single} == {record["image_id"] for record in run(model).detections}


def test_evaluates_in_evaluation_mode_and_restores_training(run):
    model = Oracle().train()
    run(model)
    assert model.modes == [False, False]
    assert model.training
    run(model.eval())
    assert not model.training


def test_reports_progress_by_image(run):
    seen: list[int] = []
    run(Oracle(), progress=seen.append)
    assert seen == [3, 1]


def test_shares_of_several_processes_make_the_whole(run):
    shares: list[Share] = []

    def hand_in(share: Share) -> list[Share]:
        shares.append(share)
        return []

    silent = run(Oracle(), rank=0, world_size=2, gather=hand_in)
    assert silent.metrics == {}
    assert silent.speed.images == 2
    run(Oracle(), rank=1, world_size=2, gather=hand_in)
    assert [len(share.image_ids) for share in shares] == [2, 2]
    whole = run(Oracle(), rank=1, world_size=2, gather=lambda share: [shares[0], share])
    alone = run(Oracle())
    assert whole.metrics == alone.metrics
    assert whole.images == 4


def test_repeated_images_count_once():
    def record(image_id, score):
        return {"image_id": image_id, "category_id": 1, "bbox": [0, 0, 1, 1], "score": score}

    first = Share([1, 2], [record(1, 0.1), record(2, 0.2)])
    second = Share([3, 1], [record(3, 0.3), record(1, 0.9)])
    merged = merge_shares([first, second])
    assert merged.image_ids == [1, 2, 3]
    assert [record["score"] for record in merged.detections] == [0.1, 0.2, 0.3]


def test_classes_are_matched_by_name():
    assert match_classes(["a", "b"], [1, 2], ["a", "b"], [0, 1], "f") == [0, 1]
    assert match_classes(["b", "a"], [1, 2], ["a", "b"], [0, 7], "f") == [7, 0]
    assert match_classes(["a", "a"], [1, 2], ["a", "a"], [1, 2], "f") == [1, 2]


def test_a_checkpoint_whose_ids_are_off_by_one_scores_the_same(run):
    result = run(Oracle(), category_ids=[1, 2, 6])
    assert result.metrics["AP"] == 1.0
    assert {record["category_id"] for record in result.detections} <= set(CATEGORY_IDS)


def test_other_classes_are_refused_with_both_differences(run):
    with pytest.raises(CheckpointError) as caught:
        run(Oracle(), class_names=["disc", "bar", "cat", "dog"], category_ids=[1, 2, 3, 4])
    text = str(caught.value)
    assert "4 classes" in text
    assert "instances_train2017.json has 3" in text
    assert "Only in the model: cat, dog." in text
    assert "Only in the annotations: ring." in text


def test_same_names_repeated_in_another_way_are_refused():
    with pytest.raises(CheckpointError):
        match_classes(["a", "a", "b"], [1, 2, 3], ["a", "b", "b"], [1, 2, 3], "f")


def test_fp16_on_a_cpu_is_refused_before_anything_runs(run):
    model = Oracle()
    with pytest.raises(ConfigError, match="fp16"):
        run(model, precision="fp16")
    assert model.modes == []


def test_bf16_runs_close_to_fp32(run, tiny_settings):
    model = build_model(tiny_settings.model)
    exact, rough = (run(model, precision=precision) for precision in ("fp32", "bf16"))
    assert "bf16" in rough.protocol
    assert exact.detections != rough.detections
    scores = [np.mean([record["score"] for record in result.detections]) for result in (exact, rough)]
    assert scores[0] == pytest.approx(scores[1], rel=0.05)


def test_the_protocol_says_what_was_done(tiny_settings):
    postprocess = PostProcess(max_detections=300, candidates="max_detections")
    text = describe_protocol(Settings(name="x").test, postprocess, "fp32")
    for part in (
        "single scale 800x1333",
        "soft-NMS at IoU 0.8 over max_detections",
        "up to 300",
        "fp32",
        "100 detections",
    ):
        assert part in text
    changed = apply_overrides(tiny_settings, ['test.nms="none"', "test.short_side=640"]).test
    assert "640x160, no NMS" in describe_protocol(changed, build_postprocess(changed), "bf16")
    assert "atss head" in describe_protocol(changed, PostProcess(head="atss"), "fp32")


def test_long_scoring_is_announced(run, monkeypatch):
    notes: list[str] = []
    run(Oracle(), note=notes.append)
    assert notes == []
    monkeypatch.setattr("codetr_cli.engine.evaluator.MANY_DETECTIONS", 6)
    run(Oracle(), note=notes.append)
    assert "7 detections" in notes[0]
