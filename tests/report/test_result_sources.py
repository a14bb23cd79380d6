from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from codetr_cli.errors import CheckpointError, ConfigError, DatasetError
from codetr_cli.report.facts import file_sha256
from codetr_cli.report.report_file import KIND, VERSION
from codetr_cli.report.result_sources import check_distinct, find_source
from codetr_cli.weights.checkpoint import content_id
from tests.analysis.run_samples import annotations, detections
from tests.inference.fakes import write_checkpoint, write_run
from tests.report.evaluations import write_annotations, write_evaluation

TRUTH = annotations(6)
TABLE = detections(TRUTH, seed=1)


@pytest.fixture
def val(tmp_path: Path) -> Path:
    return write_annotations(tmp_path / "data/val.json", TRUTH)


def write_report(path: Path, found: Path, **facts: object) -> Path:
    table = {
        "kind": KIND,
        "version": VERSION,
        "facts": {"detections": str(found), "detections_sha256": file_sha256(found), **facts},
        "metrics": {"AP": 0.5},
        "per_class": [],
        "analysis": {},
    }
    path.write_text(json.dumps(table, separators=(",", ":")))
    return path


def test_a_file_of_detections(tmp_path):
    path = tmp_path / "theirs.json"
    path.write_text(TABLE.to_json())
    found = find_source(str(path))
    assert (found.kind, found.detections, found.annotations, found.images) == ("detections", path, None, None)
    assert found.protocol == {}


def test_a_folder_of_an_evaluation_and_its_files(tmp_path, val):
    skipped = [{"path": "/data/0003.jpg", "reason": "truncated"}, {"reason": "no path"}, 7]
    folder = write_evaluation(tmp_path / "eval/val", TRUTH, TABLE, val, left_out=skipped, checkpoint="a.safetensors")
    for word in (folder, folder / "detections.json", folder / "metrics.json", tmp_path / "eval"):
        found = find_source(str(word))
        assert (found.given, found.kind) == (str(word), "evaluation")
        assert found.detections == folder / "detections.json"
        assert (found.annotations, found.images, found.skipped) == (val, 6, ("/data/0003.jpg",))
        assert found.weights == Path("a.safetensors")
        assert found.protocol["views"] == "single scale 800x1333"
        assert 0 < found.metrics["AP"] < 1


def test_a_record_with_other_values_is_used_as_far_as_it_goes(tmp_path, val):
    other = {"annotations": 7, "images": "many", "left_out": {}, "protocol_parts": [], "checkpoint": None}
    folder = write_evaluation(tmp_path / "val", TRUTH, TABLE, val, **other)
    found = find_source(str(folder))
    assert (found.annotations, found.images, found.skipped, found.protocol) == (None, None, (), {})


def test_a_broken_record_is_named(tmp_path, val):
    folder = write_evaluation(tmp_path / "val", TRUTH, TABLE, val)
    for text in ("{", "[]", '{"AP": '):
        (folder / "metrics.json").write_text(text)
        with pytest.raises(DatasetError, match=r"metrics\.json.*move (the file|it) away"):
            find_source(str(folder))
    (folder / "metrics.json").unlink()
    assert find_source(str(folder)).kind == "detections"


def test_a_record_without_detections_is_named(tmp_path, val):
    folder = write_evaluation(tmp_path / "val", TRUTH, TABLE, val)
    (folder / "detections.json").unlink()
    with pytest.raises(ConfigError, match=r"has no detections\.json beside it"):
        find_source(str(folder / "metrics.json"))
    with pytest.raises(ConfigError, match="has no results"):
        find_source(str(folder))


def test_several_evaluations_in_a_folder_are_a_question(tmp_path, val):
    for name in ("a", "b"):
        write_evaluation(tmp_path / name, TRUTH, TABLE, val)
    with pytest.raises(ConfigError, match=r"has 2 evaluations, e\.g\. .*/a: give one of them"):
        find_source(str(tmp_path))


