from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.errors import ResourceError
from codetr_cli.evaluation import job
from codetr_cli.evaluation.result_folder import RESULT_NAMES
from codetr_cli.evaluation.scoring import LVIS_METRICS, METRICS
from codetr_cli.models.build import build_model
from codetr_cli.result_files import RECORD_NAME
from codetr_cli.weights.checkpoint import save_checkpoint
from tests.evaluation.annotation_samples import make_lvis
from tests.inference.fakes import CLASS_NAMES, write_checkpoint, write_run


@pytest.fixture
def run(tmp_path: Path, tiny_settings, monkeypatch) -> Path:
    """A run folder in the current directory."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/tiny/1", tiny_settings, "last")
    return Path("runs/tiny/1")


def perfect(data: Path, split: str = "val") -> list[dict]:
    annotations = json.loads((data / f"annotations/instances_{split}2017.json").read_text())["annotations"]
    return [{**{k: a[k] for k in ("image_id", "category_id", "bbox")}, "score": 0.9} for a in annotations]


def test_json_has_metrics_protocol_speed_and_detections(codetr, run, tiny_coco):
    ran = codetr("eval", run, "--data", tiny_coco, "--json")
    assert ran.code == 0, ran.err
    facts = ran.json
    assert 0 <= facts["AP"] <= 1
    assert facts["images"] == 2
    assert facts["objects"] == 3
    assert "100 detections" in facts["protocol"]
    assert facts["speed"]["images_per_second"] > 0
    assert [score["name"] for score in facts["per_class"]] == CLASS_NAMES
    path = Path("runs/tiny/1/eval/last/val/detections.json")
    assert facts["detections"] == str(path)
    detections = json.loads(path.read_text())
    assert detections
    assert set(detections[0]) == {"image_id", "category_id", "bbox", "score"}
    assert {record["category_id"] for record in detections} <= {2, 3, 7}
    assert json.loads((path.parent / "metrics.json").read_text())["AP"] == facts["AP"]


def test_people_see_tables_protocol_and_speed(codetr, run, tiny_coco):
    ran = codetr("eval", run, "--data", tiny_coco, "--per-class")
    assert ran.code == 0, ran.err
    for part in ("AP50", "AR100", "Protocol: single scale 96x160", "images/s", "disc", "category id"):
        assert part in ran.out
    assert "-1" not in ran.out


def test_the_file_scores_like_the_run_that_wrote_it(codetr, run, tiny_coco):
    first = codetr("eval", run, "--data", tiny_coco, "--json").json
    second = codetr("eval", "--detections", first["detections"], "--data", tiny_coco, "--json").json
    assert [second[name] for name in ("AP", "AR1000", "images")] == [first[name] for name in ("AP", "AR1000", "images")]


def test_perfect_boxes_from_a_file_give_one(codetr, tiny_coco, tmp_path, monkeypatch):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(perfect(tiny_coco)))
    facts = codetr("eval", "--detections", path, "--data", tiny_coco, "--json").json
    assert facts["AP"] == facts["AP50"] == facts["AR100"] == 1.0
    monkeypatch.setenv("CODETR_DATA", str(tiny_coco))
    assert codetr("eval", "--detections", path, "--json").json["AP"] == 1.0
    annotations = tiny_coco / "annotations/instances_val2017.json"
    assert codetr("eval", "--detections", path, "--ann", annotations, "--json").json["AP"] == 1.0


def test_detections_of_other_tools_are_read_and_hints_shown(codetr, tiny_coco, tmp_path):
    path = tmp_path / "mine.json"
    table = json.loads((tiny_coco / "annotations/instances_val2017.json").read_text())
    names = {image["id"]: image["file_name"] for image in table["images"]}
    found = [{**record, "file_name": names[record["image_id"]], "image_id": 7} for record in perfect(tiny_coco)]
    path.write_text(json.dumps({"predictions": found}))
    facts = codetr("eval", "--detections", path, "--data", tiny_coco, "--json").json
    assert facts["AP"] == 1.0
    assert "3 of 3 detections have another image_id" in facts["notes"][0]
    assert facts["warnings"] == []
    for record in found:
        x, y, w, h = record["bbox"]
        record.update(bbox=[x, y, x + w, y + h], score=90)
    path.write_text("\n".join(map(json.dumps, found)))
    ran = codetr("eval", "--from", path, "--data", tiny_coco, "--json")
    assert ran.json["AP"] < 0.5
    assert ["percent" in ran.json["warnings"][0], "corners" in ran.json["warnings"][1]] == [True, True]
    assert "x2 - x1" in " ".join(ran.err.split())
    path.write_text("[]")
    ran = codetr("eval", "--detections", path, "--data", tiny_coco, "--json")
    assert (ran.json["AP"], "no detections" in ran.err) == (0.0, True)


def test_results_are_not_overwritten_unless_forced(codetr, run, tiny_coco):
    places = [codetr("eval", run, "--data", tiny_coco, "--json").json["detections"] for _ in range(3)]
    assert [Path(place).parent.name for place in places] == ["val", "val_2", "val_3"]
    forced = codetr("eval", run, "--data", tiny_coco, "--json", "--force").json["detections"]
    assert forced == places[0]
    chosen = codetr("eval", run, "--data", tiny_coco, "--json", "--out", "mine").json["detections"]
    assert chosen == "mine/detections.json"


def test_a_checkpoint_outside_a_run_has_its_results_beside_it(codetr, tmp_path, tiny_settings, tiny_coco):
    path = write_checkpoint(tmp_path / "zoo/m.safetensors", tiny_settings)
    facts = codetr("eval", path, "--data", tiny_coco, "--json", "--split", "train", "--max-images", 2).json
    assert facts["detections"] == str(tmp_path / "zoo/eval/train/detections.json")
    assert facts["images"] == 2


def test_own_folders_of_images_and_annotations(codetr, run, tiny_coco):
    options = ("--images", tiny_coco / "train2017", "--ann", tiny_coco / "annotations/instances_train2017.json")
    facts = codetr("eval", run, *options, "--json", "--batch", 3).json
    assert facts["images"] == 4
    assert Path(facts["detections"]).parent.name == "instances_train2017"


@pytest.mark.parametrize("head", ["roi", "atss"])
def test_auxiliary_heads(codetr, run, tiny_coco, head):
    facts = codetr("eval", run, "--data", tiny_coco, "--head", head, "--json").json
    assert f"{head} head" in facts["protocol"]


def test_where_the_run_was_trained_plays_no_part(codetr, tmp_path, tiny_settings, tiny_coco, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tiny_settings.data.model_copy(update={"root": "/gone", "val_annotations": "/gone.json"})
    path = write_checkpoint(tmp_path / "m.safetensors", tiny_settings.model_copy(update={"data": data}))
    assert codetr("eval", path, "--data", tiny_coco).code == 0
    assert codetr("eval", path, "--set", f"data.root={tiny_coco}").code == 0
    ran = codetr("eval", path)
    assert ran.code == 3
    assert "data/coco" in ran.err


def test_a_preset_without_published_weights_takes_the_classes_of_the_data(codetr, tmp_path, tiny_coco, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--set", "test.short_side=64", "--set", "data.workers=0")
    ran = codetr("eval", "co_dino_tiny", "--data", tiny_coco, "--json", *options)
    assert ran.code == 0, ran.err
    assert "random" in ran.err
    assert ran.json["detections"] == "eval/co_dino_tiny/val/detections.json"


def check(ran, code: int, *parts: object) -> None:
    """The exit code, and one paragraph that names the culprit and shows no traceback."""
    assert ran.code == code, ran.err
    assert "Traceback" not in ran.err + ran.out
    assert "unexpected" not in ran.err
    for part in parts:
        assert str(part) in ran.err, ran.err


def test_wrong_usage(codetr, run, tiny_coco):
    check(codetr("eval", "--data", tiny_coco), 2, "codetr eval CHECKPOINT")
    check(codetr("eval", run, "--detections", "x.json"), 2, "not both")
    check(codetr("eval", run, "--images", "x"), 2, "--ann")
    check(codetr("eval", run, "--ann", "x"), 3, "no such file: x")
    check(codetr("eval", run, "--ann", tiny_coco), 2, "is a folder")
    own = tiny_coco / "annotations/instances_val2017.json"
    check(codetr("eval", run, "--ann", own, "--images", own), 2, "is a file: give the folder")
    check(codetr("eval", run, "--ann", own, "--images", "x"), 3, "no such folder: x")
    check(codetr("eval", run, "--ann", own, "--data", tiny_coco), 2, "both --ann")
    check(codetr("eval", run, "--data", tiny_coco, "--set", "test.nms_iuo=1"), 2, "test.nms_iou")
    check(codetr("eval", run, "--data", tiny_coco, "--precision", "fp8"), 2, "fp8")
    check(codetr("eval", run, "--data", tiny_coco, "--precison", "fp32"), 2, "--precision")
    check(codetr("eval", "co_dino_r05", "--data", tiny_coco), 2, "co_dino_r50")


def test_bad_checkpoints(codetr, run, tiny_coco, tmp_path):
    last = run / "checkpoints/last/model.safetensors"
    check(codetr("eval", "runs/tiny/2", "--data", tiny_coco), 4, "runs/tiny/2", last)
    check(codetr("eval", run, "--data", tiny_coco, "--set", "model.ffn_dim=128"), 4, "another architecture")
    content = last.read_bytes()
    (tmp_path / "short.safetensors").write_bytes(content[: len(content) // 2])
    check(codetr("eval", "short.safetensors", "--data", tiny_coco), 4, "short.safetensors")

    class Bomb:
        def __reduce__(self):
            return (Path.mkdir, (tmp_path / "exploded",))

    torch.save({"state_dict": {"x": Bomb()}}, tmp_path / "evil.pth")
    check(codetr("eval", "evil.pth", "--data", tiny_coco), 4, "evil.pth")
    assert not (tmp_path / "exploded").exists()


def test_bad_data(codetr, run, tiny_coco):
    check(codetr("eval", run, "--data", "nowhere"), 3, "nowhere", "--data")
    images = sorted((tiny_coco / "val2017").glob("*.jpg"))
    content = images[1].read_bytes()
    images[1].write_bytes(content[: len(content) // 2])
    check(codetr("eval", run, "--data", tiny_coco), 3, images[1].name)
    images[1].unlink()
    check(codetr("eval", run, "--data", tiny_coco), 3, images[1].name)
    annotations = tiny_coco / "annotations/instances_val2017.json"
    annotations.write_text(annotations.read_text()[:200])
    check(codetr("eval", run, "--data", tiny_coco), 3, annotations)
    check(codetr("eval", "--detections", "none.json", "--data", tiny_coco), 3)


def test_other_classes(codetr, run, tiny_coco):
    annotations = tiny_coco / "annotations/instances_val2017.json"
    table = json.loads(annotations.read_text())
    table["categories"][0]["name"] = "cat"
    annotations.write_text(json.dumps(table))
    check(codetr("eval", run, "--data", tiny_coco), 4, "Only in the model: ring", "Only in the annotations: cat")


def test_category_ids_from_zero_without_holes(codetr, run, tiny_coco):
    """The classes are the model's, only their ids differ."""
    annotations = tiny_coco / "annotations/instances_val2017.json"
    table = json.loads(annotations.read_text())
    new = {2: 0, 3: 1, 7: 2}
    for category in table["categories"]:
        category["id"] = new[category["id"]]
    for annotation in table["annotations"]:
        annotation["category_id"] = new[annotation["category_id"]]
    before = codetr("eval", run, "--data", tiny_coco, "--json")
    annotations.write_text(json.dumps(table))
    ran = codetr("eval", run, "--data", tiny_coco, "--json")
    assert ran.code == before.code == 0, ran.err
    assert {r["category_id"] for r in json.loads(Path(ran.json["detections"]).read_text())} <= {0, 1, 2}


