"""The report of an evaluation: every section, valid HTML, names of every kind, and data of every shape."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from codetr_cli.analysis.classes import FrequencyGroup
from codetr_cli.analysis.masks import ClassMasks, MaskHit, Masks
from codetr_cli.inference.detections import DetectionTable
from codetr_cli.report.evaluation_report import report_page, write_report
from codetr_cli.report.report_file import read_report
from codetr_cli.report.sections.confusion import MOST_CLASSES
from codetr_cli.report.sections.lvis import lvis_section
from codetr_cli.report.sections.masks import masks_section
from codetr_cli.report.sections.overall import meaning
from codetr_cli.report.sections.training import training_section
from codetr_cli.report.stored_numbers import report_table
from codetr_cli.report.thumbnails import Thumbnails
from tests.analysis.input_samples import material
from tests.report.report_samples import HOSTILE, analysed, check_page, sample_inputs

SECTIONS = {
    *("overall", "classes", "curves", "errors", "confusion", "calibration", "slices", "worst", "labels", "queries"),
    "protocol",
}


def sections_of(text: str) -> set[str]:
    return set(re.findall(r'<section id="([\w-]+)"', text))


def test_a_report_has_every_section_with_how_to_read_it(tmp_path: Path) -> None:
    analysis, facts = analysed(
        sample_inputs(tmp_path, ["cat", "dog", "cup"]),
        checkpoint="runs/demo",
        weights="ab" * 32,
        published={"box_ap": 50.0, "mask_ap": None, "differences": ["12 images"]},
        speed={"images": 12, "images_per_second": 2.5, "data_ms": 1.0},
        notes=["one image cannot be read"],
    )
    text = report_page(analysis, facts)
    page = check_page(text)
    assert sections_of(text) >= SECTIONS
    leads = re.findall(r'<p class="lead">(.*?)</p>', text)
    assert len(leads) == len(sections_of(text))
    assert all(len(lead) > 60 for lead in leads)
    for expected in ("95 % interval", "Not comparable with the published box AP 50.0", "ab" * 32, "2.5", "codetr eval"):
        assert expected in text
    assert page.tags.count("image") > 10  # crops and images
    assert any(link.startswith("#confusion-") for link in page.links)
    assert "one image cannot be read" in text


def test_a_report_is_stored_with_every_number(tmp_path: Path) -> None:
    analysis, facts = analysed(sample_inputs(tmp_path, ["cat", "dog"]))
    write_report(analysis, facts, tmp_path / "report.html")
    stored = read_report(tmp_path / "report.html")
    assert stored.metrics["AP"] == analysis.scores.metrics["AP"]
    assert stored.analysis["ap_interval"] == pytest.approx(list(analysis.ap_interval), abs=1e-6)
    assert stored.analysis["errors"]["delta_ap"].keys() == analysis.errors.delta_ap.keys()
    assert len(stored.analysis["curves"][0]["precision"]) == 101
    assert stored.analysis["confusion"]["counts"] == analysis.confusion.counts.tolist()
    assert not {"inputs", "matches", "found_errors"} & stored.analysis.keys()
    assert stored.facts["command"] == "codetr eval x --report"


def test_names_of_every_kind_are_shown_and_inject_nothing(tmp_path: Path) -> None:
    inputs = sample_inputs(tmp_path, HOSTILE, file_name="{}<b>&'.png")
    analysis, facts = analysed(inputs, title=HOSTILE[0], checkpoint=HOSTILE[1], command=HOSTILE[2], notes=HOSTILE)
    text = report_page(analysis, facts)
    page = check_page(text)
    assert page.tags.count("img") == 0
    for shown in ("قطة صغيرة", "猫と犬", "👩‍🚀🏳️‍🌈", "{{ 7 * 7 }}", r"a\x00b\x1b[31mc\u202ed"):
        assert shown in text
    assert "<bdi>قطة صغيرة</bdi>" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    json.dumps(report_table(analysis, facts), ensure_ascii=False, allow_nan=False).encode()


def test_a_report_of_1203_classes_is_small_and_shows_all(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(1203)]
    analysis, facts = analysed(sample_inputs(tmp_path, names, images=20, objects=30, is_lvis=True, seed=1))
    text = report_page(analysis, facts)
    page = check_page(text, is_large=True)
    assert len(text) < 6_000_000
    assert "lvis" in sections_of(text)
    table = text[text.index("<caption>1,203 classes") :].split("</table>")[0]
    assert table.count("<tr>") == 1 + 1203
    assert f"{MOST_CLASSES} classes with most errors, of 1,203" in text
    assert page.tags.count("rect") < 20_000


@pytest.mark.parametrize(
    ("kind", "sections"),
    [({"masks": True}, {"masks"}), ({"lvis": True, "masks": True}, {"lvis", "masks"}), ({}, set())],
)
def test_crowds_ties_masks_and_the_rules_of_lvis(tmp_path: Path, kind: dict[str, bool], sections: set[str]) -> None:
    analysis, facts = analysed(material(tmp_path, **kind))
    text = report_page(analysis, facts)
    assert f"images with {analysis.counts.objects:,} objects" in text  # as in the line on what was evaluated
    check_page(text)
    assert sections_of(text) & {"lvis", "masks"} == sections
    json.dumps(report_table(analysis, facts), allow_nan=False)


@pytest.mark.parametrize("names", [["only"], ["a", "b", "c"]])
def test_data_without_objects_or_detections_have_a_report(tmp_path: Path, names: list[str]) -> None:
    full = sample_inputs(tmp_path, names, images=3)
    for number, (objects, empty) in enumerate(((0, False), (0, True), (5, True))):
        folder = tmp_path / str(number)
        folder.mkdir()
        inputs = sample_inputs(folder, names, images=3, objects=objects)
        table = DetectionTable.empty() if empty else full.detections
        analysis, facts = analysed(type(inputs).of(inputs.ground_truth, table, inputs.paths), images_dir="")
        text = report_page(analysis, facts)
        check_page(text)
        json.dumps(report_table(analysis, facts), allow_nan=False)
        assert ("AP is not defined" in text) == (objects == 0)
        assert ("Classes of which every object is missed" in text) == (objects > 0)
        assert not (empty and ("Bins of scores" in text or "Detections by score" in text))
        assert "<dt>Images</dt>" not in text
        assert "nan" not in re.sub(r"data:image\S+|<(script|style)>.*?</\1>", "", text, flags=re.DOTALL)


def test_a_class_that_is_never_predicted_has_its_row(tmp_path: Path) -> None:
    inputs = sample_inputs(tmp_path, ["seen", "unseen"])
    kept = inputs.detections.select(inputs.detections.category_ids == 1)
    analysis, facts = analysed(type(inputs).of(inputs.ground_truth, kept, inputs.paths))
    text = report_page(analysis, facts)
    check_page(text)
    row = re.search(r"<tr>\s*<th[^>]*><bdi>unseen</bdi></th>(.*?)</tr>", text, re.DOTALL)
    assert row
    assert "0.000" in row[1]
    assert ">-<" in row[1]  # no threshold
    assert "none found" in text


def test_images_that_are_absent_leave_numbers_and_a_remark(tmp_path: Path) -> None:
    analysis, facts = analysed(sample_inputs(tmp_path, ["cat", "dog"], with_pictures=False))
    text = report_page(analysis, facts)
    page = check_page(text)
    assert page.tags.count("image") == 0
    assert "Images that could not be read" in text


def test_pictures_of_names_that_lead_outside_are_not_shown(tmp_path: Path) -> None:
    analysis, facts = analysed(sample_inputs(tmp_path, ["cat"], file_name="../{}.png"))
    assert (tmp_path / "0.png").is_file()
    assert check_page(report_page(analysis, facts)).tags.count("image") == 0


def test_pictures_have_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    analysis, facts = analysed(sample_inputs(tmp_path, ["cat", "dog"]))
    monkeypatch.setattr("codetr_cli.report.evaluation_report.PICTURE_BYTES", 30_000)
    text = report_page(analysis, facts)
    assert len("".join(re.findall(r"data:image/webp[^\"]*", text))) < 40_000
    assert "Pictures that are not shown" in text
    check_page(text)


def test_masks_and_frequencies(tmp_path: Path) -> None:
    inputs = sample_inputs(tmp_path, ["cat"])
    masks = Masks(
        metrics={"AP": 0.4, "AP50": None},
        box_metrics={"AP": 0.5, "AP50": 0.6},
        classes=[ClassMasks("cat", 1, 0.5, None, 0, None)],
        iou_edges=np.linspace(0, 1, 21),
        iou_counts=np.arange(20),
        median_iou=0.8,
        hits=10,
        of_hits=20,
        worst=[MaskHit(0, 0, 0, 0.9, 0.2)],
    )
    section = masks_section(masks, inputs, Thumbnails(inputs, 10**6))
    shown = "".join(str(part) for part in section.parts)
    assert "a sample of 20" in shown
    assert "mask IoU 0.20, box IoU 0.90" in shown
    groups = [FrequencyGroup("r", "rare", "in 1 to 10 training images", 3, 2, 1, 9, 0.1, 0.05)]
    assert lvis_section(groups).parts[1].rows[0] == ("rare: in 1 to 10 training images", 3, 2, 1, 9, 0.1, 0.05)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("AP75", "at IoU 0.75"),
        ("mask_AR10", "masks: recall with up to 10 detections of a class per image"),
        ("AP@500", "up to 500 detections"),
        ("x", ""),
    ],
)
def test_metrics_have_a_meaning(name: str, what: str) -> None:
    assert what in meaning(name)


def test_lvis_counts_the_detections_of_all_classes_together() -> None:
    assert "up to 300 detections per image" in meaning("AR300", is_lvis=True)


@pytest.mark.parametrize(
    "broken",
    [
        '<a href="http://x">x</a>',
        '<p id="a"></p><p id="a"></p>',
        '<a href="#absent">x</a>',
        "<p onclick='x'>",
        "<div>",
        "\x01",
        "<iframe></iframe>",
    ],
)
def test_the_checks_of_a_page_can_fail(broken: str) -> None:
    start = "<!DOCTYPE html><html lang=en><head><title>x</title><style></style></head><body>"
    check_page(f"{start}<p>fine</p><script></script></body></html>")
    with pytest.raises(AssertionError):
        check_page(f"{start}{broken}<script></script></body></html>")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with metrics and pictures."""
    run = tmp_path / "run"
    (run / "plots/val_images").mkdir(parents=True)
    (run / "checkpoints/best").mkdir(parents=True)
    lines = [
        {"kind": "train", "step": step, "epoch": 0, "loss": 9.0 / step, "groups": {"<b>roi": 1.0, "rpn": 2.0}}
        for step in range(1, 401)
    ]
    lines += [{"kind": "eval", "step": step, "epoch": 1, "metrics": {"AP": 0.1, "AP50": 0.2}} for step in (200, 400)]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for image in range(6):
        for step in (100, 200, 300, 400):
            pixels = np.full((60, 80, 3), image * 20, np.uint8)
            cv2.imwrite(str(run / f"plots/val_images/{image}_{step:08d}.webp"), pixels)
    return run


