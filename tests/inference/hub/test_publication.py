"""What is published: weights with a licence, with the evaluation that belongs to them, or a folder as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from codetr_cli.errors import ArgumentError, ConfigError, ResourceError
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.hub.folder import FILES
from codetr_cli.inference.hub.publication import find_licence, prepare_publication
from codetr_cli.weights.licence import stated_licence
from tests.inference.fakes import write_checkpoint, write_run
from tests.inference.hub.hub_server import TOKEN, Hub
from tests.inference.hub.records import KNOWN, write_weights

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_settings) -> Path:
    (path,) = write_run(tmp_path / "run", tiny_settings, "best")
    return path


def head_of(path: Path) -> dict:
    return yaml.safe_load(path.read_text().split("---\n")[1])


def test_weights_without_a_licence_are_refused(checkpoint: Path, tmp_path: Path):
    refused = pytest.raises(ConfigError, match=r"licence of the weights .* is unknown.*--license Apache-2\.0")
    with refused, prepare_publication(checkpoint, "my-lab/cells", out=tmp_path / "out"):
        pass
    assert not (tmp_path / "out").exists()


def test_a_licence_that_is_known(tmp_path: Path, tiny_settings):
    path = write_weights(tmp_path / "a.safetensors", tiny_settings, source_sha256=KNOWN + "0" * 56)
    with prepare_publication(path, "my-lab/cells") as publication:
        assert publication.licence.name == "MIT"
        assert head_of(publication.folder / "README.md")["license"] == "mit"


def test_another_licence_than_the_known_one_keeps_both(tmp_path: Path, tiny_settings):
    path = write_weights(tmp_path / "a.safetensors", tiny_settings, source_sha256=KNOWN + "0" * 56)
    found = find_licence(path, "Apache-2.0")
    assert found.name == "Apache-2.0"
    assert "MIT is the licence of what it was made from, the published weights of co_dino_r50" in found.reason
    assert find_licence(path, "MIT").reason == "the published weights of co_dino_r50 (the repository's)"


def test_a_temporary_folder_ends_with_the_block(checkpoint: Path):
    with prepare_publication(checkpoint, "my-lab/cells", licence="MIT") as publication:
        assert [path.name for path in publication.files] == list(FILES)
        assert all(path.is_file() for path in publication.files)
        assert publication.is_written
    assert not publication.folder.exists()


def test_an_evaluation_beside_the_checkpoint_comes_into_the_card(codetr, checkpoint: Path, tiny_coco: Path):
    with prepare_publication(checkpoint, "my-lab/cells", licence="MIT") as publication:
        assert not publication.has_evaluation
    ran = codetr("eval", checkpoint.parents[2], "--data", tiny_coco, "--json")
    assert ran.code == 0, ran.err
    with prepare_publication(checkpoint, "my-lab/cells", licence="MIT") as publication:
        assert publication.has_evaluation
        (result,) = head_of(publication.folder / "README.md")["model-index"][0]["results"]
        assert result["dataset"]["name"] == "instances_val2017"
        measured = {each["name"]: each["value"] for each in result["metrics"]}
        assert measured["box AP, IoU 0.50:0.95"] == round(ran.json["AP"], 4)
        assert "| disc |" in (publication.folder / "README.md").read_text()


def test_a_folder_is_sent_as_it_is(checkpoint: Path, tmp_path: Path):
    folder = tmp_path / "cells"
    with prepare_publication(checkpoint, "my-lab/cells", licence="MIT", out=folder):
        pass
    card = (folder / "README.md").read_text() + "Edited.\n"
    (folder / "README.md").write_text(card)
    with prepare_publication(folder / "model.safetensors", "other/name") as publication:
        assert (publication.folder, publication.is_written) == (folder, False)
        assert publication.licence == stated_licence("MIT")
    assert (folder / "README.md").read_text() == card


@pytest.mark.parametrize("option", ["licence", "evaluation", "out"])
def test_a_folder_as_it_is_takes_no_options(checkpoint: Path, tmp_path: Path, option: str):
    folder = tmp_path / "cells"
    with prepare_publication(checkpoint, "my-lab/cells", licence="MIT", out=folder):
        pass
    values = {"licence": "MIT", "evaluation": tmp_path, "out": tmp_path / "other"}
    refused = pytest.raises(ConfigError, match="has its model card already")
    with refused, prepare_publication(folder / "model.safetensors", "a/b", **{option: values[option]}):
        pass


def test_a_folder_without_a_licence_is_refused(checkpoint: Path, tmp_path: Path):
    Detector.load(checkpoint, device="cpu").save_pretrained(tmp_path / "cells")
    with (
        pytest.raises(ConfigError, match=r"without a licence.*made from, with --license"),
        prepare_publication(tmp_path / "cells/model.safetensors", "a/b"),
    ):
        pass


def test_a_detector_goes_up_and_comes_down(hub: Hub, checkpoint: Path):
    detector = Detector.load(checkpoint, device="cpu")
    url = detector.push_to_hub("my-lab/cells", license="Apache-2.0", token=TOKEN, private=True)
    assert url == f"{hub.url}/my-lab/cells"
    assert set(hub.repositories["my-lab/cells"].files) == set(FILES)
    card = hub.repositories["my-lab/cells"].files["README.md"].decode()
    assert 'Detector.from_pretrained("my-lab/cells")' in card
    again = Detector.from_pretrained("my-lab/cells", token=TOKEN, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    assert np.array_equal(again.predict(pixels, score=0).boxes, detector.predict(pixels, score=0).boxes)


def test_what_a_detector_refuses_to_upload(hub: Hub, checkpoint: Path):
    detector = Detector.load(checkpoint, device="cpu")
    with pytest.raises(ArgumentError, match=r'is unknown.*license="Apache-2\.0"'):
        detector.push_to_hub("my-lab/cells", token=TOKEN)
    with pytest.raises(ArgumentError, match="org/name"):
        detector.push_to_hub("cells", license="MIT", token=TOKEN)
    with pytest.raises(ResourceError, match="hf auth login"):
        detector.push_to_hub("my-lab/cells", license="MIT")
    assert hub.requests == []


def test_neither_a_folder_nor_a_repository():
    with pytest.raises(ArgumentError, match="org/name"):
        Detector.from_pretrained("no/such/folder")


def test_a_folder_comes_before_a_repository_of_its_name(
    hub: Hub, tmp_path: Path, tiny_settings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(Path("my-lab/cells/model.safetensors"), tiny_settings)
    Detector.from_pretrained("my-lab/cells", device="cpu")
    assert hub.requests == []
