"""`codetr prepare`: checks a data set and this machine, and makes the data set the one that every other verb finds."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codetr_cli import console
from codetr_cli.commands._options import JsonOption, QuietOption, SetOption
from codetr_cli.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from codetr_cli.data.checks.dataset import DatasetReport
    from codetr_cli.data.formats.link import Link
    from codetr_cli.runtime.environment import Environment

PRESETS = {"coco": "co_dino_r50", "lvis": "co_dino_r50_lvis", "objects365": "co_dino_swin_l_o365"}
"""What to train on each data set to begin with."""


def prepare(
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="PATH",
            help="Folder in the layout of COCO, LVIS, Objects365, Pascal VOC or YOLO. Without it: CODETR_DATA, "
            "else data/coco.",
            show_default=False,
        ),
    ] = None,
    demo: Annotated[
        Path | None,
        typer.Option("--demo", metavar="DIR", help="Write a small synthetic data set there and check that."),
    ] = None,
    link: Annotated[
        Path | None,
        typer.Option(
            "--link",
            metavar="DIR",
            help="Where to link the folder. Without it: where other verbs look, data/coco, data/lvis_v1 or "
            "data/objects365.",
            show_default=False,
        ),
    ] = None,
    no_link: Annotated[bool, typer.Option("--no-link", help="Check only, make no link.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Decode every image instead of reading headers.")] = False,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", min=1, help="Parallel readers; with --deep, processes.")
    ] = None,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check a data set (COCO, LVIS, Objects365, Pascal VOC, YOLO) and this machine, and link it where other verbs look.

    Says what is wrong, where, and how to mend it. Ends with exit code 3 if anything would stop training.
    """
    from codetr_cli.config.overrides import apply_overrides
    from codetr_cli.config.schema import Settings
    from codetr_cli.data.checks.dataset import check_dataset
    from codetr_cli.data.formats.layouts import LAYOUTS
    from codetr_cli.data.formats.link import link_folder

    console.set_mode(json=json_output, quiet=quiet)
    settings = apply_overrides(Settings(name="prepare"), overrides or [])
    folder = _write_demo(demo, path) if demo is not None else _folder(path, settings.data.dataset)
    report = check_dataset(folder, config=settings.data, progress=console.progress, workers=workers, deep=deep)
    _show_report(report)
    from codetr_cli.runtime.environment import describe  # imports torch: what went before should not wait for it

    environment = describe(Path.cwd(), folder)
    _show_environment(environment)
    made = None if no_link else link_folder(folder, link or Path(LAYOUTS[report.dataset].roots[0]))
    if made is not None:
        _show_link(made, folder)
    command = _next(report, environment, made, folder, is_demo=demo is not None)
    console.result_json(
        {
            "ok": not report.errors,
            "dataset": report.as_json(),
            "environment": environment.as_json(),
            "link": None if made is None else {"status": made.status, "path": made.path, "detail": made.detail},
            "next": command,
        }
    )
    if report.errors:
        console.error(
            f"{_kinds(report.errors, 'error')} (see above) would stop training: mend that, then prepare again."
        )
    console.result(f"next: {command}")
    if report.errors:
        raise typer.Exit(DatasetError.exit_code)


# --------------------------------------------------------------------------------------------------------- which folder


def _folder(path: Path | None, dataset: str) -> Path:
    """The folder to check."""
    from codetr_cli.data.formats.layouts import default_root

    if path is not None:
        return path.expanduser()
    named = os.environ.get("CODETR_DATA")
    if named:
        return Path(named)
    if default_root(dataset).exists():
        return default_root(dataset)
    raise ConfigError(
        "say which folder to check: `codetr prepare PATH`. To try the program without data of your own: "
        "`codetr prepare --demo demo/data`."
    )


def _write_demo(folder: Path, path: Path | None) -> Path:
    """Writes the synthetic data set unless it is there already."""
    from codetr_cli.data.demo import write_demo

    if path is not None:
        raise ConfigError(f"--demo {folder} and the folder {path} exclude each other: give one of them.")
    if (folder / "annotations" / "instances_val2017.json").is_file():  # written last
        console.info(f"{folder} has a data set already: it is checked as it is.")
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"--demo {folder} is not an empty folder and holds no complete data set; nothing is overwritten: remove it "
            "or name a new one."
        )
    console.info(f"writing a synthetic data set to {folder}, which takes some seconds")
    write_demo(folder)
    return folder


# -------------------------------------------------------------------------------------------------------- what is shown


