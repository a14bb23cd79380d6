"""`codetr prepare`: checks a dataset and this machine, and links the dataset where the other verbs find it."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.commands._data import data_folder
from codetr_cli.commands._defaults import Invocation
from codetr_cli.commands._option_values import argument_or_option, data_settings, data_words, refuse_both
from codetr_cli.commands.doctor import show_machine
from codetr_cli.errors import ConfigError, DatasetError
from codetr_cli.files import real_path
from codetr_cli.number_text import seconds_text

if TYPE_CHECKING:
    from codetr_cli.data.checks.dataset import DatasetReport
    from codetr_cli.formats.link import Link
    from codetr_cli.runtime.environment import MachineReport

PRESETS = {"coco": "co_dino_r50", "lvis": "co_dino_r50_lvis", "objects365": "co_dino_swin_l_o365"}
"""Dataset -> the preset to start with."""
EXAMPLES = (
    "codetr prepare /path/to/coco",
    "codetr prepare my_dataset --deep",
    "codetr prepare --demo demo/data",
)


def prepare(
    context: typer.Context,
    path: opt.DatasetArgument = None,
    data: opt.DataOption = None,
    format: opt.FormatOption = None,
    val_fraction: opt.ValFractionOption = None,
    annotations: opt.AnnotationsOption = None,
    images: opt.ImagesOption = None,
    demo: opt.DemoOption = None,
    link: opt.LinkOption = None,
    no_link: opt.NoLinkOption = False,
    json_output: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
    deep: opt.DeepOption = False,
    workers: opt.WorkersOption = None,
    overrides: opt.SetOption = None,
) -> None:
    """Check a dataset and this machine, and link the dataset.

    Reports what is wrong, where, and how to fix it. The link, data/coco for COCO, is where the other verbs look for
    data. The exit code is 3 if anything would stop training.
    """
    from codetr_cli.annotations.layouts import LAYOUTS
    from codetr_cli.config.overrides import apply_overrides
    from codetr_cli.config.schema import Settings
    from codetr_cli.data.checks.dataset import check_dataset
    from codetr_cli.formats.link import link_folder
    from codetr_cli.formats.resolve import data_root

    console.set_mode(json=json_output, quiet=quiet)
    options: dict[str, Any] = {
        "format": format,
        "val_fraction": val_fraction,
        "annotations": annotations,
        "images": images,
    }
    settings = apply_overrides(Settings(name="prepare"), data_settings(**options, overrides=overrides))
    named = argument_or_option(context, "path", "data")
    refuse_both(annotations, named or demo)
    invocation: Invocation = context.obj
    if demo is not None:
        folder = _write_demo(demo, named)
    elif settings.data.annotations and named is None:
        folder = data_root(settings.data)
    else:
        folder = data_folder(named, settings.data.dataset, invocation.defaults, verb="prepare", note=not json_output)
    report = check_dataset(folder, config=settings.data, progress=console.progress, workers=workers, deep=deep)
    _show_report(report)
    from codetr_cli.runtime.environment import machine_report  # imports torch, which the check need not wait for

    environment = machine_report(Path.cwd(), folder if folder.is_dir() else folder.parent)
    show_machine(environment)
    is_linked = not no_link and folder.is_dir()  # a single file has no layout that could be found again
    made = link_folder(folder, link or Path(LAYOUTS[report.dataset].roots[0])) if is_linked else None
    if made is not None:
        _show_link(made, folder)
    words = data_words(**options)
    command = _next(report, environment, made, None if annotations else folder, words, is_demo=demo is not None)
    console.result_json(
        {
            "ok": not report.errors,
            "dataset": report.as_json(),
            "environment": asdict(environment),
            "link": None if made is None else {"status": made.status, "path": made.path, "detail": made.detail},
            "next": command,
        }
    )
    if report.errors:
        console.error(
            f"Found {_kinds(report.errors, 'error')} (see above) that would stop training. Fix them and rerun "
            "`codetr prepare`."
        )
    console.result(f"next: {command}")
    if report.errors:
        raise typer.Exit(DatasetError.exit_code)


# ------------------------------------------------------------------------------------------------------- synthetic data


def _write_demo(folder: Path, named: str | None) -> Path:
    """Writes the synthetic dataset unless it exists."""
    from codetr_cli.data.demo import is_incomplete_demo, write_demo

    if named is not None:
        raise ConfigError(f"--demo {folder} and the folder {named} exclude each other: give one of them.")
    begun = folder.is_dir() and is_incomplete_demo(folder)
    if (folder / "annotations" / "instances_val2017.json").is_file() and not begun:
        console.info(f"{folder} already holds a dataset, which is checked as is.")
        return folder
    if folder.exists() and not begun and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"--demo {folder} is not an empty folder and holds no complete dataset; nothing is overwritten: remove it "
            "or name another folder."
        )
    console.info(f"writing a synthetic dataset to {folder}, which takes some seconds")
    write_demo(folder)
    return folder


# -------------------------------------------------------------------------------------------------------- what is shown


def _show_report(report: DatasetReport) -> None:
    rows = [
        [
            name,
            len(split.images),
            split.annotations,
            split.crowd,
            f"{sum(count > 0 for count in split.per_category.values())} of {len(split.category_names)}",
            split.without_objects,
            split.max_objects,
            split.outlines,
        ]
        for name, split in report.splits.items()
    ]
    columns = [
        "split",
        "images",
        "annotations",
        "crowd",
        "classes seen",
        "images without objects",
        "most in one image",
        "masks",
    ]
    console.info(report.layout_sentence())
    if rows:
        console.table(f"{report.layout} dataset {report.folder}", columns, rows)
    for name, split in report.splits.items():
        if split.frequencies:
            r, c, f = split.frequencies.values()
            console.info(f"{name}: of the classes, {f:,} are in many images, {c:,} in some, {r:,} in few.")
    for note in report.notes:
        console.info(note)
    show = {"error": console.error, "warning": console.warn, "info": console.info}
    for finding in report.findings:
        show[finding.severity](finding.sentence())
    for name, status in report.lists.items():
        if status == "written":
            console.info(f"{name}2017.txt was missing and has been written.")
    checked = sum(len(split.images) for split in report.splits.values())
    warnings = sum(finding.severity == "warning" for finding in report.findings)
    console.result(
        f"{checked:,} image files checked in {seconds_text(report.seconds)}: "
        f"{_kinds(report.errors, 'error')}, {_kinds(warnings, 'warning')}."
    )


def _kinds(count: int, word: str) -> str:
    return f"no {word}s" if not count else f"1 kind of {word}" if count == 1 else f"{count} kinds of {word}s"


def _show_link(link: Link, folder: Path) -> None:
    """Prints the link, or if it could not be made, what to type instead."""
    instead = f"Pass --data {shlex.quote(str(folder))} to the other verbs, or set CODETR_DATA to it."
    if link.status == "linked":
        console.result(f"linked {link.path} -> {real_path(folder)}")
    elif link.status == "occupied":
        remove = (
            f"rm {shlex.quote(str(link.path))}"
            if link.path.is_symlink()
            else f"mv {shlex.quote(str(link.path))} ELSEWHERE"
        )
        console.warn(
            f"{link.path} {link.detail} and was not changed. To link {folder} there: `{remove}`, then rerun "
            "`codetr prepare`. " + instead
        )
    elif link.status == "impossible":
        console.warn(f"cannot make a link at {link.path} ({link.detail}). {instead}")


def _next(
    report: DatasetReport,
    environment: MachineReport,
    link: Link | None,
    folder: Path | None,
    options: list[str],
    *,
    is_demo: bool,
) -> str:
    """The command to run next, with the same options for the data; no folder: these name it."""
    if report.errors:
        return shlex.join(["codetr", "prepare", *([] if folder is None else [str(folder)]), *options])
    from codetr_cli.annotations.layouts import default_root

    small = is_demo or not environment.gpus
    words: list[Any] = ["codetr", "train", "--preset", "co_dino_tiny" if small else PRESETS[report.rules]]
    if small and report.rules != "coco":
        words += ["--set", f"data.dataset={report.rules}"]
    found = Path(os.environ.get("CODETR_DATA") or default_root(report.dataset))
    is_default = link is not None and link.works and found.is_dir()
    if folder is not None and not (is_default and real_path(found) == real_path(folder)):
        words += ["--data", folder]
    words += options
    if "val" not in report.splits:
        words.append("--no-eval")
    return shlex.join(str(word) for word in words)
