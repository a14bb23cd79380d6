"""Downloads from the Hub and uploads to it, with the real package and a server on this machine."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from codetr_cli.errors import ArgumentError, CheckpointError, ConfigError, ResourceError
from codetr_cli.inference.hub.folder import FILES
from codetr_cli.inference.hub.repository import check_login, check_repository, download_weights, upload_folder
from tests.inference.hub.hub_server import COMMIT, TOKEN, Hub, Repository

# huggingface_hub passes the content of files in a way that its HTTP client deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    for name in FILES:
        (path / name).write_text(f"content of {name}")
    (path / "secret.txt").write_text("not to be sent")
    return path


@pytest.mark.parametrize("name", ["my-lab/cells", "A/b", "me_2/co.dino-r50"])
def test_names_of_repositories(name: str):
    assert check_repository(name) == name


@pytest.mark.parametrize(
    "name", ["cells", "a/b/c", "/cells", "a/", "a/..", "../b", "a--b/c", "a/b c", "-a/b", 3, "a/b\n"]
)
def test_other_names_are_refused(name: object):
    with pytest.raises(ArgumentError, match="org/name"):
        check_repository(name)


def test_the_files_of_a_model_arrive_and_nothing_else(hub: Hub, logged_in: None, folder: Path):
    upload = upload_folder(folder, "my-lab/cells", private=True, message="first")
    assert upload.url == f"{hub.url}/my-lab/cells"
    assert upload.commit == COMMIT
    repository = hub.repositories["my-lab/cells"]
    assert repository.private
    assert repository.files == {name: f"content of {name}".encode() for name in FILES}
    assert list(hub.blobs.values()) == [b"content of model.safetensors"]
    assert not any(b"secret" in body or b"not to be sent" in body for body in hub.bodies)


def test_an_upload_to_a_repository_that_exists(hub: Hub, logged_in: None, folder: Path):
    hub.repositories["my-lab/cells"] = Repository({"notes.md": b"kept"})
    upload_folder(folder, "my-lab/cells")
    assert set(hub.repositories["my-lab/cells"].files) == {*FILES, "notes.md"}


def test_a_token_as_argument(hub: Hub, folder: Path):
    upload_folder(folder, "my-lab/cells", token=TOKEN)
    assert set(hub.repositories["my-lab/cells"].files) == set(FILES)


def test_nobody_is_logged_in(hub: Hub, folder: Path):
    with pytest.raises(ResourceError, match="hf auth login"):
        upload_folder(folder, "my-lab/cells")
    with pytest.raises(ResourceError, match="hf auth login"):
        check_login()
    assert hub.requests == []


def test_a_wrong_token(hub: Hub, folder: Path):
    with pytest.raises((ResourceError, CheckpointError), match="hf auth login"):
        upload_folder(folder, "my-lab/cells", token="hf_other")
    assert hub.repositories == {}


@pytest.mark.parametrize(
    ("pattern", "status", "message"),
    [
        ("/commit/", 403, "HTTP 403.*hf auth login"),
        ("/commit/", 400, "HTTP 400: Bad request"),
        ("/preupload/", 404, "cannot be written|404"),
        ("/storage/", 403, "HTTP 403"),
    ],
)
def test_failures_of_an_upload(hub: Hub, logged_in: None, folder: Path, pattern: str, status: int, message: str):
    hub.statuses[pattern] = status
    with pytest.raises((ResourceError, CheckpointError), match=message):
        upload_folder(folder, "my-lab/cells")


def test_a_card_that_the_hub_refuses(hub: Hub, logged_in: None, folder: Path):
    (folder / "README.md").write_text("---\nlicense: [1]\n---\n")
    hub.card_errors.append('"license" must be a string')
    with pytest.raises(ConfigError, match='"license" must be a string'):
        upload_folder(folder, "my-lab/cells")
    assert hub.repositories["my-lab/cells"].files == {}


def test_only_the_weights_are_downloaded_and_only_once(hub: Hub):
    hub.repositories["my-lab/cells"] = Repository({"model.safetensors": b"weights", "code.py": b"raise SystemExit"})
    path = download_weights("my-lab/cells")
    assert path.read_bytes() == b"weights"
    assert {request.split()[1].rpartition("/")[2] for request in hub.requests} == {"model.safetensors"}
    before = len([request for request in hub.requests if request.startswith("GET")])
    assert download_weights("my-lab/cells", revision=COMMIT) == path
    assert len([request for request in hub.requests if request.startswith("GET")]) == before
    assert download_weights("my-lab/cells", local_files_only=True) == path


def test_a_private_repository(hub: Hub):
    hub.repositories["my-lab/cells"] = Repository({"model.safetensors": b"weights"}, private=True)
    with pytest.raises(CheckpointError, match=r"does not exist, or is private.*hf auth login"):
        download_weights("my-lab/cells")
    assert download_weights("my-lab/cells", token=TOKEN).read_bytes() == b"weights"


def test_what_is_not_there(hub: Hub):
    hub.repositories["my-lab/cells"] = Repository({"pytorch_model.bin": b"pickle"})
    with pytest.raises(CheckpointError, match=r"no model\.safetensors.*codetr convert"):
        download_weights("my-lab/cells")
    with pytest.raises(CheckpointError, match="no revision v9"):
        download_weights("my-lab/cells", revision="v9")
    with pytest.raises(CheckpointError, match="does not exist"):
        download_weights("my-lab/other")


def test_offline(hub: Hub):
    with pytest.raises(ResourceError, match="not on this disk"):
        download_weights("my-lab/cells", local_files_only=True)
    assert hub.requests == []


def test_no_connection(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between tries
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(ResourceError, match="connection"):
        upload_folder(folder, "my-lab/cells", token=TOKEN)
    with pytest.raises(ResourceError, match="connection"):
        download_weights("my-lab/cells")
