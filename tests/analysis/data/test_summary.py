"""Everything about a data set at once: what is read, what is shown meanwhile, and what depends on what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from codetr_cli.analysis.data.summary import summarize_data
from codetr_cli.analysis.jsonable import jsonable
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.config.schema import Settings

SETTINGS = Settings(name="test")


def test_the_parts_fit_together(tiny_coco: Path) -> None:
    shown: dict[str, list[int]] = {}

    @contextmanager
    def progress(text: str, total: int | None) -> Iterator[Callable[[int], None]]:
        yield shown.setdefault(text, []).append

    found = summarize_data(DataConfig(root=str(tiny_coco)), SETTINGS, progress=progress)
    assert [each.split for each in found.splits] == list(found.places) == ["train", "val"]
    assert [each.second for each in found.differences] == ["val"]
    assert found.copies is not None
    assert found.copies.images == sum(each.images for each in found.splits) == sum(shown["comparing images"])
    assert shown["counting"] == [1, 1]
    assert jsonable(found)["splits"][0]["split"] == "train"


def test_images_are_not_read_when_they_are_not_asked_for(tiny_coco: Path) -> None:
    found = summarize_data(DataConfig(root=str(tiny_coco)), SETTINGS, with_images=False)
    assert found.copies is None
    assert not any(each.rule == "copies" for each in found.advice)
