"""Commands and programs of docs/hub.md, in its order, with a Hub on this machine."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codetr_cli.config.presets import load_preset
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.hub.folder import FILES
from tests.document_blocks import blocks
from tests.inference.fakes import write_run
from tests.inference.hub.conftest import local_hub
from tests.inference.hub.hub_server import TOKEN, Hub, Repository

PAGE = "docs/hub.md"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
QUICK = {
    "predict": "--force",
    "train": "--run new --no-eval --device cpu --set train.max_steps=1 --set train.memory_check=false",
}
"""More options of some commands."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))
    yield from local_hub(tmp_path, monkeypatch)


@pytest.fixture
def place(hub: Hub, tmp_path: Path, tiny_coco: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small stand-in for every file and repository that the page names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    settings = load_preset("co_dino_tiny", ["model.num_classes=3"])
    (checkpoint,) = write_run(tmp_path / "runs/cells/1", settings, "best")
    Detector.load(checkpoint, device="cpu").save_pretrained("published", license="MIT")
    files = {name: Path("published", name).read_bytes() for name in FILES}
    hub.repositories["my-lab/cells"] = Repository(files)
    Path("photos").symlink_to(tiny_coco / "train2017")
    Path("data").mkdir()
    Path("data/coco").symlink_to(tiny_coco)
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("street.jpg")
    return tmp_path


@pytest.mark.slow
def test_the_commands_run(codetr, hub: Hub, place: Path):
    lines = [line for block in blocks(PAGE) if block.language == "bash" for line in block.text.splitlines()]
    assert len(lines) == 10
    Path("cells").symlink_to("published")  # the page uses the folder before it shows how to write it
    for line in lines:
        _, *words = shlex.split(line)
        if not line.startswith("codetr "):
            assert line.startswith("pip install 'codetr-cli["), line
            continue
        if "--out" in words:
            Path("cells").unlink()
        ran = codetr(*words, *QUICK.get(words[0], "").split())
        assert ran.code == 0, f"{line}\n{ran.err}"
    assert set(hub.repositories["my-lab/cells"].files) == set(FILES)


SLOW = pytest.mark.slow  # to import the pipeline of transformers takes half a minute; tests/integrations runs it, too


@pytest.mark.parametrize("number", [0, 1, pytest.param(2, marks=SLOW), pytest.param(3, marks=SLOW)])
def test_the_programs_run(place: Path, number: int):
    texts = [block.text for block in blocks(PAGE) if block.language == "python"]
    assert len(texts) == 4
    if "transformers" in texts[number]:
        pytest.importorskip("transformers", reason="the extra transformers is not installed")
    exec(compile(texts[number], PAGE, "exec"), {})
