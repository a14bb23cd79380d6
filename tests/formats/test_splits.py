from __future__ import annotations

import pytest

from codetr_cli.formats.splits import choose_splits


@pytest.mark.parametrize(
    ("lists", "train", "val", "note"),
    [
        ({"train": "ab", "val": "c", "test": "d"}, "ab", "c", None),
        ({"train": "ab", "test": "d"}, "ab", "d", "the test images are used"),
        ({"trainval": "abc", "val": "c"}, "ab", "c", None),
        ({"trainval": "ab", "test": "d"}, "ab", "d", "the test images are used"),
        ({"test": "ab"}, "", "ab", "the test images are used"),
        ({"all": "abc"}, "abc", "", None),
    ],
)
def test_which_images_are_for_what(lists: dict[str, str], train: str, val: str, note: str | None) -> None:
    chosen, _, notes = choose_splits({name: list(names) for name, names in lists.items()})
    assert ("".join(chosen.get("train", "")), "".join(chosen.get("val", ""))) == (train, val)
    assert ("test" in chosen) == (set(lists) >= {"val", "test"})
    assert note in notes[0] if note else not notes
