from __future__ import annotations

import os
import tarfile
import time

import pytest

from codetr_cli.errors import ConfigError, DatasetError
from codetr_cli.images.image_files import Skipped
from codetr_cli.prediction.inputs import find_images, unique_names
from codetr_cli.result_files import ResultRecord, write_result


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


@pytest.mark.parametrize("source", [".", "c", "**/*.jpg", "c/../**/*.jpg", "c/*", "*/*.jpg"])
def test_what_was_drawn_is_no_input(folder, source):
    record = ResultRecord(folder / "c")
    for name, by in (("drawn.jpg", "predict"), ("deep/drawn.jpg", "predict"), ("tile.jpg", "convert-data")):
        with write_result(folder / "c" / name, by=by, record=record, parents=True) as temporary:
            temporary.write_bytes(b"a picture")
    (folder / "c/edited.jpg").write_bytes((folder / "c/drawn.jpg").read_bytes())
    with write_result(folder / "c/retouched.jpg", by="predict", record=record) as temporary:
        temporary.write_bytes(b"a picture")
    (folder / "c/retouched.jpg").write_bytes(b"another picture")
    skipped = Skipped()
    found = {image.path.name for image in find_images([source], skipped=skipped)}
    assert "drawn.jpg" not in found
    assert {"tile.jpg", "edited.jpg", "retouched.jpg", "000000000139.jpg"} <= found
    assert {os.path.basename(name) for name in skipped.results} == {"drawn.jpg"}  # noqa: PTH119
    assert [image.name for image in find_images(["c/drawn.jpg"])] == ["drawn.jpg"]  # named by the user
    with pytest.raises(DatasetError, match=r"1 image drawn by codetr itself not used: drawn\.jpg"):
        find_images(["c/deep"])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "it is a named pipe, not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "it is a device, not a regular file"),
        (lambda path: path.symlink_to("/proc/self/environ"), "it is a file of the kernel, not a regular file"),
        (lambda path: path.symlink_to("nowhere"), "No such file or directory"),
    ],
)
def test_only_regular_files_are_inputs(folder, make, words):
    make(folder / "a.jpg")
    with pytest.raises(DatasetError, match=f"cannot read a.jpg: {words}"):
        find_images(["a.jpg"])
    (image,) = find_images(["*.jpg"])  # named by its own error later
    assert image.name == "a.jpg"


def test_a_link_to_an_image_is_an_input(folder):
    (folder / "link").symlink_to("odd.dat")
    assert [image.name for image in find_images(["link"])] == ["link"]


def test_links_that_lead_back_are_not_followed(folder):
    for name in ("a/x", "a/y", "a/b/x", "a/b/y"):
        (folder / name).symlink_to(folder)
    assert len(find_images(["."])) == 3
    assert len(find_images(["**/*.jpg"])) == 2
    assert len(find_images(["a/**/*.PNG"])) == 1
    assert len(find_images(["**"])) == 3


def test_a_pattern_follows_links_to_folders_once(folder):
    (folder / "root").mkdir()
    for name in ("set1", "set2"):
        (folder / "root" / name).symlink_to("../c")
    (folder / "root" / "loop.jpg").symlink_to("loop.jpg")
    found = [image.path.as_posix() for image in find_images(["root/**/*.jpg"])]
    assert found == ["root/loop.jpg", "root/set1/000000000139.jpg"] or found == [  # the order on the disk
        "root/loop.jpg",
        "root/set2/000000000139.jpg",
    ]
    assert [image.path.as_posix() for image in find_images(["a/**/*.PNG"])] == ["a/b/000000000285.PNG"]


def test_patterns_skip_what_is_hidden(folder):
    (folder / "a/.hidden").mkdir()
    (folder / "a/.hidden/1.jpg").write_text("x")
    (folder / "a/.2.jpg").write_text("x")
    assert [image.name for image in find_images(["a/**/*.jpg"])] == ["000000000139.jpg"]
    assert [image.name for image in find_images(["a/**/.*.jpg"])] == [".2.jpg"]
    assert [image.name for image in find_images(["a/.hidden/**"])] == ["1.jpg"]


def test_long_names_get_numbers_at_once():
    for name in ("a." + "b" * 60_000, "ä" * 60_000 + ".jpg"):
        first, second = unique_names([name, name])
        assert first == name
        assert second != name
        assert len(second.encode()) <= 255


def test_thousands_of_equal_names_take_no_time():
    started = time.process_time()
    names = unique_names(["a.jpg"] * 5000 + ["a_2.jpg"])
    assert names[:3] == ["a.jpg", "a_3.jpg", "a_4.jpg"]
    assert len(set(names)) == 5001
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (("7", "0012"), [12, 7]),
        (("7", "007"), [1, 2]),  # the same number
        (("7", "a"), [1, 2]),
        (("9" * 200,), [1]),
        (("20240131123456123456", "20240131123457654321"), [1, 2]),
        ((str(2**53 - 1),), [2**53 - 1]),
        ((str(2**53),), [1]),  # readers of JSON may round it
        (("\u0663", "5"), [1, 2]),  # a digit, but not of COCO
        (("\u00b2",), [1]),
        (("-5", "+5"), [1, 2]),
        (("1_000",), [1]),
    ],
)
def test_image_ids(tmp_path, names, ids):
    for name in names:
        (tmp_path / f"{name}.jpg").touch()
    assert sorted(image.image_id for image in find_images([str(tmp_path)])) == sorted(ids)


def test_a_name_that_is_not_unicode(folder):
    (folder / "c" / os.fsdecode(b"\xff\x1b[2J.jpg")).touch()
    assert os.fsencode(find_images(["c"])[1].name) == b"\xff\x1b[2J.jpg"


