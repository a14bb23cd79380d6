"""`Detector`: an image in, detections in its own pixels out, equal to those of an evaluation."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from codetr_cli.config.schema import DataConfig
from codetr_cli.data.batch import collate
from codetr_cli.data.sample import Sample
from codetr_cli.data.transforms import AnyTransform, Keep, build_transforms
from codetr_cli.errors import ArgumentError, ConfigError, shown
from codetr_cli.inference.arguments import (
    NMS_KINDS,
    PRECISIONS,
    check_device,
    check_flag,
    check_image_id,
    check_max_dets,
    check_overrides,
    check_path,
    check_score,
    check_word,
    to_pixels,
    worded_for_python,
)
from codetr_cli.inference.cuda_graph import with_cuda_graphs
from codetr_cli.inference.detections import DetectionTable, Rle
from codetr_cli.inference.drawing import draw_detections
from codetr_cli.inference.loading import LoadedModel, load_detector
from codetr_cli.inference.pipeline import inference
from codetr_cli.inference.rle import decode_masks, encode_masks
from codetr_cli.inference.tta import build_augmentation, detect_images
from codetr_cli.models.postprocess import PostProcess
from codetr_cli.runtime.devices import choose_device, use_device

ImageInput = str | Path | Image.Image | np.ndarray | torch.Tensor
Nms = Literal["none", "hard", "soft"]


@dataclass(frozen=True)
class Detection:
    """One object.

    Attributes:
        box: (x1, y1, x2, y2) in pixels of the image as given.
        score: in [0, 1].
        label: class index, from 0.
        category_id: of the class in the annotations that the model was trained on.
        class_name: name of the class.
        mask: the object's pixels in COCO's run-length encoding; None: the network has no masks.
        mask_score: in [0, 1]; None: the mask has the score of its box.
    """

    box: tuple[float, float, float, float]
    score: float
    label: int
    category_id: int
    class_name: str
    mask: Rle | None = None
    mask_score: float | None = None


@dataclass(frozen=True, eq=False)
class Prediction:
    """The detections in one image, best score first: as columns, or as `Detection` objects by iteration.

    Attributes:
        boxes: (N, 4) float32 xyxy in pixels of the image as given. They may extend slightly beyond its edges.
        scores: (N,) float32 in [0, 1].
        labels: (N,) int64 class indices.
        category_ids: (N,) int64 original category ids.
        class_names: N names.
        image_size: (height, width) in pixels of the image as given.
        masks: N masks in COCO's run-length encoding, see `bitmaps`; None: the network has no masks.
        mask_scores: (N,) float32 in [0, 1]; None: masks have the scores of their boxes.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    class_names: list[str]
    image_size: tuple[int, int]
    masks: list[Rle] | None = None
    mask_scores: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        none = [None] * len(self)
        mask_scores = none if self.mask_scores is None else self.mask_scores.tolist()
        names = (self.labels.tolist(), self.category_ids.tolist(), self.class_names)
        columns = (self.scores.tolist(), *names, none if self.masks is None else self.masks, mask_scores)
        for box, *rest in zip(self.boxes.tolist(), *columns, strict=True):
            yield Detection(tuple(box), *rest)

    @overload
    def __getitem__(self, rows: int | np.integer[Any]) -> Detection: ...

    @overload
    def __getitem__(self, rows: slice | Sequence[int] | NDArray[Any] | torch.Tensor) -> Prediction: ...

    def __getitem__(
        self, rows: int | np.integer[Any] | slice | Sequence[int] | NDArray[Any] | torch.Tensor
    ) -> Detection | Prediction:
        """One detection, `detections[0]`, or some: `detections[:10]`, `detections[detections.scores > 0.5]`.

        Raises:
            IndexError: there is no detection of a number, or the array of booleans has another length.
            TypeError: it is no number, slice, list or array (N,) of numbers or booleans.
        """
        if isinstance(rows, torch.Tensor):
            rows = rows.detach().cpu().numpy()
        is_single = isinstance(rows, np.ndarray) and not rows.ndim
        if isinstance(rows, bool | np.bool_) or (is_single and np.asarray(rows).dtype == bool):
            raise TypeError(f"detections are chosen by numbers or booleans (N,), not by {rows}")
        if not isinstance(rows, slice | list | tuple | np.ndarray) or is_single:
            number = operator.index(cast("int", rows))
            if not -len(self) <= number < len(self):
                raise IndexError(f"there is no detection {number}: there are {len(self)}")
            return next(iter(self[[number % len(self)]]))
        if not isinstance(rows, slice):
            rows = np.asarray(rows) if len(rows) else np.zeros(0, np.int64)
            if rows.ndim != 1 or rows.dtype.kind not in "biu":
                raise TypeError(f"detections are chosen by numbers or booleans (N,), not by {rows.dtype} {rows.shape}")
        chosen = np.arange(len(self))[rows].tolist()
        return replace(
            self,
            boxes=self.boxes[rows],
            scores=self.scores[rows],
            labels=self.labels[rows],
            category_ids=self.category_ids[rows],
            class_names=[self.class_names[row] for row in chosen],
            masks=None if self.masks is None else [self.masks[row] for row in chosen],
            mask_scores=None if self.mask_scores is None else self.mask_scores[rows],
        )

    def bitmaps(self) -> NDArray[np.bool_]:
        """The masks as pixels (N, height, width); (0, height, width) without masks. Large: select detections first."""
        return decode_masks(self.masks or [], self.image_size)

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """The detections in COCO's result format, boxes as (x, y, width, height), masks as RLE.

        Raises:
            ValueError: the id is no whole number of at most 64 bits.
        """
        table = DetectionTable.of_image(
            check_image_id(image_id), self.boxes, self.scores, self.category_ids, self.masks, self.mask_scores
        )
        return table.to_records()

    def draw(self, image: ImageInput) -> Image.Image:
        """A copy of the predicted image with masks, boxes, classes and scores drawn on it.

        Raises:
            ValueError: it is no image, or of another size.
        """
        pixels = to_pixels(image, max_pixels=max(DataConfig().max_pixels, math.prod(self.image_size)))
        if pixels.shape[:2] != self.image_size:
            raise ArgumentError(
                f"image has {pixels.shape[1]} x {pixels.shape[0]} pixels, the predicted one had {self.image_size[1]} x "
                f"{self.image_size[0]}: give the same image"
            )
        return draw_detections(pixels, self.boxes, self.scores, self.labels, self.class_names, self.masks)


