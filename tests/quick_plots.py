"""Plots of trainings without drawing: that takes longer than a tiny network's whole training."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from codetr_cli.files import replace_file


def save(figure: Figure, path: Path) -> Path:
    """Writes the file that a plot would be, with its title."""
    with replace_file(path) as temporary:
        temporary.write_text(figure.axes[0].get_title())
    return path
