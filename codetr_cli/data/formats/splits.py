"""The choice of training and evaluation images in a folder with its own lists."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping


def choose_splits(lists: Mapping[str, list[str]]) -> tuple[dict[str, list[str]], dict[str, str], list[str]]:
    """Chooses the images of training and evaluation.

    Training is `train`, else `trainval` without the images of `val`, else `all`. Evaluation is `val`, else `test`, else
    a fifth of training: the images whose names have the smallest SHA-1, so that it is the same on every machine.

    Args:
        lists: names of images by "train", "val", "trainval", "test" and "all", as far as the folder has them.

    Returns:
        names by "train", "val" and, where it is a third set, "test"; the list that each was taken from; notes.
    """
    available = {name: list(dict.fromkeys(names)) for name, names in lists.items() if names}
    chosen: dict[str, list[str]] = {}
    places: dict[str, str] = {}
    notes: list[str] = []
    origin = next((name for name in ("train", "trainval", "all") if name in available), None)
    if origin is not None:
        reserved = set(available.get("val", ())) if origin == "trainval" else set()
        chosen["train"], places["train"] = [name for name in available[origin] if name not in reserved], origin
    if "val" in available:
        chosen["val"], places["val"] = available["val"], "val"
        if "test" in available:
            chosen["test"], places["test"] = available["test"], "test"
    elif "test" in available:
        chosen["val"], places["val"] = available["test"], "test"
        notes.append("there is no list of validation images: the test images are used for evaluation")
    elif len(chosen.get("train", ())) > 1:
        order = sorted(
            chosen["train"],
            key=lambda name: hashlib.sha1(name.encode(errors="surrogateescape"), usedforsecurity=False).digest(),
        )
        reserved = set(order[: max(1, round(len(order) / 5))])
        chosen["val"], places["val"] = [name for name in chosen["train"] if name in reserved], places["train"]
        chosen["train"] = [name for name in chosen["train"] if name not in reserved]
        notes.append(
            f"there are neither validation nor test images: {len(reserved):,} of the {len(order):,} images are "
            "reserved for evaluation, chosen by the hash of their names and so always the same"
        )
    shared = set(chosen.get("train", ())) & set(chosen.get("val", ()))
    if shared:
        notes.append(
            f"{len(shared):,} images are in both train and {places['val']}: their scores are not representative"
        )
    return {name: names for name, names in chosen.items() if names}, places, notes