def test_a_file_that_is_named_in_several_ways_is_one(tmp_path, monkeypatch):
    (tmp_path / "f").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "f" / name).touch()
    (tmp_path / "f" / "link.png").symlink_to("a.png")
    (tmp_path / "g").symlink_to("f")
    monkeypatch.chdir(tmp_path)
    ways = ["f", str(tmp_path / "f"), "f/../f/a.png", "./f/b.png", "g/a.png", "f/*.png"]
    assert [image.name for image in find_images(ways)] == ["a.png", "b.png", "link.png"]


def names(*inputs: str, column: str | None = None) -> list[tuple[str, str, int]]:
    return [(image.file, image.name, image.image_id) for image in find_images(inputs, column=column)]


def test_a_list_names_images_relative_to_its_folder_that_need_not_exist(folder):
    (folder / "lists").mkdir()
    (folder / "lists/images.txt").write_text("x/7.jpg\n./y/8.jpg\n../c/9.jpg\n/abs/10.jpg\nx/7.jpg\n")
    assert names("lists/images.txt") == [
        *(("lists/x/7.jpg", "x/7.jpg", 7), ("lists/y/8.jpg", "8.jpg", 8)),
        *(("c/9.jpg", "9.jpg", 9), ("/abs/10.jpg", "10.jpg", 10)),
    ]
    (folder / "here.csv").write_text("label,url\ncat,a/000000000139.jpg\ndog,file:///abs/a%20b.jpg\n")
    assert names("here.csv") == [("a/000000000139.jpg", "a/000000000139.jpg", 1), ("/abs/a b.jpg", "a b.jpg", 2)]
    (folder / "empty.txt").write_text("\n")
    with pytest.raises(DatasetError, match=r"empty\.txt names no images"):
        names("empty.txt")
    with pytest.raises(DatasetError, match=r"empty\.txt names no images"):
        names("a", "empty.txt")
    with pytest.raises(ConfigError, match="--column x is of no use here"):
        names("a", column="x")


def test_archives_by_name_pattern_and_braces(folder):
    for number in range(2):
        with tarfile.open(folder / f"s-{number:02}.tar", "w") as archive:
            for name in ("0.jpg", "0.txt", f"{number + 1}.png"):
                archive.addfile(tarfile.TarInfo(name))
    expected = [
        *(("s-00.tar/0.jpg", "s-00.tar/0.jpg", 1), ("s-00.tar/1.png", "s-00.tar/1.png", 2)),
        *(("s-01.tar/0.jpg", "s-01.tar/0.jpg", 3), ("s-01.tar/2.png", "s-01.tar/2.png", 4)),
    ]
    assert names("s-{00..01}.tar") == names("s-*.tar") == names("s-00.tar", "s-01.tar", "s-00.tar") == expected
    with pytest.raises(DatasetError, match=r"there is no image or folder s-02\.tar"):
        names("s-{00..02}.tar")
    (folder / "x.tar.gz").touch()
    with pytest.raises(DatasetError, match="is compressed"):
        names("x.tar.gz")
    with tarfile.open(folder / "none.tar", "w"):
        pass
    with pytest.raises(DatasetError, match=r"none\.tar has no images"):
        names("none.tar")
    (folder / "shards").mkdir()
    (folder / "none.tar").rename(folder / "shards/none.tar")
    with pytest.raises(DatasetError, match=r"It has archives, such as none\.tar: give them as 'shards/\*\.tar'"):
        names("shards")
    (folder / "shards" / "a.MP4").touch()
    with pytest.raises(DatasetError, match=r"It has videos, such as a\.MP4: give them as 'shards/\*\.MP4'"):
        names("shards")


def test_addresses_lists_of_them_and_archives_at_them(folder):
    files = pytest.importorskip("fsspec", reason="fsspec is not installed").filesystem("memory")
    files.store.clear()
    files.pipe("/b/local.txt", b"/etc/a.jpg\nfile:///etc/b.jpg\n../c.jpg\n")
    assert [file.partition("://")[0] for file, _, _ in names("memory://b/local.txt")] == ["memory"] * 3
    files.rm("/b/local.txt")
    (folder / "names.txt").write_text("memory://b/%2e%2e\nmemory://b/a%00.jpg\n")
    assert [name for _, name, _ in names("names.txt")] == ["image", "a_.jpg"]
    (folder / "s.tar").write_bytes(b"")
    with tarfile.open(folder / "s.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("m.jpg"))
    files.pipe("/b/s.tar", (folder / "s.tar").read_bytes())
    files.pipe("/b/list.txt", b"deep/3.jpg\nmemory://other/4.jpg\n")
    files.pipe("/b/c/5.jpg", b"x")
    assert names("memory://b/list.txt") == [
        *(("memory://b/deep/3.jpg", "3.jpg", 3), ("memory://other/4.jpg", "4.jpg", 4))
    ]
    assert names("memory://b/s.tar", "memory://b/") == [
        *(("memory://b/s.tar/m.jpg", "s.tar/m.jpg", 1), ("memory://b/c/5.jpg", "c/5.jpg", 2))
    ]
    (folder / "list.txt").write_text("memory://u:secret@b/6.jpg?key=secret\na.jpg\n")
    assert names("list.txt") == [("memory://***@b/6.jpg?key=***", "6.jpg", 1), ("a.jpg", "a.jpg", 2)]
    with pytest.raises(ConfigError, match="did you mean 's3'"):
        names("s33://b/a.jpg")
    files.store.clear()
