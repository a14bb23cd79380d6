from __future__ import annotations

import threading

import pytest

from codetr_cli.training.background_writer import BackgroundWriter


def test_a_write_waits_for_the_one_before():
    written, go = [], threading.Event()

    def first() -> None:
        go.wait(10)
        written.append(1)

    with BackgroundWriter() as writer:
        writer.write(first)
        assert written == []
        threading.Timer(0.05, go.set).start()
        writer.write(lambda: written.append(2))
        assert written[0] == 1
    assert written == [1, 2]


def fail() -> None:
    raise OSError("no space")


def test_an_error_is_raised_once_in_the_thread_that_trains():
    writer = BackgroundWriter()
    writer.write(fail)
    with pytest.raises(OSError, match="no space"):
        writer.wait()
    writer.check()
    writer.wait()


def test_a_check_does_not_wait():
    go = threading.Event()
    with BackgroundWriter() as writer:
        writer.write(lambda: go.wait(10) and None)
        writer.check()
        go.set()


def diverge_while_a_write_fails() -> None:
    with BackgroundWriter() as writer:
        writer.write(fail)
        raise ValueError("diverged")


def test_an_error_of_the_training_keeps_the_one_of_the_write_as_a_note():
    with pytest.raises(ValueError, match="diverged") as caught:
        diverge_while_a_write_fails()
    assert caught.value.__notes__ == ["no space"]
