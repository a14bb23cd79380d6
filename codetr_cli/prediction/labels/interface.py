"""What a prediction needs of its labels: options, the choice of detections, the folder and the facts of a data set."""

from __future__ import annotations

from codetr_cli.prediction.labels.card import describe_model
from codetr_cli.prediction.labels.dataset import dataset_folder
from codetr_cli.prediction.labels.options import DatasetOptions, LabelOptions
from codetr_cli.prediction.labels.selection import LabelSelection

__all__ = ["DatasetOptions", "LabelOptions", "LabelSelection", "dataset_folder", "describe_model"]
