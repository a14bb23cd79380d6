"""Links to folders inside a data set's folder: which of them are searched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from codetr_cli.annotations.survey import Survey
from codetr_cli.formats.folder_splits import place_of

MAX_LINKS = 20


def with_links(survey: Survey) -> Survey:
    """A survey with the files in links to folders that are called `images`, `Annotations` and the like.

    Links that lead into the folder, or to one that contains it, are skipped.

    Raises:
        DatasetError: as `Survey.of`.
    """
    root = os.path.realpath(survey.folder)
    names: list[str] = []
    for link in _followed(survey):
        target = os.path.realpath(survey.folder / link)
        if not f"{target}/".startswith(f"{root}/") and not f"{root}/".startswith(target.rstrip("/") + "/"):
            names += [f"{link}/{name}" for name in Survey.of(survey.folder / link).names]
    return Survey(survey.folder, sorted([*survey.names, *names]), survey.linked, survey.debris) if names else survey


def files_and_images(survey: Survey, *suffixes: str) -> Iterator[Path]:
    """Paths of the files with these suffixes and of the images, in a folder and its links."""
    survey = with_links(survey)
    yield from (survey.folder / name for name in (*survey.with_suffix(*suffixes), *survey.images))


def unused_links(survey: Survey) -> list[str]:
    """The links to folders that are not searched."""
    return sorted(set(survey.linked).difference(_followed(survey)))


def _followed(survey: Survey) -> list[str]:
    return [link for link in survey.linked if not place_of(link.rpartition("/")[2])][:MAX_LINKS]