def test_a_missing_gpu_is_told_first(codetr, run):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    check(codetr("eval", run, "--device", "cuda", "--data", "nowhere"), 5, "cuda")


def test_errors_under_json_are_one_object(codetr, run):
    ran = codetr("eval", run, "--data", "nowhere", "--json")
    assert ran.code == 3
    assert ran.json["exit_code"] == 3


def test_a_missing_checkpoint_is_told_before_missing_data(codetr, tmp_path):
    outcome = codetr("eval", tmp_path / "none.safetensors", "--data", tmp_path / "none")
    assert outcome.code == 4
    assert "none.safetensors" in outcome.err


# ---------------------------------------------------------------------------------------- engines, views, masks, LVIS


def test_either_engine_gives_the_same_numbers(codetr, run, tiny_coco):
    ours, theirs = (
        codetr("eval", run, "--data", tiny_coco, "--json", "--scorer", engine).json
        for engine in ("hotcoco", "pycocotools")
    )
    assert [ours[name] for name in METRICS] == [theirs[name] for name in METRICS]
    assert ours["per_class"] == theirs["per_class"]
    assert "hotcoco" in ours["protocol_parts"]["engine"]
    assert "pycocotools" in theirs["protocol_parts"]["engine"]
    check(codetr("eval", run, "--data", tiny_coco, "--scorer", "hotcooc"), 2, "hotcooc", "--scorer")


