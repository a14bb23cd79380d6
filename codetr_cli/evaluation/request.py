"""Parameters of an evaluation, resolved once: ground truth, matched classes, views, masks and scoring backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from codetr_cli.annotations.objects import Annotations, check_kind
from codetr_cli.class_names import storable_class_name
from codetr_cli.config.schema import Settings
from codetr_cli.errors import CheckpointError, ConfigError, listed
from codetr_cli.evaluation.backends import Scorer
from codetr_cli.evaluation.scoring import check_outlines
from codetr_cli.inference.options import TILES_OR_TTA, TileOptions
from codetr_cli.inference.tiling import Tiling, build_tiling
from codetr_cli.inference.tta import Augmentation, build_augmentation
from codetr_cli.models.build import build_postprocess
from codetr_cli.models.postprocess import PostProcess
from codetr_cli.runtime.precision import resolve_precision
from codetr_cli.weights.classes import same_numbered_classes

MAX_DETECTIONS_IN_TILES = 500
"""Kept of an image that is cut, if the settings keep fewer: as AP is measured of crowded images."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EvalRequest:
    """A checked request, made by `resolve`; it serves any number of evaluations.

    Attributes:
        settings: the network's; mean and std of the input, and the test settings.
        ground_truth: the annotations to score against; with outlines only if masks are scored.
        annotations_path: their file, for messages and the protocol.
        category_ids: the annotations' category id of each label of the network.
        postprocess: as the settings describe it.
        augmentation: views of test-time augmentation, or tiles; None: a single view.
        masks: whether masks are scored.
        precision: "fp32", "tf32", "bf16" or "fp16", or that of an exported file.
        runtime: the library that runs an exported file, in words; None for a checkpoint.
        scorer: the scoring backend; None: hotcoco, or pycocotools where that cannot be imported.
        split: which images these are, for the protocol.
    """

    settings: Settings
    ground_truth: Annotations
    annotations_path: Path
    category_ids: list[int]
    postprocess: PostProcess
    augmentation: Augmentation | Tiling | None = None
    masks: bool = False
    precision: str = "fp32"
    runtime: str | None = None
    scorer: Scorer | None = None
    split: str = "val"

    @property
    def has_tiles(self) -> bool:
        """Whether large images are cut."""
        return isinstance(self.augmentation, Tiling)

    @classmethod
    def resolve(
        cls,
        settings: Settings,
        ground_truth: Annotations,
        annotations_path: Path,
        *,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        masks: bool = True,
        tta: bool = False,
        tiles: TileOptions | None = None,
        batch: int = 1,
        precision: str = "auto",
        runtime: str | None = None,
        scorer: Scorer | None = None,
        split: str = "val",
    ) -> EvalRequest:
        """Matches the network's classes to the annotations, and checks that these can be scored against.

        Args:
            settings: of the network.
            ground_truth: read from `annotations_path`, with outlines where masks may be scored.
            annotations_path: the annotation file.
            class_names: of the network, by label; must be the annotations' classes.
            category_ids: original category id of each label.
            masks: score masks too if the network predicts them.
            tta: evaluate the views of `test.tta_scales` and `test.tta_flip`.
            tiles: how large images are cut.
            batch: tiles that the network sees at once.
            precision: "auto" (fp32), "fp32", "tf32", "bf16" or "fp16", or that of an exported file.
            runtime: as for the attribute.
            scorer: as for the attribute.
            split: as for the attribute.

        Raises:
            ConfigError: tiles together with test-time augmentation.
            CheckpointError: the classes are not those of the annotations.
            DatasetError: the annotations are of another data set, or lack the outlines that mask AP needs.
        """
        if tta and tiles is not None:
            raise ConfigError(TILES_OR_TTA)
        masks = masks and expects_masks(settings)
        check_kind(ground_truth, settings.data.dataset, annotations_path)
        if masks:
            check_outlines(ground_truth, str(annotations_path))
        return cls(
            settings=settings,
            ground_truth=ground_truth if masks else replace(ground_truth, outlines=None),
            annotations_path=annotations_path,
            category_ids=match_classes(
                class_names, category_ids, ground_truth.class_names, ground_truth.category_ids, str(annotations_path)
            ),
            postprocess=build_postprocess(settings.test),
            augmentation=_views(settings, tta=tta, tiles=tiles, batch=batch),
            masks=masks,
            precision=resolve_precision(precision),
            runtime=runtime,
            scorer=scorer,
            split=split,
        )


def _views(settings: Settings, *, tta: bool, tiles: TileOptions | None, batch: int) -> Augmentation | Tiling | None:
    if tiles is None:
        return build_augmentation(settings) if tta else None
    limit = max(MAX_DETECTIONS_IN_TILES, settings.test.max_detections)
    return replace(build_tiling(settings, tiles, batch=batch), max_detections=limit)


def expects_masks(settings: Settings) -> bool:
    """Whether detections have masks: those of the RoI head with `fcn`, those of the decoder with `refine`."""
    return (settings.model.mask.kind, settings.test.head) in {("fcn", "roi"), ("refine", "decoder")}


def match_classes(
    class_names: Sequence[str],
    category_ids: Sequence[int],
    data_names: Sequence[str],
    data_ids: Sequence[int],
    where: str,
) -> list[int]:
    """The annotations' category id of each label of the network, matched by name.

    Equal names with other ids or in another order are the same classes: the ids come from the annotations then. A
    network without known class names has the annotations' classes if it has their ids.

    Raises:
        CheckpointError: the sets of names differ; lists the names that only one side has.
    """
    data_names = [storable_class_name(name) for name in data_names]  # as in the network's checkpoint
    if list(class_names) == data_names and list(category_ids) == list(data_ids):
        return list(data_ids)  # also right when several categories share a name
    if same_numbered_classes(class_names, category_ids, data_ids):
        return list(data_ids)
    by_name = dict(zip(data_names, data_ids, strict=True))
    if len(by_name) == len(data_names) == len(class_names) and set(by_name) == set(class_names):
        return [by_name[name] for name in class_names]
    only_model = [name for name in class_names if name not in by_name]
    only_data = [name for name in data_names if name not in set(class_names)]
    raise CheckpointError(
        f"the model has {len(class_names)} classes and {where} has {len(data_names)}, and they are not the same. "
        f"Only in the model: {listed(only_model, 12) or 'none'}. "
        f"Only in the annotations: {listed(only_data, 12) or 'none'}. Evaluate on "
        "annotations with the model's classes, or fine-tune with `codetr train`, which takes the classes from the data."
    )
