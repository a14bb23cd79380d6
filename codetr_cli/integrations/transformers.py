"""Co-DETR in transformers: importing this module registers the architecture for its pipeline and Auto classes.

    import codetr_cli.integrations.transformers
    from transformers import pipeline

    detect = pipeline("object-detection", model="org/name")  # or a folder of Detector.save_pretrained
    detect("street.jpg", threshold=0.3)

The detections are those of `Detector.predict`: images are resized as codetr does it, and outputs pass the same
post-processing. The weights are opened by codetr's own reader. Nothing in a repository is executed unless
`trust_remote_code` is set, which is not needed. For inference only: training is what `codetr train` is for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from codetr_cli.boxes import Target
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.config.overrides import parse_settings
from codetr_cli.config.schema import Settings, TestConfig
from codetr_cli.data.batch import collate, normalize
from codetr_cli.data.sample import Sample
from codetr_cli.data.transforms import build_transforms, resized_size
from codetr_cli.errors import ConfigError, ResourceError, shown
from codetr_cli.inference.given_pixels import to_pixels
from codetr_cli.inference.hub.pretrained import find_weights
from codetr_cli.inference.hub.tables import MODEL_TYPE, POSTPROCESSING, PREPROCESSING, model_table
from codetr_cli.inference.loading import load_detector
from codetr_cli.inference.pipeline import inference
from codetr_cli.models.build import build_model, build_postprocess
from codetr_cli.models.codetr import CoDETR
from codetr_cli.models.inference_mode import optimize_for_inference
from codetr_cli.runtime.devices import choose_device

try:
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModelForObjectDetection,
        BatchFeature,
        PreTrainedConfig,
        PreTrainedModel,
    )
    from transformers.image_processing_utils import BaseImageProcessor
    from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES
    from transformers.utils import ModelOutput
except ImportError as error:
    raise ResourceError(
        f"this module needs the package transformers, from 5.4 on ({error}): pip install 'codetr-cli[transformers]' "
        "(or pip install transformers)"
    ) from error

logger = logging.getLogger(__name__)

IGNORED = frozenset(
    ("_from_auto", "_from_pipeline", "_commit_hash", "adapter_kwargs", "code_revision", "trust_remote_code")
)
"""Arguments of transformers that have no meaning for one file of weights that is never code."""


class CodetrConfig(PreTrainedConfig):  # type: ignore[misc]
    """The content of config.json, see `inference.hub.tables`.

    Args:
        category_ids: original category id of each label.
        preset: name of the settings.
        pad_divisor: images count as padded to multiples of it, in pixels.
        fixed_size: (height, width) that all images are padded to, instead; None: none.
        model_settings: the settings of the network, as in a preset's table `[model]`; empty: the defaults.
        kwargs: of transformers, e.g. `id2label`.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        category_ids: Sequence[int] = (),
        preset: str = MODEL_TYPE,
        pad_divisor: int = 1,
        fixed_size: Sequence[int] | None = None,
        model_settings: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.category_ids = list(category_ids)
        self.preset = preset
        self.pad_divisor = pad_divisor
        self.fixed_size = None if fixed_size is None else list(fixed_size)
        self.model_settings = dict(model_settings or {})
        super().__init__(**kwargs)

    def settings(self) -> Settings:
        """The settings of the network.

        Raises:
            ConfigError: config.json has others than this version knows.
        """
        table = {"name": self.preset, "model": self.model_settings, "data": {"pad_divisor": self.pad_divisor}}
        return parse_settings(table, where="config.json")


@dataclass
class CodetrOutput(ModelOutput):  # type: ignore[misc]
    """What the network gives.

    Attributes:
        logits: (B, Q, K), before the sigmoid; every class is decided on its own, none means no object.
        pred_boxes: (B, Q, 4) cxcywh in [0, 1], relative to the image without padding, or to the whole canvas.
    """

    logits: Tensor | None = None
    pred_boxes: Tensor | None = None


