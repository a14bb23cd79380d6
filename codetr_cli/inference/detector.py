"""`Detector`: an image in, detections in its own pixels out, equal to those of an evaluation."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, overload

import torch

from codetr_cli.errors import ArgumentError, ConfigError, shown
from codetr_cli.inference.arguments import (
    NMS_KINDS,
    PRECISIONS,
    check_class_scores,
    check_count,
    check_device,
    check_flag,
    check_images,
    check_overrides,
    check_path,
    check_score,
    check_tiles,
    check_word,
    worded_for_python,
)
from codetr_cli.inference.detection_steps import DetectionSteps
from codetr_cli.inference.exported.network import check_precision, check_views
from codetr_cli.inference.given_images import predict_images
from codetr_cli.inference.given_pixels import to_pixels, to_regions, worded_images
from codetr_cli.inference.loading import LoadedModel, choose_for_file, load_detector
from codetr_cli.inference.options import NO_TILES, DetectOptions, Nms, TileOptions
from codetr_cli.inference.prediction import ImageInput, Prediction
from codetr_cli.runtime.devices import choose_device, use_device


class Detector(DetectionSteps):
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
        with worded_for_python():
            check_precision(loaded.model, precision)
            if tta:
                check_views(loaded.model, loaded.settings)
        super().__init__(loaded, device, precision=precision, tta=tta)

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
            path: a .safetensors file, a run folder, a published .pth file, its URL, a downloaded preset, or a file of
                `codetr export`.
            device: "auto" (a CUDA GPU if there is one), "cpu", "cuda", "cuda:1", "mps" or "xpu"; for a file of OpenVINO
                also "gpu", "gpu.1" and "npu".
            precision: "auto" (fp32), "fp32", "tf32", "bf16" or "fp16"; an exported file has its own.
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
        name, extra = choose_for_file(path, check_device(device))
        with worded_for_python():
            chosen = use_device(_chosen_device(name))
            loaded = load_detector(path, chosen, [*overrides, *extra])
            return cls(loaded, device=chosen, precision=precision, tta=tta)

    @classmethod
    def from_pretrained(
        cls,
        repository: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        device: str | torch.device = "auto",
        precision: str = "auto",
        overrides: Sequence[str] = (),
        tta: bool = False,
    ) -> Detector:
        """Loads a detector from the Hub, or from a folder of `save_pretrained`.

        Only the weights are downloaded, once, into the cache of huggingface_hub; nothing in a repository is executed.

        Args:
            repository: `org/name`, or the path of a folder, which comes first where both exist.
            revision: a branch, tag or commit of the repository; None: its main branch.
            token: of an account, for private repositories; None: the one of `hf auth login`; False: none.
            cache_dir: another cache than that of huggingface_hub.
            local_files_only: use the cache only, as with HF_HUB_OFFLINE=1.
            device: as for `load`; so are the others.
            precision: of the arithmetic.
            overrides: settings as `key=value`.
            tta: test-time augmentation.

        Raises:
            CheckpointError: there is no such repository or revision, or it has no weights of codetr.
            ValueError: an argument that is not allowed.
            ResourceError: no connection, no access, or huggingface_hub is not installed (extra `hub`).
        """
        from codetr_cli.inference.hub.pretrained import find_weights

        with worded_for_python():
            path = find_weights(
                check_path(repository),
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )
        return cls.load(path, device, precision, overrides=overrides, tta=tta)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        license: str | None = None,
        evaluation: str | Path | None = None,
        force: bool = False,
    ) -> list[Path]:
        """Writes the detector as a folder: weights, settings for transformers, and a model card.

        `from_pretrained`, `load` and all commands that take a checkpoint take the folder.

        Args:
            folder: is created; files of others in it are never replaced.
            license: of the weights, an SPDX identifier; None: the one that is known of them, possibly none.
            evaluation: the folder or metrics.json that `codetr eval` wrote, or a run folder, for the card; None: an
                evaluation of these weights that is found beside the checkpoint.
            force: replace the files that codetr has written there.

        Returns:
            the files.

        Raises:
            ValueError: an argument that is not allowed, random weights, or files in the way.
            ResourceError: the folder cannot be written.
        """
        from codetr_cli.inference.hub.pretrained import save_model

        check_flag("force", force)
        with worded_for_python():
            return save_model(
                self._weights_path(),
                Path(check_path(folder)),
                licence=license,
                evaluation=None if evaluation is None else Path(evaluation),
                test=self.loaded.settings.test,
                force=force,
            )

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        license: str | None = None,
        evaluation: str | Path | None = None,
        message: str | None = None,
    ) -> str:
        """Uploads the detector to the Hub, in one commit with the files of `save_pretrained` and nothing else.

        A detector that was loaded from such a folder, without overrides, is uploaded with the files as they are there.

        Args:
            repository: `org/name`; created if it does not exist.
            private: whether a new repository is private; None: as the organisation's default.
            token: of an account; None: the one of `hf auth login`.
            license: of the weights, an SPDX identifier; needed where none is known of them.
            evaluation: as for `save_pretrained`.
            message: of the commit.

        Returns:
            the address of the model's page.

        Raises:
            ValueError: an argument that is not allowed, random weights, or weights whose licence is unknown.
            ResourceError: no connection, not logged in, no right to write there, or huggingface_hub is not installed.
        """
        from codetr_cli.inference.hub.pretrained import push_model

        with worded_for_python():
            return push_model(
                self._weights_path(),
                repository,
                licence=license,
                evaluation=None if evaluation is None else Path(evaluation),
                test=self.loaded.settings.test,
                private=private,
                token=token,
                message=message,
            ).url

    def _weights_path(self) -> Path:
        if self.loaded.path is None:
            raise ArgumentError("this detector has random weights: there is nothing to save")
        return self.loaded.path

    @overload
    def predict(
        self,
        image: ImageInput,
        *,
        score: float = ...,
        class_scores: Mapping[str, float] | None = ...,
        max_dets: int | None = ...,
        nms: Nms | None = ...,
        tiles: TileOptions | str | None = ...,
        batch: int | None = ...,
        exact: bool = ...,
        workers: int | None = ...,
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        image: list[Any] | tuple[Any, ...],
        *,
        score: float = ...,
        class_scores: Mapping[str, float] | None = ...,
        max_dets: int | None = ...,
        nms: Nms | None = ...,
        tiles: TileOptions | str | None = ...,
        batch: int | None = ...,
        exact: bool = ...,
        workers: int | None = ...,
    ) -> list[Prediction]: ...

    def predict(
        self,
        image: ImageInput | list[Any] | tuple[Any, ...],
        *,
        score: float = 0.3,
        class_scores: Mapping[str, float] | None = None,
        max_dets: int | None = None,
        nms: Nms | None = None,
        tiles: TileOptions | str | None = None,
        batch: int | None = None,
        exact: bool = False,
        workers: int | None = None,
    ) -> Prediction | list[Prediction]:
        """Detects the objects in an image, or in each image of a list.

        The images of a list are read by threads and seen in batches of one size, as by `stream`.

        Args:
            image: a path, a PIL image, a numpy array (H, W, 3), RGB, or a torch tensor (3, H, W); or a list or tuple of
                them. Arrays and tensors are uint8, bool, uint16 (the upper 8 bits stay) or float in [0, 1]; grey ones
                (H, W) or with one channel, and a second or fourth channel is alpha, which is dropped. The EXIF rotation
                of files and PIL images is applied.
            score: minimum score, in [0, 1].
            class_scores: minimum scores of some classes, by name: `{"person": 0.5}`; the others need `score`.
            max_dets: maximum number of detections; None: as in the settings, for each tile of an image in tiles.
            nms: "none", "hard" or "soft"; None: as in the settings. The auxiliary heads keep their own NMS.
            tiles: how large images are cut: "1024x1024" (width x height), "auto", or `TileOptions`; None: they are not,
                unless an exported file says how; "none": they are not.
            batch: images of a list that the network sees at once; None: 1 on a CPU, by memory on a GPU. Batches round
                differently: in float32 boxes are within 1e-3 pixels of those of each image alone.
            exact: each image alone, so that a list gives the same as its images, to the last bit.
            workers: threads that read the images of a list; None: by the number of cores.

        Raises:
            DatasetError: a file that is missing, damaged or not an image; it is a ValueError, too.
            ValueError: any other argument that is not allowed.
        """
        options = self._options(score, class_scores, max_dets, nms, tiles, batch, exact, workers)
        if isinstance(image, list | tuple) and len(image) > 1:
            return cast("list[Prediction]", list(self._predict_many(image, options, raise_errors=True)))
        if isinstance(image, list | tuple):
            return [self._predict_one(single, options) for single in image]
        return self._predict_one(image, options)

    def stream(
        self,
        images: Iterable[Any],
        *,
        score: float = 0.3,
        class_scores: Mapping[str, float] | None = None,
        max_dets: int | None = None,
        nms: Nms | None = None,
        tiles: TileOptions | str | None = None,
        batch: int | None = None,
        exact: bool = False,
        workers: int | None = None,
        on_error: Literal["raise", "yield"] = "raise",
    ) -> Generator[Any, None, None]:
        """One prediction for each of any number of images, in their order, in bounded memory.

        Threads take the images as they are needed and read them while the network works. Images in memory may be
        overwritten once the next one is asked for. Closing the generator ends the threads.

        Example:
            paths = sorted(Path("photos").glob("*.jpg"))
            for path, detections in zip(paths, detector.stream(paths, score=0.5)):
                print(path.name, len(detections))

        Args:
            images: each as `predict` takes it.
            score: as for `predict`; so are the others up to `workers`.
            class_scores: minimum scores of some classes.
            max_dets: maximum number of detections of an image.
            nms: "none", "hard" or "soft".
            tiles: how large images are cut.
            batch: images that the network sees at once.
            exact: each image alone.
            workers: threads that read images, and as many that finish predictions.
            on_error: of an image that cannot be used: "raise" its error, which ends the stream, or "yield" it in place
                of the prediction, so that there still is one result an image.

        Raises:
            DatasetError: a file that is missing, damaged or not an image; it is a ValueError, too.
            ValueError: any other argument that is not allowed.
        """
        options = self._options(score, class_scores, max_dets, nms, tiles, batch, exact, workers)
        check_word("on_error", on_error, ("raise", "yield"))
        check_images(images)
        return self._predict_many(images, options, raise_errors=on_error == "raise")

    def _options(
        self, score: Any, class_scores: Any, max_dets: Any, nms: Any, tiles: Any, batch: Any, exact: Any, workers: Any
    ) -> DetectOptions:
        check_flag("exact", exact)
        return DetectOptions(
            score=check_score(score),
            class_scores=check_class_scores(class_scores, self.class_names),
            max_dets=check_count("max_dets", max_dets, "as in the settings"),
            nms=None if nms is None else check_word("nms", nms, NMS_KINDS),
            tiles=check_tiles(tiles),
            whole_images=isinstance(tiles, str) and tiles == NO_TILES,
            batch=check_count("batch", batch, "chosen for the device"),
            exact=bool(exact),
            workers=check_count("workers", workers, "by the number of cores"),
        )

    def _predict_many(
        self, images: Iterable[Any], options: DetectOptions, *, raise_errors: bool
    ) -> Generator[Prediction | ArgumentError, None, None]:
        max_pixels = self.loaded.settings.data.max_pixels
        return predict_images(self, images, options, max_pixels=max_pixels, raise_errors=raise_errors)

    def _predict_one(self, image: Any, options: DetectOptions) -> Prediction:
        max_pixels = self.loaded.settings.data.max_pixels
        read = to_pixels if self.tiles_of(options) is None else to_regions
        prepared = self.prepare(read(image, max_pixels=max_pixels), options)
        with worded_images():  # tiles are read here
            (detections,) = self.detect([prepared], options)
        return self.to_prediction(detections, prepared.orig_size, options)


def _chosen_device(name: str) -> torch.device:
    try:
        return choose_device(name)
    except ConfigError as error:
        raise ArgumentError(f"device={shown(name)}: {error}") from error
