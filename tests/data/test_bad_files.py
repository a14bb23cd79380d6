from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.image_folder import ImageFolder
from codetr_cli.config.overrides import apply_overrides
from codetr_cli.config.schema import Settings
from codetr_cli.data.bad_files import BadFile, check_share, find_bad_files
from codetr_cli.data.batch import Batch
from codetr_cli.data.coco import CocoDataset, build_dataset
from codetr_cli.data.loading.loader import TrainLoader, build_train_loader
from codetr_cli.errors import DatasetError
from tests.data.fakes import write_png_header


def damage(path: Path) -> None:
    """Puts a file there whose header and end are whole, and whose pixels are missing."""
    write_png_header(path, 128, 96)


@pytest.fixture
def settings(tiny_settings: Settings, tiny_coco: Path) -> Settings:
    return apply_overrides(tiny_settings, [f'data.root="{tiny_coco}"', "data.bad_files=skip"])


def folder_of(images_dir: Path) -> ImageFolder:
    return ImageFolder(images_dir, [], NameRule.of(images_dir))


def images(root: Path) -> list[Path]:
    return sorted((root / "train2017").iterdir())


def read(settings: Settings, workers: int = 0, epochs: int = 1, start: int = 0) -> tuple[list[Batch], list[BadFile]]:
    met: list[BadFile] = []

    def batches(loader: TrainLoader) -> Iterator[Batch]:
        for epoch in range(epochs):
            loader.set_epoch(epoch, start)
            yield from loader

    dataset = build_dataset(settings, split="train", training=True)
    loader = build_train_loader(
        dataset, micro_batch=1, workers=workers, seed=3, rank=0, world_size=1, aspect_grouping=True
    )
    loader.on_bad_file = met.append
    return list(batches(loader)), met


def same(ours: list[Batch], theirs: list[Batch]) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(a.images, b.images) and a.targets[0]["image_id"] == b.targets[0]["image_id"]
        for a, b in zip(ours, theirs, strict=True)
    )


def test_an_image_that_cannot_be_decoded_is_replaced_by_another(settings: Settings, tiny_coco: Path) -> None:
    damage(images(tiny_coco)[1])
    batches, met = read(settings, epochs=3)
    ids = [batch.targets[0]["image_id"] for batch in batches]
    assert len(ids) == 12
    # The other two of its orientation come instead of it; the only one of the other orientation never does.
    counts = [ids.count(int(path.stem)) for path in images(tiny_coco)]
    assert counts[:2] == [3, 0]
    assert {file.path for file in met} == {str(images(tiny_coco)[1])}
    assert met[0].reason == "the file is damaged"
    assert len(met) == 3
    assert all("bad_files" not in batch.targets[0] for batch in batches)


def test_the_replacement_depends_on_seed_epoch_and_index_only(settings: Settings, tiny_coco: Path) -> None:
    for path in images(tiny_coco)[:2]:
        damage(path)
    batches, met = read(settings)
    assert same(batches, read(settings)[0])
    with_workers, met_there = read(settings, workers=2)
    assert same(batches, with_workers)
    assert sorted(met) == sorted(met_there)
    assert same(batches[2:], read(settings, start=2)[0])
    other = apply_overrides(settings, ["train.seed=5"])
    assert not same(batches, read(other)[0])


def test_by_default_the_first_bad_file_is_an_error(settings: Settings, tiny_coco: Path) -> None:
    damage(images(tiny_coco)[0])
    with pytest.raises(DatasetError, match=rf"{images(tiny_coco)[0].name}: the file is damaged.*`codetr prepare"):
        read(apply_overrides(settings, ["data.bad_files=error"]))


def test_a_second_image_that_is_pasted_may_be_bad_too(settings: Settings, tiny_coco: Path) -> None:
    damage(images(tiny_coco)[0])
    lsj = ["data.augmentation=lsj", "data.canvas=64", "data.copy_paste=boxes", "data.lsj_ratio=[1.0,1.0]"]
    _, met = read(apply_overrides(settings, lsj), epochs=4)
    assert len(met) > 4  # once an epoch as the first image, and sometimes as the second


def test_skipped_files_are_excluded(settings: Settings, tiny_coco: Path) -> None:
    skipped = [str(images(tiny_coco)[0])]
    dataset = build_dataset(settings, split="train", training=True, skip_files=skipped)
    assert len(dataset) == len(dataset.aspect_flags) == 3
    assert dataset.file_names == [path.name for path in images(tiny_coco)[1:]]
    assert dataset.load_sample(0).labels.tolist() == whole(settings).load_sample(1).labels.tolist()


def whole(settings: Settings) -> CocoDataset:
    return build_dataset(settings, split="train", training=True)


def test_an_evaluation_gets_a_marked_blank(settings: Settings, tiny_coco: Path) -> None:
    path = sorted((tiny_coco / "val2017").iterdir())[0]
    path.unlink()
    dataset = build_dataset(settings, split="val", training=False)
    image, target = dataset[0]
    assert image.min() == image.max()
    assert target["bad_files"] == [(str(path), "no such file")]
    assert "bad_files" not in dataset[1][1]


def test_headers_are_scanned(settings: Settings, tiny_coco: Path, tmp_path: Path) -> None:
    paths = images(tiny_coco)
    content = paths[0].read_bytes()
    paths[0].write_bytes(content[: len(content) // 2])
    paths[1].unlink()
    found = find_bad_files(folder_of(tiny_coco / "train2017"), [path.name for path in paths], max_pixels=10**8)
    assert [Path(bad.path).name for bad in found] == [paths[0].name, paths[1].name]
    assert "end of the file is missing" in found[0].reason
    assert found[1].reason == "no such file"
    found = find_bad_files(folder_of(tiny_coco / "train2017"), [path.name for path in paths], max_pixels=100)
    assert len(found) == 4
    assert "more than data.max_pixels = 100" in found[3].reason


def test_what_is_no_regular_file_is_bad(tiny_coco: Path) -> None:
    paths = images(tiny_coco)
    paths[0].unlink()
    os.mkfifo(paths[0])
    paths[1].unlink()
    paths[1].symlink_to("/dev/zero")
    found = find_bad_files(folder_of(tiny_coco / "train2017"), [path.name for path in paths], max_pixels=10**8)
    assert [bad.reason.split(",")[0] for bad in found] == ["it is a named pipe", "it is a device"]


@pytest.mark.parametrize(("bad", "images", "allowed"), [(0, 0, True), (1, 10, True), (2, 10, False), (1, 9, False)])
def test_too_large_a_share_is_refused(bad: int, images: int, allowed: bool) -> None:
    files = [BadFile(f"{number}.jpg", "gone") for number in range(bad)]
    if allowed:
        check_share(files, images, "x")
        return
    with pytest.raises(DatasetError, match=rf"{bad} of {images} images of x cannot be read.*0.jpg \(gone\)"):
        check_share(files, images, "x")


def test_a_header_costs_little(settings: Settings, tiny_coco: Path, monkeypatch: Any) -> None:
    """The scan never decodes: it may read a whole data set before every training."""
    monkeypatch.setattr("codetr_cli.images.decoder.cv2.imdecode", lambda *args: pytest.fail("decoded"))
    assert (
        find_bad_files(folder_of(tiny_coco / "train2017"), [path.name for path in images(tiny_coco)], max_pixels=10**8)
        == []
    )
