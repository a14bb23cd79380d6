"""The YAML description of a YOLO dataset."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetr_cli.data.formats.yolo_yaml import read_description


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("names: [a, 'b, c', \"d\\u0065\"]", ["a", "b, c", "de"]),
        ("names: ['it''s', b] # two", ["it's", "b"]),
        ("names:\n- a\n- b b\n", ["a", "b b"]),
        ("names:\n  - a\n  - 'b#c'\n", ["a", "b#c"]),
        ("names: [\n  a,\n  b,\n]\nother: |\n  names: x\n", ["a", "b"]),
        ("names: {0: a, 1: b}", {"0": "a", "1": "b"}),
        ("# c\n---\nnames:\n  0: a  # first\n  1: traffic light\nroboflow:\n  workspace: x\n", None),
    ],
)
def test_forms_of_names(tmp_path: Path, text: str, names: object) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(text)
    assert read_description(path)["names"] == (names or {"0": "a", "1": "traffic light"})
