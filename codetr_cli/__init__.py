"""Co-DETR object detectors: prepare data, train, evaluate, benchmark, predict.

`codetr_cli.Detector` is the Python API; it is imported when first asked for, because it needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codetr_cli.inference.detector import Detector as Detector

__version__ = "0.1.0"
__all__: list[str] = []


def __getattr__(name: str) -> Any:
    if name != "Detector":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from codetr_cli.inference.detector import Detector

    return Detector
