"""Files with code run only if codetr has made them here, or the environment names them."""

from __future__ import annotations

import hashlib

import pytest

from codetr_cli.errors import CheckpointError
from codetr_cli.files import COMPILED_FOLDER
from codetr_cli.inference.exported import trust


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setattr("codetr_cli.models.torch_compile.cache_dir", lambda: folder)
    monkeypatch.delenv(trust.VARIABLE, raising=False)
    return folder


@pytest.fixture
def package(tmp_path):
    path = tmp_path / "network.pt2"
    path.write_bytes(b"compiled code")
    return path


def test_a_file_of_unknown_origin_is_refused_with_its_digest(cache, package):
    digest = hashlib.sha256(b"compiled code").hexdigest()
    with pytest.raises(CheckpointError, match=f"CODETR_TRUST={digest}"):
        trust.check_trusted(package)


def test_the_environment_allows_the_digests_that_it_names(cache, package, monkeypatch):
    monkeypatch.setenv(trust.VARIABLE, f"{'0' * 64},{trust.file_digest(package)}")
    trust.check_trusted(package)
    package.write_bytes(b"other code")
    with pytest.raises(CheckpointError):
        trust.check_trusted(package)


@pytest.mark.parametrize("value", ["1", "true", "all", "", "*"])
def test_the_environment_cannot_allow_all_files(cache, package, monkeypatch, value):
    monkeypatch.setenv(trust.VARIABLE, value)
    with pytest.raises(CheckpointError):
        trust.check_trusted(package)


def test_own_files_are_allowed_until_they_change(cache, package):
    trust.remember(package)
    copied = package.with_name("copied.pt2")
    copied.write_bytes(package.read_bytes())
    trust.check_trusted(package)
    trust.check_trusted(copied)
    package.write_bytes(b"compiled code of somebody else")
    with pytest.raises(CheckpointError):
        trust.check_trusted(package)


def test_a_list_that_others_can_write_does_not_count(cache, package):
    trust.remember(package)
    (cache / COMPILED_FOLDER).chmod(0o777)
    with pytest.raises(CheckpointError):
        trust.check_trusted(package)


def test_a_list_beside_the_file_does_not_count(cache, package):
    (package.parent / trust.LIST_NAME).write_text(trust.file_digest(package))
    with pytest.raises(CheckpointError):
        trust.check_trusted(package)


def test_nothing_is_remembered_without_a_private_folder(cache, package):
    cache.mkdir()
    (cache / COMPILED_FOLDER).write_text("a file")
    trust.remember(package)
    with pytest.raises(CheckpointError):
        trust.check_trusted(package)


def test_a_list_that_cannot_be_written_does_not_lose_the_file(cache, package, caplog):
    (cache / COMPILED_FOLDER).mkdir(mode=0o700, parents=True)
    (cache / COMPILED_FOLDER / trust.LIST_NAME).mkdir()
    trust.remember(package)
    assert f"CODETR_TRUST={trust.file_digest(package)}" in caplog.text
    assert package.exists()


def test_of_a_long_list_the_newest_count(cache, package, monkeypatch):
    monkeypatch.setattr(trust, "MAX_LIST", 150)
    trust.remember(package)
    other = package.with_name("other.pt2")
    for number in range(3):
        trust.check_trusted(package if not number else other)
        other.write_bytes(bytes([number]))
        trust.remember(other)
    trust.check_trusted(other)
    with pytest.raises(CheckpointError):
        trust.check_trusted(package)
