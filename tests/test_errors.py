"""Each kind of failure has its exit code, the command line shows it as one paragraph, and never a traceback."""

from __future__ import annotations

import errno
import signal
from contextlib import suppress

import pytest

from codetr_cli import errors


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.ConfigError, 2),
        (errors.DatasetError, 3),
        (errors.CheckpointError, 4),
        (errors.ResourceError, 5),
        (errors.DivergedError, 6),
    ],
)
def test_every_kind_has_its_exit_code(kind: type[errors.CodetrError], code: int):
    assert issubclass(kind, errors.CodetrError)
    assert kind("x").exit_code == code


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143), (10, 143)])
def test_stopped_by_a_signal(number: int, code: int):
    assert errors.StoppedError("saved", number).exit_code == code


@pytest.fixture
def failing(codetr, monkeypatch):
    """Runs `codetr presets` with its work replaced by raising an exception."""

    def run(exception: BaseException, *words: str):
        def load_preset(*_: object) -> None:
            raise exception

        monkeypatch.setattr("codetr_cli.config.presets.load_preset", load_preset)
        return codetr("presets", "co_dino_r50", *words)

    return run


@pytest.mark.parametrize(
    ("exception", "code", "parts"),
    [
        (errors.DatasetError("no images in /x: write some"), 3, ["no images in /x: write some"]),
        (errors.StoppedError("saved to run/1", 15), 143, ["saved to run/1"]),
        (KeyboardInterrupt(), 130, []),
        (OSError(errno.ENOSPC, "No space left on device", "/full/file"), 5, ["no space left", "/full/file", "free"]),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 5, ["no space left"]),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), 5, ["/root/x", "Permission denied"]),
        (MemoryError(), 5, ["not enough memory", "micro_batch"]),
        *[
            (RuntimeError(text), 5, ["not enough memory", "micro_batch"])
            for text in (
                "[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: 9 bytes",
                "DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.",
                "unable to mmap 9 bytes from file </x>: Cannot allocate memory (12)",
                "std::bad_alloc",
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            )
        ],
        (RuntimeError("shapes differ"), 1, ["RuntimeError"]),
        (KeyError("foo"), 1, ["KeyError", "foo", "CODETR_DEBUG=1"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_failures_become_a_paragraph(failing, exception: BaseException, code: int, parts: list[str]):
    ran = failing(exception)
    assert ran.code == code
    assert ran.out == ""
    assert "Traceback" not in ran.err
    assert len(ran.err.splitlines()) <= 1
    for part in parts:
        assert part in ran.err


def test_an_interrupt_that_a_library_takes_for_an_error_is_none(codetr, monkeypatch):
    def load_preset(*_: object) -> None:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise AttributeError("module 'numpy' has no attribute 'iinfo'")

    monkeypatch.setattr("codetr_cli.config.presets.load_preset", load_preset)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # programs in the background ignore it
    try:
        ran = codetr("presets", "co_dino_r50")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert (ran.code, "bug" in ran.err) == (130, False)


def test_out_of_gpu_memory_is_recognised_without_torch(failing):
    class OutOfMemoryError(RuntimeError):
        """As torch names it."""

    ran = failing(OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore lines"))
    assert ran.code == 5
    assert "2.00 GiB" in ran.err
    assert "more lines" not in ran.err


def test_traceback_on_request(failing, monkeypatch):
    monkeypatch.setenv("CODETR_DEBUG", "1")
    ran = failing(KeyError("foo"))
    assert ran.code == 1
    assert "Traceback" in ran.err


def test_json_errors_are_one_object(failing):
    ran = failing(errors.CheckpointError("broken file"), "--json")
    assert ran.code == 4
    assert ran.json == {"error": "broken file", "exit_code": 4}
    assert "broken file" in ran.err


def test_long_lists_are_cut():
    assert errors.listed(["a", "b", "c"]) == "a, b, c"
    assert errors.listed(range(7)) == "0, 1, 2 and 4 more"
    assert errors.listed(range(2000), 1) == "0 and 1,999 more"
    assert errors.listed([]) == ""


def test_a_misspelled_word_gets_a_suggestion():
    assert errors.nearest("abcd", ["abc", "xyz"]) == "did you mean 'abc'?"
    assert errors.nearest("NO", ["on", "no", "yes"]) == "did you mean 'no'?"
    assert errors.nearest("zzz", ["abc", "def"]) == "known: abc, def"


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (FileExistsError(errno.EEXIST, "File exists", "out"), "as a file where a folder is needed"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "out/a"), "A part of this path is a file"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "out"), "It is a folder where a file is needed"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "out"), "Check that it exists"),
        (PermissionError(errno.EACCES, "Permission denied", "out"), "Check its permissions"),
        (OSError(errno.EIO, "Input/output error", "out"), "Check that it can be accessed"),
    ],
)
def test_the_advice_on_a_path_fits_the_error(error: OSError, advice: str):
    found = errors.machine_error(error, "")
    assert found is not None
    assert advice in str(found)
    assert (advice == "Check that it exists") == ("exists" in str(found).partition(". ")[2])


def test_numbers_of_things() -> None:
    assert errors.counted(1, "image", "are") == "1 image is"
    assert errors.counted(2000, "image", "are") == "2,000 images are"
    assert errors.counted(0, "line") == "0 lines"