def test_nothing_there(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file .*absent\.json"):
        find_source(str(tmp_path / "absent.json"))
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        find_source(str(tmp_path / "absent.pth"))
    with pytest.raises(ConfigError, match="neither a checkpoint nor a preset"):
        find_source("resnet")
    with pytest.raises(ConfigError, match="has no results"):
        find_source(str(tmp_path))


# -------------------------------------------------------------------------------------------------------------- reports


def test_a_report_stands_for_its_detections(tmp_path, val):
    folder = write_evaluation(tmp_path / "val", TRUTH, TABLE, val)
    report = write_report(folder / "report.json", folder / "detections.json", images=6)
    (folder / "report.html").write_text("<!DOCTYPE html>")
    for word in (report, folder / "report.html"):
        found = find_source(str(word))
        assert (found.kind, found.detections) == ("report", folder / "detections.json")
        assert (found.annotations, found.images) == (val, 6)
    (folder / "metrics.json").unlink()
    report = write_report(folder / "report.json", folder / "detections.json", images=5, annotations=str(val))
    found = find_source(str(report))
    assert (found.annotations, found.images, found.metrics) == (val, 5, {"AP": 0.5})


def test_a_report_that_was_moved_with_its_detections(tmp_path, val):
    folder = write_evaluation(tmp_path / "val", TRUTH, TABLE, val)
    write_report(folder / "report.json", folder / "detections.json")
    moved = folder.rename(tmp_path / "elsewhere")
    assert find_source(str(moved / "report.json")).detections == moved / "detections.json"
    (moved / "detections.json").unlink()
    found = find_source(str(moved / "report.json"))
    assert (found.kind, found.detections, found.is_evaluated) == ("report", None, True)
    assert found.report is not None
    assert found.report.path == moved / "report.json"
    assert "as its detections are not there" in found.notes[0]


def test_a_report_of_a_training_stands_for_its_checkpoint(tmp_path, val, tiny_settings):
    (weights,) = write_run(tmp_path / "run", tiny_settings, "best")
    folder = write_evaluation(tmp_path / "val", TRUTH, TABLE, val)
    report = write_report(tmp_path / "run/report.json", folder / "detections.json")
    table = json.loads(report.read_text())
    table["facts"] = {"detections": None, "checkpoint": str(weights), "weights": content_id(weights)}
    report.write_text(json.dumps(table, separators=(",", ":")))
    (tmp_path / "run/report.html").write_text("<!DOCTYPE html>")
    found = find_source(str(tmp_path / "run/report.html"))
    assert (found.kind, found.weights, found.detections) == ("checkpoint", weights, None)
    place = write_evaluation(tmp_path / "run/eval/best/val", TRUTH, TABLE, val, weights=content_id(weights))
    assert find_source(str(report)).detections == place / "detections.json"
    shutil.rmtree(place)
    table["resamples"] = {"metrics": {}}
    report.write_text(json.dumps(table, separators=(",", ":")))
    found = find_source(str(report))
    assert (found.kind, found.report is not None, found.weights) == ("report", True, weights)
    # On data of the user's choice, the checkpoint is evaluated.
    assert find_source(str(report), val).kind == "checkpoint"
    table["facts"]["weights"] = "0" * 64
    report.write_text(json.dumps(table, separators=(",", ":")))
    assert find_source(str(report), val).kind == "report"


def test_a_report_twice(tmp_path, val):
    folder = write_evaluation(tmp_path / "val", TRUTH, TABLE, val)
    report = write_report(tmp_path / "report.json", folder / "detections.json")
    (folder / "detections.json").unlink()
    with pytest.raises(ConfigError, match="are the same results"):
        check_distinct([find_source(str(report))] * 2)


def test_detections_that_changed_since_the_report(tmp_path, val, tiny_settings):
    """The numbers of the report are compared, and not what the checkpoint's folder has now."""
    (weights,) = write_run(tmp_path / "run", tiny_settings, "best")
    facts = {"checkpoint": str(weights), "weights": content_id(weights)}
    folder = write_evaluation(tmp_path / "run/eval/best/val", TRUTH, TABLE, val, weights=facts["weights"])
    report = write_report(folder / "report.json", folder / "detections.json", **facts)
    table = json.loads(report.read_text())
    (folder / "detections.json").write_text("[]")
    report.write_text(json.dumps({**table, "resamples": {"metrics": {}}}, separators=(",", ":")))
    found = find_source(str(report))
    assert (found.kind, found.detections, found.report is not None) == ("report", None, True)
    assert found.notes[0].endswith(f"as {folder / 'detections.json'} has changed since it was written")
    # Without resamples there is no interval, so that the checkpoint is better.
    report.write_text(json.dumps(table, separators=(",", ":")))
    assert find_source(str(report)).weights == weights
    assert find_source(str(report)).report is None
    table["facts"]["checkpoint"] = None
    report.write_text(json.dumps(table, separators=(",", ":")))
    assert find_source(str(report)).report is not None


@pytest.mark.parametrize("name", ["x" * 300 + ".json", "x/" * 5000, "\0", "https://127.0.0.1:9/a.pth"])
def test_a_report_with_names_that_no_file_can_have(tmp_path, val, name):
    folder = write_evaluation(tmp_path / "val", TRUTH, TABLE, val)
    facts = {"detections": name, "annotations": name, "checkpoint": name, "weights": "0"}
    report = write_report(folder / "report.json", folder / "detections.json", **facts)
    found = find_source(str(report))
    assert (found.kind, found.detections) == ("report", None)


def test_broken_reports(tmp_path, val):
    page = tmp_path / "alone.html"
    page.write_text("<!DOCTYPE html>")
    with pytest.raises(ConfigError, match=r"its numbers in alone\.json, which is not beside it"):
        find_source(str(page))
    path = tmp_path / "report.json"
    path.write_text(f'{{"kind":"{KIND}","version":{VERSION},"facts":[]}}')
    with pytest.raises(DatasetError, match="damaged"):
        find_source(str(path))
    path.write_text(f'{{"kind":"{KIND}","version":{VERSION + 1}}}')
    with pytest.raises(DatasetError, match="later version"):
        find_source(str(path))


# ---------------------------------------------------------------------------------------------------------- checkpoints


def test_a_run_stands_for_the_evaluation_of_its_weights(tmp_path, val, tiny_settings):
    (weights,) = write_run(tmp_path / "run", tiny_settings, "best")
    run = str(tmp_path / "run")
    found = find_source(run)
    assert (found.kind, found.detections, found.weights) == ("checkpoint", None, weights)
    place = tmp_path / "run/eval/best/val"
    write_evaluation(place, TRUTH, TABLE, val, weights="0" * 64)
    assert find_source(run).detections is None  # of other weights
    write_evaluation(place, TRUTH, TABLE, val, weights=content_id(weights))
    for word in (run, str(weights)):
        found = find_source(word)
        assert (found.kind, found.detections, found.weights) == ("evaluation", place / "detections.json", weights)
        assert found.notes == (f"{word} stands for its evaluation in {place}",)


def test_of_several_evaluations_that_of_validation_images_by_the_settings_counts(tmp_path, val, tiny_settings):
    (weights,) = write_run(tmp_path / "run", tiny_settings, "best")
    folder, content = tmp_path / "run/eval/best", content_id(weights)
    parts = {"split": "val", "views": "single scale 96x160"}
    for name, more in {
        "train": {"protocol_parts": {**parts, "split": "train"}, "images": 100},
        "val": {"protocol_parts": parts},
        "val_2": {"protocol_parts": {**parts, "views": "TTA of 2 views"}},
        "val_3": {"protocol_parts": parts, "images": 3},
        "broken": {},
    }.items():
        write_evaluation(folder / name, TRUTH, TABLE, val, weights=content, **more)
    (folder / "broken/metrics.json").write_text("{")
    found = find_source(str(tmp_path / "run"))
    assert found.detections == folder / "val/detections.json"
    assert found.notes[0].endswith("val, the best of 4 that fit")
    os.utime(folder / "val_2/detections.json", (4e9, 4e9))
    assert find_source(str(tmp_path / "run")).detections == folder / "val/detections.json"


def test_only_evaluations_on_the_chosen_annotations_count(tmp_path, val, tiny_settings):
    (weights,) = write_run(tmp_path / "run", tiny_settings, "best")
    place = tmp_path / "run/eval/best/val"
    write_evaluation(place, TRUTH, TABLE, val, weights=content_id(weights))
    other = write_annotations(tmp_path / "other.json", TRUTH)
    assert find_source(str(tmp_path / "run"), val).detections == place / "detections.json"
    assert find_source(str(tmp_path / "run"), other).detections is None


def test_a_checkpoint_outside_of_a_run(tmp_path, val, tiny_settings):
    path = write_checkpoint(tmp_path / "zoo/m.safetensors", tiny_settings)
    place = write_evaluation(tmp_path / "zoo/eval/val", TRUTH, TABLE, val, weights=content_id(path))
    assert find_source(str(path)).detections == place / "detections.json"


def test_the_same_results_twice(tmp_path, val):
    first = write_evaluation(tmp_path / "a", TRUTH, TABLE, val)
    second = write_evaluation(tmp_path / "b", TRUTH, TABLE, val)
    check_distinct([find_source(str(first)), find_source(str(second))])
    with pytest.raises(ConfigError, match="are the same results"):
        check_distinct([find_source(str(first)), find_source(str(second)), find_source(str(first))])
    with pytest.raises(ConfigError, match="are the same results"):
        check_distinct([find_source(str(first)), find_source(str(first / "metrics.json"))])
