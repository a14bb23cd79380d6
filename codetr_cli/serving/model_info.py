"""What `/v1/model` reports: the classes and settings of a model, where its weights come from, versions and limits."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

from codetr_cli import __version__
from codetr_cli.errors import CheckpointError, CodetrError
from codetr_cli.evaluation.protocol import DECISIVE
from codetr_cli.inference.exported.network import ExportedNetwork, precision_of, runtime_facts
from codetr_cli.inference.loading import LoadedModel
from codetr_cli.runs.lineage import licence_of
from codetr_cli.serving.image_job import ServedDetector
from codetr_cli.serving.options import MAX_DETS, ServeOptions
from codetr_cli.weights.checkpoint import file_sha256

INPUT = ("mean", "std", "pad_divisor")
"""Settings under `data` that decide what the network sees."""


def describe_model(detector: ServedDetector, options: ServeOptions) -> dict[str, Any]:
    """The object of `/v1/model`; it holds no path and no address."""
    settings = detector.loaded.settings
    path = detector.loaded.path
    return {
        "name": settings.name,
        "weights": {
            "file": None if path is None else path.name,
            "sha256": None if path is None else _sha256(path),
            "licence": _licence(detector.loaded),
        },
        "classes": [
            {"label": label, "name": name, "category_id": category_id}
            for label, (name, category_id) in enumerate(zip(detector.class_names, detector.category_ids, strict=True))
        ],
        "masks": settings.learns_masks,
        "protocol": {
            **{name: getattr(settings.test, name) for name in DECISIVE},
            "precision": precision_of(detector.loaded.model, detector.precision),
        },
        "settings": {
            "model": settings.model.model_dump(mode="json"),
            "test": settings.test.model_dump(mode="json"),
            "data": settings.data.model_dump(mode="json", include=set(INPUT)),
        },
        "device": str(detector.device),
        **runtime_facts(detector.loaded.model),
        "limits": {
            "images": options.max_images,
            "pixels": options.max_pixels,
            "body_bytes": options.max_body,
            "tiles": options.max_tiles,
            "detections": MAX_DETS,
            "queue": options.queue,
            "timeout_s": options.timeout_s,
            "read_timeout_s": options.read_timeout_s,
        },
        "versions": {"codetr": __version__, "python": platform.python_version(), "torch": torch.__version__},
    }


def _licence(loaded: LoadedModel) -> str | None:
    """Of the weights, also of those in an exported file; None if it is unknown."""
    if isinstance(loaded.model, ExportedNetwork):
        return loaded.model.engine.metadata.weights.licence
    try:
        return None if loaded.path is None else licence_of(loaded.path).name
    except (CodetrError, OSError):
        return None


def _sha256(path: Path) -> str | None:
    """Of the file of the weights; None if it is gone or a folder."""
    try:
        return file_sha256(path)
    except (CheckpointError, OSError):
        return None
