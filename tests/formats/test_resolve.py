"""Where the data of a setting are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetr_cli.annotations.layouts import LAYOUTS
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.errors import DatasetError
from codetr_cli.formats.detect import find_splits
from codetr_cli.formats.resolve import find_data
from tests.data.dataset_samples import write


def test_a_folder_that_is_not_there_is_named_with_the_one_that_may_be_meant(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    with pytest.raises(DatasetError) as caught:
        find_data(DataConfig(), str(tmp_path / "cels"), "train")
    assert f"the folder {tmp_path / 'cels'} not found. Did you mean {tmp_path / 'cells'}? Give a" in str(caught.value)
    assert "any other that `codetr prepare` knows" in str(caught.value)
    with pytest.raises(DatasetError, match=r"no train data: .*/cells does not have a known layout: it is empty"):
        find_data(DataConfig(), str(tmp_path / "cells"), "train")


def test_each_data_set_has_its_own_folder(lvis: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match="data/lvis_v1"):
        find_data(DataConfig(dataset="lvis"), None, "val")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "coco").symlink_to(lvis)  # many keep LVIS's files beside COCO's
    assert find_data(DataConfig(dataset="lvis"), None, "val").annotations_path.is_file()
    (tmp_path / "data" / "lvis_v1").symlink_to(lvis)
    assert find_data(DataConfig(dataset="lvis"), None, "val").images_dir == Path("data/lvis_v1")


def test_with_several_in_one_folder_the_settings_decide(lvis: Path) -> None:
    write(lvis / "annotations" / "instances_val2017.json", {"images": [], "annotations": [], "categories": []})
    assert find_splits(lvis)[0].dataset == "coco"
    assert find_splits(lvis, "lvis")[0].dataset == "lvis"
    assert {split.dataset for split in find_splits(lvis, "objects365")} == {"coco"}
    assert set(LAYOUTS) == {"coco", "lvis", "objects365"}


def test_find_data_precedence(mixed_coco: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CODETR_DATA", raising=False)
    with pytest.raises(DatasetError, match=r"the folder data/coco not found.*codetr prepare"):
        find_data(DataConfig(), None, "train")
    monkeypatch.setenv("CODETR_DATA", str(mixed_coco))
    assert find_data(DataConfig(), None, "train").images_dir == mixed_coco / "train2017"
    with pytest.raises(DatasetError, match="elsewhere"):
        find_data(DataConfig(root="elsewhere"), None, "val")
    with pytest.raises(DatasetError, match="given"):
        find_data(DataConfig(root=str(mixed_coco)), "given", "val")
    own = find_data(DataConfig(train_images=str(mixed_coco / "val2017")), str(mixed_coco), "train")
    assert own.images_dir == mixed_coco / "val2017"
    assert own.annotations_path == mixed_coco / "annotations" / "instances_train2017.json"
    assert find_data(DataConfig(train_images="nothing"), None, "val").images_dir == mixed_coco / "val2017"
