"""What `Detector` and the integrations do with folders and repositories: find weights, save a model, publish it."""

from __future__ import annotations

from pathlib import Path

from codetr_cli.config.schema import TestConfig
from codetr_cli.inference.hub.facts import describe_checkpoint
from codetr_cli.inference.hub.folder import check_model_folder, write_folder
from codetr_cli.inference.hub.publication import find_licence, prepare_publication
from codetr_cli.inference.hub.repository import (
    Upload,
    check_login,
    check_repository,
    download_weights,
    upload_folder,
)


def find_weights(
    place: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """The weights in a folder, or in a repository of the Hub; a folder comes first.

    Args:
        place: a folder, or `org/name`.
        revision: of a repository; so are the others, see `download_weights`.
        token: of an account.
        cache_dir: another cache.
        local_files_only: use the cache only.

    Raises:
        ConfigError: neither, or a folder without weights.
        CheckpointError: there is no such repository, or it has no weights of this kind.
        ResourceError: no connection, no access, or huggingface_hub is not installed.
    """
    if Path(place).is_dir():
        return check_model_folder(Path(place))
    return download_weights(
        str(place), revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
    )


def save_model(
    path: Path, folder: Path, *, licence: str | None, evaluation: Path | None, test: TestConfig, force: bool
) -> list[Path]:
    """Writes a checkpoint as a folder, whose licence may be unknown; arguments as of `prepare_publication`.

    Returns:
        the files.

    Raises:
        ConfigError: files in the way, or an evaluation of other weights.
        ResourceError: the folder cannot be written.
    """
    known = find_licence(path, licence)
    facts = describe_checkpoint(path, licence=known, evaluation=evaluation, test=test)
    return write_folder(folder, facts, force=force)


def push_model(
    path: Path,
    repository: str,
    *,
    licence: str | None,
    evaluation: Path | None,
    test: TestConfig,
    private: bool | None,
    token: str | bool | None,
    message: str | None,
) -> Upload:
    """Uploads a checkpoint; arguments as of `prepare_publication` and `upload_folder`.

    Raises:
        ConfigError: the licence is unknown, or as `prepare_publication`.
        ResourceError: as `upload_folder`.
    """
    check_repository(repository)
    check_login(token)
    prepared = prepare_publication(path, repository, licence=licence, evaluation=evaluation, test=test)
    with prepared as publication:
        return upload_folder(publication.folder, repository, private=private, token=token, message=message)
