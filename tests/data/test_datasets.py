"""LVIS and Objects365: their files, their data beyond COCO's, and settings for the wrong one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codetr_cli.annotations.objects import check_kind, read_annotations
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.config.overrides import parse_settings
from codetr_cli.config.schema import Settings
from codetr_cli.data.checks.dataset import check_dataset
from codetr_cli.data.coco import build_dataset
from codetr_cli.errors import DatasetError
from codetr_cli.formats.resolve import find_data
from codetr_cli.training.plan import plan_job
from tests.data.dataset_samples import annotation, lvis_content, picture, write
from tests.inference.fakes import write_checkpoint


@pytest.fixture(params=["zhiyuan_objv2_{}.json", "objects365_{}.json"])
def objects365(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    root = tmp_path / "objects365"
    second_version = request.param.startswith("zhiyuan")
    for split in ("train", "val"):
        names = [f"images/v{1 + i % 2}/patch{i}/objects365_v{1 + i % 2}_{i:08d}.jpg" for i in range(3)]
        if not second_version:
            names = [f"obj365_{split}_{i:012d}.jpg" for i in range(3)]
        images = [{"id": i, "file_name": name, "height": 48, "width": 64, "license": 5} for i, name in enumerate(names)]
        objects = [annotation(i, i, 365 - i, iscrowd=0, isfake=0, isreflected=0) for i in range(3)]
        for entry in objects:
            del entry["segmentation"]
        # Version 1 lists its categories in another order in either file.
        categories = [{"id": i, "name": f"class {i}"} for i in np.random.default_rng(len(split)).permutation(365) + 1]
        content = {"images": images, "annotations": objects, "categories": categories}
        path = root / "annotations" / request.param.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, default=int))
        for name in names:
            picture(root / split / name.removeprefix("images/v1/").removeprefix("images/v2/"))
    return root


def settings_for(root: Path, dataset: str, **data: Any) -> Settings:
    return parse_settings({"name": "x", "data": {"root": str(root), "dataset": dataset, **data}}, where="test")


def test_lvis_has_more_data_on_images_and_classes(lvis: Path) -> None:
    annotations = read_annotations(lvis / "annotations" / "lvis_v1_train.json")
    assert annotations.is_lvis
    assert annotations.class_names == ["aerosol_can", "air_conditioner", "zucchini"]
    assert annotations.frequencies == ["f", "c", "r"]
    assert annotations.neg_category_ids == [[2]] * 4
    assert annotations.not_exhaustive_category_ids == [[1], [], [], []]
    assert annotations.file_names[0] == "train2017/000000000001.jpg"
    assert annotations.iscrowd.tolist() == [0] * 4
    assert annotations.annotated_images().tolist() == [True, True, True, False]


def test_lvis_images_are_in_the_folders_of_either_split(lvis: Path) -> None:
    for split in ("train", "val"):
        dataset = build_dataset(settings_for(lvis, "lvis"), split=split, training=False)
        assert len(dataset) == 4
        assert {Path(name).parent.name for name in dataset.file_names} == {"train2017", "val2017"}
        assert [dataset[i][0].shape[2] for i in range(4)] == [3] * 4


def test_rare_classes_are_repeated_and_empty_images_excluded(lvis: Path) -> None:
    settings = settings_for(lvis, "lvis", filter_empty=True, oversample_threshold=1.0)
    dataset = build_dataset(settings, split="train", training=True)
    # Class 3 is in one of three images: the square root of 3, rounded up.
    assert dataset.image_ids == [1, 2, 2, 3]
    assert len(dataset) == len(dataset.aspect_flags) == 4
    assert dataset.load_sample(1).labels.tolist() == dataset.load_sample(2).labels.tolist() == [0, 2]
    assert dataset.load_sample(3).labels.tolist() == [0]
    kept = build_dataset(settings_for(lvis, "lvis", oversample_threshold=1.0), split="train", training=True)
    assert kept.image_ids == [1, 1, 2, 2, 3, 3, 4, 4]
    # Evaluation looks at every image once.
    assert build_dataset(settings, split="train", training=False).image_ids == [1, 2, 3, 4]


def test_objects365_is_in_patches(objects365: Path) -> None:
    for split in ("train", "val"):
        dataset = build_dataset(settings_for(objects365, "objects365"), split=split, training=False)
        assert dataset.category_ids == list(range(1, 366))
        assert dataset.class_names[364] == "class 365"
        assert [dataset[i][1]["labels"].tolist() for i in range(3)] == [[364], [363], [362]]
    with pytest.raises(DatasetError, match="none of its 3 usable objects have a segmentation"):
        build_dataset(
            settings_for(objects365, "objects365", augmentation="lsj", canvas=64, copy_paste="masks"),
            split="train",
            training=True,
        )
    boxes = settings_for(objects365, "objects365", augmentation="lsj", canvas=64, copy_paste="boxes")
    assert build_dataset(boxes, split="train", training=True)[0][0].shape == (64, 64, 3)


# ------------------------------------------------------------------------------------------------------ the wrong one


def test_the_wrong_data_set_is_reported_in_either_direction(lvis: Path, tiny_coco: Path) -> None:
    with pytest.raises(DatasetError, match=r"has LVIS annotations, but the settings are for COCO.*data.dataset=lvis"):
        build_dataset(settings_for(lvis, "coco"), split="train", training=True)
    with pytest.raises(DatasetError, match=r"has COCO annotations, but the settings are for LVIS.*data.dataset=coco"):
        build_dataset(settings_for(tiny_coco, "lvis"), split="train", training=True)
    lvis_file, coco_file = lvis / "annotations/lvis_v1_train.json", tiny_coco / "annotations/instances_train2017.json"
    with pytest.raises(DatasetError, match=r"is an LVIS annotation file.*--set data.dataset=lvis"):
        build_dataset(
            settings_for(lvis, "coco", train_annotations=str(lvis_file), train_images=str(lvis)),
            split="train",
            training=True,
        )
    with pytest.raises(DatasetError, match=r"is not an LVIS annotation file.*--set data.dataset=coco"):
        build_dataset(
            settings_for(tiny_coco, "lvis", train_annotations=str(coco_file), train_images=str(tiny_coco)),
            split="train",
            training=True,
        )
    check_kind(read_annotations(coco_file), "objects365", coco_file)


def test_training_reports_its_classes(lvis: Path, tiny_coco: Path) -> None:
    job = plan_job(settings_for(tiny_coco, "coco"))
    (note,) = job.notes
    assert "(x has 80)" in note
    assert note.startswith("3 classes from ")
    assert job.settings.model.num_classes == 3
    assert plan_job(job.settings).notes == []
    with pytest.raises(DatasetError, match="is an LVIS annotation file"):
        plan_job(
            settings_for(
                lvis, "coco", train_annotations=str(lvis / "annotations/lvis_v1_train.json"), train_images=str(lvis)
            ),
            chosen={"data.dataset"},
        )


def test_training_recognises_lvis_and_objects365_in_place(lvis: Path, objects365: Path) -> None:
    job = plan_job(settings_for(lvis, "coco"))
    assert job.settings.data.dataset == "lvis"
    assert any("read, and scored, by the rules of lvis (data.dataset=lvis)" in note for note in job.notes)
    assert any("co_dino_r50_lvis" in note for note in job.notes)
    assert len(build_dataset(job.settings, split="train", training=True)) == 4
    assert plan_job(job.settings).settings.data == job.settings.data
    job = plan_job(settings_for(objects365, "coco"))
    assert (job.settings.data.dataset, len(job.class_names)) == ("objects365", 365)
    # The reverse is no guess: settings made for LVIS mean LVIS.
    with pytest.raises(DatasetError, match="has Objects365 annotations, but the settings are for LVIS"):
        plan_job(settings_for(objects365, "lvis"))


@pytest.mark.parametrize("layout", ["published", "roboflow"])
def test_lvis_annotations_under_other_names_are_read_by_its_rules(tmp_path: Path, layout: str) -> None:
    root = tmp_path / "set"
    for split, folder, first_id in (("train", "train", 1), ("val", "valid", 101)):
        content = lvis_content(split, first_id)
        for image in content["images"]:
            image["file_name"] = image.pop("coco_url").rpartition("/")[2]
        published = layout == "published"
        images = root / (f"{split}2017" if published else folder)
        for image in content["images"]:
            picture(images / image["file_name"])
        name = f"annotations/instances_{split}2017.json" if published else f"{folder}/_annotations.coco.json"
        write(root / name, content)
    report = check_dataset(root, config=DataConfig(), progress=Silent, workers=1)
    assert (report.errors, report.rules) == (0, "lvis"), report.findings
    for dataset in ("coco", "lvis"):
        job = plan_job(settings_for(root, dataset), chosen=())
        assert job.settings.data.dataset == "lvis"
        assert len(build_dataset(job.settings, split="val", training=False)) == 4
    with pytest.raises(DatasetError, match="is an LVIS annotation file"):
        plan_job(settings_for(root, "coco"), chosen={"data.dataset"})
    val = root / name
    table = json.loads(val.read_text())
    for image in table["images"]:
        del image["neg_category_ids"]
    val.write_text(json.dumps(table))
    report = check_dataset(root, config=DataConfig(), progress=Silent, workers=1)
    assert [finding.kind for finding in report.findings if finding.severity == "error"] == ["other_kind"]
    with pytest.raises(DatasetError, match="is not an LVIS annotation file"):
        plan_job(settings_for(root, "coco"), chosen=())


def test_an_evaluation_takes_the_data_set_that_is_there(lvis: Path, tiny_coco: Path) -> None:
    paths = find_data(DataConfig(), str(lvis), "val", any_dataset=True)
    assert paths.annotations_path == lvis / "annotations" / "lvis_v1_val.json"
    assert find_data(DataConfig(), str(tiny_coco), "val", any_dataset=True).images_dir == tiny_coco / "val2017"
    with pytest.raises(DatasetError, match="no val data"):
        find_data(DataConfig(), str(tiny_coco.parent), "val", any_dataset=True)


# -------------------------------------------------------------------------------------------------------------- prepare


class Silent:
    def __init__(self, description: str, total: int | None) -> None:
        pass

    def __enter__(self) -> Any:
        return lambda count: None

    def __exit__(self, *args: object) -> None:
        pass


def test_prepare_summarizes_lvis(lvis: Path) -> None:
    report = check_dataset(lvis, config=DataConfig(), progress=Silent)
    facts = report.as_json()
    assert facts["layout"] == "LVIS"
    assert facts["ok"]
    assert facts["lists"] == {}
    assert facts["splits"]["train"]["class_frequencies"] == {"r": 1, "c": 1, "f": 1}
    assert facts["splits"]["val"]["masks"] == 4
    kinds = {finding["kind"] for finding in facts["findings"]}
    copies = {"duplicate_image", "leaked_image"}  # the fixture's images are all alike
    assert kinds - copies == {"no_objects_image", "unused_category", "box_of_two_classes"}
    (lvis / "val2017" / "000000000004.jpg").unlink()
    report = check_dataset(lvis, config=DataConfig(), progress=Silent)
    (missing,) = [finding for finding in report.findings if finding.severity == "error"]
    assert (missing.kind, missing.first) == ("missing_file", ["val2017/000000000004.jpg"])


def test_prepare_summarizes_objects365(objects365: Path) -> None:
    report = check_dataset(objects365, config=DataConfig(), progress=Silent)
    facts = report.as_json()
    assert facts["layout"] == "Objects365"
    assert facts["ok"], facts["findings"]
    assert facts["splits"]["train"]["masks"] == 0
    assert facts["splits"]["train"]["categories"] == 365


def test_prepare_names_broken_masks(tiny_coco: Path) -> None:
    path = tiny_coco / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    for entry, outline in zip(
        content["annotations"],
        [[[1, 2, 3, 4]], {"size": [7, 8], "counts": [56]}, [[1, 2, 3, 4, 5, "6"]], [], None],
        strict=False,
    ):
        entry["segmentation"] = outline
    path.write_text(json.dumps(content))
    found = {f.kind: f for f in check_dataset(tiny_coco, config=DataConfig(), progress=Silent).findings}
    assert found["broken_outline"].count == 3
    assert "annotation 1 has a broken polygon" in found["broken_outline"].first[0]
    assert "size [7, 8]" in found["broken_outline"].first[1]
    assert found["some_outlines_missing"].count == 2


def test_prepare_links_each_data_set_where_it_is_looked_for(
    codetr: Any, lvis: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = codetr("prepare", lvis, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["dataset"]["layout"] == "LVIS"
    assert Path("data/lvis_v1").resolve() == lvis
    assert "data.dataset=lvis" in ran.json["next"] or "co_dino_r50_lvis" in ran.json["next"]


def test_an_evaluation_of_a_checkpoint_for_another_data_set_ends_at_once(
    codetr: Any, lvis: Path, tiny_coco: Path, tiny_settings: Settings, tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path / "model.safetensors", tiny_settings)
    ran = codetr("eval", checkpoint, "--data", lvis)
    assert ran.code == 3
    assert "lvis_v1_val.json is an LVIS annotation file, but the settings are for coco" in ran.err
    assert "--set data.dataset=lvis" in ran.err
    ran = codetr("eval", checkpoint, "--data", tiny_coco, "--set", "data.dataset=lvis")
    assert ran.code == 3
    assert "has COCO annotations, but the settings are for LVIS" in ran.err


def test_training_without_the_masks_it_needs_ends_at_once(codetr: Any, objects365: Path, tmp_path: Path) -> None:
    settings = ["data.dataset=objects365", "data.augmentation=lsj", "data.canvas=64", "data.copy_paste=masks"]
    words = [word for setting in settings for word in ("--set", setting)]
    ran = codetr("train", "--preset", "co_dino_tiny", "--data", objects365, "--run", tmp_path / "run", *words)
    assert ran.code == 3
    assert "none of its 3 usable objects have a segmentation" in ran.err
    assert not list((tmp_path / "run").glob("checkpoints/*"))
