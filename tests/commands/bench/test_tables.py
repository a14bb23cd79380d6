from __future__ import annotations

import pytest

from codetr_cli.commands.bench._tables import without_folders


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ("/home/someone/runs/1/best.safetensors", "best.safetensors"),
        ("codetr bench --out ~/deep/r.json --size 64x96", "codetr bench --out r.json --size 64x96"),
        ("codetr bench --out='/tmp/x/r.json'", "codetr bench --out='r.json'"),
        ("images/s, runs/1, see https://example.org/a/b", "images/s, runs/1, see https://example.org/a/b"),
        ("C:\\Users\\me\\r.json", "r.json"),
    ],
)
def test_reports_name_no_folders(text, published):
    assert without_folders({"a": [text, 1, None]}) == {"a": [published, 1, None]}
