"""`report.json`: written, read again, never over a file of the user's; damaged files are refused."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from codetr_cli.errors import ConfigError, DatasetError, ResourceError
from codetr_cli.report.facts import ReportFacts, command_text
from codetr_cli.report.report_file import is_report, read_report, report_paths, stored_table, write_report_files
from codetr_cli.result_files import write_result


def facts(**more: object) -> ReportFacts:
    return ReportFacts(
        **{
            "title": "demo",
            "protocol": "single scale",
            "metrics": {"AP": 0.5, "APs": -1.0},
            "per_class": [{"name": "a", "category_id": 1, "objects": 0, "AP": -1.0, "AP50": -1.0}],
            "images": 4,
            "objects": 9,
            "annotations": "val.json",
            "images_dir": "val",
            "data": "0123",
            **more,
        }
    )


def write(html: Path, *, force: bool = False, **more: object) -> None:
    table = stored_table(facts(**more).as_dict(), {"errors": {"ap50": 0.5}})
    write_report_files(html, "<!DOCTYPE html>", table, by="eval", force=force)


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "detections.json").write_text("[]")
    write(tmp_path / "report.html", detections="detections.json", detections_sha256="ab")
    for name in ("report.json", "report.html"):
        stored = read_report(tmp_path / name)
        assert stored.metrics == {"AP": 0.5, "APs": None}
        assert stored.per_class == [{"name": "a", "category_id": 1, "objects": 0, "AP": None, "AP50": None}]
        assert stored.analysis == {"errors": {"ap50": 0.5}}
        assert stored.detections_path == tmp_path / "detections.json"
        assert stored.detections_sha256 == "ab"
    assert is_report(tmp_path / "report.json")
    assert not is_report(tmp_path / "detections.json")
    assert not is_report(tmp_path / "absent.json")
    os.mkfifo(tmp_path / "pipe.json")
    assert not is_report(tmp_path / "pipe.json")  # does not wait for a writer


@pytest.mark.parametrize("failing", [0, 1])
def test_of_page_and_numbers_both_are_written_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    write_text, calls = Path.write_text, []

    def until_full(path: Path, *args: Any, **more: Any) -> int:
        calls.append(path)
        if len(calls) > failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_text(path, *args, **more)

    monkeypatch.setattr(Path, "write_text", until_full)
    with pytest.raises(ResourceError, match="no space left"):
        write(tmp_path / "report.html")
    assert not list(tmp_path.glob("report*"))


def test_detections_that_are_gone_have_no_path(tmp_path: Path) -> None:
    write(tmp_path / "report.html", detections="/nowhere/detections.json")
    assert read_report(tmp_path / "report.json").detections_path is None


def test_own_reports_are_replaced_with_force_only_and_files_of_the_user_never(tmp_path: Path) -> None:
    write(tmp_path / "report.html")
    with pytest.raises(ConfigError, match="--force"):
        write(tmp_path / "report.html")
    write(tmp_path / "report.html", force=True)
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(ConfigError, match="never replaced"):
        write(tmp_path / "mine.html", force=True)
    assert (tmp_path / "mine.html").read_text() == "mine"


def test_a_default_name_gets_a_number_where_it_is_taken(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{}")
    html, other = report_paths(tmp_path / "report.html", is_named=False, force=True)
    assert (html.name, other.name) == ("report_2.html", "report_2.json")
    with pytest.raises(ConfigError, match="never replaced"):
        report_paths(tmp_path / "report.html", is_named=True, force=True)
    with pytest.raises(ConfigError, match=r"ends with \.html"):
        report_paths(tmp_path / "report.txt", is_named=True, force=True)


def test_other_results_of_codetr_are_no_report_and_kept(tmp_path: Path) -> None:
    with write_result(tmp_path / "detections.json", by="eval") as temporary:
        temporary.write_text("[]")
    with pytest.raises(ConfigError, match="has other results"):
        report_paths(tmp_path / "detections.html", is_named=True, force=True)
    _, other = report_paths(tmp_path / "detections.html", is_named=False, force=True)
    assert other.name == "detections_2.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "other"}, "no report of codetr"),
        ({"version": 2}, "later version"),
        ({"version": "1"}, "later version"),
        ({"metrics": []}, "damaged"),
        ({"per_class": [1]}, "classes without a name"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    write(tmp_path / "report.html")
    path = tmp_path / "report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DatasetError, match=message):
        read_report(path)


def test_files_that_are_no_json_or_absent_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        read_report(tmp_path / "report.json")
    (tmp_path / "report.json").write_text("{" * 100_000)
    with pytest.raises(DatasetError, match="cannot be read"):
        read_report(tmp_path / "report.json")


def test_facts_name_the_machine_and_versions_but_no_user() -> None:
    known = facts()
    assert known.versions["codetr"]
    assert set(known.machine) == {"processor", "GPU", "system"}
    assert command_text(["eval", "a b", "--report="]) == "codetr eval 'a b' --report="
    words = ["eval", "https://me:secret@host/a.pth?token=secret", "--set=train.backbone_weights=http://x:secret@y/b"]
    assert "secret" not in command_text(words)
    assert "host/a.pth" in command_text(words)
    assert command_text(["eval", "https://host/a.pth"]) == "codetr eval https://host/a.pth"
    assert facts(published={"box_ap": 50.0, "mask_ap": None, "differences": ["x"], "comparable": False}).published_ap