class CodetrForObjectDetection(PreTrainedModel):  # type: ignore[misc]
    """Co-DETR as a model of transformers, for inference.

    Args:
        config: describes the network, which has random weights; `from_pretrained` loads one.
    """

    config_class = CodetrConfig
    base_model_prefix = "network"
    main_input_name = "pixel_values"

    def __init__(self, config: CodetrConfig) -> None:
        super().__init__(config)
        self.network: CoDETR = build_model(config.settings().model, aux_heads=False)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """The network has initialized itself."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *args: Any,
        config: CodetrConfig | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        dtype: Any = None,
        device_map: Any = None,
        **kwargs: Any,
    ) -> CodetrForObjectDetection:
        """Loads a model of codetr from a folder or the Hub.

        The metadata of the weights decides what the network is; config.json repeats it for other programs.

        Args:
            pretrained_model_name_or_path: a folder, or `org/name`.
            args: none.
            config: as loaded from config.json; what it says of the network is not used.
            revision: a branch, tag or commit.
            token: of an account, for private repositories.
            cache_dir: another cache.
            local_files_only: use the cache only.
            dtype: float32, or "auto", which is the same here.
            device_map: a device, or "auto".
            kwargs: other arguments of transformers have no effect.

        Raises:
            CheckpointError: there is no such model, or its weights cannot be read.
            ValueError: another dtype.
        """
        if dtype not in (None, "auto", torch.float32, "float32"):
            raise ValueError(f"dtype={dtype}: the weights are float32; Detector.load takes precision=")
        if ignored := [name for name in kwargs if name not in IGNORED]:
            logger.warning("%s have no effect on a model of codetr", ", ".join(sorted(ignored)))
        path = find_weights(
            pretrained_model_name_or_path,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        loaded = load_detector(path, torch.device("cpu"), optimize=False)
        assert isinstance(loaded.model, CoDETR)  # the file is named model.safetensors
        if loaded.settings.test.head != "decoder":
            raise ConfigError(
                f"{path} detects with the head {loaded.settings.test.head}, and transformers can use the decoder only: "
                "load it with Detector.load"
            )
        table = model_table(loaded.settings, loaded.class_names, loaded.category_ids)
        with torch.device("meta"):
            model = cls(CodetrConfig(**table, name_or_path=str(pretrained_model_name_or_path)))
        model.network = loaded.model
        return model.to(_device_of(device_map)).eval()

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Not available: the folder is written by `Detector.save_pretrained`.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("a model of codetr is saved by Detector.load(FOLDER).save_pretrained(NEW_FOLDER)")

    def forward(
        self,
        pixel_values: Tensor | Sequence[Any],
        pixel_mask: Tensor | None = None,
        labels: Any = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CodetrOutput | tuple[Tensor, Tensor]:
        """Predicts boxes and classes of every query, without gradients.

        Images of one size are seen together. Padding that an image has only because of others is removed before, so
        that its detections do not depend on them.

        Args:
            pixel_values: (B, 3, H, W) float32, normalized, 0 where padded; or a list of images (3, h, w).
            pixel_mask: (B, H, W), 1 = image, 0 = padding; None: no padding.
            labels: must be None: there is no loss.
            return_dict: False: a tuple.
            kwargs: other arguments of transformers have no effect.
        """
        if labels is not None:
            raise ValueError("labels: this model has no loss; train with `codetr train`")
        if not self.network.optimized_for_inference:
            optimize_for_inference(self.network)  # now that the device is known
        images = _without_padding(pixel_values, pixel_mask)
        rows: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * len(images)
        with inference(self.network, self.device, "auto"):
            for size, numbers in self._batches(images).items():
                outputs = self.network(*_padded([images[number] for number in numbers], size))
                for number, *row in zip(numbers, outputs["pred_logits"], outputs["pred_boxes"], strict=True):
                    rows[number] = (row[0], row[1])
        found = CodetrOutput(*(torch.stack(column) for column in zip(*rows, strict=True)))
        return found.to_tuple() if return_dict is False else found

    def _batches(self, images: Sequence[Tensor]) -> dict[tuple[int, int], list[int]]:
        """Size -> the numbers of the images of each batch: no detection depends on the other images."""
        batches: dict[tuple[int, int], list[int]] = {}
        divisor, fixed = self.config.pad_divisor, self.config.fixed_size
        for number, image in enumerate(images):
            height, width = fixed or (-(-side // divisor) * divisor for side in image.shape[1:])
            batches.setdefault((height, width), []).append(number)
        return batches


class CodetrImagesKwargs(TypedDict, total=False):
    """Settings of the image processor that `from_pretrained` can change."""

    short_side: int
    long_side: int
    canvas: int | None
    fixed_size: Sequence[int] | None
    pad_divisor: int
    do_pad: bool
    image_mean: Sequence[float]
    image_std: Sequence[float]
    max_detections: int
    candidates: str
    nms: str
    nms_iou: float
    nms_min_score: float
    head: str


class CodetrImageProcessor(BaseImageProcessor):  # type: ignore[misc]
    """Images as the network takes them, and detections from its outputs: the content of preprocessor_config.json.

    Args:
        short_side: that images are resized to, in pixels.
        long_side: maximum long side.
        canvas: side of a square that images are resized and padded to, instead; None: none.
        fixed_size: (height, width) that images fit in and are padded to; None: none. The model has its own.
        pad_divisor: images count as padded to multiples of it.
        do_pad: pad the images of a call to one tensor; otherwise they are a list.
        image_mean: of each RGB channel, 0..255.
        image_std: standard deviation of each RGB channel, 0..255.
        max_detections: kept per image.
        candidates: see `models.postprocess.PostProcess`; so are the next.
        nms: "none", "hard" or "soft".
        nms_iou: IoU threshold of NMS.
        nms_min_score: soft-NMS drops boxes with a lower score.
        head: must be "decoder".
        kwargs: of transformers.
    """

    model_input_names = ("pixel_values", "pixel_mask")
    valid_kwargs = CodetrImagesKwargs

    def __init__(
        self,
        short_side: int = TestConfig().short_side,
        long_side: int = TestConfig().long_side,
        canvas: int | None = None,
        fixed_size: Sequence[int] | None = None,
        pad_divisor: int = 1,
        do_pad: bool = True,
        image_mean: Sequence[float] = DataConfig().mean,
        image_std: Sequence[float] = DataConfig().std,
        max_detections: int = TestConfig().max_detections,
        candidates: str = TestConfig().candidates,
        nms: str = TestConfig().nms,
        nms_iou: float = TestConfig().nms_iou,
        nms_min_score: float = TestConfig().nms_min_score,
        head: str = "decoder",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.short_side, self.long_side, self.canvas = short_side, long_side, canvas
        self.fixed_size = None if fixed_size is None else list(fixed_size)
        self.pad_divisor, self.do_pad = pad_divisor, do_pad
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.max_detections, self.candidates = max_detections, candidates
        self.nms, self.nms_iou, self.nms_min_score, self.head = nms, nms_iou, nms_min_score, head
        self._settings()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> CodetrImageProcessor:
        """As `BaseImageProcessor.from_pretrained`.

        A pipeline prepares images one by one and joins them itself, which tensors of different sizes do not allow:
        there, images are not padded by default, and the model does it.
        """
        if kwargs.get("_from_pipeline"):
            kwargs.setdefault("do_pad", False)
        processor: CodetrImageProcessor = super().from_pretrained(*args, **kwargs)
        return processor

    def _settings(self) -> Settings:
        """The settings that the values are.

        Raises:
            ConfigError: one of them is not allowed.
        """
        test = {name: getattr(self, name) for name in (*PREPROCESSING, *POSTPROCESSING)}
        data = {"mean": self.image_mean, "std": self.image_std, "pad_divisor": self.pad_divisor}
        return parse_settings({"name": MODEL_TYPE, "test": test, "data": data}, where="preprocessor_config.json")

    def __call__(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """As `preprocess`."""
        return self.preprocess(images, return_tensors=return_tensors, **kwargs)

    def preprocess(
        self, images: Any, *, return_tensors: str | None = None, do_pad: bool | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Images as the model takes them.

        Args:
            images: an image, or a list of images, each as `Detector.predict` takes it.
            return_tensors: "pt" or None: torch tensors; "np": arrays.
            do_pad: instead of the processor's.
            kwargs: none.

        Returns:
            `pixel_values` (B, 3, H, W) float32 and `pixel_mask` (B, H, W) int64, 1 = image; without padding
            `pixel_values` alone, a list of images (3, h, w).

        Raises:
            ValueError: an image or argument that is not allowed.
        """
        if kwargs:
            raise ValueError(f"{', '.join(sorted(kwargs))}: no arguments of this image processor")
        if return_tensors not in (None, "pt", "np"):
            raise ValueError(f"return_tensors={shown(return_tensors)}: it is 'pt' or 'np'")
        settings = self._settings()
        transform = build_transforms(settings.data, settings.test, train=False)
        samples = []
        for image in images if isinstance(images, list | tuple) else [images]:
            pixels = to_pixels(image, max_pixels=settings.data.max_pixels)
            sample = transform(Sample.from_image(pixels), np.random.default_rng(0))
            target = sample.to_target(image_id=0, orig_size=pixels.shape[:2], pad_divisor=self.pad_divisor)
            samples.append((np.require(sample.image, requirements=["C", "W"]), target))
        if self.do_pad if do_pad is None else do_pad:
            batch = collate(samples)
            values = normalize(batch.images, batch.padding_mask, self.image_mean, self.image_std)
            return _feature({"pixel_values": values, "pixel_mask": (~batch.padding_mask).long()}, return_tensors)
        batches = [collate([sample]) for sample in samples]
        alone = [
            normalize(batch.images, batch.padding_mask, self.image_mean, self.image_std)[0, :, :height, :width]
            for batch in batches
            for height, width in [batch.targets[0]["size"]]
        ]
        return _feature({"pixel_values": alone}, return_tensors)

    def post_process_object_detection(
        self, outputs: CodetrOutput, threshold: float = 0.5, target_sizes: Any = None
    ) -> list[dict[str, Tensor]]:
        """The detections of each image, by the post-processing of codetr, best first.

        Args:
            outputs: of the model.
            threshold: lowest score, in [0, 1].
            target_sizes: (height, width) of each image before it was resized, in pixels; None: boxes are relative.

        Returns:
            for each image `scores` (N,), `labels` (N,) int64 and `boxes` (N, 4) xyxy in pixels of the image.

        Raises:
            ValueError: another number of sizes than of images.
        """
        logits, boxes = (getattr(outputs, name) for name in ("logits", "pred_boxes"))
        sizes = [None] * len(logits) if target_sizes is None else [tuple(map(int, size)) for size in target_sizes]
        if len(sizes) != len(logits):
            raise ValueError(f"{len(sizes)} target_sizes for the outputs of {len(logits)} images")
        test = self._settings().test
        targets = [self._target(size, test) for size in sizes]
        results = []
        for found in build_postprocess(test)(logits, boxes, targets):
            kept = found[found.scores >= threshold]
            results.append({"scores": kept.scores, "labels": kept.labels, "boxes": kept.boxes})
        return results

    def _target(self, size: tuple[int, ...] | None, test: TestConfig) -> Target:
        """What maps boxes to an image of this (height, width)."""
        if size is None:
            return {"norm_size": (1, 1), "scale_factor": (1.0, 1.0)}
        height, width = size
        new_height, new_width = resized_size((height, width), test)
        norm_size = (new_height, new_width) if test.canvas is None else (test.canvas, test.canvas)
        return {"norm_size": norm_size, "scale_factor": (new_width / width, new_height / height)}


