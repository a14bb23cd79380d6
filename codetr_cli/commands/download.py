"""`codetr download`: fetches published weights, verifies, converts and caches them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.commands._weights import byte_progress
from codetr_cli.number_text import bytes_text

if TYPE_CHECKING:
    from codetr_cli.weights.published import PretrainedBackbone, PublishedWeights
    from codetr_cli.weights.remote import Remote

EXAMPLES = (
    "codetr download co_dino_r50",
    "codetr download swin_l",
    "codetr download co_dino_r50 --dry-run",
)


def download(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A preset, see `codetr presets`, or a backbone, e.g. resnet50 or swin_l."),
    ],
    force: Annotated[bool, opt.flag("--force", "Download again what exists.", opt.OUTPUT)] = False,
    dry_run: Annotated[bool, opt.flag("--dry-run", "Print the source and the target, then stop.", opt.OUTPUT)] = False,
    json_output: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
    url: Annotated[str | None, opt.option("--url", "URL", "Download from here instead.", opt.ADVANCED)] = None,
) -> None:
    """Download published weights or a pretrained backbone.

    An interrupted download is continued. Size and SHA-256 are verified where they are published. The file is kept in
    the cache, CODETR_CACHE or ~/.cache/codetr. Afterwards the preset's name stands for its weights: `codetr eval NAME`.
    """
    console.set_mode(json=json_output, quiet=quiet)
    from codetr_cli.config.presets import load_preset, preset_names
    from codetr_cli.errors import ConfigError, nearest
    from codetr_cli.weights.published import BACKBONES, published_weights

    if name in BACKBONES:
        _download_backbone(BACKBONES[name], url, force=force, dry_run=dry_run)
    elif name in preset_names() or name.endswith(".toml"):
        _download_preset(published_weights(load_preset(name), url=url), force=force, dry_run=dry_run)
    else:
        choices = [*preset_names(), *BACKBONES]
        raise ConfigError(f"{name!r} is neither a preset nor a pretrained backbone: {nearest(name, choices)}")


def _download_preset(place: PublishedWeights, *, force: bool, dry_run: bool) -> None:
    """Fetches the published file and converts it."""
    from codetr_cli.errors import CheckpointError

    source, name = place.preset.source, place.preset.name
    summary: dict[str, Any] = {
        "name": name,
        "url": place.remote.shown if place.remote else None,
        "page": source.page,
        "file": place.file,
        "weights": place.converted,
        "bytes": source.bytes,
        "sha256": source.sha256,
        "licence": source.licence,
    }
    if not (place.known or place.remote):
        raise CheckpointError(
            f"no weights are published for preset {name!r}: train it with `codetr train --preset {name}`, or give "
            "the URL of a checkpoint with --url."
        )
    _show_source(name, place.remote, source.page, source.licence, place.file)
    if dry_run:
        done = "would be used as is" if place.ready and not force else "would be downloaded"
        console.result(f"{name}: the weights {done if place.remote or place.ready else 'must be downloaded manually'}.")
        console.result_json({**summary, "there": place.ready, "downloaded": False, "converted": False})
        return
    from codetr_cli.inference.model_size import model_shapes
    from codetr_cli.weights.resolve import convert_preset, usable_conversion

    kept = None if force else usable_conversion(place)
    if kept is not None:
        console.result(f"{name} is already downloaded: {place.converted}")
        summary["sha256"] = kept.extra.get("source_sha256", source.sha256)
        console.result_json({**summary, "there": True, "downloaded": False, "converted": False})
        return
    downloaded = False
    if place.remote is not None:
        downloaded = _fetch(place.remote, place.file, force=force, copies=2)
    elif not place.file.is_file():
        raise CheckpointError(
            f"the weights of {name} have no direct URL. Download {place.file.name} by hand"
            + (f" from {source.page}" if source.page else "")
            + f", put it at {place.file} and run `codetr download {name}` again; or give a URL with --url."
        )
    conversion = convert_preset(place, model_shapes)
    for note in conversion.notes:
        console.warn(note)
    console.result(f"{name}: {place.converted}, {bytes_text(place.converted.stat().st_size)}.")
    console.info(f"The preset name now refers to these weights, e.g. `codetr eval {name}`.")
    _show_cache_size()
    summary |= {"sha256": conversion.checkpoint.extra["source_sha256"], "bytes": place.file.stat().st_size}
    console.result_json({**summary, "there": True, "downloaded": downloaded, "converted": True})


def _fetch(remote: Remote, file: Path, *, force: bool, copies: int = 1) -> bool:
    """Fetches a file, shows the progress, and returns whether it was downloaded now."""
    from codetr_cli.weights.download import fetch

    before = file.stat() if file.is_file() else None
    with byte_progress(f"downloading {file.name}") as progress:
        fetch(remote, file, force=force, copies=copies, progress=progress)
    return before is None or not os.path.samestat(before, file.stat())


def _download_backbone(backbone: PretrainedBackbone, url: str | None, *, force: bool, dry_run: bool) -> None:
    """Fetches a pretrained backbone, which is used as is."""
    remote = backbone.remote(url)
    there = backbone.file.is_file()
    _show_source(backbone.title, remote, None, backbone.licence, backbone.file)
    downloaded = False
    if dry_run:
        console.result(f"{backbone.name}: {'already downloaded' if there and not force else 'would be downloaded'}.")
    else:
        downloaded = _fetch(remote, backbone.file, force=force)
        console.result(f"{backbone.name}: {backbone.file}, {bytes_text(backbone.file.stat().st_size)}.")
        console.info("Presets with this backbone now start from it when they are trained from scratch.")
        _show_cache_size()
    console.result_json(
        {
            "name": backbone.name,
            "url": remote.shown,
            "file": backbone.file,
            "bytes": remote.bytes,
            "sha256": remote.sha256,
            "licence": backbone.licence,
            "there": there or not dry_run,
            "downloaded": downloaded,
        }
    )


def _show_cache_size() -> None:
    """Prints the size of all downloads, which are kept until the user removes them."""
    from codetr_cli.files import cache_dir

    size = sum(path.lstat().st_size for path in cache_dir().rglob("*") if path.is_file())
    console.info(
        f"The cache {cache_dir()} holds {bytes_text(size)}; see `codetr cache`. Removed files are fetched or "
        "converted again when needed."
    )


def _show_source(what: str, remote: Remote | None, page: str | None, licence: str | None, file: Path) -> None:
    console.info(f"{what}: from {remote.shown if remote else page or 'an unknown URL'}")
    console.info(f"licence: {licence or 'not stated by the publisher'}")
    console.info(f"kept as {file}")