@pytest.mark.parametrize("place", ["", "checkpoints/best", "checkpoints/best/model.safetensors"])
def test_the_training_of_a_checkpoint_in_a_run(tmp_path: Path, run: Path, place: str) -> None:
    analysis, facts = analysed(sample_inputs(tmp_path, ["cat", "dog"]), checkpoint=str(run / place))
    text = report_page(analysis, facts)
    check_page(text)
    section = text[text.index('<section id="training"') :].split("</section>")[0]
    assert "Losses over the steps" in section
    assert "AP over the steps" in section
    assert "&lt;b&gt;roi" in section
    assert section.count("<figcaption><bdi>image ") == 4 * 3
    assert {int(step) for step in re.findall(r"after step (\d+)</bdi>", section)} == {100, 300, 400}
    assert len(section) < 150_000


def test_a_training_without_lines_or_with_damaged_pictures_is_shown_as_far_as_it_is_known(run: Path) -> None:
    for path in (run / "plots/val_images").iterdir():
        path.write_bytes(b"RIFF")
    section = training_section(str(run))
    assert section is not None
    assert len(section.parts) == 2  # the charts
    (run / "metrics.jsonl").write_text("damaged")
    assert training_section(str(run)) is None
    for other in (None, "co_dino_r50", "a\0b", str(run / "none"), "https://example.com/a"):
        assert training_section(other) is None
