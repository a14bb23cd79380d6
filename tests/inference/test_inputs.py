from __future__ import annotations

import pytest

from codetr_cli.errors import DatasetError
from codetr_cli.inference.inputs import find_images


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("a/000000000139.jpg", "a/b/000000000285.PNG", "a/notes.txt", "c/000000000139.jpg", "odd.dat"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_is_searched_to_its_depths(folder):
    images = find_images(["a"])
    assert [image.name for image in images] == ["000000000139.jpg", "b/000000000285.PNG"]
    assert [image.image_id for image in images] == [139, 285]
    assert all(image.path.is_file() for image in images)


def test_a_named_file_needs_no_image_ending(folder):
    (image,) = find_images(["odd.dat"])
    assert (image.name, image.image_id) == ("odd.dat", 1)


def test_patterns(folder):
    assert [image.name for image in find_images(["a/*"])] == ["000000000139.jpg"]
    assert len(find_images([str(folder / "**" / "*.jpg")])) == 2


def test_each_file_once_and_names_stay_apart(folder):
    images = find_images(["a", "a/000000000139.jpg", "c"])
    assert [image.name for image in images] == ["000000000139.jpg", "b/000000000285.PNG", "000000000139_2.jpg"]
    assert [image.image_id for image in images] == [1, 2, 3]  # two files are called 139


@pytest.mark.parametrize(
    ("text", "expected"), [("nothing", "nothing"), ("a/*.gif", "matches"), ("empty", "contains no images")]
)
def test_what_cannot_be_found_is_named(folder, text, expected):
    (folder / "empty").mkdir()
    with pytest.raises(DatasetError, match=expected) as caught:
        find_images(["a", text])
    assert text in str(caught.value)
