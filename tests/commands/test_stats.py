"""`codetr stats`: what it prints, its JSON and page, the data that it reads, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Ran
from tests.data.fakes import mixed_content, write_split, write_voc, xml

Command = Callable[..., Ran]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CODETR_DATA", raising=False)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)


def test_the_numbers_of_all_splits_are_printed_with_bars(codetr: Command, tiny_coco: Path) -> None:
    ran = codetr("stats", tiny_coco)
    assert ran.code == 0
    for text in (
        "Splits",
        "Classes of train",
        "Sides of objects at the input size 800x1333 [px]",
        "Objects per image",
        "Splits compared with train",
        "Copies: of 6 images",
        "dvice for co_dino_r50, input 800x1333, 900 queries",
        "█",
    ):
        assert text in ran.out, text


def test_json_has_everything_and_nothing_else_is_on_stdout(codetr: Command, tiny_coco: Path) -> None:
    found = codetr("stats", tiny_coco, "--json").json
    assert [each["split"] for each in found["splits"]] == ["train", "val"]
    train = found["splits"][0]
    assert train["objects"] == sum(each["objects"] for each in train["classes"]) > 0
    assert train["at_input"]["input_size"] == "800x1333"
    assert {"copies", "advice", "differences", "places", "preset"} <= set(found)
    assert all(each["because"] and each["text"] for each in found["advice"])
    assert found["places"]["train"][0].endswith("instances_train2017.json")


def test_the_network_that_advice_is_about_can_be_chosen(codetr: Command, tiny_coco: Path) -> None:
    found = codetr("stats", tiny_coco, "--json", "--preset", "co_dino_tiny", "--set", "model.num_queries=1").json
    seen = found["splits"][0]["at_input"]
    assert (found["preset"], seen["input_size"], seen["num_queries"]) == ("co_dino_tiny", "256x256", 1)
    assert "queries" in [each["rule"] for each in found["advice"]]
    ran = codetr("stats", tiny_coco, "--preset", "co_dino_tini")
    assert ran.code == 2
    assert "co_dino_tiny" in ran.err


def test_annotations_alone_are_enough_without_images(codetr: Command, tiny_coco: Path) -> None:
    for file in (tiny_coco / "val2017").iterdir():
        file.unlink()
    found = codetr("stats", tiny_coco, "--no-images", "--json").json
    assert found["copies"] is None
    assert "Copies" not in codetr("stats", tiny_coco, "--no-images").out


def test_a_page_is_written_and_never_over_a_file_of_the_user(codetr: Command, tiny_coco: Path) -> None:
    ran = codetr("stats", tiny_coco, "--html", "stats.html")
    assert ran.code == 0
    assert "page written to stats.html" in ran.out
    text = Path("stats.html").read_text()
    assert "<title>Data set" in text
    assert "codetr stats" in text
    assert codetr("stats", tiny_coco, "--html", "stats.html").code == 2
    assert codetr("stats", tiny_coco, "--html", "stats.html", "--force").code == 0
    Path("mine.html").write_text("mine")
    ran = codetr("stats", tiny_coco, "--html", "mine.html", "--force")
    assert ran.code == 2
    assert Path("mine.html").read_text() == "mine"
    assert "folder" in codetr("stats", tiny_coco, "--html", ".").err


def test_images_that_are_not_there_count_as_not_compared(codetr: Command, tiny_coco: Path) -> None:
    images = len(list((tiny_coco / "val2017").iterdir()))
    for file in (tiny_coco / "val2017").iterdir():
        file.unlink()
    ran = codetr("stats", tiny_coco)
    assert ran.code == 0
    assert f"{images} images could not be read" in " ".join(ran.err.split())


def test_other_layouts_are_read(codetr: Command, tmp_path: Path) -> None:
    things = {"a": xml(("cat", 1, 1, 20, 20)), "b": xml(("cat", 1, 1, 9, 9))}
    write_voc(tmp_path / "voc", things, {"train": "a", "val": "b"})
    found = codetr("stats", tmp_path / "voc", "--json").json
    assert found["splits"][0]["objects"] > 0
    write_split(tmp_path / "one", "train", mixed_content())
    file = tmp_path / "one" / "annotations" / "instances_train2017.json"
    found = codetr("stats", "--ann", file, "--val-fraction", "0", "--json").json
    assert [each["split"] for each in found["splits"]] == ["train"]


def test_the_data_set_is_found_as_by_prepare(codetr: Command, tiny_coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = codetr("stats")
    assert ran.code == 2
    assert "`codetr stats DIR`" in ran.err
    monkeypatch.setenv("CODETR_DATA", str(tiny_coco))
    assert codetr("stats", "--json").json["splits"]
    monkeypatch.delenv("CODETR_DATA")
    Path("codetr.toml").write_text(f"data = {json.dumps(str(tiny_coco))}\n")
    ran = codetr("stats")
    assert ran.code == 0
    assert "defaults from" in ran.out


def test_data_that_cannot_be_read_are_the_errors_of_their_reader(codetr: Command, tiny_coco: Path) -> None:
    ran = codetr("stats", tiny_coco / "nowhere")
    assert ran.code == 3
    assert "nowhere" in ran.err
    file = tiny_coco / "annotations" / "instances_val2017.json"
    file.write_text(file.read_text()[:-30])
    ran = codetr("stats", tiny_coco, "--json")
    assert ran.code == 3
    assert "truncated" in ran.json["error"]


def test_names_cannot_command_the_terminal(codetr: Command, tiny_coco: Path) -> None:
    for split in ("train", "val"):
        file = tiny_coco / "annotations" / f"instances_{split}2017.json"
        content = json.loads(file.read_text())
        content["categories"][0]["name"] = "[red]\x1b[31mcat\x1b[0m</td>"
        file.write_text(json.dumps(content))
    ran = codetr("stats", tiny_coco, "--html", "s.html")
    assert "\x1b[31m" not in ran.out
    assert "[red]" in ran.out
    assert "cat\x1b[0m</td>" not in Path("s.html").read_text()


def test_quiet_prints_the_results_alone(codetr: Command, tiny_coco: Path) -> None:
    assert "Splits" in codetr("stats", tiny_coco, "-q").out