def _show_report(report: DatasetReport) -> None:
    rows = [
        [
            name,
            len(facts.images),
            facts.annotations,
            facts.crowd,
            f"{sum(count > 0 for count in facts.per_category.values())} of {len(facts.category_names)}",
            facts.without_objects,
            facts.max_objects,
            facts.outlines,
        ]
        for name, facts in report.splits.items()
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
        console.table(f"{report.layout} data set {report.folder}", columns, rows)
    for name, facts in report.splits.items():
        if facts.frequencies:
            r, c, f = facts.frequencies.values()
            console.info(f"{name}: of the classes, {f:,} are in many images, {c:,} in some, {r:,} in few.")
    for note in report.notes:
        console.info(note)
    draw = {"error": console.error, "warning": console.warn, "info": console.info}
    for finding in report.findings:
        draw[finding.severity](finding.sentence())
    for name, status in report.lists.items():
        if status == "written":
            console.info(f"{name}2017.txt was missing and is written.")
    checked = sum(len(facts.images) for facts in report.splits.values())
    warnings = sum(finding.severity == "warning" for finding in report.findings)
    console.result(
        f"{checked:,} image files checked in {console.seconds_text(report.seconds)}: "
        f"{_kinds(report.errors, 'error')}, {_kinds(warnings, 'warning')}."
    )


def _kinds(count: int, word: str) -> str:
    return f"no {word}s" if not count else f"1 kind of {word}" if count == 1 else f"{count} kinds of {word}s"


def _show_environment(environment: Environment) -> None:
    size = console.bytes_text
    rows: list[list[object]] = [
        ["Python", f"{environment.python} on {environment.system}"],
        ["PyTorch", f"{environment.torch}, built for {environment.built_for}"],
        ["GPU driver", environment.driver or "none visible"],
    ]
    for index, gpu in enumerate(environment.gpus):
        free = f" ({size(gpu.free_bytes)} free)" if gpu.free_bytes is not None else ""
        bf16 = "bf16" if gpu.bf16 else "no bf16"
        rows.append([f"GPU {index}", f"{gpu.name}, {size(gpu.memory_bytes)}{free}, {gpu.capability}, {bf16}"])
    if environment.no_gpu:
        rows.append(["GPU", f"none: {environment.no_gpu}"])
    rows.append(["processes talk by", _choices(environment.transports)])
    rows += [[f"attention on {kind}", note] for kind, note in environment.attention_notes.items()]
    memory = "unknown" if environment.memory_bytes is None else size(environment.memory_bytes)
    free = "" if environment.free_memory_bytes is None else f" ({size(environment.free_memory_bytes)} free)"
    rows += [["processors", environment.cpus], ["memory", memory + free]]
    if environment.shared_memory_bytes is not None:
        rows.append(["/dev/shm", size(environment.shared_memory_bytes)])
    rows += [[f"disk of {disk.path}", f"{size(disk.free_bytes)} free"] for disk in environment.disks]
    rows.append(
        ["packages", ", ".join(f"{name} {version}" for name, version in environment.packages.items() if version)]
    )
    console.table("This machine", ["what", "found"], rows)
    for remark in environment.remarks:
        console.warn(remark)


def _choices(known: dict[str, str | None]) -> str:
    return ", ".join(name if why is None else f"no {name} ({why})" for name, why in known.items())


def _show_link(link: Link, folder: Path) -> None:
    """Says what became of the link and, when it could not be made, what to type instead."""
    instead = f"Pass --data {shlex.quote(str(folder))} to the other verbs, or set CODETR_DATA to it."
    if link.status == "linked":
        console.result(f"linked {link.path} -> {folder.resolve()}")
    elif link.status == "occupied":
        remove = (
            f"rm {shlex.quote(str(link.path))}"
            if link.path.is_symlink()
            else f"mv {shlex.quote(str(link.path))} ELSEWHERE"
        )
        console.warn(
            f"{link.path} {link.detail} and stays as it is. To have {folder} there: `{remove}`, then prepare again. "
            + instead
        )
    elif link.status == "impossible":
        console.warn(f"no link can be made at {link.path} ({link.detail}). {instead}")


def _next(report: DatasetReport, environment: Environment, link: Link | None, folder: Path, *, is_demo: bool) -> str:
    """The command to type next."""
    if report.errors:
        return f"codetr prepare {shlex.quote(str(folder))}"
    from codetr_cli.data.formats.layouts import default_root

    small = is_demo or not environment.gpus
    words: list[Any] = ["codetr", "train", "--preset", "co_dino_tiny" if small else PRESETS[report.dataset]]
    if small and report.dataset != "coco":
        words += ["--set", f"data.dataset={report.dataset}"]
    found = Path(os.environ.get("CODETR_DATA") or default_root(report.dataset))
    if link is None or not link.works or not found.is_dir() or found.resolve() != folder.resolve():
        words += ["--data", folder]
    if "val" not in report.splits:
        words.append("--no-eval")
    return shlex.join(str(word) for word in words)
