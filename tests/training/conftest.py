"""Fixtures that shorten trainings of a stand-in network."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than a stand-in's whole training."""
    monkeypatch.setattr("codetr_cli.training.plots.draw_plots", lambda lines, folder: [])


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk takes longer than a stand-in's whole training."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
