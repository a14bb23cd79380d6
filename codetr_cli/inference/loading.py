"""From a checkpoint, run folder, published .pth file or preset to a detector ready to run."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from codetr_cli.config.checkpoint_settings import settings_of_checkpoint
from codetr_cli.config.overrides import replace_settings
from codetr_cli.config.presets import load_preset, preset_names
from codetr_cli.config.schema import Settings
from codetr_cli.errors import CheckpointError, ConfigError, ResourceError, nearest
from codetr_cli.files import WEIGHTS_NAME
from codetr_cli.inference.exported.engine import choose_for_file as choose_for_file
from codetr_cli.inference.exported.engine import is_exported
from codetr_cli.inference.exported.load import default_tiles, load_network
from codetr_cli.inference.exported.network import ExportedNetwork
from codetr_cli.inference.model_size import check_size
from codetr_cli.inference.options import TileOptions
from codetr_cli.models.build import build_model, build_postprocess
from codetr_cli.models.codetr import CoDETR
from codetr_cli.models.inference_mode import optimize_for_inference
from codetr_cli.models.postprocess import PostProcess
from codetr_cli.models.torch_compile import compile_static_parts, why_not_compile
from codetr_cli.runtime.malloc import return_large_blocks
from codetr_cli.weights.classes import COCO_CATEGORIES
from codetr_cli.weights.convert import NOTES
from codetr_cli.weights.load_state import load_exact
from codetr_cli.weights.published import published_weights
from codetr_cli.weights.resolve import open_weights, preset_weights, refuse_exported, resolve_weights
from codetr_cli.weights.urls import is_url

logger = logging.getLogger(__name__)

PREFERRED = ("best", "last", "previous")
"""Folders of `checkpoints/` in the order in which they are searched for weights."""

MAX_FOLDERS, MAX_DEPTH = 2000, 6
"""How much of a folder tree is searched for checkpoints; hidden folders are not."""


@dataclass(frozen=True)
class LoadedModel:
    """A network with everything needed to use it.

    Attributes:
        model: on its device, in evaluation mode, or an exported file in its place.
        postprocess: as the settings describe it.
        settings: of the checkpoint or preset, with overrides applied.
        class_names: by label.
        category_ids: original category id of each label.
        path: the file of the weights; None for the random weights of a preset.
        tiles: that an exported file cuts large images into by default.
    """

    model: CoDETR | ExportedNetwork
    postprocess: PostProcess
    settings: Settings
    class_names: list[str]
    category_ids: list[int]
    path: Path | None = None
    tiles: TileOptions | None = None


@dataclass(frozen=True)
class Classes:
    """Names and original category ids of the classes, by label."""

    names: list[str]
    category_ids: list[int]


def load_detector(
    path_or_preset: str | Path,
    device: torch.device,
    overrides: Sequence[str] = (),
    *,
    classes: Classes | None = None,
    training: bool = False,
    optimize: bool = True,
    random_weights: bool = False,
) -> LoadedModel:
    """Loads a checkpoint, or builds a preset with random weights; logs what the user should know of the weights.

    Args:
        path_or_preset: a .safetensors file, a published .pth file, the URL of one, a run folder, an exported file, or a
            preset, which refers to its published weights if there are any.
        device: where the network runs.
        overrides: `key=value` settings; those under `model.` must fit the checkpoint.
        classes: of a preset, COCO's by default; a checkpoint has its own.
        training: build the auxiliary heads as well, and do not compile or optimize; otherwise they are built only if
            `test.head` is one of them.
        optimize: make the network faster and able to detect only (`optimize_for_inference`).
        random_weights: build a preset with random weights even if others are published for it.

    Raises:
        CheckpointError: no such file, unreadable, unsafe, of another architecture than the settings, with weights that
            are not finite, or a preset whose published weights are not on this machine.
        ConfigError: neither a file nor a preset, or an invalid override.
        ResourceError: `test.compile` is set and there is no compiler, or a preset's network is too large.
    """
    if training:
        return_large_blocks()
    path = find_checkpoint(path_or_preset, random_weights=random_weights)
    if path is not None and is_exported(path):
        return _load_exported(path, device, overrides, training=training)
    if path is None:
        checkpoint = None
        settings = load_preset(str(path_or_preset), list(overrides))
        if classes is None:
            classes = _preset_classes(settings.model.num_classes)
        else:
            settings = replace_settings(settings, {"model.num_classes": len(classes.names)})
        if not random_weights:
            logger.warning("%s is a preset: its weights are random and its detections mean nothing", path_or_preset)
    else:
        checkpoint = open_weights(path)
        settings = settings_of_checkpoint(checkpoint.settings, overrides, source=str(path))
        classes = Classes(list(checkpoint.class_names), list(checkpoint.category_ids))
        if path.suffix != ".safetensors":
            for note in checkpoint.extra.get(NOTES, "").splitlines():
                logger.warning("%s", note)
    aux_heads, source = training or settings.test.head != "decoder", f"{path} (preset {settings.name})"
    check_size(settings, None if checkpoint is None else checkpoint.state, aux_heads=aux_heads, source=source)
    model = build_model(settings.model, aux_heads=aux_heads)
    if checkpoint is not None:
        allow_nonfinite = settings.test.allow_nonfinite_weights
        load_exact(model, checkpoint.state, source=source, allow_nonfinite=allow_nonfinite)
    model = model.to(device).eval()
    if settings.test.compile and not training:
        compile_for(model, device, "test.compile")
    return LoadedModel(
        model=optimize_for_inference(model) if optimize and not training else model,
        postprocess=build_postprocess(settings.test),
        settings=settings,
        class_names=classes.names,
        category_ids=classes.category_ids,
        path=path,
    )


def _load_exported(path: Path, device: torch.device, overrides: Sequence[str], *, training: bool) -> LoadedModel:
    """An exported file with its settings."""
    if training:
        refuse_exported(path)
    network, settings = load_network(path, device, overrides)
    metadata = network.engine.metadata
    logger.info("%s: %s", path, network.engine.info)
    return LoadedModel(
        model=network,
        postprocess=build_postprocess(settings.test),
        settings=settings,
        class_names=metadata.class_names,
        category_ids=metadata.category_ids,
        path=path,
        tiles=default_tiles(metadata),
    )


def _preset_classes(count: int) -> Classes:
    """COCO's classes if the number is COCO's, else numbered ones."""
    if count == len(COCO_CATEGORIES):
        return Classes(list(COCO_CATEGORIES.values()), list(COCO_CATEGORIES))
    return Classes([f"class {label}" for label in range(count)], list(range(1, count + 1)))


def check_image_size(settings: Settings, *, training: bool) -> None:
    """Refuses sizes of test images, and with `training` of training images, that a fixed-size network cannot take.

    Raises:
        ConfigError: names the settings to change.
    """
    side = getattr(settings.model.backbone, "fixed_size", None)
    if side is None:
        return
    canvases = {"test.canvas": settings.test.canvas}
    if training:
        canvases["data.canvas"] = settings.data.canvas if settings.data.augmentation == "lsj" else None
    wrong = {name: canvas for name, canvas in canvases.items() if canvas != side}
    if wrong:
        found = " and ".join(f"{name} is {canvas or 'not set'}" for name, canvas in wrong.items())
        sizes = [f"--set {name}={side}" for name in wrong]
        lsj = ["--set data.augmentation=lsj"] if "data.canvas" in wrong and settings.data.augmentation != "lsj" else []
        raise ConfigError(
            f"this network takes squares of {side} pixels only (model.backbone.fixed_size), but {found}: use "
            f"{' '.join([*lsj, *sizes])}"
        )


def compile_for(model: CoDETR, device: torch.device, setting: str) -> None:
    """Compiles the network's static parts, as a setting requests.

    Raises:
        ResourceError: there is no compiler for the device.
    """
    reason = why_not_compile(device.type)
    if reason is not None:
        raise ResourceError(f"{setting}=true, but: {reason} Install one, or set it to false.")
    compile_static_parts(model)


def find_checkpoint(path_or_preset: str | Path, *, random_weights: bool = False) -> Path | None:
    """The file of a checkpoint.

    Args:
        path_or_preset: a file, a URL, a run folder (its best checkpoint, else the last), or a preset.
        random_weights: a preset stands for no file even if weights are published for it.

    Returns:
        the file, or None for a TOML file or a preset without published weights.

    Raises:
        CheckpointError: a path that does not exist or a folder without checkpoint; names the newest nearby. A preset
            whose weights are not on this machine; names the command that gets them.
        ConfigError: neither a file nor a preset.
    """
    if is_url(str(path_or_preset)):
        return resolve_weights(path_or_preset)
    path = Path(path_or_preset)
    if path.is_file():
        return None if path.suffix == ".toml" else path
    if path.is_dir() and str(path_or_preset) not in preset_names():
        found = checkpoint_of_run(path)
        if found is None:
            raise CheckpointError(f"the folder {path} contains no checkpoint. {_hint(path)}")
        return found
    if str(path_or_preset) in preset_names():
        settings = load_preset(str(path_or_preset))
        place = published_weights(settings)
        return preset_weights(settings) if not random_weights and (place.known or place.ready) else None
    if is_exported(path):
        raise CheckpointError(f"there is no file {path}: `codetr export` writes such files")
    if path.suffix or len(path.parts) > 1:
        raise CheckpointError(f"there is no checkpoint {path}. {_hint(path)}{_hub_hint(path)}")
    raise ConfigError(
        f"{path_or_preset!r} is neither a checkpoint nor a preset: {nearest(str(path_or_preset), preset_names())}"
    )


def checkpoint_of_run(folder: Path) -> Path | None:
    """The weights in a run folder, its `checkpoints` folder, or one checkpoint's folder; None if there are none."""
    folders = [folder, *(place / name for place in (folder / "checkpoints", folder) for name in PREFERRED)]
    return next((place / WEIGHTS_NAME for place in folders if (place / WEIGHTS_NAME).is_file()), None)