def test_the_protocol_can_be_left_out(codetr, run, tiny_coco):
    assert "Protocol" in codetr("eval", run, "--data", tiny_coco, "--protocol").out
    ran = codetr("eval", run, "--data", tiny_coco, "--no-protocol")
    assert ran.code == 0
    assert "Protocol" not in ran.out


def test_test_time_augmentation(codetr, run, tiny_coco):
    plain = codetr("eval", run, "--data", tiny_coco, "--json").json
    facts = codetr("eval", run, "--data", tiny_coco, "--json", "--tta", "--batch", 2).json
    assert "TTA of 6 views (72x120, 96x160, 120x200, each also mirrored)" in facts["protocol"]
    assert "single scale" in plain["protocol"]
    detections = json.loads(Path(facts["detections"]).read_text())
    assert detections != json.loads(Path(plain["detections"]).read_text())
    assert max(Counter(record["image_id"] for record in detections).values()) <= 20
    one = ("--set", "test.tta_scales=[1.0]", "--set", "test.tta_flip=false")
    same = codetr("eval", run, "--data", tiny_coco, "--json", "--tta", *one).json
    assert json.loads(Path(same["detections"]).read_text()) == json.loads(Path(plain["detections"]).read_text())
    check(codetr("eval", run, "--data", tiny_coco, "--tta", "--set", "test.tta_scales=[10]"), 2, "tta_scales", "10")


