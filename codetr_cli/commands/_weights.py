"""What the verbs that take weights share: the way from an address to a file, with its progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from codetr_cli import console

if TYPE_CHECKING:
    from codetr_cli.weights.download import DownloadProgress

MEGABYTE = 1_000_000


def fetched(weights: str | None) -> str | None:
    """What was given as weights, or the file that an address gives: it is downloaded once, and shown while it comes."""
    if weights is None or "://" not in weights:
        return weights
    from codetr_cli.weights.resolve import resolve_weights

    with byte_progress(f"downloading {weights}") as progress:
        return str(resolve_weights(weights, progress=progress))


@contextmanager
def byte_progress(description: str) -> Iterator[DownloadProgress]:
    """Shows how much of a file is there; it is known at the first report how much there will be."""
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
