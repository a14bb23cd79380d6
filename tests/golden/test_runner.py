"""The runner on cases of other sizes than the recorded ones, made here from a small network of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.config.presets import load_preset
from codetr_cli.models.build import build_model
from codetr_cli.weights.names import Naming, to_published
from tests.golden import synth
from tests.golden.__main__ import main
from tests.golden.case import Case, Report
from tests.golden.run import run_case

CLASSES = 5

SMALL = [
    f"model.num_classes={CLASSES}",
    "model.backbone.layers=[1, 1, 2, 1]",
    "model.backbone.base_channels=8",
    "model.embed_dim=64",
    "model.ffn_dim=48",
    "model.encoder_layers=2",
    "model.decoder_layers=3",
    "model.roi.fc_dim=24",
]


class Recorder(Case):
    """A case that stores what it is asked to compare."""

    values: dict[str, Any]

    def compare(self, report: Report, ours: Any, tolerance_of: Any) -> None:
        self.values = {key: value for key, value in ours.items() if value is not None}


def make_case(
    folder: Path, publisher: Naming, images: list[dict[str, Any]], size: tuple[int, int], *overrides: str, **facts: Any
) -> Path:
    """Writes a case in the recorded format and fills it with what our own network computes."""
    settings = apply_overrides(load_preset("co_dino_r50"), [*SMALL, "model.num_queries=40", *overrides])
    state = build_model(settings.model).state_dict()
    folder.mkdir()
    manifest = [[to_published(name, publisher), list(value.shape), "float64"] for name, value in state.items()]
    manifest.append(["backbone.bn1.num_batches_tracked", [], "int64"])
    (folder / "manifest.json").write_text(json.dumps(manifest))
    description = {
        "case": folder.name,
        "published_by": publisher,
        "config": "co_dino_5scale_r50_1x_coco",
        "salt": "other/",
        "classes": settings.model.num_classes,
        "images": images,
        "batch_size_hw": size,
        "canvas": facts.pop("canvas", "zero"),
        "facts": facts,
    }
    recorder = Recorder(folder, description, {})
    run_case(recorder)
    description["tensors"], stored = {}, {}
    for key, value in recorder.values.items():
        array = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        every = 1 + array.size // 500
        stored[key] = np.where(np.isinf(array), 1e30, array).ravel()[::every].copy()
        stored[key] = stored[key].astype(np.uint8) if array.dtype == bool else stored[key]
        description["tensors"][key] = {"shape": list(array.shape), "every": every, "where": ""}
    save_file(stored, folder / "tensors.safetensors")
    (folder / "case.json").write_text(json.dumps(description))
    return folder


def image(index: int, size: tuple[int, int], *, canvas: tuple[int, int] | None = None, boxes: int | None = None) -> Any:
    entry: dict[str, Any] = {
        "key": f"made/{index}",
        "height": size[0],
        "width": size[1],
        "original_size": [2 * size[0], 3 * size[1]],
        "scale_factor": [1 / 3, 0.5],
        "valid_size": list(canvas or size),
        "pad_size": list(canvas or size),
    }
    if boxes is not None:
        entry |= {"num_boxes": boxes, "boxes_key": f"made/{index}/boxes", "labels_key": f"made/{index}/labels"}
    return entry


def draws_of(counts: list[int], *, sensex: bool) -> list[dict[str, Any]]:
    """The random number calls of denoising as the publishers' cases list them."""
    rows = 2 * max(100 // max(*counts, 1), 1) * sum(counts)
    chosen = int((synth.uniform("made/rand/0", (rows,)) < 0.25).sum())
    listed = []
    for index, (function, shape, high) in enumerate(
        [("rand_like", [rows], 0), ("randint_like", [chosen], CLASSES), ("randint_like", [rows, 4], 2),
         ("rand_like", [rows, 4], 0), ("randperm", [977], 0)]
    ):  # fmt: skip
        key = f"made/rand/{index}"
        entry: dict[str, Any] = {"index": index, "site": "somewhere", "shape": shape}
        if sensex:
            rule = f"{key} -> floor(low + u*(high-low)), low=0 high={high}" if high else key
            entry |= {"function": function, "values": "arange(n)" if function == "randperm" else rule}
        else:
            entry |= {"kind": function, "key": None if function == "randperm" else key}
        listed.append(entry)
    return listed


def train_facts(counts: list[int], publisher: Naming) -> dict[str, Any]:
    draws = draws_of(counts, sensex=publisher == "sensex")
    return {"losses": {}, "draws" if publisher == "sensex" else "random_draws": draws}


def run(folder: Path) -> Report:
    return run_case(Case.load(folder))


def failures(report: Report) -> list[str]:
    return [f"{line.key}: {line.error:.1e} {line.note}" for line in report.lines if not line.ok]


@pytest.mark.parametrize(
    ("publisher", "images", "size", "overrides", "facts"),
    [
        ("mmdet3", [image(0, (70, 90))], (70, 90), ["model.num_queries=25"], {"test_cfg": {"max_per_img": 7}}),
        (
            "sensex",
            [image(0, (96, 64)), image(1, (60, 96)), image(2, (33, 40))],
            (96, 96),
            ["model.num_queries=120"],
            {"query_test_cfg": {"max_per_img": 50, "nms": {"type": "nms", "iou_threshold": 0.6}}},
        ),
        ("sensex", [image(0, (40, 96), canvas=(96, 96))], (96, 96), [], {"canvas": "grey114"}),
    ],
)
def test_evaluation_cases_of_other_sizes(
    tmp_path: Path, publisher: Naming, images: Any, size: Any, overrides: Any, facts: Any
) -> None:
    folder = make_case(tmp_path / "made", publisher, images, size, *overrides, **facts)
    assert failures(run(folder)) == []
    stored = {key: tuple(entry["shape"]) for key, entry in Case.load(folder).tensors.items()}
    tokens = sum(-(-size[0] // s) * -(-size[1] // s) for s in (4, 8, 16, 32, 64))
    batch = len(images)
    assert stored["memory"] == ((batch, tokens, 64) if publisher == "mmdet3" else (tokens, batch, 64))
    assert stored["two_stage/class_logits"] == (batch, tokens, CLASSES)


def test_detections_of_the_aux_heads_follow_the_recorded_test_settings(tmp_path: Path) -> None:
    facts = {
        "aux_test_cfg": {
            "rpn": {"nms_pre": 90, "max_per_img": 60, "nms": {"type": "nms", "iou_threshold": 0.7}},
            "rcnn": {"score_thr": 0.0, "nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 13},
            "atss": {"nms_pre": 80, "score_thr": 0.0, "nms": {"type": "nms", "iou_threshold": 0.6}, "max_per_img": 11},
        }
    }
    folder = make_case(tmp_path / "made", "sensex", [image(0, (64, 96))], (64, 96), **facts)
    description = json.loads((folder / "case.json").read_text())
    stored = load_file(folder / "tensors.safetensors")
    wanted = {"rpn/proposals/0": [50, 5], "aux_rcnn/0/boxes": [13, 4], "aux_atss/0/boxes": [11, 4]}
    for key, shape in wanted.items():
        description["tensors"][key] = {"shape": shape, "every": 1}
        stored[key] = np.zeros(shape)
    save_file(stored, folder / "tensors.safetensors")
    (folder / "case.json").write_text(json.dumps(description))
    report = {line.key: line for line in run(folder).lines}
    for key in wanted:
        assert report[key].note == "", "computed, with the recorded shape"
        assert 0 < report[key].error < np.inf, "but with other values than the zeros stored"


@pytest.mark.parametrize(
    ("publisher", "counts"),
    [("mmdet3", [120, 1]), ("mmdet3", [0, 0]), ("sensex", [3]), ("sensex", [2, 0, 4]), ("sensex", [0])],
)
def test_training_cases_with_any_number_of_objects(tmp_path: Path, publisher: Naming, counts: list[int]) -> None:
    images = [image(i, (96 - 16 * i, 80), boxes=count) for i, count in enumerate(counts)]
    folder = make_case(tmp_path / "made", publisher, images, (96, 80), **train_facts(counts, publisher))
    report = run(folder)
    assert failures(report) == []
    keys = {line.key for line in report.lines}
    assert {"loss/loss_bbox1", "loss/d1.loss_iou_aux1", "hungarian/enc/0", "rpn/assign/0/positive"} <= keys


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_case(tmp_path_factory.mktemp("cases") / "made", "mmdet3", [image(0, (64, 64))], (64, 64))


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["golden", *map(str, words)])
    return main()


def changed(made: Path, tmp_path: Path, **description: Any) -> Path:
    """A copy of a case with other entries in its description."""
    folder = tmp_path / "changed"
    folder.mkdir()
    for name in ("manifest.json", "tensors.safetensors"):
        (folder / name).write_bytes((made / name).read_bytes())
    table = json.loads((made / "case.json").read_text()) | description
    (folder / "case.json").write_text(json.dumps(table))
    return folder


def test_the_first_stage_that_differs_is_marked(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = changed(made, tmp_path)
    stored = load_file(folder / "tensors.safetensors")
    stored["encoder/memory"][3] += 1e-6
    save_file(stored, folder / "tensors.safetensors")
    assert call(monkeypatch, made) == 0
    assert call(monkeypatch, folder, made) == 1
    (marked,) = [line for line in capsys.readouterr().out.splitlines() if "FIRST FAILURE" in line]
    assert marked.split()[0] == "encoder/memory"


def test_a_stage_that_we_do_not_compute_is_named(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = changed(made, tmp_path)
    table = json.loads((folder / "case.json").read_text())
    table["tensors"] |= {"mask_head/logits": {"shape": [1], "every": 1}, "lost": {"shape": [1], "every": 1}}
    (folder / "case.json").write_text(json.dumps(table))
    stored = load_file(folder / "tensors.safetensors") | {"mask_head/logits": np.zeros(1)}
    save_file(stored, folder / "tensors.safetensors")
    assert call(monkeypatch, "--quiet", folder) == 1
    text = capsys.readouterr().out
    assert "not computed by this runner" in text
    assert "missing in tensors.safetensors" in text


def test_networks_that_are_not_part_of_this_version_end_with_status_2(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = changed(made, tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.append(["backbone.patch_embed.proj.weight", [8, 3, 16, 16], "float32"])
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert call(monkeypatch, folder, tmp_path / "nowhere") == 2
    text = capsys.readouterr().out
    assert "not part of this version" in text
    assert "backbone.patch_embed.proj.weight" in text
    assert "nowhere: cannot run: FileNotFoundError" in text
    assert call(monkeypatch, "--skip-unsupported", folder, made) == 0
