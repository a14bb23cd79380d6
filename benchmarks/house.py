"""Measures the structure of the package: files, lines, long functions, imports, cycles, rooms.

    python benchmarks/house.py                     # the working tree
    python benchmarks/house.py 775e0c6 HEAD        # two revisions side by side
    python benchmarks/house.py --json 775e0c6

How it counts:
- Lines are all lines of `codetr_cli/**/*.py`.
- The length of a function is its lines of code from `def` to its last line, without decorators, docstring, comments and
  blank lines. A nested function counts on its own and as part of the function around it.
- An import is a distinct `codetr_cli` module that a file names in an import statement anywhere: at module level, under
  `TYPE_CHECKING`, or inside a function. The packages above a module are not counted.
- A cycle is a group of modules that import each other, directly or over others, by these imports.
- A room is a folder directly below `codetr_cli/`, or a file there. Its share is its share of all lines.

Standard library only. Revisions are read with `git archive`; nothing is checked out.
"""

from __future__ import annotations

import argparse
import ast
import functools
import io
import json
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "codetr_cli"
LONG_FUNCTION = 60

Sources = Mapping[str, str]
"""Path relative to the repository, with slashes -> source text."""

LABELS = {
    "files": "Python files",
    "lines": "lines",
    "largest_file": "largest file",
    "long_functions": f"functions over {LONG_FUNCTION} lines",
    "mean_imports": "imports per file, mean",
    "cycles": "import cycles",
    "largest_room": "largest room",
    "largest_fan_out": "largest fan-out",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the figures of the given revisions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revisions", nargs="*", metavar="REVISION", help="one or two; the working tree without any")
    parser.add_argument("--json", action="store_true", help="print one JSON object: revision -> figures")
    arguments = parser.parse_args(argv)
    if len(arguments.revisions) > 2:
        parser.error("give two revisions at most")
    try:
        measured = {name: measure(revision(name)) for name in arguments.revisions}
    except subprocess.CalledProcessError as error:
        parser.error(error.stderr.decode(errors="replace").strip())
    measured = measured or {"working tree": measure(working_tree())}
    sys.stdout.write(json.dumps(measured, indent=2) + "\n" if arguments.json else table(measured))
    return 0


def working_tree(root: Path = ROOT) -> Sources:
    """The package's files as they are on the disk."""
    files = sorted((root / PACKAGE).rglob("*.py"))
    return {file.relative_to(root).as_posix(): file.read_text(encoding="utf-8") for file in files}


def revision(name: str, root: Path = ROOT) -> Sources:
    """The package's files in a git revision.

    Raises:
        subprocess.CalledProcessError: no such revision, or no package in it.
    """
    command = ["git", "-C", str(root), "archive", "--format=tar", name, PACKAGE]
    archive = subprocess.run(command, capture_output=True, check=True).stdout
    found = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.name.endswith(".py") else None
            if content is not None:
                found[member.name] = content.read().decode("utf-8")
    return found


def measure(sources: Sources) -> dict[str, Any]:
    """All figures of a tree, as JSON can hold them."""
    lines = {path: text.count("\n") for path, text in sources.items()}
    rooms = Counter[str]()
    for path, count in lines.items():
        rooms[room_of(path)] += count
    total = sum(lines.values())
    lengths = {f"{path}: {name}": length for path, text in sources.items() for name, length in functions(text)}
    imported = imports(sources)
    largest_file = max(lines, key=lambda path: lines[path])
    largest_importer = max(imported, key=lambda name: len(imported[name]))
    room, room_lines = rooms.most_common(1)[0]
    return {
        "files": len(lines),
        "lines": total,
        "largest_file": {"path": largest_file, "lines": lines[largest_file]},
        "long_functions": {
            name: length for name, length in sorted(lengths.items(), key=lambda row: -row[1]) if length > LONG_FUNCTION
        },
        "mean_imports": round(sum(map(len, imported.values())) / len(imported), 2),
        "cycles": cycles(sources),
        "largest_room": {"name": room, "percent": round(100 * room_lines / total, 1)},
        "largest_fan_out": {"module": largest_importer, "modules": len(imported[largest_importer])},
        "rooms": {name: round(100 * count / total, 1) for name, count in rooms.most_common()},
    }


def room_of(path: str) -> str:
    """The folder, or the file, directly below the package."""
    return path.split("/")[1]


def functions(text: str) -> Iterator[tuple[str, int]]:
    """Name and length of every function of a file; see the module docstring for what counts."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        counted = set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        first = node.body[0]
        if ast.get_docstring(node, clean=False) is not None:
            counted -= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
        code = (lines[number - 1].strip() for number in counted)
        yield node.name, sum(bool(line) and not line.startswith("#") for line in code)


def imports(sources: Sources) -> dict[str, set[str]]:
    """Module -> the package's modules that it imports, wherever in the file the statement stands."""
    modules = {module_name(path): path for path in sources}
    found: dict[str, set[str]] = {}
    for name, path in modules.items():
        package = name if path.endswith("/__init__.py") else name.rpartition(".")[0]
        named: set[str] = set()
        for node in _import_statements(sources[path]):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names if alias.name in modules}
            else:
                base = _absolute(node, package)
                for alias in node.names:
                    part = f"{base}.{alias.name}"
                    named |= {part} & modules.keys() or {base} & modules.keys()
        found[name] = named - {name}
    return found


