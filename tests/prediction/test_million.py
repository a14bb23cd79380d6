"""The section on a million images: its commands, its recipes, and all of its sources in two processes."""

from __future__ import annotations

import json
import re
import shlex
import tarfile
from pathlib import Path

import pytest

from tests.distributed.fake_slurm import stand_in
from tests.document_blocks import blocks
from tests.forked import run_forked
from tests.inference.fakes import write_run
from tests.prediction.sources.image_server import serving

WORDS = ("--score", "0", "--max-dets", "3", "--device", "cpu", "--format", "coco,jsonl", "--no-draw", "--json")


@pytest.fixture
def place(tmp_path: Path, tiny_settings, tiny_coco: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A run in the current folder, and images by the names of the documentation."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/co_dino_r50/1", tiny_settings, "last")
    photos = sorted((tiny_coco / "train2017").glob("*.jpg"))
    Path("images.txt").write_text("".join(f"{photo}\n" for photo in photos))
    Path("images.csv").write_text("id,image_url\n" + "".join(f"1,{photo}\n" for photo in photos))
    Path("shards").mkdir()
    for number, photo in enumerate(photos):
        with tarfile.open(f"shards/{number:03}.tar", "w") as archive:
            archive.add(photo, photo.name)
    return photos


def section() -> list[str]:
    text = Path(__file__).parents[2].joinpath("docs/predict.md").read_text(encoding="utf-8")
    start = text[: text.index("## A million images")].count("\n")
    end = text[: text.index("\n## ", text.index("## A million images") + 1)].count("\n")
    found = [block for block in blocks("docs/predict.md") if start < block.line <= end + 1 and block.language == "bash"]
    return [line for block in found for line in block.text.splitlines() if line.startswith("codetr ")]


def test_commands_of_the_documentation(codetr, place: list[Path]):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    help_text = codetr("predict", "--help").out
    ran = 0
    for command in section():
        words = shlex.split(command.partition("#")[0])[1:]
        for option in (word for word in words if word.startswith("--")):
            assert re.search(rf"{option}(?![\w-])", help_text), command
        if "--nodes" in words or "s3://" in command:
            continue
        quick = " ".join(words).replace("--gpus 8", "--device cpu").split()
        done = codetr(*quick, "--json")
        assert done.code == 0, (command, done.err)
        assert done.json["summary"]["images"] == len(place)
        ran += 1
    assert ran == 3


def test_two_processes_read_all_sources(codetr, place: list[Path]):
    pytest.importorskip("aiohttp", reason="aiohttp is not installed")
    contents = {f"/{photo.name}": photo.read_bytes() for photo in place}
    with serving(contents, []) as url:
        Path("all.txt").write_text(
            "".join(f"{url}{name}?key=secret\n" for name in contents) + "gone.jpg\n" + f"{url}/x.jpg\n"
        )
        words = ["predict", "all.txt", "shards/{000..001}.tar", "images.csv", *WORDS, "--shard-size", "4"]
        alone = codetr(*words, "--out", "alone")
        shared = run_forked("-m", "codetr_cli", *words, "--out", "shared", "--procs", "2")
    assert (alone.code, shared.returncode) == (3, 3), shared.stderr
    facts = json.loads(shared.stdout)
    assert [Path(entry["file"]).name for entry in facts["failed"]] == ["gone.jpg", "x.jpg"]
    assert sum(each["images"] for each in facts["summary"]["processes"]) == 2 * len(place) + 4
    assert len(facts["summary"]["processes"]) == 2
    names = sorted(path.name for path in Path("alone").iterdir() if path.is_file())
    assert {"failed.jsonl", "predictions-00002.jsonl", "predictions-jsonl.json", "summary.json"} <= set(names)
    for name in names:
        content = Path("alone", name).read_bytes()
        assert b"secret" not in content
        if name not in ("summary.json", ".codetr_results"):
            assert Path("shared", name).read_bytes() == content, name


def test_a_job_of_slurm_has_the_sources_and_formats(codetr, place: list[Path], tmp_path: Path, monkeypatch):
    stand_in(monkeypatch, tmp_path, "sbatch", "echo 7")
    words = (
        "shards/{000..003}.tar",
        "--format",
        "jsonl",
        "--shard-size",
        "2",
        "--no-draw",
        "--gpus",
        "8",
        "--nodes",
        "4",
    )
    ran = codetr("predict", *words, "--slurm", "--json")
    assert ran.code == 0, ran.err
    script = Path(ran.json["script"]).read_text()
    assert "'shards/{000..003}.tar' --format jsonl --shard-size 2 --no-draw" in script
    assert "--nodes=4" in script


def test_a_job_of_slurm_gets_no_credentials(codetr, place: list[Path]):
    pytest.importorskip("fsspec", reason="fsspec is not installed")
    ran = codetr("predict", "memory://user:secret@bucket/a.jpg", "--device", "cpu", "--slurm")
    assert ran.code == 2
    assert "contains credentials" in ran.err
    assert "secret" not in ran.err + ran.out
    assert not any("secret" in path.read_text(errors="replace") for path in Path().rglob("*.sh"))


def test_a_prediction_of_very_many_images_names_its_files(codetr, place: list[Path], monkeypatch: pytest.MonkeyPatch):
    from codetr_cli.prediction import job, outcome

    monkeypatch.setattr(outcome, "LISTED_IMAGES", 3)
    monkeypatch.setattr(job, "LISTED_IMAGES", 3)
    facts = codetr("predict", "images.txt", *WORDS).json
    assert (facts["images"], facts["detections"]) == (None, None)
    assert facts["summary"]["images"] == len(place)
    assert all(Path(name).is_file() for name in facts["files"])


def test_a_wrong_list_does_not_fill_the_log(codetr, place: list[Path], monkeypatch: pytest.MonkeyPatch):
    from codetr_cli.prediction import job

    monkeypatch.setattr(job, "MAX_WARNINGS", 3)
    Path("wrong.txt").write_text("".join(f"gone-{number}.jpg\n" for number in range(9)))
    ran = codetr("predict", "wrong.txt", *WORDS)
    assert ran.code == 3
    assert ran.err.count("no such file") == 3
    assert "only listed in failed.jsonl" in ran.err
    assert len(Path("predictions/failed.jsonl").read_text().splitlines()) == 9
