"""Which settings of a checkpoint count when it is loaded.

A checkpoint is data, perhaps a stranger's, and not a command. It decides what the network is and how its detections
are made and measured. It does not decide what runs on this machine: compilers, kernels, processes, paths, URLs,
loggers, and what is done with broken or huge images. For those the defaults count, or the command line.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence, Set
from operator import attrgetter
from typing import Any

from pydantic import BaseModel

from codetr_cli.config.overrides import RENAMED, apply_overrides, parse_settings, replace_settings, setting_names
from codetr_cli.config.schema import Settings
from codetr_cli.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

DECIDED = ("name", "summary", "model", "data.dataset", "data.val_fraction", "data.mean", "data.std",
           "data.pad_divisor", "train.clip_norm", "train.loss", "test")  # fmt: skip
"""What a checkpoint decides: settings, or all settings of a table."""

NOT_DECIDED = ("model.attention_backend", "test.compile", "test.cuda_graph", "test.allow_nonfinite_weights")
"""Exceptions in these tables. Nothing else of a checkpoint counts."""

NO_MORE = ("data.workers",)
"""What a checkpoint may lower but not raise."""

NOTED = (
    "model.attention_backend",
    "test.compile",
    "test.cuda_graph",
    "data.bad_files",
    "data.max_pixels",
    "data.allow_outside",
    "data.max_images",
)
"""What a user may miss: a note names those that a checkpoint sets."""

SIZES = ("test.short_side", "test.long_side", "test.canvas", "test.fixed_size")
"""What decides the pixels of an image; not more than `MAX_PIXELS`, unless the user sets one of them."""

MAX_PIXELS = 1 << 23
"""Of the images of a batch, with their padding; published are up to 1536 x 1536 and 1280 x 2400."""

PATCH = 16
"""Side of a published ViT's tokens. Its global attention needs time that grows with the square of their number."""

MAX_VALUES = 2 * 10**8
"""Of one tensor of pooled regions; published are up to 60 million."""


def parse_stored(table: dict[str, Any], where: str) -> Settings:
    """The settings that a checkpoint has, exactly; if they cannot be read, without those that it does not decide.

    Earlier versions had other limits, and what does not count is no reason to refuse weights.

    Raises:
        ConfigError: a setting that the checkpoint decides has a wrong value or an unknown name.
    """
    try:
        return parse_settings(table, where)
    except ConfigError:
        settings = parse_settings(_decided_part(table, setting_names()), where)
    logger.info("%s has settings that cannot be read; a checkpoint does not decide them: defaults are used", where)
    return settings


def _decided_part(table: dict[str, Any], known: Sequence[str], prefix: str = "") -> dict[str, Any]:
    """A copy of a nested table without known settings that a checkpoint does not decide."""
    kept = {}
    for name, value in table.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and any(each.startswith(f"{key}.") for each in known):
            kept[name] = _decided_part(value, known, f"{key}.")
        elif is_decided(key) or RENAMED.get(key, key) not in known:
            kept[name] = value
    return kept


def settings_of_checkpoint(stored: Settings, overrides: Sequence[str] = (), *, source: str) -> Settings:
    """The settings to use a checkpoint with.

    Args:
        stored: as the checkpoint has them.
        overrides: the user's, as `key=value`.
        source: the checkpoint's file, for messages.

    Raises:
        CheckpointError: it asks for larger images or more regions than this program uses by itself.
        ConfigError: an invalid override.
    """
    defaults = Settings(name=stored.name)
    values: dict[str, Any] = {}
    for key, value in _leaves(stored):
        if not is_decided(key):
            default = attrgetter(key)(defaults)
            values[key] = min(value, default) if key in NO_MORE else default
    given = {override.partition("=")[0].strip() for override in overrides}
    ignored = [key for key in NOTED if key not in given and attrgetter(key)(stored) != values[key]]
    if ignored:
        words = " ".join(f"--set {key}={_text(attrgetter(key)(stored))}" for key in ignored)
        logger.info("%s was made with other settings that a checkpoint does not decide; to use them: %s", source, words)
    settings = apply_overrides(replace_settings(stored, values), list(overrides))
    _check_work(settings, given, source)
    if "test.batch_size" in given:
        return settings
    batch = max(1, min(settings.test.batch_size, MAX_PIXELS // _pixels(settings, settings.test.input_size)))
    if batch < settings.test.batch_size:
        logger.info(
            "%s asks for batches of %s images: %s are used; to change it: --set test.batch_size=%s",
            *(source, f"{settings.test.batch_size:,}", batch, settings.test.batch_size),
        )
    return replace_settings(settings, {"test.batch_size": batch})


def _check_work(settings: Settings, given: Set[str], source: str) -> None:
    """Refuses what no weight depends on and memory and time do, unless the user set it (`given`).

    Raises:
        CheckpointError: names the settings and what to set.
    """
    test, size = settings.test, settings.test.input_size
    if not set(SIZES).isdisjoint(given):
        return
    views = [] if "test.tta_scales" in given else [_scaled(size, scale) for scale in test.tta_scales]
    pixels = max(_pixels(settings, each) for each in [size, *views])
    if pixels > MAX_PIXELS:
        height, width = size
        raise CheckpointError(
            f"{source} asks for images of {height} x {width} pixels and test.tta_scales up to "
            f"{max(test.tta_scales):g}, which cost as much as {pixels:,} pixels; a checkpoint by itself may use "
            f"{MAX_PIXELS:,}. Set the size yourself, e.g. --set test.canvas=1024, or --set test.tta_scales=1.0"
        )
    for keys, values in _region_values(settings).items():
        if values > MAX_VALUES and given.isdisjoint(keys):
            raise CheckpointError(
                f"{source} asks for {values:,} values of image regions at once; a checkpoint by itself may use "
                f"{MAX_VALUES:,}. Set one yourself: --set {keys[0]}=100"
            )


def _region_values(settings: Settings) -> dict[tuple[str, ...], int]:
    """What decides the number of pooled values -> that number, for each head with regions."""
    model = settings.model
    roi, mask = model.roi, model.mask
    found: dict[tuple[str, ...], int] = {
        ("model.rpn.num_proposals_test", "model.roi.output_size"): (
            model.rpn.num_proposals_test * roi.output_size**2 * model.embed_dim
        )
    }
    if mask.kind != "none":
        # refine ends with an eighth of the channels at 8 times the side, fcn with all channels at twice the side.
        larger = 8 if mask.kind == "refine" else 4
        found["model.mask.regions_per_chunk", "model.mask.pooled_size"] = (
            mask.regions_per_chunk * mask.pooled_size**2 * mask.dim * larger
        )
    return found


def is_decided(key: str) -> bool:
    """Whether a checkpoint decides a setting, given its dotted name."""
    return key not in NOT_DECIDED and any(key == name or key.startswith(f"{name}.") for name in DECIDED)


def _leaves(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every setting."""
    for name, value in section:
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _pixels(settings: Settings, size: tuple[int, int]) -> int:
    """Pixels of an image with its padding, more for a ViT, whose tokens all attend to each other."""
    divisor = settings.data.pad_divisor
    height, width = (-(-side // divisor) * divisor for side in size)
    backbone = settings.model.backbone
    patch = backbone.patch_size if backbone.kind == "vit" else None
    return height * width if patch is None else max(1, 2 * height * width * PATCH**2 // patch**2)


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """The size of a view: a scale is a factor, or the short side."""
    factor = scale if scale <= 4 else scale / min(size)
    return round(size[0] * factor), round(size[1] * factor)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
