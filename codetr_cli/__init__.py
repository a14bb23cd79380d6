"""Co-DETR object detectors: prepare data, train, evaluate, benchmark, predict."""

__version__ = "0.1.0"
__all__: list[str] = []
