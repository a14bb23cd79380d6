"""Repositories of the Hub, through the package huggingface_hub: weights come down, the files of a model go up.

Of a repository only the weights are read, by the reader of all checkpoints; nothing in it is executed. Only the files
of a model are sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codetr_cli import __version__
from codetr_cli.errors import ArgumentError, CheckpointError, ConfigError, ResourceError, shown
from codetr_cli.files import WEIGHTS_NAME
from codetr_cli.inference.hub.folder import FILES

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
MAX_MESSAGE = 300


@dataclass(frozen=True)
class Upload:
    """A model that was uploaded.

    Attributes:
        repository: `org/name`.
        url: of its page.
        commit: hash of the commit; empty: nothing has changed.
    """

    repository: str
    url: str
    commit: str


def check_repository(name: object) -> str:
    """The name of a repository.

    Raises:
        ArgumentError: it is not of the form org/name, with letters, digits, `.`, `-` and `_`.
    """
    allowed = isinstance(name, str) and NAME.fullmatch(name) and not re.search(r"--|\.\.|(^|/)[.-]|[.-](/|$)", name)
    if not isinstance(name, str) or not allowed:
        raise ArgumentError(f"{shown(name)} is not the name of a repository: it is org/name, e.g. my-lab/cells")
    return name


def download_weights(
    repository: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """The weights of a repository on this disk, in the cache of huggingface_hub; nothing else is downloaded.

    Args:
        repository: `org/name`.
        revision: a branch, tag or commit; None: the main branch.
        token: of an account; None: the one that is logged in; False: none.
        cache_dir: another cache.
        local_files_only: use the cache only, as with HF_HUB_OFFLINE=1.

    Raises:
        ArgumentError: another form of name.
        CheckpointError: there is no such repository or revision, or it has no weights of this kind.
        ResourceError: no connection, no access, or the package is missing.
    """
    check_repository(repository)
    api = _api(token)
    with _worded(repository, revision):
        path = api.hf_hub_download(
            repository, WEIGHTS_NAME, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only
        )
    return Path(path)


def check_login(token: str | bool | None = None) -> None:
    """Ensures that there is a token to upload with.

    Raises:
        ResourceError: nobody is logged in, or the package is missing.
    """
    hub = _package()
    if not (token if isinstance(token, str) else hub.get_token()):
        raise ResourceError(f"uploading to the Hub needs an account: {LOGIN}")


def upload_folder(
    folder: Path,
    repository: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    message: str | None = None,
    quiet: bool = True,
) -> Upload:
    """Uploads the files of a model in one commit; the repository is created if it does not exist.

    Args:
        folder: with the files of a model; its other files are not sent.
        repository: `org/name`.
        private: whether a new repository is private; None: as the organisation's default.
        token: as for `download_weights`.
        message: of the commit.
        quiet: show no progress.

    Raises:
        ArgumentError: another form of name.
        ResourceError: no connection, not logged in, no right to write there, or the package is missing.
    """
    check_repository(repository)
    check_login(token)
    hub, api = _package(), _api(token)
    with _worded(repository, None, writing=True), _progress_bars(shown=not quiet):
        api.create_repo(repository, private=private, exist_ok=True)
        operations = [hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(folder / name)) for name in FILES]
        message = message or f"Upload model with codetr {__version__}"
        commit = api.create_commit(repository, operations, commit_message=message)
    return Upload(repository, f"{api.endpoint}/{repository}", commit.oid)


def _package() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ResourceError(
            f"the Hub needs the package huggingface_hub ({error}): pip install 'codetr-cli[hub]' (or pip install "
            "huggingface_hub)"
        ) from error
    return huggingface_hub


def _api(token: str | bool | None) -> Any:
    return _package().HfApi(token=token, library_name="codetr", library_version=__version__)


@contextmanager
def _progress_bars(*, shown: bool) -> Iterator[None]:
    """Inside, huggingface_hub shows its progress bars or not; it has one switch for the whole process."""
    from huggingface_hub import utils

    if shown or utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


@contextmanager
def _worded(repository: str, revision: str | None, *, writing: bool = False) -> Iterator[None]:
    """Inside, the errors of huggingface_hub become ours.

    Raises:
        CheckpointError: the repository does not have the weights.
        ResourceError: no connection or no access.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise ArgumentError(f"{repository} is not the name of a repository: {_first_line(error)}") from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"the repository {repository} has no revision {revision}: give a branch, tag or commit that it has"
        ) from error
    except errors.GatedRepoError as error:
        raise ResourceError(
            f"the repository {repository} is open to accepted accounts only: ask for access on its page, then {LOGIN}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        what = "cannot be written by this account" if writing else "does not exist, or is private"
        advice = "check the name and the token's rights" if writing else "check the name"
        raise CheckpointError(f"the repository {repository} {what}: {advice}, or {LOGIN}") from error
    except errors.LocalEntryNotFoundError as error:  # also without a connection
        raise ResourceError(
            f"the weights of {repository} are not on this disk and cannot be downloaded ({_first_line(error)}): check "
            "the connection, and that neither local_files_only nor HF_HUB_OFFLINE is set"
        ) from error
    except errors.EntryNotFoundError as error:
        raise CheckpointError(
            f"the repository {repository} has no {WEIGHTS_NAME}, so it is no model of codetr: if it has the weights of "
            "another Co-DETR program, download them and convert them with `codetr convert`"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise ResourceError(f"{repository} cannot be reached, because HF_HUB_OFFLINE is set: unset it") from error
    except errors.HfHubHTTPError as error:
        raise _http_error(repository, error) from error
    except (errors.HTTPError, RuntimeError) as error:  # RuntimeError: of a file's upload, or of a closed connection
        chain = list(_causes(error))
        if refused := next((each for each in chain if isinstance(each, errors.HfHubHTTPError)), None):
            raise _http_error(repository, refused) from error
        cause = next((each for each in chain if isinstance(each, errors.HTTPError)), None)
        if cause is None and "client has been closed" in str(error):  # huggingface_hub 1.5, without a connection
            cause = error
        if cause is None:
            raise
        raise ResourceError(f"the Hub cannot be reached ({_first_line(cause)}): check the connection") from error
    except ValueError as error:  # the Hub refuses the metadata of a card
        if not writing:
            raise
        raise ConfigError(f"the Hub refuses the model of {repository}: {' '.join(str(error).split())}") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _http_error(repository: str, error: Any) -> ResourceError:
    status = error.response.status_code if error.response is not None else None
    if status in (401, 403):
        return ResourceError(
            f"the Hub refuses access to {repository} (HTTP {status}): {LOGIN}, with a token of the right"
        )
    advice = "try again later" if status is None or status == 429 or status >= 500 else "check what it names"
    return ResourceError(f"the Hub does not accept {repository} (HTTP {status}: {_first_line(error)}): {advice}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:MAX_MESSAGE].rstrip(". :")