def _feature(data: dict[str, Any], return_tensors: str | None) -> BatchFeature:
    if return_tensors != "np":
        return BatchFeature(data)
    arrays = {
        name: value.numpy() if isinstance(value, Tensor) else [each.numpy() for each in value]
        for name, value in data.items()
    }
    return BatchFeature(arrays)


def _without_padding(images: Tensor | Sequence[Any], mask: Tensor | None) -> list[Tensor]:
    """The images (3, h, w) of a batch, or of a list; the batches of a pipeline are lists of lists."""
    if not isinstance(images, Tensor):
        return [image for each in images for image in (_without_padding(each, None) if _is_list(each) else [each])]
    if mask is None:
        return list(images)
    sizes = torch.stack([mask.any(2).sum(1), mask.any(1).sum(1)], 1).tolist()
    return [image[:, :height, :width] for image, (height, width) in zip(images, sizes, strict=True)]


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, Tensor) and value.dim() == 4)


def _padded(images: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """Images (3, h, w) as one tensor of a size, and its padding mask, True = padding; None: there is no padding."""
    padding = [(0, size[1] - image.shape[2], 0, size[0] - image.shape[1]) for image in images]
    values = torch.stack([F.pad(image, sides) for image, sides in zip(images, padding, strict=True)])
    if not any(map(any, padding)):
        return values, None
    mask = torch.ones(len(images), *size, dtype=torch.bool, device=values.device)
    for number, image in enumerate(images):
        mask[number, : image.shape[1], : image.shape[2]] = False
    return values, mask


def _device_of(device_map: Any) -> torch.device:
    """The device of `device_map`: one for the whole model.

    Raises:
        ValueError: it divides the model.
    """
    place = device_map.get("") if isinstance(device_map, Mapping) and len(device_map) == 1 else device_map
    if place is None and device_map is None:
        return torch.device("cpu")
    if place == "auto":
        return choose_device("auto")
    if isinstance(place, str | int | torch.device):
        return torch.device(place)
    raise ValueError(f"device_map={shown(device_map)}: a model of codetr is on one device: give its name, or 'auto'")


def register() -> None:
    """Makes the Auto classes and the pipeline of transformers know the architecture; importing this module calls it."""
    AutoConfig.register(MODEL_TYPE, CodetrConfig, exist_ok=True)
    AutoModelForObjectDetection.register(CodetrConfig, CodetrForObjectDetection, exist_ok=True)
    classes = {"torchvision": CodetrImageProcessor, "pil": CodetrImageProcessor}
    AutoImageProcessor.register(CodetrConfig, image_processor_classes=classes, exist_ok=True)
    # The pipeline checks names of classes and reports an error for others, although it runs them.
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES.setdefault(MODEL_TYPE, CodetrForObjectDetection.__name__)


register()
