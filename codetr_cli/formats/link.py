"""The symbolic link that makes a folder the default data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from codetr_cli.files import real_path


@dataclass(frozen=True)
class Link:
    """The outcome of linking a data set to its default place.

    Args:
        status: "linked" (created now), "present" (it existed), "in_place" (the data set itself is there), "occupied"
            (something else is there and is kept), "impossible" (the system refuses links).
        detail: what is there or why the link failed, a phrase; empty on success.
    """

    status: Literal["linked", "present", "in_place", "occupied", "impossible"]
    path: Path
    detail: str = ""

    @property
    def works(self) -> bool:
        """Whether the data set is found at `path` from now on."""
        return self.status in ("linked", "present", "in_place")


def link_folder(folder: Path, link: Path) -> Link:
    """Makes `link` a symbolic link to `folder`; anything else at that path is kept."""
    target = real_path(folder)
    if link.is_symlink():
        if real_path(link) == target:
            # A folder given by way of the link itself is in place as well.
            return Link("present", link)
        gone = "" if link.exists() else ", which does not exist"
        return Link("occupied", link, f"is a link to {link.readlink()}{gone}")
    if link.exists():
        if real_path(link) == target:
            return Link("in_place", link)
        return Link("occupied", link, "is another folder" if link.is_dir() else "is a file")
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target, target_is_directory=True)
    except (OSError, NotImplementedError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Link("impossible", link, reason)
    return Link("linked", link)
