"""What is printed and where: streams, quiet and JSON modes, log messages, tables, progress, units."""

from __future__ import annotations

import io
import json
import logging
import sys
from importlib.metadata import version

import numpy as np
import pytest

from codetr_cli import console


@pytest.fixture(autouse=True)
def _default_mode():
    console.set_mode()
    yield
    console.set_mode()


def test_text_goes_to_stderr_with_json(capsys):
    console.info("one [not markup] /a/" + "long" * 80)
    console.set_mode(json=True)
    console.info("two")
    console.table("three", ["a"], [[1]])
    streams = capsys.readouterr()
    assert streams.out == "one [not markup] /a/" + "long" * 80 + "\n"
    assert streams.err.startswith("two\n")
    assert "three" in streams.err


def test_quiet_keeps_results_warnings_and_errors(capsys):
    console.set_mode(quiet=True)
    console.info("chatter")
    console.result("result")
    console.warn("careful")
    console.error("wrong")
    streams = capsys.readouterr()
    assert streams.out == "result\n"
    assert streams.err == "warning: careful\nerror: wrong\n"


def test_json_result_is_plain_and_written_once(capsys, tmp_path):
    console.set_mode(json=True)
    console.result_json(
        {
            "nan": float("nan"),
            "inf": [np.float32("inf")],
            "path": tmp_path,
            "array": np.arange(2),
            3: np.int64(4),
            "é": (True,),
        }
    )
    expected = {"nan": None, "inf": [None], "path": str(tmp_path), "array": [0, 1], "3": 4, "é": [True]}
    assert json.loads(capsys.readouterr().out) == expected
    with pytest.raises(RuntimeError, match="already written"):
        console.result_json({})


def test_no_json_unless_asked(capsys):
    console.result_json({"a": 1})
    assert capsys.readouterr().out == ""


def test_failure_does_not_follow_a_result(capsys):
    console.set_mode(json=True)
    console.result_json({"a": 1})
    console.fail_json({"error": "late"})
    assert json.loads(capsys.readouterr().out) == {"a": 1}


def test_table_without_a_terminal_is_never_cut(capsys):
    long = "x" * 150
    console.table("AP", ["name", "latency [ms]"], [[long, 1234.5], ["b", None]])
    lines = capsys.readouterr().out.splitlines()
    assert any(long in line and line.rstrip().endswith("1,234") for line in lines)
    assert any("latency [ms]" in line for line in lines)
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize(("width", "expected"), [(40, "bold: 1,805"), (80, "1,805")])
def test_a_table_that_a_terminal_has_no_room_for_is_a_list(monkeypatch, width: int, expected: str):
    rich_console = pytest.importorskip("rich.console", reason="a terminal of its own")
    out = rich_console.Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(console, "_console", lambda **_: out)
    headings = ["split", "bold", "without objects", "excluded", "classes", ""]
    console.table("Splits", headings, [["validation", 1805, 17, 12345, "4 of 4", "#" * 12]])
    lines = [line.strip() for line in out.file.getvalue().splitlines()]
    assert any(line == expected if width == 40 else expected in line for line in lines)
    assert max(map(len, lines)) <= width
    assert ("validation" in lines) == (width == 40)


def test_short_work_shows_no_progress(capsys):
    with console.progress("reading", 10) as advance:
        for _ in range(10):
            advance()
    assert capsys.readouterr().err == ""


def test_long_work_shows_lines_without_a_terminal(capsys, monkeypatch):
    clock = iter(float(second) for second in range(1000))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress("reading", 40) as advance:
        for step in range(40):
            advance(1, data_wait=step / 100)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 10
    assert lines[0].startswith("reading: 2/40 (5%), ")
    assert lines[0].endswith("left, data wait 0.01")
    assert lines[-1].startswith("reading: 40/40 (100%), took ")
    assert len(set(lines)) == len(lines)


def test_progress_of_unknown_length(capsys, monkeypatch):
    clock = iter(float(second) for second in range(1000))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress("frames") as advance:
        for _ in range(5):
            advance(10)
    assert capsys.readouterr().err.splitlines()[0] == "frames: 20"


def test_quiet_progress_is_silent(capsys, monkeypatch):
    console.set_mode(quiet=True)
    clock = iter(float(second) for second in range(1000))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress("reading", 5) as advance:
        advance(5, loss=1.0)
    assert capsys.readouterr().err == ""