@functools.cache  # the cycles are found by the imports, too
def _import_statements(text: str) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]


def module_name(path: str) -> str:
    """The dotted name of a file."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def cycles(sources: Sources) -> list[list[str]]:
    """Groups of modules that import each other, each sorted; none in a healthy package.

    What the package itself offers to its users on first use (`codetr_cli/__init__.py`) does not count: no module inside
    comes by that way.
    """
    graph = {name: named if name != PACKAGE else set() for name, named in imports(sources).items()}
    return sorted(sorted(group) for group in _strongly_connected(graph) if len(group) > 1)


def table(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures as text, a column a revision."""
    rows = [["", *measured]]
    for key, label in LABELS.items():
        rows.append([label, *(_cell(key, figures[key]) for figures in measured.values())])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    text = "".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n"
                   for row in rows)  # fmt: skip
    for name, figures in measured.items():
        for group in figures["cycles"]:
            text += f"{name}: cycle of {', '.join(group)}\n"
        for function, length in figures["long_functions"].items():
            text += f"{name}: {length} lines in {function}\n"
    return text


def _cell(key: str, value: Any) -> str:
    if key in ("long_functions", "cycles"):
        return str(len(value))
    if key == "largest_file":
        return f"{value['lines']} ({value['path'].removeprefix(f'{PACKAGE}/')})"
    if key == "largest_room":
        return f"{value['percent']} % ({value['name']})"
    if key == "largest_fan_out":
        return f"{value['modules']} ({value['module'].removeprefix(f'{PACKAGE}.')})"
    return f"{value:,}"


def _absolute(node: ast.ImportFrom, package: str) -> str:
    """The module that a `from ... import` names, from the root."""
    if not node.level:
        return node.module or ""
    parents = package.split(".")
    base = ".".join(parents[: len(parents) - node.level + 1])
    return f"{base}.{node.module}" if node.module else base


def _strongly_connected(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Kosaraju's algorithm: groups of nodes that reach each other."""
    order: list[str] = []
    seen: set[str] = set()
    for root in graph:
        _visit(root, graph, seen, order)
    reverse: dict[str, set[str]] = {name: set() for name in graph}
    for name, targets in graph.items():
        for target in targets:
            reverse[target].add(name)
    groups, seen = [], set()
    for name in reversed(order):
        if name not in seen:
            group: list[str] = []
            _visit(name, reverse, seen, group)
            groups.append(group)
    return groups


def _visit(node: str, graph: Mapping[str, set[str]], seen: set[str], finished: list[str]) -> None:
    """Depth-first search; appends nodes when all that they reach is finished."""
    if node in seen:
        return
    seen.add(node)
    for target in sorted(graph[node]):
        _visit(target, graph, seen, finished)
    finished.append(node)


if __name__ == "__main__":
    sys.exit(main())
