"""Downloads for the verbs that take weights: from a URL or the Hub to a file, with a progress bar."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from codetr_cli import console
from codetr_cli.errors import ConfigError
from codetr_cli.files import EXPORTED_SUFFIXES

if TYPE_CHECKING:
    from codetr_cli.config.schema import Settings
    from codetr_cli.weights.download import DownloadProgress

MEGABYTE = 1_000_000
HUB = "hf://"
"""Starts the address of a repository, `hf://org/name` or `hf://org/name@revision`, as huggingface_hub writes it."""


def resolve_weights(weights: str | None) -> str | None:
    """The weights as given, or for a URL or `hf://org/name`, a model on the Hub, the file, which is downloaded once."""
    if weights is None or "://" not in weights:
        return weights
    if weights.startswith(HUB):
        from codetr_cli.inference.hub.repository import download_weights

        repository, _, revision = weights.removeprefix(HUB).partition("@")
        return str(download_weights(repository, revision=revision or None))
    from codetr_cli.weights import resolve
    from codetr_cli.weights.urls import shown_url

    with byte_progress(f"downloading {shown_url(weights)}") as progress:
        return str(resolve.resolve_weights(weights, progress=progress))


def place_exported(context: typer.Context, weights: str) -> list[str]:
    """Changes the device of a command to one that the library of an exported file has.

    Args:
        context: of a command with the option --device.
        weights: as resolved; nothing changes for a checkpoint.

    Returns:
        the settings that the device stands for, as `key=value`.
    """
    if Path(weights).suffix not in EXPORTED_SUFFIXES or context.params["gpus"] is not None:
        return []
    from codetr_cli.inference.exported.engine import choose_for_file

    context.params["device"], overrides = choose_for_file(weights, context.params["device"])
    return overrides


def hide_credentials(words: Sequence[str]) -> list[str]:
    """The words of a command for a file: URLs with credentials are downloaded and replaced by their files.

    Raises:
        CheckpointError, ConfigError, ResourceError: as `weights.resolve.resolve_weights`.
    """
    from codetr_cli.weights.urls import has_secrets

    def replacement(word: str) -> str:
        url = re.search(r"https?://\S+", word)
        return word.replace(url[0], str(resolve_weights(url[0]))) if url and has_secrets(url[0]) else word

    return [replacement(word) for word in words]


def refuse_secrets(addresses: Sequence[str]) -> None:
    """Refuses addresses of inputs with credentials, which would be written to the script of a job.

    Raises:
        ConfigError: one has some.
    """
    from codetr_cli.weights.urls import has_secrets, shown_url

    for address in addresses:
        if has_secrets(address):
            raise ConfigError(
                f"{shown_url(address)} contains credentials, which --slurm would write to a file: give them in the "
                "environment, or the address in a list that only you can read"
            )


def hide_backbone_url(settings: Settings, *, unused: bool) -> Settings:
    """Settings in which a backbone's URL with credentials is replaced by the file, which is downloaded.

    Args:
        settings: of a training.
        unused: whether it starts from other weights and needs no backbone: nothing is downloaded.

    Raises:
        CheckpointError, ConfigError, ResourceError: as `weights.resolve.resolve_weights`.
    """
    from codetr_cli.config.overrides import replace_settings
    from codetr_cli.weights.urls import has_secrets, public_settings

    url = settings.train.backbone_weights
    if has_secrets(url) and not unused:
        settings = replace_settings(settings, {"train.backbone_weights": resolve_weights(url)})
    return public_settings(settings)


@contextmanager
def byte_progress(description: str) -> Iterator[DownloadProgress]:
    """Shows the progress of a download; the total becomes known with the first report."""
    with ExitStack() as stack:
        advance: console.Advance | None = None
        shown = 0

        def report(done: int, total: int | None) -> None:
            nonlocal advance, shown
            if advance is None:
                megabytes = None if total is None else max(total // MEGABYTE, 1)
                advance = stack.enter_context(console.progress(f"{description} [MB]", megabytes))
            advance(done // MEGABYTE - shown)
            shown = done // MEGABYTE

        yield report
