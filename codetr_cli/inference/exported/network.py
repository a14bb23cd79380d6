"""An exported file in the place of a network: batches of pixels in, detections out, by the same post-processing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codetr_cli.boxes import Target, Targets
from codetr_cli.config.schema import Settings
from codetr_cli.errors import ConfigError, listed
from codetr_cli.inference.exported.engine import Engine
from codetr_cli.models.postprocess import Detections, PostProcess
from codetr_cli.runtime.precision import resolve_precision

UNNAMED = Path("(unnamed)")
LARGEST_FACTOR = 4.0
"""Values of `test.tta_scales` up to this are factors, larger ones the short side in pixels."""


class ExportedNetwork(nn.Module):
    """Detects as `CoDETR.detect` does.

    Args:
        engine: runs the file.
        path: of the file, for messages.

    Attributes:
        takes_pixels: the input is uint8; the graph normalises it.
    """

    optimized_for_inference = False

    def __init__(self, engine: Engine, path: Path = UNNAMED) -> None:
        super().__init__()
        self.engine, self.path = engine, path
        self.takes_pixels = engine.metadata.input.pixels
        model, output = engine.metadata.parsed_settings("the exported file").model, engine.metadata.output
        self._scores = model.num_queries, model.num_classes
        self._kept = output.kept(model.num_queries)

    def detect(
        self, images: Tensor, padding_mask: Tensor | None, targets: Targets, postprocess: PostProcess
    ) -> list[Detections]:
        """Detections in the pixels of the original images; arguments as for `CoDETR.detect`.

        Args:
            images: (B, 3, H, W), normalised, or uint8 if `takes_pixels`.
            padding_mask: not used, the targets have the sizes.
            targets: per image `size`, `norm_size` (h, w) and `scale_factor` (w, h).
            postprocess: of the settings.

        Raises:
            ConfigError: the input has another size than the file.
        """
        sizes = torch.tensor([target["size"] for target in targets], dtype=torch.int64)
        found: list[Detections] = []
        for first, part, part_sizes in self._parts(images, sizes):
            outputs = self.engine.run(part.to(self.engine.device), part_sizes.to(self.engine.device))
            of_part = targets[first : first + len(part)]
            outputs = {name: value[: len(of_part)] for name, value in outputs.items()}
            found += self._read(outputs, of_part, postprocess)
        return found

    def _parts(self, images: Tensor, sizes: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Inputs of the file's size and batch; what is missing in the last one is filled with its last image."""
        rule = self.engine.metadata.input
        height, width = images.shape[2:]
        wanted = (rule.height or height, rule.width or width)
        if height > wanted[0] or width > wanted[1]:
            raise ConfigError(
                f"this file takes images of {wanted[0]} x {wanted[1]} pixels, not of {height} x {width}: "
                "leave the size of the input as it was exported, or export with --dynamic-size"
            )
        images = F.pad(images, (0, wanted[1] - width, 0, wanted[0] - height))
        if rule.pixels:
            images = images.permute(0, 2, 3, 1)
        step = rule.batch or len(images)
        for first in range(0, len(images), step):
            part, part_sizes = images[first : first + step], sizes[first : first + step]
            missing = step - len(part)
            if missing:
                part = torch.cat([part, part[-1:].expand(missing, -1, -1, -1)])
                part_sizes = torch.cat([part_sizes, part_sizes[-1:].expand(missing, -1)])
            yield first, part.contiguous(), part_sizes.contiguous()

    def _read(self, outputs: dict[str, Tensor], targets: Targets, postprocess: PostProcess) -> list[Detections]:
        if not self.engine.metadata.output.detections:
            return postprocess(outputs["logits"], outputs["boxes"], targets)
        found = []
        for index, target in enumerate(targets):
            of_image = {name: value[index] for name, value in outputs.items()}
            candidates = Detections(
                of_image["boxes"].float(),
                of_image["scores"].float(),
                of_image["labels"].long(),
                of_image.get("masks"),
                of_image.get("mask_ious"),
            )
            found.append(_finish(candidates[: self._count(postprocess)], target, postprocess))
        return found

    def _count(self, postprocess: PostProcess) -> int:
        """How many candidates enter NMS.

        Raises:
            ConfigError: the file does not have as many.
        """
        count = postprocess.count(*self._scores)
        if count > self._kept:
            raise ConfigError(
                f"{count} candidates of an image are asked for, and this file keeps {self._kept}: export the "
                f"checkpoint again with --set test.max_detections={count}"
            )
        return count


def _finish(candidates: Detections, target: Target, postprocess: PostProcess) -> Detections:
    """NMS of the candidates of an image; the `mask_scores` of candidates are the IoUs of their masks."""
    kept = postprocess.suppress(postprocess.to_original(candidates, target))
    if kept.mask_scores is None:
        return kept
    chosen = kept.scores >= postprocess.mask_min_score
    return replace(kept[chosen], mask_scores=(kept.scores * kept.mask_scores)[chosen])


def parameter_count(model: nn.Module) -> int:
    """Weights of a network; of an exported file about so many, by its size as float32."""
    if not isinstance(model, ExportedNetwork):
        return sum(parameter.numel() for parameter in model.parameters())
    files = (model.path, model.path.with_suffix(".bin"), Path(f"{model.path}.data"))
    return sum(file.stat().st_size for file in files if file.is_file()) // 4


def fixed_batch(model: nn.Module) -> int | None:
    """How many images an exported file takes at once, fewer being filled up; None: any number."""
    return model.engine.metadata.input.batch if isinstance(model, ExportedNetwork) else None


def runtime_facts(model: nn.Module) -> dict[str, Any]:
    """For `--json`: the library, provider and precision of an exported file as `runtime`; empty for a checkpoint."""
    return {"runtime": model.engine.info.as_dict()} if isinstance(model, ExportedNetwork) else {}


def check_precision(model: nn.Module, precision: str) -> None:
    """Refuses another precision than that of an exported file.

    Args:
        model: an exported file, or any network.
        precision: "auto", or as asked for.

    Raises:
        ConfigError: it is another one; names that of the file.
    """
    if not isinstance(model, ExportedNetwork):
        return
    stored = model.engine.metadata.precision
    if precision not in ("auto", stored):
        raise ConfigError(
            f"precision {precision}: the exported file {model.path} has {stored}, which the export chose. Leave "
            f"the precision at auto, or export the checkpoint again in {precision}"
        )


def precision_of(model: nn.Module, precision: str) -> str:
    """The precision that runs: an exported file's own, else what `resolve_precision` makes of `precision`.

    Raises:
        ConfigError: as of `check_precision`.
    """
    check_precision(model, precision)
    return model.engine.info.precision if isinstance(model, ExportedNetwork) else resolve_precision(precision)


def check_views(model: nn.Module, settings: Settings) -> None:
    """Refuses test-time augmentation with views that are larger than the input of an exported file.

    Raises:
        ConfigError: one is; names the setting.
    """
    if not isinstance(model, ExportedNetwork) or model.engine.metadata.input.height is None:
        return
    test, rule = settings.test, model.engine.metadata.input
    base = test.canvas or test.short_side
    larger = [scale for scale in test.tta_scales if 1 < scale <= LARGEST_FACTOR or scale > max(base, LARGEST_FACTOR)]
    if larger:
        raise ConfigError(
            f"test-time augmentation shows images at {listed(larger)} of test.tta_scales, more than the input of the "
            f"exported file {model.path}, {rule.height} x {rule.width}: use --set test.tta_scales=[1.0], or export "
            "the checkpoint with --dynamic-size"
        )