def test_tiles(codetr, run, tiny_coco):
    plain = codetr("eval", run, "--data", tiny_coco, "--json").json
    ran = codetr("eval", run, "--data", tiny_coco, "--json", "--tiles", "64x48", "--overlap", 0.25, "--batch", 3)
    assert ran.code == 0, ran.err
    facts = ran.json
    assert "tiles of 64x48, overlap 0.25 and of the whole image, each at 96x160" in facts["protocol"]
    assert "up to 500 detections per image" in facts["protocol"]
    written = json.loads((Path(facts["detections"]).parent / "metrics.json").read_text())
    for name in ("AP@100", "AP@300", "AP@500"):
        assert 0 <= facts[name] <= 1
        assert written[name] == facts[name]
        assert name not in plain
    assert facts["AP@100"] == facts["AP"]
    counts = Counter(record["image_id"] for record in json.loads(Path(facts["detections"]).read_text()))
    assert 20 < max(counts.values()) <= 500
    shown = codetr("eval", run, "--data", tiny_coco, "--tiles", "64x48", "--overlap", 0.25, "--batch", 3)
    assert "AP@500" in shown.out
    # Larger than the images: as without tiles, but for the metrics.
    uncut = codetr("eval", run, "--data", tiny_coco, "--json", "--tiles", "500").json
    assert json.loads(Path(uncut["detections"]).read_text()) == json.loads(Path(plain["detections"]).read_text())
    assert uncut["AP"] == plain["AP"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--tiles", "auto", "--tta"), ("--tiles and --tta", "choose one")),
        (("--overlap", 0.5), ("--overlap", "--tiles auto")),
        (("--tiles", "many"), ("many", "1024x1024")),
        (("--tiles", "64", "--overlap", 1.5), ("1.5", "from 0 to 0.9")),
    ],
)
def test_tiles_that_are_not_allowed(codetr, run, tiny_coco, words, parts):
    check(codetr("eval", run, "--data", tiny_coco, *words), 2, *parts)
    check(codetr("predict", tiny_coco, "--checkpoint", run, *words), 2, *parts)