class Detector:
    """A network ready to detect objects; `Detector.load` makes one.

    Example:
        from codetr_cli import Detector

        detector = Detector.load("runs/co_dino_r50/1")
        detections = detector.predict("street.jpg", score=0.5)
        for detection in detections:
            x1, y1, x2, y2 = detection.box
            print(f"{detection.class_name} {detection.score:.2f}: {x1:.0f} {y1:.0f} {x2:.0f} {y2:.0f}")
        people = detections[detections.labels == detector.class_names.index("person")]
        print(len(people), "people, all boxes:", people.boxes.shape)
        detections.draw("street.jpg").save("street_detections.jpg")

    Args:
        loaded: the network with its settings and classes.
        device: where it is.
        precision: "auto" (fp32), "fp32", "tf32", "bf16" or "fp16".
        tta: detect in the views of `test.tta_scales` and `test.tta_flip`.
    """

    def __init__(
        self, loaded: LoadedModel, *, device: str | torch.device, precision: str = "auto", tta: bool = False
    ) -> None:
        if not isinstance(loaded, LoadedModel):
            raise ArgumentError(f"loaded={shown(loaded)}: it is a loaded network; Detector.load makes a detector")
        with worded_for_python():
            device = device if isinstance(device, torch.device) else _chosen_device(check_device(device))
        check_word("precision", precision, PRECISIONS)
        check_flag("tta", tta)
        self.loaded = loaded
        self.device = device
        self.precision = precision
        self._network = with_cuda_graphs(loaded.model, loaded.settings.test, device)
        self.class_names = loaded.class_names
        self.category_ids = loaded.category_ids
        self._augmentation = build_augmentation(loaded.settings) if tta else None
        self._transform: AnyTransform = (
            Keep() if tta else build_transforms(loaded.settings.data, loaded.settings.test, train=False)
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str | torch.device = "auto",
        precision: str = "auto",
        *,
        overrides: Sequence[str] = (),
        tta: bool = False,
    ) -> Detector:
        """Loads a detector.

        Args:
            path: a .safetensors file, a run folder, a published .pth file, its URL, or a downloaded preset.
            device: "auto" (a CUDA GPU if there is one), "cpu", "cuda", "cuda:1", "mps" or "xpu".
            precision: "auto" (fp32), "fp32", "tf32", "bf16" or "fp16".
            overrides: settings as `key=value`, e.g. `test.short_side=640` or `test.head=atss`.
            tta: test-time augmentation by several sizes and mirroring; slower, slightly more accurate.

        Raises:
            CheckpointError: no such file, unreadable, unsafe or of another architecture.
            ValueError: an argument or override that is not allowed, or neither a file nor a preset.
            ResourceError: the device is not available.
        """
        path, overrides = check_path(path), check_overrides(overrides)
        check_word("precision", precision, PRECISIONS)
        check_flag("tta", tta)
        device = check_device(device)
        with worded_for_python():
            chosen = use_device(_chosen_device(device))
            return cls(load_detector(path, chosen, overrides), device=chosen, precision=precision, tta=tta)

    @overload
    def predict(
        self, image: ImageInput, *, score: float = ..., max_dets: int | None = ..., nms: Nms | None = ...
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        image: list[Any] | tuple[Any, ...],
        *,
        score: float = ...,
        max_dets: int | None = ...,
        nms: Nms | None = ...,
    ) -> list[Prediction]: ...

    def predict(
        self,
        image: ImageInput | list[Any] | tuple[Any, ...],
        *,
        score: float = 0.3,
        max_dets: int | None = None,
        nms: Nms | None = None,
    ) -> Prediction | list[Prediction]:
        """Detects the objects in an image, or in each image of a list.

        Images are processed one by one at the size of evaluation, so that a list gives the same as single images.

        Args:
            image: a path, a PIL image, a numpy array (H, W, 3), RGB, or a torch tensor (3, H, W); or a list or tuple of
                them. Arrays and tensors are uint8, bool, uint16 (the upper 8 bits stay) or float in [0, 1]; grey ones
                (H, W) or with one channel, and a second or fourth channel is alpha, which is dropped. The EXIF rotation
                of files and PIL images is applied.
            score: minimum score, in [0, 1].
            max_dets: maximum number of detections; None: as in the settings.
            nms: "none", "hard" or "soft"; None: as in the settings. The auxiliary heads keep their own NMS.

        Raises:
            DatasetError: a file that is missing, damaged or not an image; it is a ValueError, too.
            ValueError: any other argument that is not allowed.
        """
        score, max_dets = check_score(score), check_max_dets(max_dets)
        if nms is not None:
            check_word("nms", nms, NMS_KINDS)
        if isinstance(image, list | tuple):
            return [self.predict(single, score=score, max_dets=max_dets, nms=nms) for single in image]
        config = self.loaded.settings.data
        pixels = to_pixels(image, max_pixels=config.max_pixels)
        size = (pixels.shape[0], pixels.shape[1])
        sample = self._transform(Sample.from_image(pixels), np.random.default_rng(0))
        target = sample.to_target(image_id=0, orig_size=size, pad_divisor=config.pad_divisor)
        batch = collate([(np.require(sample.image, requirements=["C", "W"]), target)])
        batch = batch.pin_memory() if self.device.type == "cuda" else batch
        postprocess = self._postprocess(max_dets, nms, score)
        with worded_for_python(), inference(self.loaded.model, self.device, self.precision):
            (detections,) = detect_images(
                self._network, postprocess, batch, self._augmentation, device=self.device, config=config
            )
        masks = encode_masks(detections, size)
        detections = detections.cpu()
        labels = detections.labels.numpy()
        prediction = Prediction(
            boxes=detections.boxes.float().numpy(),
            scores=detections.scores.float().numpy(),
            labels=labels,
            category_ids=np.array(self.category_ids, np.int64)[labels],
            class_names=[self.class_names[label] for label in labels],
            image_size=size,
            masks=masks,
            mask_scores=None if detections.mask_scores is None else detections.mask_scores.float().numpy(),
        )
        kept: Prediction = prediction[prediction.scores >= score]
        return kept[:max_dets]

    def _postprocess(self, max_dets: int | None, nms: Nms | None, score: float) -> PostProcess:
        """The settings' post-processing with another NMS, and with more detections if more are requested."""
        postprocess = replace(self.loaded.postprocess, mask_min_score=score)
        if max_dets is not None:
            postprocess = replace(postprocess, max_detections=max(max_dets, postprocess.max_detections))
        return postprocess if nms is None else replace(postprocess, nms=nms)


def _chosen_device(name: str) -> torch.device:
    try:
        return choose_device(name)
    except ConfigError as error:
        raise ArgumentError(f"device={shown(name)}: {error}") from error
