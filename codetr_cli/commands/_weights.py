"""Downloads for the verbs that take weights: from a URL to a file, with a progress bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from codetr_cli import console

if TYPE_CHECKING:
    from codetr_cli.weights.download import DownloadProgress

MEGABYTE = 1_000_000


def resolve_weights(weights: str | None) -> str | None:
    """The weights as given, or for a URL the file, which is downloaded once."""
    if weights is None or "://" not in weights:
        return weights
    from codetr_cli.weights import resolve

    with byte_progress(f"downloading {weights}") as progress:
        return str(resolve.resolve_weights(weights, progress=progress))


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