def test_tiles_do_not_change_a_file_of_detections(codetr, run, tiny_coco):
    Path("d.json").write_text(json.dumps(perfect(tiny_coco)))
    check(codetr("eval", "--detections", "d.json", "--data", tiny_coco, "--tiles", "auto"), 2, "--tiles")


def test_the_numbers_are_shown_before_files_are_written(codetr, run, tiny_coco, monkeypatch):
    words = ("eval", run, "--data", tiny_coco, "--out", "out")

    def full(path, **named):
        raise ResourceError(f"no space left on the disk while writing {path}.")

    with monkeypatch.context() as patched:
        patched.setattr(job, "write_results", full)
        shown, as_json = codetr(*words), codetr(*words, "--json")
    assert shown.code == as_json.code == 5
    assert "AP50" in shown.out
    assert "writing out/metrics.json" in shown.err
    assert 0 <= as_json.json["AP"] <= 1
    assert (as_json.json["detections"], as_json.json["exit_code"]) == (None, 5)
    ran = codetr(*words, "--json")
    assert ran.code == 0
    assert "2 of 2 images were done before" in ran.err
    assert ran.json["AP"] == as_json.json["AP"]
    assert {path.name for path in Path("out").iterdir()} == {*RESULT_NAMES, RECORD_NAME}


def test_files_of_the_user_are_kept_even_with_force(codetr, run, tiny_coco):
    Path("out").mkdir()
    Path("out/metrics.json").write_text("mine")
    ran = codetr("eval", run, "--data", tiny_coco, "--out", "out", "--force", "--json")
    assert (ran.code, ran.json["detections"]) == (0, "out_2/detections.json"), ran.err
    assert Path("out/metrics.json").read_text() == "mine"


@pytest.fixture
def masked_run(tmp_path: Path, tiny_settings, monkeypatch) -> Path:
    """A run whose network draws masks in its RoI head."""
    monkeypatch.chdir(tmp_path)
    overrides = ['model.mask.kind="fcn"', "model.mask.dim=16", "test.head=roi"]
    write_run(tmp_path / "runs/masked/1", apply_overrides(tiny_settings, overrides), "last")
    return Path("runs/masked/1")


def test_mask_ap_beside_box_ap(codetr, masked_run, tiny_coco):
    ran = codetr("eval", masked_run, "--data", tiny_coco, "--json")
    assert ran.code == 0, ran.err
    facts = ran.json
    assert 0 <= facts["mask_AP"] <= 1
    assert facts["protocol_parts"]["metrics"] == "COCO box and mask"
    assert all("mask_AP" in score for score in facts["per_class"])
    detections = json.loads(Path(facts["detections"]).read_text())
    assert set(detections[0]["segmentation"]) == {"size", "counts"}
    again = codetr("eval", "--detections", facts["detections"], "--data", tiny_coco, "--json").json
    assert [again[f"mask_{name}"] for name in METRICS] == [facts[f"mask_{name}"] for name in METRICS]
    shown = codetr("eval", masked_run, "--data", tiny_coco, "--per-class").out
    for part in ("Box precision", "Mask precision", "Mask recall", "mask AP50"):
        assert part in shown
    assert json.loads((Path(facts["detections"]).parent / "metrics.json").read_text())["mask_AP"] == facts["mask_AP"]


def test_a_head_without_masks_is_told(codetr, masked_run, tiny_coco):
    ran = codetr("eval", masked_run, "--data", tiny_coco, "--head", "decoder", "--json")
    assert "--head roi" in ran.err
    assert "mask_AP" not in ran.json


def test_objects365_counts_as_coco(codetr, run, tiny_coco):
    own = ("--images", tiny_coco / "val2017", "--ann", tiny_coco / "annotations/instances_val2017.json")
    facts = codetr("eval", run, *own, "--set", "data.dataset=objects365", "--json").json
    assert set(METRICS) <= set(facts)
    assert "COCO box metrics" in facts["protocol"]


def test_masks_with_views(codetr, masked_run, tiny_coco):
    facts = codetr("eval", masked_run, "--data", tiny_coco, "--json", "--tta").json
    assert "mask_AP" in facts
    assert "roi head" in facts["protocol"]


