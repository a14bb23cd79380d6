"""The command line: registers the verbs and turns whatever goes wrong into one paragraph and an exit code.

A verb is a function of the same name in `commands/<verb>.py`, with _ for -; its docstring is its help. Those modules
import torch inside the function only, so that `codetr --help` and every message about wrong usage come at once.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from codetr_cli import __version__, console
from codetr_cli.errors import CodetrError

VERBS = ("prepare", "train", "eval", "bench", "predict", "convert", "convert-data", "download", "presets", "runs")

EXIT_UNEXPECTED = 1
EXIT_MACHINE = 5
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the words after `codetr`; the process's own when None.

    Returns:
        the exit code: 0 done, 1 a bug, 2 usage or settings, 3 data, 4 checkpoint, 5 machine, 6 training diverged,
        130 and 143 stopped by a signal.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    _open_closed_streams()
    console.set_mode()
    try:
        code = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, e.g. `head`, has left. What is still buffered must not complain when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_UNEXPECTED
    return code


def _open_closed_streams() -> None:
    """Gives a process that was started without standard streams (`>&-`) ones that lead nowhere.

    Otherwise files of its own would get their numbers, and whatever a library prints would end up in them.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, "w" if number else "r", closefd=False, encoding="utf-8"))  # noqa: SIM115


def build_app(verbs: Sequence[str] = VERBS) -> typer.Typer:
    """The Typer application with the given verbs, in that order."""
    app = typer.Typer(
        name="codetr",
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_codetr)
    for verb in verbs:
        name = verb.replace("-", "_")
        module = importlib.import_module(f"codetr_cli.commands.{name}")
        needy = verb in ("convert", "convert-data", "download", "eval", "predict")
        app.command(verb, no_args_is_help=needy)(getattr(module, name))
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        console.result(f"codetr {__version__}")
        raise typer.Exit


def _codetr(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train, evaluate, benchmark and run Co-DETR object detectors."""


def _run(words: list[str]) -> int:
    """Runs the words and reports what went wrong; a pipe that broke is the caller's business."""
    wants_json = "--json" in words
    try:
        # Only the verb that is called gets imported; the others are needed for help and for suggestions alone.
        app = build_app((words[0],) if words and words[0] in VERBS else VERBS)
        return app(args=words, prog_name="codetr", standalone_mode=False, obj=words) or 0
    except BrokenPipeError:
        raise
    except CodetrError as error:
        return _fail(str(error), error.exit_code, wants_json)
    except typer.TyperException as error:
        return _fail(_usage_text(error), error.exit_code, wants_json) if str(error) else error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted.", EXIT_INTERRUPTED, wants_json)
    except Exception as error:
        code, text = _explain(error)
        if os.environ.get("CODETR_DEBUG"):
            sys.stderr.write(traceback.format_exc())
        return _fail(text, code, wants_json)


def _fail(text: str, code: int, wants_json: bool) -> int:
    console.error(text)
    if wants_json:
        console.fail_json({"error": text, "exit_code": code})
    return code


def _usage_text(error: typer.TyperException) -> str:
    """What is wrong with the words, the nearest right word, and where help is."""
    text = error.format_message()
    possibilities: Sequence[str] = getattr(error, "possibilities", None) or ()
    if possibilities:
        text = f"{error.message.rstrip('.')}; did you mean {' or '.join(sorted(possibilities))}?"
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "codetr"
    return f"{text.rstrip('.')}{'' if text.endswith('?') else '.'} `{command} --help` lists what there is."


def _explain(error: Exception) -> tuple[int, str]:
    """Exit code and paragraph for an exception that is no `CodetrError`."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" while writing {error.filename}" if error.filename else ""
        return (
            EXIT_MACHINE,
            f"no space left on the disk{where}: free some space or choose another folder, then run again.",
        )
    if isinstance(error, OSError) and error.filename is not None:
        return EXIT_MACHINE, f"cannot use {error.filename}: {error.strerror}. Check that it exists and may be accessed."
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        first_line = (str(error).splitlines() or [""])[0]
        return EXIT_MACHINE, (
            f"not enough memory: {first_line.rstrip('.') or 'an allocation failed'}. Lower --set train.micro_batch=1, "
            "use --precision bf16, or smaller images (--set data.long_side=...)."
        )
    hint = "" if os.environ.get("CODETR_DEBUG") else " Run it again with CODETR_DEBUG=1 to see where it happened."
    return EXIT_UNEXPECTED, f"unexpected {type(error).__name__}: {error}. This is a mistake in codetr.{hint}"
