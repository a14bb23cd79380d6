"""`codetr bench`: a group of commands. `codetr bench` alone, or followed by options, means `codetr bench infer`."""

from __future__ import annotations

from typing import Any

import typer

from codetr_cli.commands._help import Group, add_verb, examples_text
from codetr_cli.commands.bench import data, infer, ops, train
from codetr_cli.errors import ConfigError

EXAMPLES = ("codetr bench", "codetr bench train --preset co_dino_swin_l --size 640x640", "codetr bench data data/coco")
COMMANDS = ("infer", "train", "ops", "data")
SELECTORS = {"--fps": "infer", "--train": "train", "--ops": "ops", "--data": "data"}
"""Former options of `codetr bench`, and the command that each selects."""


class BenchGroup(Group):
    """Runs `infer` where no command is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Names the command where the user did not."""
        return super().parse_args(ctx, with_command(args))


def with_command(words: list[str]) -> list[str]:
    """The words after `codetr bench`, with the command named.

    Raises:
        ConfigError: the words select several commands.
    """
    if words[:1] in (["--help"], ["-h"]) or (words and words[0] in COMMANDS):
        return words
    selected = list(dict.fromkeys(SELECTORS[word] for word in words if word in SELECTORS))
    if len(selected) > 1:
        names = " and ".join(f"`codetr bench {name}`" for name in selected)
        raise ConfigError(f"codetr bench measures one thing at a time: run {names} separately")
    return [*(selected or ["infer"]), *(word for word in words if word not in SELECTORS)]


bench = typer.Typer(
    cls=BenchGroup, help="Measure speed and memory. Without a command: infer.", epilog=examples_text(EXAMPLES)
)
for _name, _module in (("infer", infer), ("train", train), ("ops", ops), ("data", data)):
    add_verb(bench, _name, getattr(_module, _name), _module.EXAMPLES)
