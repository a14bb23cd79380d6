from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from codetr_cli.commands import predict
from codetr_cli.config.overrides import apply_overrides
from codetr_cli.distributed import process_group, shared_work
from codetr_cli.distributed.shared_work import SharedWork
from codetr_cli.errors import ResourceError, StoppedError
from codetr_cli.inference.detector import Detector
from codetr_cli.prediction import job, pictures
from codetr_cli.prediction.inputs import InputImage
from codetr_cli.prediction.outcome import Tally
from codetr_cli.prediction.results import ImageResult
from codetr_cli.result_files import RECORD_NAME
from tests.distributed.fake_slurm import stand_in
from tests.inference.fakes import write_run


@pytest.fixture
def run(tmp_path: Path, tiny_settings, monkeypatch) -> Path:
    """A run folder in the current directory."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/tiny/1", tiny_settings, "last")
    return Path("runs/tiny/1")


def test_a_folder_gives_drawn_images_and_coco_json(codetr, run, tiny_coco):
    ran = codetr("predict", tiny_coco / "train2017", "--score", 0.01, "--max-dets", 5)
    assert ran.code == 0, ran.err
    images = json.loads((tiny_coco / "annotations/instances_train2017.json").read_text())["images"]
    for image in images:
        assert image["file_name"] in ran.out
        with Image.open(Path("predictions") / image["file_name"]) as drawn:
            assert drawn.size == (image["width"], image["height"])
    records = json.loads(Path("predictions/predictions.json").read_text())
    assert len(records) == 5 * len(images)
    assert {record["image_id"] for record in records} == {image["id"] for image in images}
    assert {record["category_id"] for record in records} <= {2, 3, 7}
    assert {record["category_name"] for record in records} <= {"disc", "bar", "ring"}
    assert all(len(record["bbox"]) == 4 and record["score"] >= 0.01 for record in records)


def test_predictions_can_be_scored(codetr, run, tiny_coco):
    assert codetr("predict", tiny_coco / "val2017", "--score", 0, "--no-draw").code == 0
    predicted = codetr("eval", "--detections", "predictions/predictions.json", "--data", tiny_coco, "--json").json
    evaluated = codetr("eval", run, "--data", tiny_coco, "--json").json
    assert [predicted[name] for name in ("AP", "AR1000")] == [evaluated[name] for name in ("AP", "AR1000")]


def test_json(codetr, run, tiny_coco):
    photo = sorted((tiny_coco / "val2017").glob("*.jpg"))[0]
    ran = codetr("predict", photo, "--checkpoint", run, "--json", "--score", 0.01, "--nms", "none", "--no-draw")
    assert ran.code == 0, ran.err
    facts = ran.json
    assert facts["checkpoint"].endswith("runs/tiny/1/checkpoints/last/model.safetensors")
    (image,) = facts["images"]
    assert image["file_name"] == photo.name
    assert sum(image["objects"].values()) == len(facts["detections"]) > 0
    assert image["drawn"] is None
    assert facts["failed"] == []
    assert sorted(path.name for path in Path("predictions").iterdir()) == [
        *(RECORD_NAME, "predictions.json", "summary.json")
    ]


def test_several_formats_at_once(codetr, run, tiny_coco):
    words = ("predict", tiny_coco / "train2017", "--no-draw", "--score", "0", "--json")
    facts = codetr(*words, "--format", "jsonl,coco", "--shard-size", "3").json
    assert [Path(name).name for name in facts["files"]] == [
        *("predictions-00000.jsonl", "predictions-00001.jsonl", "predictions-jsonl.json", "predictions.json")
    ]
    lines = [json.loads(line) for name in facts["files"][:2] for line in Path(name).read_text().splitlines()]
    assert [line["image_id"] for line in lines] == [image["image_id"] for image in facts["images"]]
    assert sum(len(line["detections"]) for line in lines) == len(facts["detections"]) > 0
    other = codetr(*words, "--format", "jsonl", "--format", "jsonl").json
    assert (other["predictions"], other["detections"]) == (None, None)
    wrong = codetr(*words, "--format", "jsonl,coc")
    assert wrong.code == 2
    assert "there is no such format of results; did you mean 'coco'?" in wrong.err


def test_results_are_not_overwritten_unless_forced(codetr, run, tiny_coco):
    words = ("predict", tiny_coco / "val2017", "--no-draw", "--json")
    assert [codetr(*words).json["out"] for _ in range(2)] == ["predictions", "predictions_2"]
    assert codetr(*words, "--force").json["out"] == "predictions"
    assert codetr(*words, "--out", "a/b").json["out"] == "a/b"


def test_a_stop_before_the_first_image_writes_nothing(codetr, run, tiny_coco, monkeypatch):
    words = ("predict", tiny_coco / "val2017", "--no-draw")
    assert codetr(*words, "--out", "before").code == 0
    before = Path("before/predictions.json").read_bytes()

    def stop(*arguments):  # as a launcher does whose processes have not begun
        raise StoppedError("stopped immediately", 2)

    monkeypatch.setattr(predict, "run_placed", stop)
    assert codetr(*words, "--out", "before", "--force").code == 130
    assert Path("before/predictions.json").read_bytes() == before
    assert codetr(*words, "--out", "new").code == 130
    assert not Path("new/predictions.json").exists()


def test_broken_images_are_named_and_the_others_done(codetr, run, tiny_coco):
    folder = tiny_coco / "val2017"
    good = sorted(path.name for path in folder.glob("*.jpg"))
    content = (folder / good[0]).read_bytes()
    (folder / "short.jpg").write_bytes(content[: len(content) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("hello")
    Image.new("1", (20000, 20000)).save(folder / "huge.png")
    ran = codetr("predict", folder)
    assert ran.code == 3
    assert "Traceback" not in ran.err
    assert "4 of 6 images" in ran.err
    for name in ("short.jpg", "empty.png", "text.jpg", "huge.png"):
        assert name in ran.err
    for name in good:
        assert (Path("predictions") / name).is_file()
    ran = codetr("predict", folder, "--json")
    assert ran.code == 3
    assert {Path(entry["file"]).name for entry in ran.json["failed"]} == {
        "short.jpg",
        "empty.png",
        "text.jpg",
        "huge.png",
    }
    assert len(ran.json["images"]) == 2


def test_subfolders_and_patterns(codetr, run, tiny_coco):
    ran = codetr("predict", tiny_coco, str(tiny_coco / "val2017/*.jpg"), "--json")
    assert ran.code == 0, ran.err
    assert {entry["file_name"].split("/")[0] for entry in ran.json["images"]} == {"train2017", "val2017"}
    assert len(ran.json["images"]) == 6
    assert all(Path(entry["drawn"]).is_file() for entry in ran.json["images"])


@pytest.mark.parametrize("head", ["roi", "atss"])
def test_auxiliary_heads(codetr, run, tiny_coco, head):
    assert codetr("predict", tiny_coco / "val2017", "--head", head, "--no-draw").code == 0


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["nothing.jpg"], 3, "nothing.jpg"),
        (["x/*.jpg"], 3, "x/*.jpg"),
        ([".", "--score", "2"], 2, "--score"),
        ([".", "--score", "dics=0.5"], 2, "did you mean 'disc'"),
        ([".", "--nms", "sofd"], 2, "sofd"),
        ([".", "--checkpoint", "gone.safetensors"], 4, "runs/tiny/1"),
    ],
)
def test_wrong_words(codetr, run, tiny_coco, words, code, part):
    ran = codetr("predict", *words)
    assert ran.code == code, ran.err
    assert part in ran.err
    assert "Traceback" not in ran.err


def test_without_any_checkpoint(codetr, tmp_path, tiny_coco, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = codetr("predict", tiny_coco)
    assert ran.code == 2
    assert "--checkpoint" in ran.err


def test_test_time_augmentation(codetr, run, tiny_coco):
    photo = sorted((tiny_coco / "val2017").glob("*.jpg"))[0]
    options = ("predict", photo, "--json", "--score", 0, "--no-draw", "--force")
    plain, views = codetr(*options), codetr(*options, "--tta")
    assert views.code == 0, views.err
    assert views.json["detections"] != plain.json["detections"]
    assert 0 < len(views.json["detections"]) <= 20
    one = ("--set", "test.tta_scales=[1.0]", "--set", "test.tta_flip=false")
    assert codetr(*options, "--tta", *one).json["detections"] == plain.json["detections"]


def test_tiles(codetr, run, tiny_coco):
    options = ("predict", tiny_coco / "val2017", "--json", "--score", 0, "--no-draw", "--force")
    plain = codetr(*options)
    tiled = codetr(*options, "--tiles", "64x48", "--overlap", 0.3)
    assert tiled.code == 0, tiled.err
    assert len(tiled.json["detections"]) > len(plain.json["detections"])
    assert len(codetr(*options, "--tiles", "64x48", "--max-dets", 7).json["detections"]) == 14
    assert codetr(*options, "--tiles", "500").json["detections"] == plain.json["detections"]


def test_masks_are_written_and_scored_like_those_of_an_evaluation(
    codetr, tiny_settings, tiny_coco, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    settings = apply_overrides(
        tiny_settings, ["model.mask.kind=refine", "model.mask.dim=16", "model.mask.iou_fc_dim=8"]
    )
    write_run(tmp_path / "runs/tiny/1", settings, "last")
    facts = codetr("predict", tiny_coco / "val2017", "--score", 0, "--json").json
    records = json.loads(Path(facts["predictions"]).read_text())
    assert facts["detections"] == records
    for record in records:
        assert isinstance(record["segmentation"]["counts"], str)
        assert 0 <= record["mask_score"] <= record["score"]
    predicted = codetr("eval", "--detections", facts["predictions"], "--data", tiny_coco, "--json").json
    evaluated = codetr("eval", "runs/tiny/1", "--data", tiny_coco, "--json").json
    names = ("AP", "mask_AP", "mask_AP50", "mask_AR1000")
    assert [predicted[name] for name in names] == [evaluated[name] for name in names]


def test_photos_are_never_drawn_over(codetr, run, tiny_coco):
    """Whichever folder the results go to; and there they are no inputs the next time."""
    album = tiny_coco / "val2017"
    before = {path: path.read_bytes() for path in album.iterdir()}
    ran = codetr("predict", album, "--out", album, "--json")
    assert (ran.code, ran.json["out"]) == (0, str(album)), ran.err
    drawings = {image["drawn"] for image in ran.json["images"]}
    assert len(drawings) == len(before)
    assert not {str(path) for path in before} & drawings
    again = codetr("predict", album, "--out", album, "--force", "--json")
    assert (again.code, again.json["out"]) == (0, str(album)), again.err
    assert [image["file"] for image in again.json["images"]] == [image["file"] for image in ran.json["images"]]
    assert {image["drawn"] for image in again.json["images"]} == drawings
    assert "2 images drawn by codetr itself not used" in again.err
    assert len(again.json["skipped"]["results"]) == 2
    named = sorted(drawings)[0]
    assert len(codetr("predict", named, "--no-draw", "--json").json["images"]) == 1  # a named file is an input
    assert {path: path.read_bytes() for path in before} == before


def test_results_of_the_user_are_kept_even_with_force(codetr, run, tiny_coco):
    photo = sorted((tiny_coco / "val2017").glob("*.jpg"))[0]
    Path("out").mkdir()
    Path("out/predictions.json").write_text("mine")
    Path("out", photo.name).write_bytes(b"mine")
    assert codetr("predict", photo, "--out", "out", "--force", "--json").json["out"] == "out_2"
    Path("out/predictions.json").unlink()
    ran = codetr("predict", photo, "--out", "out", "--force", "--json").json
    assert (ran["out"], ran["images"][0]["drawn"]) == ("out", f"out/{photo.stem}_2.jpg")
    assert Path("out", photo.name).read_bytes() == b"mine"


def test_the_folder_of_the_photo_is_an_output_folder(codetr, run, tiny_coco, monkeypatch):
    photo = sorted((tiny_coco / "val2017").glob("*.jpg"))[0]
    monkeypatch.chdir(photo.parent)
    before = photo.read_bytes()
    checkpoint = run.absolute() if run.is_absolute() else tiny_coco.parent / run
    ran = codetr("predict", photo.name, "--out", ".", "--checkpoint", checkpoint)
    assert ran.code == 0, ran.err
    assert Path("predictions.json").is_file()
    assert photo.read_bytes() == before


def test_a_results_folder_of_links_is_passed_over(codetr, run, tmp_path):
    Path("photos/b").mkdir(parents=True)
    Image.new("RGB", (64, 48)).save("photos/b/c.bmp")
    Path("elsewhere").mkdir()
    Path("linked").mkdir()
    Path("linked/b").symlink_to(tmp_path / "elsewhere")
    ran = codetr("predict", "photos", "--out", "linked", "--json")
    assert (ran.code, ran.json["out"]) == (0, "linked_2"), ran.err
    forced = codetr("predict", "photos", "--out", "linked", "--force")
    assert forced.code == 2
    assert "would follow a symbolic link" in forced.err
    assert not any(Path("elsewhere").iterdir())


def test_what_is_not_read_is_named(codetr, run, tmp_path):
    Path("photos").mkdir()
    Path("more").mkdir()
    Image.new("RGB", (64, 48)).save("photos/a.jfif", format="JPEG")
    for name in ("b.heic", "c.heic", "d.svg", ".ipynb_checkpoints"):
        Path("photos", name).touch()
    Path("photos/linked").symlink_to(tmp_path / "more")
    ran = codetr("predict", "photos", "--no-draw", "--json")
    assert ran.code == 0, ran.err
    assert [image["file_name"] for image in ran.json["images"]] == ["a.jfif"]
    assert "3 files are of formats that cannot be read (.heic 2, .svg 1), first: b.heic" in ran.err
    assert "1 linked folder not searched: linked/" in ran.err
    assert ran.json["skipped"]["links"] == ["linked/"]
    Path("photos/a.jfif").unlink()
    refused = codetr("predict", "photos", "--no-draw")
    assert refused.code == 3
    assert "3 files are of formats that cannot be read" in refused.err


def test_every_image_has_its_own_drawing_whatever_its_name(codetr, run, tmp_path):
    names = ["a.bmp", "a.tif", "a.png", "a_2.png", "A.png", "x" * 251 + ".bmp", "x" * 251 + ".png"]
    names += ["predictions.json/a.png", "new\nline.png", "\x1b[2J.bmp", os.fsdecode(b"caf\xe9.png")]
    for name in names:
        path = tmp_path / "odd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48)).save(path, format={"bmp": "BMP", "tif": "TIFF", "png": "PNG"}[name[-3:]])
    ran = codetr("predict", "odd", "--score", "0", "--max-dets", "1", "--out", "out")
    assert ran.code == 0, ran.err
    assert len([path for path in Path("out").rglob("*.png") if path.is_file()]) == len(names)
    records = json.loads(Path("out/predictions.json").read_text(encoding="utf-8"))  # valid JSON whatever the names
    assert sorted(record["file_name"] for record in records) == sorted(names)


def test_links_are_not_replaced(codetr, run, tiny_coco, tmp_path):
    photo = sorted((tiny_coco / "val2017").glob("*.jpg"))[0]
    Path("out").mkdir()
    for name in (photo.name, "predictions.json"):
        (tmp_path / f"mine-{name}").write_bytes(b"mine")
        Path("out", name).symlink_to(tmp_path / f"mine-{name}")
    assert codetr("predict", photo, "--out", "out", "--force", "--json").json["out"] == "out_2"
    Path("out/predictions.json").unlink()
    assert codetr("predict", photo, "--out", "out", "--force", "--json").json["out"] == "out"
    assert Path("out", photo.name).is_symlink()
    for name in (photo.name, "predictions.json"):
        assert (tmp_path / f"mine-{name}").read_bytes() == b"mine"


def test_predictions_are_written_from_the_first_image_on_and_rarely(codetr, run, tiny_coco, monkeypatch):
    """Their list is complete in itself at any time; writing it takes a small part of the time."""
    seen: list[int] = []
    write, add, now = job.write_outputs, SharedWork.add, [0.0]

    def slow(*arguments, **named):
        now[0] += 1.0
        results = write(*arguments, **named)
        seen.append(len({record["image_id"] for record in json.loads(Path("out/predictions.json").read_bytes())}))
        return results

    def late(*arguments, **named):
        now[0] += 20.0
        return add(*arguments, **named)

    monkeypatch.setattr(job, "write_outputs", slow)
    monkeypatch.setattr(SharedWork, "add", late)
    monkeypatch.setattr(shared_work.time, "monotonic", lambda: now[0])
    assert codetr("predict", tiny_coco / "train2017", "--score", "0", "--out", "out").code == 0
    assert seen == [1, 4, 4]  # after 20 seconds, after 50 times the second that it took, and at the end


def test_what_was_found_is_shown_where_its_list_cannot_be_written(codetr, run, tiny_coco, monkeypatch):
    def full(*arguments, **named):
        raise ResourceError("no space left on the disk while writing out/predictions.json.")

    words = ("predict", tiny_coco / "val2017", "--score", "0", "--out", "out")
    with monkeypatch.context() as patched:
        patched.setattr(job, "write_outputs", full)
        patched.setattr(shared_work.SharedWork, "_write_snapshot", lambda work: None)
        shown, as_json = codetr(*words), codetr(*words, "--json")
    assert shown.code == as_json.code == 5
    assert "40 detections in 2 images" in shown.out
    assert "writing out/predictions.json" in shown.err
    assert sum(sum(image["objects"].values()) for image in as_json.json["images"]) == 40
    assert (as_json.json["predictions"], as_json.json["exit_code"]) == (None, 5)
    ran = codetr(*words, "--json")
    assert "2 of 2 images were done before" in ran.err
    assert len(ran.json["detections"]) == 40
    assert not Path("out/.parts").exists()


def test_an_error_keeps_what_was_found_before(codetr, run, tiny_coco, monkeypatch):
    images = iter(range(4))
    detect = Detector.detect

    def fail_at_the_third(*arguments, **named):
        if next(images) == 2:
            raise ResourceError("out of memory")
        return detect(*arguments, **named)

    monkeypatch.setattr(shared_work, "SNAPSHOT_S", 60.0)
    monkeypatch.setattr(Detector, "detect", fail_at_the_third)
    words = ("predict", tiny_coco / "train2017", "--score", "0", "--out", "out")
    assert codetr(*words).code == 5
    assert len({record["image_id"] for record in json.loads(Path("out/predictions.json").read_bytes())}) == 2
    assert "2 of 4 images were done before" in codetr(*words).err


def test_a_drawing_that_is_lost_is_drawn_again(codetr, stopped):
    drawn = min(Path("photos/drawn_2").glob("*.jpg"))  # later ones may have been drawn before the stop, too
    drawn.write_bytes(b"")  # a power failure
    assert "done before" not in codetr(*stopped).err
    assert drawn.stat().st_size > 0


def test_one_process_divides_the_images(tmp_path, monkeypatch):
    images = [InputImage(tmp_path / f"{number}.jpg", f"{number}.jpg", number) for number in range(4)]
    for image in images:
        image.path.write_bytes(b"x" * (9 - image.image_id))
    monkeypatch.setattr(process_group, "world_size", lambda: 2)
    sent = []
    monkeypatch.setattr(process_group, "from_main", lambda item: sent.append(item) or sent[0])
    assert job._numbers_here(images, {1}) == [0, 3]
    images[3].path.write_bytes(b"x" * 100)  # was being copied
    monkeypatch.setattr(process_group, "rank", lambda: 1)
    assert job._numbers_here(images, {1}) == [2]


@pytest.fixture
def stopped(codetr, run, tiny_coco, tmp_path, monkeypatch) -> list[str]:
    """A prediction of the folder that holds its results, too, stopped after the first image."""
    (tmp_path / "photos").mkdir()
    for path in (tiny_coco / "train2017").glob("*.jpg"):
        (tmp_path / "photos" / path.name).write_bytes(path.read_bytes())
    words = ["predict", "photos", "--out", "photos/drawn", "--score", "0"]
    assert codetr(*words).code == 0
    add = SharedWork.add

    def add_and_stop(work, *arguments, **named):
        monkeypatch.setattr(work._stop, "number", 2)
        add(work, *arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(SharedWork, "add", add_and_stop)
        assert codetr(*words).code == 130
    return words


def test_results_among_the_inputs_are_no_inputs(codetr, stopped):
    ran = codetr(*stopped, "--json")
    assert "1 of 4 images were done before" in ran.err
    assert ran.json["out"] == "photos/drawn_2"
    assert sorted(entry["file_name"] for entry in ran.json["images"]) == sorted(
        path.name for path in Path("photos").glob("*.jpg")
    )


def test_results_in_a_folder_with_a_number_are_no_inputs_either(codetr, stopped):
    words = [word if word != "photos/drawn" else "photos/drawn_2" for word in stopped]
    assert "1 of 4 images were done before" in codetr(*words).err


def test_a_job_continues_a_stopped_one(codetr, stopped, tmp_path, monkeypatch):
    stand_in(monkeypatch, tmp_path, "sbatch", "echo 7")
    ran = codetr(*stopped, "--device", "cpu", "--slurm", "--json")
    assert ran.json["out"] == "photos/drawn_2"
    assert codetr(*stopped, "--slurm", "--json").json["out"] == "photos/drawn_3"  # a GPU has other results


@pytest.mark.parametrize("out", ["loop", "loop/out", "loop/../out"])
def test_links_in_a_circle_are_no_output_folder(codetr, run, tiny_coco, out):
    Path("loop").symlink_to("loop")
    ran = codetr("predict", tiny_coco / "val2017", "--out", out, "--no-draw")
    assert ran.code in (2, 5), ran.err
    assert "Traceback" not in ran.err


def test_a_folder_of_somebody_else_is_passed_over(codetr, run, tiny_coco, monkeypatch):
    """As a folder of mode 700 of another user: nothing in it has a state."""
    closed = ("predictions_2", "predictions_4")
    for name in ("predictions", *closed):
        Path(name).mkdir()
    Path("predictions/predictions.json").touch()

    def refusing(call):
        def refuse(path, *arguments, **named):
            if not isinstance(path, int) and Path(path).parent.name in closed:
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, *arguments, **named)

        return refuse

    monkeypatch.setattr(os, "stat", refusing(os.stat))
    monkeypatch.setattr(os, "lstat", refusing(os.lstat))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name not in closed)
    ran = codetr("predict", tiny_coco / "val2017", "--no-draw", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["out"] == "predictions_3"


def test_drawn_images_have_the_requested_format(codetr, run, tiny_coco):
    folder = tiny_coco / "val2017"
    names = sorted(path.stem for path in folder.glob("*.jpg"))
    words = ("predict", folder, "--score", 0.01, "--labels", "class", "--thickness", 2, "--font-size", 12, "--json")
    ran = codetr(*words, "--image-format", "webp", "--quality", 60)
    assert ran.code == 0, ran.err
    assert [Path(image["drawn"]).name for image in ran.json["images"]] == [f"{name}.webp" for name in names]
    for image in ran.json["images"]:
        with Image.open(image["drawn"]) as drawn:
            assert (drawn.format, drawn.size) == ("WEBP", (image["width"], image["height"]))
    assert codetr(*words, "--image-format", "png").json["out"] == "predictions_2", "another request"
    assert codetr(*words, "--image-format", "bmp").code == 2
    assert codetr(*words, "--quality", 0).code == 2


def test_drawing_arguments_are_checked(run):
    detections = Detector.load(run, "cpu").predict(Image.new("RGB", (60, 40)), score=0, max_dets=2)
    with pytest.raises(ValueError, match="labels='names'"):
        detections.draw(Image.new("RGB", (60, 40)), labels="names")
    with pytest.raises(ValueError, match="thickness=0"):
        detections.draw(Image.new("RGB", (60, 40)), thickness=0)
    assert detections.draw(Image.new("RGB", (60, 40)), labels="none", font_size=9).size == (60, 40)


def test_labels_class_map_review_and_crops(codetr, run, tiny_coco):
    photos = tiny_coco / "val2017"
    options = ("--class-map", "disc=round,ring=round,bar=", "--review", "0:0.999", "--crops", "--no-draw", "--json")
    ran = codetr("predict", photos, "--score", 0.01, "--format", "coco,yolo,csv,label-studio", *options)
    assert ran.code == 0, ran.err
    records = json.loads(Path(ran.json["predictions"]).read_text())
    assert records
    assert {(record["category_name"], record["category_id"]) for record in records} == {("round", 2)}
    out = Path(ran.json["out"])
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    files = {"predictions.json", "yolo", "predictions.csv", "label-studio", "review.txt", "review.json"}
    assert names == files | {"crops", "summary.json"}
    assert {Path(file).name for file in ran.json["files"]} == files
    assert len(list((out / "crops" / "round").iterdir())) == len(records)
    listed = (out / "review.txt").read_text().splitlines()
    assert listed == [image["file"] for image in ran.json["images"] if "review" in image]
    assert listed
    rows = [row for path in (out / "yolo" / "labels").iterdir() for row in path.read_text().splitlines()]
    assert len(rows) == len(records)
    again = codetr("predict", photos, "--score", 0.01, "--format", "yolo", "--no-draw", "--json")
    assert Path(again.json["out"]).name == "predictions_2"
    (out / "crops" / "round" / "mine.jpg").write_bytes(b"mine")
    forced = codetr("predict", photos, "--score", 0.99, "--format", "yolo", "--crops", "--no-draw", "--json", "--force")
    assert Path(forced.json["out"]).name == "predictions"
    assert forced.json["summary"]["detections"] == 0
    assert [path.name for path in (out / "crops").rglob("*.jpg")] == ["mine.jpg"]


def test_a_folder_of_the_user_is_not_mixed_with_labels(codetr, run, tiny_coco):
    Path("predictions/yolo").mkdir(parents=True)
    Path("predictions/yolo/mine.txt").touch()
    ran = codetr("predict", tiny_coco / "val2017", "--format", "yolo", "--no-draw", "--json")
    assert Path(ran.json["out"]).name == "predictions_2"
    ran = codetr("predict", tiny_coco / "val2017", "--class-map", "discs=a", "--no-draw")
    assert ran.code == 2
    assert "did you mean 'disc'" in ran.err
    assert codetr("predict", tiny_coco / "val2017", "--format", "yolov8").code == 2


def test_lists_archives_and_addresses_give_the_detections_of_files(codetr, run, tiny_coco, tmp_path, monkeypatch):
    files = pytest.importorskip("fsspec", reason="fsspec is not installed").filesystem("memory")
    photos = sorted((tiny_coco / "train2017").glob("*.jpg"))
    with tarfile.open("s.tar", "w") as archive:
        for photo in photos:
            archive.add(photo, photo.name)
            files.pipe(f"/b/{photo.name}", photo.read_bytes())
    Path("list.txt").write_text("".join(f"{photo}\n" for photo in photos) + "gone.jpg\n")
    Path("urls.csv").write_text("url\n" + "".join(f"memory://b/{photo.name}\n" for photo in photos))
    words = ("--no-draw", "--score", "0", "--json", "--force")
    expected = codetr("predict", tiny_coco / "train2017", *words).json["detections"]
    assert codetr("predict", "urls.csv", *words).json["detections"] == expected
    found = codetr("predict", "s.tar", *words).json
    names = {photo.name: f"s.tar/{photo.name}" for photo in photos}
    assert found["detections"] == [{**each, "file_name": names[each["file_name"]]} for each in expected]
    ran = codetr("predict", "list.txt", *words, "--format", "coco,jsonl")
    assert ran.code == 3
    assert [entry["file"] for entry in ran.json["failed"]] == ["gone.jpg"]
    assert json.loads(Path("predictions/failed.jsonl").read_text())["error"].endswith("gone.jpg: no such file")
    assert [len(ran.json["detections"]), ran.json["summary"]["failed"]] == [len(expected), 1]
    assert ran.json["summary"]["processes"][0]["images"] == len(photos) + 1
    assert codetr("predict", "urls.csv", "--column", "ulr").code == 2
    files.store.clear()


def test_detections_are_compared_with_annotations(codetr, run, tiny_coco):
    folder = tiny_coco / "val2017"
    truth = tiny_coco / "annotations/instances_val2017.json"
    objects = sum(not entry["iscrowd"] for entry in json.loads(truth.read_text())["annotations"])
    words = ("predict", folder, "--score", 0.01, "--max-dets", 3)
    ran = codetr(*words, "--against", truth, "--json")
    assert ran.code == 0, ran.err
    facts = ran.json["summary"]["against"]
    assert facts["hits"] + facts["misses"] == objects
    assert facts["hits"] + facts["false_alarms"] == 3 * len(ran.json["images"])
    assert facts["images"] == len(ran.json["images"])
    for name in ("hits", "misses", "false_alarms"):
        assert sum(image["against"][name] for image in ran.json["images"]) == facts[name]
    assert {image["file_name"] for image in facts["worst"]} == {image["file_name"] for image in ran.json["images"]}
    with Image.open(ran.json["images"][0]["drawn"]) as drawn:
        assert drawn.width > 2 * ran.json["images"][0]["width"]
    ran = codetr(*words, "--against", tiny_coco, "--against-view", "overlay")
    assert ran.code == 0, ran.err
    assert "misses" in ran.out
    assert f"{facts['hits']} hits, {facts['misses']} misses, {facts['false_alarms']} false alarms" in ran.out


def test_images_without_annotations_are_counted(codetr, run, tiny_coco):
    ran = codetr("predict", tiny_coco / "train2017", "--against", tiny_coco / "annotations/instances_val2017.json")
    assert ran.code == 0, ran.err
    assert "4 images have no annotations of their name" in " ".join(ran.err.split())


def test_annotations_that_cannot_be_compared_stop_before_the_first_image(codetr, run, tiny_coco):
    words = ("predict", tiny_coco / "val2017", "--against")
    ran = codetr("predict", tiny_coco / "val2017", "--against-view", "overlay")
    assert ran.code == 2
    assert "give --against PATH" in " ".join(ran.err.split())
    ran = codetr(*words, "absent.json")
    assert ran.code == 3
    assert "absent.json" in ran.err
    image = {"id": 1, "file_name": "1.jpg", "width": 9, "height": 9}
    table = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    Path("other.json").write_text(json.dumps(table))
    ran = codetr(*words, "other.json")
    assert ran.code == 3
    assert "no class in common" in ran.err
    assert not list(Path("predictions").glob("*.jpg"))


def test_a_montage_of_the_first_images(codetr, run, tiny_coco, monkeypatch):
    words = ("predict", tiny_coco / "train2017", "--grid", 3, "--no-draw")
    ran = codetr(*words, "--json", "--image-format", "png")
    assert ran.code == 0, ran.err
    with Image.open("predictions/grid.png") as grid:
        assert grid.width > 100
    assert "predictions/grid.png" in ran.json["files"]
    assert sorted(path.name for path in Path("predictions").iterdir()) == [
        RECORD_NAME,
        "grid.png",
        "predictions.json",
        "summary.json",
    ]
    assert codetr("predict", "predictions", "--no-draw").code == 3, "it is no input"
    assert codetr("predict", tiny_coco / "train2017", "--grid", "0x4").code == 2


def test_a_continued_prediction_has_the_montage_of_an_undisturbed_one(codetr, run, tiny_coco, monkeypatch):
    words = ("predict", tiny_coco / "train2017", "--grid", "2x2", "--no-draw")
    assert codetr(*words, "--out", "whole").code == 0

    def stop(self, number, *rest):
        if number == 2:
            raise StoppedError("stopped", 2)
        return original(self, number, *rest)

    original = pictures.Pictures.make
    with monkeypatch.context() as patch:
        patch.setattr(pictures.Pictures, "make", stop)
        assert codetr(*words, "--out", "parts").code == 130
    assert codetr(*words, "--out", "parts").code == 0
    assert Path("parts/grid.jpg").read_bytes() == Path("whole/grid.jpg").read_bytes()
    assert not Path("parts/.parts").exists()


def test_images_that_fail_are_listed_one_by_one_also_with_one_file():
    """Two members of an archive with one name."""
    tally = Tally(2)
    results = [ImageResult(number, "a.tar/a.jpg", error=f"reason {number}") for number in range(2)]
    assert list(tally.counting(results)) == results
    assert tally.failed == [("a.tar/a.jpg", "reason 0"), ("a.tar/a.jpg", "reason 1")]