def test_work_that_ends_between_two_lines_still_gets_its_last(capsys, monkeypatch):
    clock = iter([0.0, 3.0, 4.0, 4.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress("reading", 2) as advance:
        advance()
        advance()
    assert capsys.readouterr().err.splitlines() == [
        "reading: 1/2 (50%), 3.00 s left",
        "reading: 2/2 (100%), took 4.00 s",
    ]


def test_work_that_is_continued_counts_from_what_is_done(capsys, monkeypatch):
    clock = iter([0.0, 10.0, 20.0, 20.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress("training", 1000, done=900) as advance:
        advance(10)  # 1 a second
        advance(40, seconds_left=7.0, epoch=3)
    assert capsys.readouterr().err.splitlines() == [
        "training: 910/1,000 (91%), 1 min 30 s left",
        "training: 950/1,000 (95%), 7.00 s left, epoch 3",
    ]


package_logger = logging.getLogger("codetr_cli.somewhere")


def test_log_messages_are_printed_once(capsys):
    with console.log_to_console(), console.log_to_console():
        package_logger.debug("hidden")
        package_logger.info("note of %s", "/a/[b]")
        package_logger.warning("careful")
        package_logger.error("wrong")
        console.set_mode(quiet=True)
        package_logger.info("chatter")
        package_logger.warning("careful")
    assert logging.getLogger("codetr_cli").handlers == []
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err == "note of /a/[b]\nwarning: careful\nerror: wrong\nwarning: careful\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.skipif(int(version("rich").split(".")[0]) < 15, reason="older releases write to a live bar otherwise")
def test_a_log_message_appears_above_a_live_bar(monkeypatch):
    """The bar's line is erased before the message and drawn again below it; no other console writes meanwhile."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    clock = iter(float(second) for second in range(0, 100000, 3))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.log_to_console(), console.progress("training", 100, done=10) as advance:
        advance(5, loss=1.5)
        assert "15/100" in terminal.getvalue()
        for text, write in (
            ("checkpoint saved", lambda: package_logger.info("checkpoint saved")),
            ("a result", lambda: console.result("a result")),
            ("heading", lambda: console.table("", ["heading"], [[1]])),
        ):
            start = len(terminal.getvalue())
            write()
            erased, _, after = terminal.getvalue()[start:].partition(text)
            assert "\r\x1b[2K" in erased, "the bar is erased before the text"
            assert "15/100" in after, "the bar is drawn again below the text"


HOSTILE = "a\x1b[2J\x1b]0;title\x07\nerror: \u202eb\udcff"
SHOWN = "a\\x1b[2J\\x1b]0;title\\x07\\nerror: \\u202eb\\xff"


def test_control_characters_are_shown_and_never_printed(capsys, monkeypatch):
    monkeypatch.setattr(console, "QUIET_SECONDS", 0.0)
    clock = iter(float(second) for second in range(1000))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    console.info(HOSTILE)
    console.result(HOSTILE)
    console.warn(HOSTILE)
    console.error(HOSTILE)
    console.table(HOSTILE, [HOSTILE, HOSTILE + " [m\x1bs]"], [[HOSTILE, 1]])
    with console.progress(HOSTILE, 2) as advance:
        advance(2, loss=HOSTILE)
    with console.log_to_console():
        logging.getLogger("codetr_cli.x").warning("%s", HOSTILE)
    streams = capsys.readouterr()
    assert streams.err.splitlines() == [
        f"warning: {SHOWN}",
        f"error: {SHOWN}",
        f"{SHOWN}: 2/2 (100%), took 1.00 s, loss {SHOWN}",
        f"warning: {SHOWN}",
    ]
    assert streams.out.count(SHOWN) == 6
    assert not set(streams.out + streams.err) & set("\x1b\x07\u202e\udcff")


def test_a_bar_shows_control_characters_too(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with console.progress(HOSTILE, 2) as advance:
        monkeypatch.setattr(console, "QUIET_SECONDS", -1.0)
        advance(1, loss=HOSTILE)
    assert terminal.getvalue().count("\\x1b[2J") >= 2
    assert "\x1b[2J" not in terminal.getvalue()
    assert "\x07" not in terminal.getvalue()


def test_a_question_shows_control_characters(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert console.confirm(HOSTILE)
    assert SHOWN in capsys.readouterr().out


def test_several_lines_stay_lines(capsys):
    console.result_lines("a = 1\n\nb = \x1b\n")
    assert capsys.readouterr().out == "a = 1\n\nb = \\x1b\n"


def test_json_is_exact(capsys):
    console.set_mode(json=True)
    console.result_json({"a": "é" + HOSTILE})
    assert json.loads(capsys.readouterr().out) == {"a": "é" + HOSTILE}


def test_bars_of_other_packages_are_no_part_of_the_output(capsys):
    rich = pytest.importorskip("rich", reason="it is imported as another package would")
    with console.without_bars_of_others():
        rich.get_console().print("a bar")
        console.result("a line")
    rich.get_console().print("afterwards")
    assert capsys.readouterr().out == "a line\nafterwards\n"


def test_lines_of_several_styles_are_plain_and_whole_in_a_pipe(capsys):
    console.result_pieces([[("a ", "bold"), ("[red]b\x1b" * 200, "red")], [("", "")], [("c", "")]])
    assert capsys.readouterr().out == "a " + "[red]b\\x1b" * 200 + "\n\nc\n"
    console.set_mode(json=True)
    console.result_pieces([[("d", "")]])
    assert capsys.readouterr() == ("", "d\n")


def test_where_there_is_a_screen(capsys, monkeypatch):
    assert not console.has_screen()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for terminal, expected in (("xterm-256color", True), ("dumb", False)):
        monkeypatch.setenv("TERM", terminal)
        assert console.has_screen() == expected


def test_characters_that_the_stream_of_text_has(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert not console.can_show("▁")
    assert console.can_show("#")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert console.can_show("▁")
    console.set_mode(json=True)
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert not console.can_show("▁")
