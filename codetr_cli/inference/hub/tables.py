"""config.json and preprocessor_config.json: what transformers reads; codetr reads the metadata of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from codetr_cli.config.schema import Settings

MODEL_TYPE = "codetr"
"""Names the architecture in config.json; `integrations.transformers` registers it."""
ARCHITECTURE = "CodetrForObjectDetection"
IMAGE_PROCESSOR = "CodetrImageProcessor"

PREPROCESSING = ("short_side", "long_side", "canvas", "fixed_size")
POSTPROCESSING = ("max_detections", "candidates", "nms", "nms_iou", "nms_min_score", "head")
"""Test settings of an image processor."""


def model_table(settings: Settings, class_names: Sequence[str], category_ids: Sequence[int]) -> dict[str, Any]:
    """The content of config.json.

    Args:
        settings: of the checkpoint.
        class_names: by label.
        category_ids: by label.
    """
    labels = {str(label): name for label, name in enumerate(class_names)}
    return {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "id2label": labels,
        "label2id": {name: int(label) for label, name in labels.items()},
        "category_ids": list(category_ids),
        "preset": settings.name,
        "pad_divisor": settings.data.pad_divisor,
        "fixed_size": settings.test.fixed_size,
        "model_settings": settings.model.model_dump(mode="json", exclude_none=True),
    }


def processor_table(settings: Settings) -> dict[str, Any]:
    """The content of preprocessor_config.json: how images are prepared and outputs become detections.

    Args:
        settings: of the checkpoint.
    """
    return {
        "image_processor_type": IMAGE_PROCESSOR,
        **{name: getattr(settings.test, name) for name in PREPROCESSING},
        "pad_divisor": settings.data.pad_divisor,
        "image_mean": list(settings.data.mean),
        "image_std": list(settings.data.std),
        **{name: getattr(settings.test, name) for name in POSTPROCESSING},
    }
