from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from codetr_cli.annotations.file_names import NameRule
from codetr_cli.data.writers.selection import choose_classes, choose_sample
from codetr_cli.data.writers.source import SourceSplit, all_classes, read_split
from codetr_cli.errors import ConfigError
from codetr_cli.formats.open import open_dataset

NAMES = {1: "cat", 2: "dog", 5: "rare", 9: "big, bad"}


@pytest.fixture
def splits(tmp_path: Path) -> list[SourceSplit]:
    """60 training and 20 validation images with a cat each; a dog in every third, one rare object in all."""
    for split, count in (("train", 60), ("val", 20)):
        (tmp_path / f"{split}2017").mkdir()
        images = [{"id": i, "file_name": f"{split}{i}.jpg", "width": 9, "height": 9} for i in range(count)]
        labels = [(i, 1) for i in range(count)] + [(i, 2) for i in range(0, count, 3)]
        labels += [(41, 5)] if split == "train" else []
        objects = [
            {"id": n, "image_id": i, "category_id": category, "bbox": [0, 0, 5, 5], "iscrowd": 0, "area": 25}
            for n, (i, category) in enumerate(labels)
        ]
        categories = [{"id": key, "name": name, "extra": 1} for key, name in NAMES.items()]
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"instances_{split}2017.json").write_text(
            json.dumps({"images": images, "annotations": objects, "categories": categories})
        )
    found = open_dataset(tmp_path)
    assert found is not None
    rule = NameRule.of(tmp_path)
    return [read_split(found, name, rule, Counter(), with_records=True)[0] for name in ("train", "val")]


def chosen(splits: list[SourceSplit], wanted: list[str] | None, *, keep_empty: bool = False) -> tuple:
    counts: Counter[str] = Counter()
    classes = choose_classes(splits, all_classes(splits), wanted, counts, keep_empty=keep_empty)
    return classes, counts


def test_classes_keep_their_ids_and_records(splits: list[SourceSplit]) -> None:
    classes, counts = chosen(splits, ["rare, dog"])
    assert (classes.names, classes.ids) == (["dog", "rare"], [2, 5])
    assert classes.records["train"] == [{"id": 2, "name": "dog", "extra": 1}, {"id": 5, "name": "rare", "extra": 1}]
    assert splits[0].rows.tolist() == sorted({*range(0, 60, 3), 41})
    assert [item.label for item in splits[0].objects(41, "presence")] == [1]
    assert counts == {"other_class": 80, "without_class": 60 - 21 + 20 - 7}


def test_images_without_the_classes_are_kept_on_request(splits: list[SourceSplit]) -> None:
    _, counts = chosen(splits, ["rare"], keep_empty=True)
    assert [len(split.rows) for split in splits] == [60, 20]
    assert counts["without_class"] == 0


def test_a_name_with_a_comma_and_unknown_names(splits: list[SourceSplit]) -> None:
    assert chosen(splits, ["big, bad"], keep_empty=True)[0].ids == [9]
    with pytest.raises(ConfigError, match="no class 'Dog'; did you mean 'dog'"):
        chosen(splits, ["cat,Dog"])
    with pytest.raises(ConfigError, match="names no class"):
        chosen(splits, [","])


def test_a_sample_is_repeatable_has_every_class_and_its_share_of_each_split(splits: list[SourceSplit]) -> None:
    chosen(splits, None)
    all_rows = [split.rows for split in splits]
    rows = []
    for _ in range(2):
        for split, whole in zip(splits, all_rows, strict=True):
            split.rows = whole
        choose_sample(splits, 8, Counter())
        rows.append([split.rows.tolist() for split in splits])
    assert rows[0] == rows[1]
    assert [len(kept) for kept in rows[0]] == [6, 2]
    assert 41 in rows[0][0]  # the only image with the rare class
    assert any(row % 3 == 0 for row in rows[0][0])
    assert rows[0][0] == sorted(rows[0][0])


@pytest.mark.parametrize("size", [1, 2, 3, 79, 80, 500])
def test_a_sample_has_as_many_images_as_asked_for(splits: list[SourceSplit], size: int) -> None:
    chosen(splits, None)
    counts: Counter[str] = Counter()
    choose_sample(splits, size, counts)
    assert sum(len(split.rows) for split in splits) == min(size, 80)
    assert counts["not_sampled"] == 80 - min(size, 80)
    assert size < 2 or min(len(split.rows) for split in splits) >= 1


def test_another_order_of_the_file_gives_the_same_sample(splits: list[SourceSplit]) -> None:
    chosen(splits, None)
    choose_sample(splits, 8, Counter())
    names = {splits[0].annotations.file_names[row] for row in splits[0].rows.tolist()}
    path = splits[0].files.annotations_path
    table = json.loads(path.read_text())
    table["images"].reverse()
    path.write_text(json.dumps(table))
    found = open_dataset(path.parent.parent)
    assert found is not None
    again, _ = read_split(found, "train", NameRule.of(path.parent.parent), Counter(), with_records=False)
    chosen([again], None)
    again.rows = np.arange(60)
    choose_sample([again], 6, Counter())
    assert {again.annotations.file_names[row] for row in again.rows.tolist()} == names
