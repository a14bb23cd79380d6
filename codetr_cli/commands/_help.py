"""The help screens: options without a value show no type, paragraphs are as wide as the terminal, examples follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from codetr_cli import console
from codetr_cli.commands._defaults import Invocation
from codetr_cli.commands._options import OUTPUT


class Command(TyperCommand):
    """A verb. Before it runs, it prints which of the user's defaults it uses."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters as the help shows them."""
        return _as_shown(super().get_params(ctx), help_panel=OUTPUT)

    def invoke(self, ctx: Any) -> Any:
        """Runs the verb."""
        invocation: Invocation = ctx.obj
        sources = {key: ctx.get_parameter_source(key) for key in ("data", "device")}
        used = [key for key, source in sources.items() if source is not None and source.name == "DEFAULT_MAP"]
        if ctx.info_name == "train" and invocation.defaults.setting(ctx.params.get("overrides") or ()):
            used.append("loggers")
        if used and not ctx.params.get("json_output"):
            console.info(invocation.defaults.note(*used))
        return super().invoke(ctx)


class Group(TyperGroup):
    """A group of verbs."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters as the help shows them."""
        return _as_shown(super().get_params(ctx))


def add_verb(
    app: typer.Typer,
    name: str,
    function: Callable[..., None],
    examples: Sequence[str],
    *,
    needs_words: bool = False,
    panel: str | None = None,
) -> None:
    """Registers a verb of the program or of a group.

    The docstring of the function is the help, which the examples follow. With `needs_words` the help is also printed
    when nothing follows the verb. The help of `app` lists it in the panel.
    """
    app.command(
        name,
        cls=Command,
        help=_help_text(function),
        epilog=examples_text(examples),
        no_args_is_help=needs_words,
        rich_help_panel=panel,
    )(function)


def _help_text(function: Callable[..., None]) -> str:
    """The docstring, one line per paragraph: the width of the terminal decides where lines end."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in (function.__doc__ or "").split("\n\n"))


def examples_text(examples: Sequence[str]) -> str:
    """The end of a help screen. Typer removes indentation, so a prompt marks the commands."""
    return "\n".join(["Examples:", *(f"$ {example}" for example in examples)])


def _as_shown(params: list[Any], help_panel: str | None = None) -> list[Any]:
    for param in params:
        if isinstance(param, TyperOption) and param.is_flag:
            param.metavar = ""
            if param.name == "help":
                param.help = "Print this help and exit."
                param.rich_help_panel = help_panel
            elif param.name in ("install_completion", "show_completion"):
                param.help = f"{param.name.partition('_')[0].capitalize()} completion for this shell."
    return params
