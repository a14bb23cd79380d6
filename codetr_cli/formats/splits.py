"""The choice of training and evaluation images in a folder with its own lists."""

from __future__ import annotations

from collections.abc import Mapping

from codetr_cli.errors import counted, listed


def choose_splits(lists: Mapping[str, list[str]]) -> tuple[dict[str, list[str]], dict[str, str], list[str]]:
    """Chooses the images of training and evaluation.

    Training is `train`, else `trainval` without the images of `val`, else `all`. Evaluation is `val`, else `test`;
    where there is neither, see `reserved`.

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
    used = {name for part in chosen.values() for name in part}
    for name in ("trainval", "all"):
        unused = [] if places.get("train") == name else [each for each in available.get(name, ()) if each not in used]
        if unused:
            number = f"{len(unused):,} in all: {listed(unused, 3)}"
            notes.append(f"images of {name}, which are in no other part, are not used, {number}")
    shared = set(chosen.get("train", ())) & set(chosen.get("val", ()))
    if shared:
        notes.append(
            f"{counted(len(shared), 'image', 'are')} in both train and {places['val']}: "
            "their scores are not representative"
        )
    return {name: names for name, names in chosen.items() if names}, places, notes
