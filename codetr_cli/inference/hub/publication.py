"""From a checkpoint to a folder that may be published: what is known of it, its licence, and its files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from codetr_cli.config.schema import TestConfig
from codetr_cli.errors import ConfigError
from codetr_cli.inference.hub.facts import changed_test, describe_checkpoint
from codetr_cli.inference.hub.folder import FILES, is_model_folder, write_folder
from codetr_cli.runs.lineage import licence_of
from codetr_cli.weights.checkpoint import stored_settings
from codetr_cli.weights.licence import Licence, stated_licence


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A model that may be published.

    Attributes:
        folder: of its files; a temporary one where none was given.
        licence: of the weights.
        is_written: whether the files were written now; otherwise they are those of the folder that was given.
        has_evaluation: whether the card that was written has metrics.
    """

    folder: Path
    licence: Licence
    is_written: bool
    has_evaluation: bool = False

    @property
    def files(self) -> list[Path]:
        """The files to be sent, in the order of `folder.FILES`."""
        return [self.folder / name for name in FILES]


@contextmanager
def prepare_publication(
    path: Path,
    repository: str,
    *,
    licence: str | None = None,
    evaluation: Path | None = None,
    test: TestConfig | None = None,
    out: Path | None = None,
    force: bool = False,
) -> Iterator[Publication]:
    """The files of a model, ready to be sent; a temporary folder exists within the block only.

    A folder that has all files already, and may have been edited, is sent as it is.

    Args:
        path: the checkpoint's file.
        repository: `org/name`.
        licence: of the weights, SPDX; None: the one that is known of them.
        evaluation: file or folder of an evaluation; None: one that is found.
        test: see `describe_checkpoint`.
        out: the folder to write; None: a temporary one.
        force: replace own files in `out`.

    Raises:
        ConfigError: the licence is unknown; options that do not fit a folder that has its files already; or as
            `describe_checkpoint` and `write_folder`.
    """
    stored = stored_settings(path)
    if is_model_folder(path.parent) and not (stored and changed_test(stored, test)):
        given = {"--license": licence, "--evaluation": evaluation, "--out": out}
        if used := [name for name, value in given.items() if value is not None]:
            raise ConfigError(
                f"{path.parent} has its model card already and is sent as it is, without {' and '.join(used)}: edit "
                "README.md, or push the checkpoint that the folder was made from"
            )
        recorded = find_licence(path, None)
        if recorded.name is None:
            raise ConfigError(
                f"{path.parent} was saved without a licence of the weights: push the checkpoint that it was made from, "
                "with --license, e.g. --license Apache-2.0"
            )
        yield Publication(folder=path.parent, licence=recorded, is_written=False)
        return
    known = _required(path, licence)
    with tempfile.TemporaryDirectory(prefix="codetr-push-") if out is None else nullcontext(out) as folder:
        facts = describe_checkpoint(path, licence=known, evaluation=evaluation, test=test)
        write_folder(Path(folder), facts, repository=repository, force=force)
        yield Publication(
            folder=Path(folder), licence=known, is_written=True, has_evaluation=facts.evaluation is not None
        )


def find_licence(path: Path, stated: str | None) -> Licence:
    """The licence of a checkpoint, the one that the user states before the one that is known.

    Args:
        path: the checkpoint's file.
        stated: SPDX identifier or name; None: not stated.

    Raises:
        ConfigError: what is stated is no licence.
    """
    known = licence_of(path)
    if stated is None:
        return known
    chosen = stated_licence(stated)
    if known.name is None or known.name == chosen.name:
        return chosen if known.name is None else known
    return Licence(
        chosen.name, f"{chosen.reason}; {known.name} is the licence of what it was made from, {known.reason}"
    )


def _required(path: Path, stated: str | None) -> Licence:
    """The licence of a checkpoint.

    Raises:
        ConfigError: it is unknown.
    """
    found = find_licence(path, stated)
    if found.name is None:
        raise ConfigError(
            f"the licence of the weights {path} is unknown: {found.reason}. Nothing is published without one: if you "
            "may publish them, name it, e.g. --license Apache-2.0"
        )
    return found
