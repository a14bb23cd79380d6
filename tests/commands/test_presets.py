"""`codetr presets`: the table, its filters, and one preset in full."""

from __future__ import annotations

import subprocess
import sys

import pytest

from codetr_cli import console
from tests.conftest import REPOSITORY


def row_of(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"{name} "))


def test_table_shows_what_one_chooses_by(codetr):
    row = row_of(codetr("presets").out, "co_dino_vit_l_inst")
    for cell in ("ViT-L", "COCO", "12", "1,500", "65.3", "56.2", "65.8 / 56.6", "365.9", "1280x2048", "Apache-2.0"):
        assert f" {cell} " in f"{row} ", cell


@pytest.mark.parametrize("columns", [70, 100, 130])
def test_narrow_terminal_leaves_columns_out_and_says_so(columns: int, codetr, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(console, "PLAIN_WIDTH", columns)
    ran = codetr("presets")
    table = ran.out.partition("AP as published")[0]
    assert max(len(line) for line in table.splitlines()) <= columns
    assert "65.4" in row_of(table, "co_dino_vit_l")
    assert "weights' licence" not in table
    assert "Hidden columns: at, weights' licence" in ran.out + ran.err


def test_filters(codetr):
    lvis = codetr("presets", "--dataset", "lvis", "--json").json["presets"]
    assert {row["classes"] for row in lvis} == {1203}
    deformable = codetr("presets", "--family", "co_deformable").out
    assert "co_deformable_r50" in deformable
    assert "co_dino_r50" not in deformable
    ran = codetr("presets", "--dataset", "lvi")
    assert ran.code == 2
    assert "did you mean 'lvis'?" in ran.err


def test_listing_does_not_load_torch():
    check = "import sys; from codetr_cli.cli import main; main(['presets']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_override_shows(codetr):
    ran = codetr("presets", "co_dino_r50", "--set", "train.lr=0.5", "--json")
    assert ran.json["train"]["lr"] == 0.5


def test_override_without_a_preset(codetr):
    assert codetr("presets", "--set", "train.lr=0.5").code == 2


def test_credentials_in_a_settings_file_are_not_shown(codetr, tmp_path):
    url = "https://user:hidden-1@127.0.0.1/x.pth?token=hidden-2"
    text = f'[source]\nurl = "{url}"\npage = "{url}"\n[train]\nbackbone_weights = "{url}"\n'
    (tmp_path / "x.toml").write_text(text)
    for words in ((), ("--json",)):
        ran = codetr("presets", tmp_path / "x.toml", *words)
        assert ran.code == 0
        assert ran.out.count("127.0.0.1/x.pth") == 3
        assert "hidden" not in ran.out + ran.err
