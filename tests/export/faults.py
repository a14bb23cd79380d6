"""Exported files with planted faults: the engine of a correct file whose inputs or outputs are changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from codetr_cli.export.job import export_settings
from codetr_cli.export.metadata_differences import options_of
from codetr_cli.export.verify import VerifyReport, verify_detectors
from codetr_cli.export.verify_images import VerifyImage, synthetic_images
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.exported.engine import Engine
from codetr_cli.inference.exported.metadata import ExportMetadata
from codetr_cli.inference.exported.network import ExportedNetwork
from codetr_cli.inference.loading import LoadedModel
from codetr_cli.models.build import build_postprocess

Outputs = dict[str, Tensor]


def unchanged(images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Changes no input."""
    return images, sizes


@dataclass
class FaultyEngine:
    """Runs a correct engine between two faults."""

    engine: Engine
    before: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = unchanged
    after: Callable[[Outputs, Tensor, Tensor], Outputs] = lambda outputs, images, sizes: outputs

    @property
    def metadata(self) -> ExportMetadata:
        """Of the correct file."""
        return self.engine.metadata

    @property
    def info(self) -> Any:
        """Of the correct file."""
        return self.engine.info

    @property
    def device(self) -> torch.device:
        """Of the correct file."""
        return self.engine.device

    def run(self, images: Tensor, image_sizes: Tensor) -> Outputs:
        """The outputs with the fault."""
        outputs = self.engine.run(*self.before(images, image_sizes))
        return self.after(dict(outputs), images, image_sizes)


def reference_of(loaded: LoadedModel, metadata: ExportMetadata) -> Detector:
    """The detector of a checkpoint by the size rule of a file."""
    settings = export_settings(loaded.settings, options_of(metadata))
    return Detector(replace(loaded, settings=settings, postprocess=build_postprocess(settings.test)), device="cpu")


def exported_detector(engine: Engine, **changes: Any) -> Detector:
    """The detector of a file; `changes` are of its settings for post-processing."""
    settings = engine.metadata.parsed_settings("the file")
    postprocess = replace(build_postprocess(settings.test), **changes)
    metadata = engine.metadata
    loaded = LoadedModel(ExportedNetwork(engine), postprocess, settings, metadata.class_names, metadata.category_ids)
    return Detector(loaded, device="cpu")


def some_images(side: int = 160) -> list[VerifyImage]:
    """A picture of every shape: fewer than a verification has, for speed."""
    return synthetic_images(side)[::3]


def verified(loaded: LoadedModel, engine: Engine, **changes: Any) -> VerifyReport:
    """What a verification of an engine finds."""
    reference = reference_of(loaded, engine.metadata)
    return verify_detectors(reference, exported_detector(engine, **changes), some_images())