def newest_checkpoint(folder: Path) -> Path | None:
    """The weights written last under a folder, the run's best before its last; None if there are none."""
    files: list[Path] = []
    for place, subfolders, names in islice(os.walk(folder), MAX_FOLDERS):
        files += [Path(place, name) for name in names if name.endswith(".safetensors")]
        is_deep = len(Path(place).relative_to(folder).parts) >= MAX_DEPTH
        subfolders[:] = [] if is_deep else sorted(name for name in subfolders if not name.startswith("."))
    if not files:
        return None
    newest = max(files, key=lambda file: file.stat().st_mtime)
    run = next((parent.parent for parent in newest.parents if parent.name == "checkpoints"), None)
    return (checkpoint_of_run(run) if run else None) or newest


def _hub_hint(path: Path) -> str:
    """How a repository of the Hub is given, for a path that looks like one."""
    if path.suffix or path.is_absolute() or len(path.parts) != 2:
        return ""
    return f". If it is a model on the Hub, give hf://{path}, or in Python Detector.from_pretrained({str(path)!r})"


def _hint(path: Path) -> str:
    """Where there is a checkpoint instead: in the nearest folder that exists, or under runs/."""
    nearest_folder = next(place for place in (path, *path.parents) if place.is_dir())
    places = [Path("runs")] if nearest_folder == Path(path.anchor or "..") else [nearest_folder, Path("runs")]
    found = next((found for found in map(newest_checkpoint, places) if found), None)
    if found is not None:
        return f"The newest one nearby is {found}"
    return "`codetr train` writes them to runs/PRESET/N/checkpoints, `codetr download PRESET` fetches published ones"
