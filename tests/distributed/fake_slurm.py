"""SLURM's environment as its manuals describe it, and programs that stand in for its commands."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# A task of `srun` on the second of two machines.
STEP = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_NODELIST": "gpu[03-04]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NTASKS": "2",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, text: str) -> None:
    """Puts a program into `folder`/bin and that on PATH."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
