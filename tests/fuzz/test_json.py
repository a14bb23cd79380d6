"""Annotation and detections files that a stranger wrote, in a process with little memory and time."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

MEGABYTES = 1500  # of addresses beyond those of the loaded libraries
SECONDS = 10  # of CPU for one file; most need less than one

READ = """
import resource, sys
from pathlib import Path
from codetr_cli.annotations.objects import read_annotations
from codetr_cli.data.checks.annotations import check_annotations
from codetr_cli.annotations.findings import Findings
from codetr_cli.errors import DatasetError
from codetr_cli.evaluation.detection_files import read_detection_file
from codetr_cli.evaluation.detection_records import has_masks, match_detections
from codetr_cli.evaluation.scoring import score_detections
from codetr_cli.inference.detections import DetectionTable
import hotcoco

used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (int(sys.argv[2]) << 20),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[3]) + int(resource.getrusage(0).ru_utime) + 2,) * 2)
path = Path(sys.argv[1])

def score():
    score_detections(read_annotations(path, with_outlines=True), DetectionTable.empty(), where=str(path))

def load_detections():
    file = read_detection_file(path)
    for masks in {has_masks(file), False}:
        match_detections(file, truth, "here", with_masks=masks)

good = path.with_name("good.json")
good.write_text(sys.argv[4])
truth = read_annotations(good)
steps = (
    lambda: read_annotations(path),
    lambda: check_annotations(path, Findings(), "here", training=True),
    score,
    load_detections,
)
for step in steps:
    try:
        step()
    except DatasetError as error:
        assert len(str(error)) < 5000
"""
HEAD = '"images":[{"id":1,"file_name":"a","height":48,"width":64}],"categories":[{"id":1,"name":"a"}]'
ENTRY = '{"id":1,"image_id":1,"category_id":1,"bbox":[1,1,9,9]%s}'
NAMED = '{"image_id":"%d%s","category_id":1,"bbox":[1,1,9,9],"score":1}'
SIZE = 5_000_000


def with_segmentation(text: str) -> str:
    return f'{{{HEAD},"annotations":[{ENTRY % f",{chr(34)}segmentation{chr(34)}:{text}"}]}}'


def with_annotations(text: str) -> str:
    return f'{{{HEAD},"annotations":[{text}]}}'


BOMBS = {
    "lists": lambda: with_annotations("[]," * (SIZE // 3) + "1"),
    "objects": lambda: with_annotations('{"":0},' * (SIZE // 7) + "1"),
    "deep": lambda: "[" * SIZE,
    "deep objects": lambda: '{"a":' * (SIZE // 5),
    "one number": lambda: with_annotations("9" * SIZE),
    "numbers": lambda: with_annotations(("9" * 4300 + ",") * (SIZE // 4301) + "1"),
    "decimals": lambda: with_annotations("1." + "9" * SIZE),
    "quotes": lambda: '"' * SIZE,
    "backslashes": lambda: '"' + "\\" * SIZE,
    "white space": lambda: " " * SIZE,
    "outlines in outlines": lambda: '{"a":' + '"segmentation":{"\\"' * (SIZE // 19),
    "open outlines": lambda: '{"a":' + '"segmentation":[' * (SIZE // 16),
    "spaces in outlines": lambda: '{"a":' + f'"segmentation":{" " * 100}x' * (SIZE // 116),
    "a class name": lambda: f'{{"images":[],"annotations":[],"categories":[{{"id":1,"name":"{"x" * SIZE}"}}]}}',
    "emoji": lambda: with_annotations('"' + "\N{GRINNING FACE}" * (SIZE // 4) + '"'),
    "points": lambda: with_segmentation("[[" + "1,1,20,5,9,20," * (SIZE // 15) + "1,1]]"),
    "far points": lambda: with_segmentation("[[" + "99999,-99999," * (SIZE // 13) + "1,1]]"),
    "polygons": lambda: with_segmentation("[" + "[1,1,2,1,2,2]," * (SIZE // 14) + "[1,1,2,1,2,2]]"),
    "points on points": lambda: with_segmentation("[" + "[1,1,1,1,1,1]," * (SIZE // 14) + "[1,1,2,1,2,2]]"),
    "runs": lambda: with_segmentation('{"size":[48,64],"counts":[' + "0," * (SIZE // 2) + "3072]}"),
    "compressed runs": lambda: with_segmentation(f'{{"size":[48,64],"counts":"{"0" * SIZE}"}}'),
    "a long run": lambda: with_segmentation(f'{{"size":[48,64],"counts":"{"o" * SIZE}0"}}'),
    "annotations": lambda: with_annotations(",".join([ENTRY % ""] * (SIZE // 60))),
    "names": lambda: f"[{','.join([NAMED % (number, '/a' * 60) for number in range(SIZE // 190)])}]",
    "detections": lambda: f"[{','.join([ENTRY % ',{0}score{0}:1'.format(chr(34))] * (SIZE // 60))}]",
}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits of memory are Linux's")
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_little(tmp_path: Path, name: str) -> None:
    assert resource.RLIMIT_AS
    path = tmp_path / "a.json"
    path.write_text(BOMBS[name](), encoding="utf-8")
    command = [sys.executable, "-c", READ, str(path), str(MEGABYTES), str(SECONDS), with_annotations(ENTRY % "")]
    ran = subprocess.run(command, capture_output=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr.decode()[-2000:]
