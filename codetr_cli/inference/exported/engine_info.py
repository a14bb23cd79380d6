"""What an engine says of itself, and the errors of the libraries behind it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class EngineInfo:
    """What runs where.

    Attributes:
        library: with its version, e.g. "ONNX Runtime 1.32.0".
        provider: what computes, e.g. "CPUExecutionProvider" or "GPU.0".
        precision: that really runs, e.g. "fp32".
        elsewhere: nodes of the graph that run on the CPU although the provider is another; None: not known.
        nodes: of the graph; None: not known.
    """

    library: str
    provider: str
    precision: str
    elsewhere: int | None = None
    nodes: int | None = None

    def __str__(self) -> str:
        rest = f", {self.elsewhere} of {self.nodes} nodes on the CPU" if self.elsewhere else ""
        return f"{self.library}, {self.provider}, {self.precision}{rest}"

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "library": self.library,
            "provider": self.provider,
            "precision": self.precision,
            "nodes": self.nodes,
            "nodes_on_cpu": self.elsewhere,
        }


def first_line(error: Exception) -> str:
    """The first sentence of a library's error that says something, with a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    speaking = [line for line in lines if not re.match(r"Exception from \S+:\d+:?$|Check '.*' failed at", line)]
    text = (speaking or lines or [type(error).__name__])[0]
    return text[:500].rstrip(".:") + "."