def test_annotations_without_outlines(codetr, masked_run, tiny_coco):
    path = tiny_coco / "annotations/instances_val2017.json"
    table = json.loads(path.read_text())
    for annotation in table["annotations"]:
        del annotation["segmentation"]
    path.write_text(json.dumps(table))
    check(codetr("eval", masked_run, "--data", tiny_coco), 3, "3 of 3 objects have no outline", "--boxes-only")
    assert not (masked_run / "eval").exists()
    ran = codetr("eval", masked_run, "--data", tiny_coco, "--json", "--boxes-only")
    assert ran.code == 0, ran.err
    assert "mask_AP" not in ran.json


def test_lvis(codetr, run, tiny_coco):
    make_lvis(tiny_coco / "annotations/instances_val2017.json")
    own = ("--images", tiny_coco / "val2017", "--ann", tiny_coco / "annotations/instances_val2017.json")
    check(codetr("eval", run, *own), 3, "LVIS", "data.dataset=lvis")
    assert not (run / "eval").exists()
    ran = codetr("eval", run, *own, "--set", "data.dataset=lvis", "--json")
    assert ran.code == 0, ran.err
    assert set(LVIS_METRICS) <= set(ran.json)
    assert [score["frequency"] for score in ran.json["per_class"]] == ["c", "f", "r"]
    assert "LVIS box metrics" in ran.json["protocol"]
    shown = codetr("eval", run, *own, "--set", "data.dataset=lvis", "--per-class").out
    for part in ("APr", "APf", "AR300", "frequency"):
        assert part in shown
    again = codetr("eval", "--detections", ran.json["detections"], *own[2:], "--json").json
    assert [again[name] for name in LVIS_METRICS] == [ran.json[name] for name in LVIS_METRICS]
    check(codetr("eval", "--detections", ran.json["detections"], *own[2:], "--set", "data.dataset=coco"), 3, "LVIS")


def test_coco_annotations_with_lvis_settings(codetr, run, tiny_coco):
    own = ("--images", tiny_coco / "val2017", "--ann", tiny_coco / "annotations/instances_val2017.json")
    check(codetr("eval", run, *own, "--set", "data.dataset=lvis"), 3, "not an LVIS annotation file")


def test_a_published_ap_is_only_compared_where_the_protocol_is_the_same(
    codetr, tmp_path, monkeypatch, tiny_settings, tiny_coco
):
    monkeypatch.chdir(tmp_path)
    names = [{"id": i, "name": f"class {i}"} for i in range(1, 81)]
    path = tiny_coco / "annotations/instances_val2017.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "categories": names}))
    settings = apply_overrides(tiny_settings, ["model.num_classes=80"]).model_copy(update={"name": "co_dino_r50"})
    model = build_model(settings.model)
    save_checkpoint(
        tmp_path / "m.safetensors",
        model.state_dict(),
        settings=settings,
        class_names=[name["name"] for name in names],
        category_ids=list(range(1, 81)),
    )
    ran = codetr("eval", "m.safetensors", "--data", tiny_coco, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["published"]["box_ap"] == 52.1
    assert not ran.json["published"]["comparable"]
    assert any("2 images of val" in difference for difference in ran.json["published"]["differences"])
    assert "Not comparable with the published box AP 52.1" in codetr("eval", "m.safetensors", "--data", tiny_coco).out


@pytest.mark.parametrize("name", ["metrics.json", "speed.json"])
def test_any_file_of_a_result_takes_a_folder(codetr, run, tiny_coco, name):
    place = Path("mine") / name
    place.parent.mkdir()
    place.write_text("mine")
    facts = codetr("eval", run, "--data", tiny_coco, "--json", "--out", "mine").json
    assert facts["detections"] == "mine_2/detections.json"
    assert place.read_text() == "mine"


@pytest.mark.parametrize("link", ["eval", "eval/last", "eval/last/val"])
def test_a_link_out_of_a_run_is_not_followed(codetr, run, tiny_coco, tmp_path, link):
    (tmp_path / "elsewhere").mkdir()
    (run / link).parent.mkdir(parents=True, exist_ok=True)
    (run / link).symlink_to(tmp_path / "elsewhere")
    ran = codetr("eval", run, "--data", tiny_coco)
    assert (ran.code, f"{run / link} is a symbolic link out of {run}" in ran.err) == (2, True)
    assert list((tmp_path / "elsewhere").iterdir()) == []
