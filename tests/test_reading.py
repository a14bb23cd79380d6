"""Files that may come from strangers: what is opened, how much is read, and what a text may cost."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from codetr_cli import reading


def test_a_regular_file_is_read_through_links(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert reading.read_bytes(tmp_path / "b") == b"abc"
    assert reading.read_bytes(str(tmp_path / "a"), limit=3) == b"abc"
    with pytest.raises(OSError, match="more than 2 bytes"):
        reading.read_bytes(tmp_path / "a", limit=2)
    with pytest.raises(FileNotFoundError):
        reading.open_file(tmp_path / "c")
    with pytest.raises(IsADirectoryError):
        reading.open_file(tmp_path)


def test_nothing_else_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # the path of a socket is limited to a hundred characters
        server.bind("socket")
        for name, kind in {"pipe": "named pipe", "link": "device", "socket": "socket"}.items():
            with pytest.raises(OSError, match=f"it is a {kind}, not a regular file") as caught:
                reading.open_file(tmp_path / name)
            assert caught.value.filename == str(tmp_path / name)


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="the kernel's files are those of Linux")
def test_files_of_the_kernel_are_no_data(tmp_path: Path):
    (tmp_path / "link").symlink_to("/proc/self/environ")
    for path in (tmp_path / "link", "/proc/meminfo", "/proc/self/environ"):
        with pytest.raises(OSError, match="file of the kernel"):
            reading.read_bytes(path)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_name_that_no_file_can_have_is_not_found(name: str):
    with pytest.raises(FileNotFoundError, match="no file can have such a name"):
        reading.open_file(name)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, "9" * 100_000, "[1", ""])
def test_hostile_json_is_a_value_error(text: str):
    with pytest.raises(ValueError, match=r"."):
        reading.parse_json(text)
    with pytest.raises(ValueError, match=r"."):
        reading.parse_json(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        "a=" + "[" * 100_000,
        "a=" + "{a=" * 100_000,
        "a=" + "9" * 100_000,
        ".".join("a" * 200_000) + " = 1",
        "[" + " . ".join("a" * 100_000) + "]",
        "a = {" + ".".join(['"x y"'] * 100_000) + " = 1}",
        ".".join(['"\\""'] * 20_000) + " = 1",
        "a = [\n  {x = 1, " + ".".join(["'\"'"] * 100_000) + " = 1}]",
        "[[" + ".".join("a" * 9) + "]]",
        "x = 1\n\t" + ".".join("a" * 9) + " = 1",
        "a" * 900_000,
        "#" * 2_000_000,
        '"' * 900_001,
    ],
)
def test_hostile_toml_is_a_value_error_at_once(text: str):
    started = time.process_time()
    with pytest.raises(ValueError, match=r"."):
        reading.parse_toml(text)
    assert time.process_time() - started < 5


def test_dots_in_texts_and_comments_are_no_keys():
    words = "word." * 500
    assert reading.parse_toml(f"a = \"{words}\"  # {words}\n# {words}\nb.c = '{words}'")["b"] == {"c": words}


def test_keys_of_the_longest_form_are_read_in_linear_time():
    started = time.process_time()
    reading.parse_toml("\n".join(f"a{i}.b.c.d.e.f.g.h = 1" for i in range(15_000)))
    assert time.process_time() - started < 5


@pytest.mark.parametrize("read", [reading.parse_json, lambda text: reading.parse_toml(f"a = {text}")])
def test_numbers_of_thousands_of_digits_are_named_in_our_words(read):
    with pytest.raises(ValueError, match=r"^it has a number of thousands of digits$"):
        read("9" * 100_000)


def test_dots_in_values_are_no_keys():
    numbers = ", ".join(f"{i}.5" for i in range(100))
    assert reading.parse_toml(f'a.b = [{numbers}]\nc = "{"x." * 30}"')["a"]["b"][99] == 99.5


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("a.jpg", True),
        ("sub/a.jpg", True),
        ("sub/../a.jpg", True),
        ("./a..b/..c", True),
        ("sub\\a.jpg", True),
        ("/a.jpg", False),
        ("../a.jpg", False),
        ("sub/../../a.jpg", False),
        ("sub\\..\\..\\a.jpg", False),
        ("C:\\a.jpg", False),
        ("C:/a.jpg", False),
        ("C:a.jpg", os.name != "nt"),
        ("t:0001.jpg", os.name != "nt"),
        ("t:../../a.jpg", os.name != "nt"),
        ("t:../../../a.jpg", False),
        ("\\\\server\\share\\a.jpg", False),
    ],
)
def test_names_that_leave_the_folder(name: str, inside: bool):
    assert reading.stays_inside(name) == inside
