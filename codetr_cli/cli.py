"""The command line: registers the verbs and turns every failure into one paragraph and an exit code.

A verb is a function of the same name in `commands/<verb>.py`, with _ for -. Its docstring is its help, which `EXAMPLES`
of the module follow. Those modules import torch inside the function only, so that `codetr --help` and every
message about wrong usage appear at once.
"""

from __future__ import annotations

import importlib
import os
import platform
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from codetr_cli import __version__, console
from codetr_cli.closed_streams import tolerate_closed_streams
from codetr_cli.commands._defaults import Defaults, Invocation, find_defaults
from codetr_cli.commands._help import Group, add_verb
from codetr_cli.commands._options import use_shown_spelling
from codetr_cli.errors import ArgumentError, CodetrError, ConfigError, ResourceError, machine_error
from codetr_cli.escaping import visible, without_credentials

VERB_GROUPS = {
    "Data": ("prepare", "stats", "browse", "convert-data", "cache"),
    "Train and evaluate": ("train", "eval", "compare", "review", "bench", "runs", "watch"),
    "Use": ("predict", "label", "serve", "demo"),
    "Weights": ("presets", "download", "convert", "export", "card", "push"),
    "This machine": ("doctor",),
}
"""Panel of `codetr --help` -> its verbs."""
VERBS = tuple(verb for verbs in VERB_GROUPS.values() for verb in verbs)
NEEDS_WORDS = (
    "compare",
    *("card", "convert", "convert-data", "demo", "download", "eval"),
    *("export", "label", "predict", "push", "review"),
)
"""Verbs that print their help when nothing follows them."""

EXIT_UNEXPECTED = 1
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the words after `codetr`; those of the process when None.

    Returns:
        the exit code: 0 done, 1 a bug, 2 usage or settings, 3 data, 4 checkpoint, 5 machine, 6 training diverged,
        130 and 143 stopped by a signal.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    _open_closed_streams()
    console.set_mode(json="--json" in words, quiet="--quiet" in words or "-q" in words)
    with tolerate_closed_streams(stdout=False), console.log_to_console():
        try:
            with _recorded_interrupts() as interrupts:
                code = _run(words, interrupts)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader, e.g. `head`, has ended
            _discard_stdout()
            return EXIT_UNEXPECTED
        except OSError as error:
            _discard_stdout()
            console.error(f"cannot write to <stdout>: {error.strerror}.")
            return ResourceError.exit_code
    return code


def _discard_stdout() -> None:
    """What is still buffered must raise nothing when the interpreter exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_closed_streams() -> None:
    """Opens the null device as the standard streams that the process was started without (`>&-`).

    Otherwise files that it opens would get their numbers, and what a library prints would be written to them.
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
        cls=Group,
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_codetr)
    panels = {verb: panel for panel, verbs_of_it in VERB_GROUPS.items() for verb in verbs_of_it}
    for verb in verbs:
        name = verb.replace("-", "_")
        module = importlib.import_module(f"codetr_cli.commands.{name}")
        function = getattr(module, name)
        if isinstance(function, typer.Typer):
            app.add_typer(function, name=verb, rich_help_panel=panels[verb])
        else:
            add_verb(app, verb, function, module.EXAMPLES, needs_words=verb in NEEDS_WORDS, panel=panels[verb])
    return app


def _codetr(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="With --version: print one JSON object.")] = False,
) -> None:
    """Train, evaluate, benchmark and run Co-DETR object detectors."""
    if version:
        console.result_json(_versions())
        if not json_output:
            console.result(f"codetr {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


def _versions() -> dict[str, str | None]:
    """Versions that a bug report needs; torch is not imported for it."""
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = None
    return {
        "codetr": __version__,
        "python": platform.python_version(),
        "torch": torch,
        "platform": platform.platform(),
    }


@contextmanager
def _recorded_interrupts() -> Iterator[list[int]]:
    """Yields a list that gets the number of each SIGINT that becomes a KeyboardInterrupt inside."""
    interrupts: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        signal.default_int_handler(number, frame)

    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_default or threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(words: list[str], interrupts: Sequence[int]) -> int:
    """Runs the words and reports failures; a broken pipe is left to the caller."""
    try:
        # Only the verb that is called gets imported; the others are needed for help and suggestions alone.
        app = build_app((words[0],) if words and words[0] in VERBS else VERBS)
        words = use_shown_spelling(words)
        wants_help = not words or words[0] not in VERBS or "--help" in words or "-h" in words
        defaults = Defaults() if wants_help else find_defaults(Path.cwd())
        invocation = Invocation(words, defaults)
        code = app(
            args=words,
            prog_name="codetr",
            standalone_mode=False,
            obj=invocation,
            default_map=defaults.for_options(words),
        )
        return code or 0
    except BrokenPipeError:
        raise
    except CodetrError as error:
        has_other_words = isinstance(error, ArgumentError) and isinstance(error.__cause__, ConfigError)
        return _fail(str(error.__cause__ if has_other_words else error), error.exit_code)  # those of the options
    except typer.TyperException as error:
        return _fail(_usage_text(error), error.exit_code) if str(error) else error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted.", EXIT_INTERRUPTED)
    except Exception as error:
        if interrupts:  # a library has taken it for an error of its own, as numpy does while it is imported
            return _fail("interrupted.", EXIT_INTERRUPTED)
        code, text = _explain(error)
        if os.environ.get("CODETR_DEBUG"):
            for line in traceback.format_exc().splitlines():
                sys.stderr.write(visible(line) + "\n")
        return _fail(text, code)


def _fail(text: str, code: int) -> int:
    text = without_credentials(text)
    console.error(text)
    console.fail_json({"error": text, "exit_code": code})
    return code


def _usage_text(error: typer.TyperException) -> str:
    """What is wrong with the words, the nearest known word, and where to find help."""
    text = error.format_message()
    possibilities: Sequence[str] = getattr(error, "possibilities", None) or ()
    if possibilities:
        text = f"{error.message.rstrip('.')}; did you mean {' or '.join(sorted(possibilities))}?"
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "codetr"
    return f"{text.rstrip('.')}{'' if text.endswith('?') else '.'} See `{command} --help`."


def _explain(error: Exception) -> tuple[int, str]:
    """Exit code and paragraph for an exception that is not a `CodetrError`."""
    known = machine_error(
        error, "Use --set train.micro_batch=1, --precision bf16, or smaller images (--set data.long_side=...)"
    )
    if known is not None:
        return known.exit_code, str(known)
    hint = "" if os.environ.get("CODETR_DEBUG") else " Run it again with CODETR_DEBUG=1 to see the traceback."
    what = " ".join(str(error).split())
    return EXIT_UNEXPECTED, f"unexpected {type(error).__name__}: {what}. This is a bug in codetr.{hint}"
