"""Names of images as systems and tools write them."""

from __future__ import annotations

import unicodedata

import pytest

from codetr_cli.annotations.image_names import ImageNames

NAMES = ImageNames(["train/1.jpg", "val/1.jpg", "train/Käse 2.JPG", "val/a b.png", "c.png", "deep/er/d.png"])


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("train/1.jpg", "train/1.jpg"),
        ("train\\1.jpg", "train/1.jpg"),
        ("..\\..\\set\\train\\1.jpg", "train/1.jpg"),
        ("/home/me/set/val/1.jpg", "val/1.jpg"),
        ("C:\\set\\val\\1.jpg", "val/1.jpg"),
        ("1.jpg", None),  # of train or val
        ("other/1.jpg", None),
        ("val/a%20b.png", "val/a b.png"),
        ("a b.png ", "val/a b.png"),
        ("TRAIN/käse 2.jpg", "train/Käse 2.JPG"),
        (unicodedata.normalize("NFD", "train/Käse 2.JPG"), "train/Käse 2.JPG"),
        ("https://example.org/x/c.png", "c.png"),
        ("./c.png", "c.png"),
        ("d.png", "deep/er/d.png"),
        ("no.png", None),
        ("", None),
    ],
)
def test_spellings(name, found):
    assert NAMES.find(name) == found


def test_the_folder_of_the_annotation_comes_first():
    assert NAMES.find("1.jpg", "val") == "val/1.jpg"
    assert NAMES.find("1.jpg", "train") == "train/1.jpg"


def test_stems():
    assert NAMES.find_stem("1", "val") == "val/1.jpg"
    assert NAMES.find_stem("d") == "deep/er/d.png"
    assert NAMES.find_stem("1") is None
    assert ImageNames(["a.jpg", "a.png"]).find_stem("a") is None


def test_a_whole_name_is_its_own_image():
    names = ImageNames(["a.jpg", "x/a.jpg"])
    assert (names.find("a.jpg"), names.find("x/a.jpg"), names.find("b/a.jpg")) == ("a.jpg", "x/a.jpg", "a.jpg")
    assert ImageNames(["A.jpg", "a.JPG"]).find("a.jpg") is None


CATS = ["cats/2.jpg", "dogs/1.jpg", "dogs/2.jpg"]


@pytest.mark.parametrize(
    ("images", "name", "folder", "stated", "found"),
    [
        (CATS, "cats/1.jpg", "", [], None),
        (CATS, "images/cats/1.jpg", "", [], None),
        (CATS, "/home/me/cats/1.jpg", "", [], None),
        (CATS, "C:\\me\\Cats\\1.jpg", "", [], None),
        (CATS, "1.jpg", "", [], "dogs/1.jpg"),  # names without folders over folders
        (CATS, "1.jpg", "", ["dogs/1.jpg"], None),  # has an annotation of its own
        (CATS, "1.jpg", "cats", [], None),
        (CATS, "1.jpg", "labels", [], "dogs/1.jpg"),
        (CATS, "fish/1.jpg", "", [], None),  # which may be any of the folders' images
        (["dogs/1.jpg", "dogs/2.jpg"], "cats/1.jpg", "", ["cats/1.jpg", "dogs/2.jpg"], None),
        (["dogs/1.jpg", "dogs/2.jpg"], "/me/cats/1.jpg", "", ["/me/cats/1.jpg", "/me/dogs/2.jpg"], None),
        (["pets/1.jpg", "pets/2.jpg"], "C:\\me\\photos 1\\1.jpg", "", [], "pets/1.jpg"),
        (["images/1.jpg", "docs/x.png"], "..\\..\\media\\upload\\4\\1.jpg", "", [], "images/1.jpg"),
        (["train/1.jpg", "val/2.jpg"], "/home/me/raw/1.jpg", "", [], "train/1.jpg"),
        (["train/1.jpg", "train/2.jpg"], "val/1.jpg", "", [], None),
        (["train/1.jpg", "train/2.jpg"], "valid/images/1.jpg", "", [], None),
        (["train/images/1.jpg", "train/images/2.jpg"], "valid/images/1.jpg", "", [], None),
        (["1.jpg", "cats/2.jpg"], "cats/1.jpg", "", [], None),
        (["1.jpg", "cats/2.jpg"], "1.jpg", "cats", [], None),
        (["1.jpg", "2.jpg"], "cats/1.jpg", "", [], "1.jpg"),
        (["a/cats/1.jpg", "b/cats/2.jpg"], "cats/1.jpg", "b", [], None),
    ],
)  # fmt: skip
def test_folders_can_contradict(images, name, folder, stated, found):
    names = ImageNames(images, lambda: ((each, folder) for each in stated))
    assert names.find(name, folder) == found
    stem = name.replace("\\", "/").removesuffix(".jpg")
    assert names.find_stem(stem, folder) in (found, None)


def test_files_other_than_images_have_no_folders_that_contradict():
    assert ImageNames(["train.txt", "data/a.txt"], strict=False).find("data/train.txt") == "train.txt"
