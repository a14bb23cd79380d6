"""The user's defaults: which file is read, what has precedence, which values are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from codetr_cli.commands._defaults import Defaults, find_defaults
from codetr_cli.errors import ConfigError
from tests.conftest import Ran


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a folder below it, which is the current one."""
    below = tmp_path / "project" / "below"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    return below.parent


def test_no_file_sets_nothing(folder: Path):
    assert find_defaults(Path.cwd()) == Defaults()
    assert Defaults().for_options(["train"]) == {}


def test_a_table_of_pyproject_in_a_parent_is_found(folder: Path):
    (folder / "pyproject.toml").write_text('[tool.codetr]\ndevice = "cpu"\ndata = "sets/coco"\nloggers = ["wandb"]\n')
    found = find_defaults(Path.cwd())
    assert found == Defaults(folder / "pyproject.toml", (str(folder / "sets/coco"),), "cpu", ("wandb",))


def test_the_nearest_file_is_used_and_codetr_toml_before_pyproject(folder: Path):
    (folder / "codetr.toml").write_text('device = "cuda"\n')
    (folder / "pyproject.toml").write_text('[tool.codetr]\ndevice = "cpu"\n')
    (folder / "below" / "pyproject.toml").write_text("[tool.other]\n")
    assert find_defaults(Path.cwd()).device == "cuda"


def test_an_unrelated_pyproject_may_be_broken(folder: Path):
    (folder / "pyproject.toml").write_text("[tool.other\n")
    assert find_defaults(Path.cwd()) == Defaults()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("devise = 'cpu'", "unknown key 'devise'.*did you mean 'device'"),
        ("lr = 1", "unknown key 'lr': known: data, device, loggers"),
        ("device = 1", "device in .*codetr.toml must be a string"),
        ("data = [1]", "data in .*codetr.toml must be a string or a list of strings"),
        ("device = ", "codetr.toml is not valid TOML"),
    ],
)
def test_wrong_files_are_refused(folder: Path, text: str, reason: str):
    (folder / "codetr.toml").write_text(text)
    with pytest.raises(ConfigError, match=reason):
        find_defaults(Path.cwd())


def test_the_environment_has_precedence_over_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "codetr.toml").write_text('data = "here"\n')
    assert find_defaults(folder).data == (str(folder / "here"),)
    monkeypatch.setenv("CODETR_DATA", "/elsewhere")
    assert find_defaults(folder).data == ()


def test_options_that_exclude_a_default_switch_it_off():
    defaults = Defaults(Path("codetr.toml"), data=("x",), device="cpu")
    assert defaults.for_options(["train"])["train"] == {"device": "cpu", "data": ["x"]}
    assert defaults.for_options(["train", "--gpus=8"])["train"] == {"data": ["x"]}
    assert defaults.for_options(["eval", "--ann", "a.json"])["eval"] == {"device": "cpu"}


def test_loggers_are_a_setting_unless_it_is_overridden():
    defaults = Defaults(Path("codetr.toml"), loggers=("wandb", "mlflow"))
    assert defaults.setting(["train.lr=1"]) == ['train.loggers=["wandb", "mlflow"]']
    assert defaults.setting(["train.loggers=tensorboard"]) == []
    assert Defaults().setting([]) == []


def test_a_command_uses_them_and_prints_where_they_come_from(codetr: Callable[..., Ran], folder: Path, tiny_coco: Path):
    (folder / "codetr.toml").write_text(f'device = "cpu"\ndata = "{tiny_coco}"\nloggers = []\n')
    words = ("train", "--preset", "co_dino_tiny", "--dry-run")
    ran = codetr(*words)
    assert ran.code == 0, ran.err
    note = f"defaults from {folder / 'codetr.toml'}: data = {tiny_coco}, device = cpu, loggers = none"
    assert ran.out.splitlines()[0] == note
    assert str(tiny_coco / "annotations/instances_train2017.json") in ran.out
    given = codetr(*words, "--device", "cuda:77", "--data", tiny_coco, "--set", "train.loggers=[]")
    assert given.code == 5
    assert "defaults from" not in given.out


def test_json_has_no_note(codetr: Callable[..., Ran], folder: Path, tiny_coco: Path):
    (folder / "codetr.toml").write_text(f'device = "cpu"\ndata = "{tiny_coco}"\n')
    ran = codetr("train", "--preset", "co_dino_tiny", "--dry-run", "--json")
    assert ran.json["device"] == "cpu"
    assert "defaults from" not in ran.err


def test_prepare_checks_the_default_folder(codetr: Callable[..., Ran], folder: Path, tiny_coco: Path):
    (folder / "codetr.toml").write_text(f'data = "{tiny_coco}"\n')
    ran = codetr("prepare", "--no-link", "--json")
    assert ran.json["dataset"]["folder"] == str(tiny_coco)


def test_help_needs_no_valid_file(codetr: Callable[..., Ran], folder: Path):
    (folder / "codetr.toml").write_text("nonsense = 1\n")
    assert codetr("train", "--help").code == 0
    assert codetr("--version").code == 0
    refused = codetr("presets")
    assert refused.code == 2
    assert "nonsense" in refused.err
