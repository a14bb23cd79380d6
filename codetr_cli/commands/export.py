"""`codetr export`: a checkpoint becomes a file that other runtimes run."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from shlex import join, quote
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

import typer

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.commands._option_values import argument_or_option, tile_options
from codetr_cli.commands._verify import ProofOptions, check_report, prove, show_proof
from codetr_cli.commands._weights import resolve_weights
from codetr_cli.errors import ConfigError
from codetr_cli.number_text import bytes_text

if TYPE_CHECKING:
    from codetr_cli.export.job import ExportResult
    from codetr_cli.inference.exported.metadata import ExportFormat

EXAMPLES = (
    "codetr export runs/co_dino_r50/1 --format onnx",
    "codetr export co_dino_r50 --format openvino --size 800x1344 --out r50.xml",
    "codetr export runs/co_dino_r50/1 --out r50.onnx --verify --data /path/to/coco",
    "codetr export --runner > runner.py",
)

FILE = "Exported file"
PROOF = "Proof"
INT8 = "int8"


def export(
    context: typer.Context,
    source: Annotated[
        str | None, typer.Argument(metavar="CKPT", help="A file, run folder, URL, or downloaded preset.")
    ] = None,
    checkpoint: opt.SameCheckpointOption = None,
    format: Annotated[
        Literal["onnx", "openvino", "tensorrt", "torch"],
        opt.option("--format", "NAME", "onnx, openvino, tensorrt or torch (torch.export).", FILE),
    ] = "onnx",
    size: Annotated[
        str | None, opt.option("--size", "HxW", "Size of the input. Default: the checkpoint's.", FILE)
    ] = None,
    dynamic_size: Annotated[bool, opt.flag("--dynamic-size", "Allow images of any size.", FILE)] = False,
    batch: Annotated[str, opt.option("--batch", "N", "Images of an input, or dynamic.", FILE)] = "dynamic",
    preprocess: Annotated[
        bool, opt.flag("--preprocess", "Take uint8 pixels and normalise them in the graph.", FILE)
    ] = False,
    postprocess: Annotated[
        bool, opt.flag("--postprocess", "Give the best boxes, scores and labels instead of logits.", FILE)
    ] = False,
    precision: Annotated[
        Literal["fp32", "fp16", "bf16", "int8"],
        opt.option(
            "--precision",
            "TYPE",
            "fp32, fp16, bf16, or int8 (OpenVINO): of weights and most of the arithmetic.",
            FILE,
        ),
    ] = "fp32",
    attention: Annotated[
        Literal["gridsample", "gather", "plugin"] | None,
        opt.option(
            "--attention",
            "NAME",
            "Deformable attention: gridsample, gather or plugin (a kernel). Default: what suits the format.",
            FILE,
        ),
    ] = None,
    tiles: Annotated[
        str | None,
        opt.option(
            "--tiles", "WxH", "Cut large images into such tiles by default, or auto, when the file is used.", FILE
        ),
    ] = None,
    overlap: Annotated[
        float | None, opt.option("--overlap", "SHARE", "Of a tile, repeated in the next one. Default: 0.2.", FILE)
    ] = None,
    layout: Annotated[
        Literal["file", "triton"],
        opt.option("--layout", "NAME", "file, or triton: a model of a Triton Inference Server.", opt.OUTPUT),
    ] = "file",
    out: Annotated[
        Path | None,
        opt.option(
            "--out", "PATH", "Default: NAME.onnx etc. beside the checkpoint. Of triton: REPOSITORY/MODEL.", opt.OUTPUT
        ),
    ] = None,
    verify: Annotated[
        bool, opt.flag("--verify", "Compare the file with the checkpoint; an error if it detects anything else.", PROOF)
    ] = False,
    verify_only: Annotated[
        Path | None, opt.option("--verify-only", "FILE", "Export nothing: verify this file, made from CKPT.", PROOF)
    ] = None,
    data: Annotated[
        str | None,
        opt.option("--data", "DIR", "Verify on these images, with AP; int8 needs them.", PROOF),
    ] = None,
    split: Annotated[opt.Split, opt.option("--split", "NAME", "Of --data: val, test or train.", PROOF)] = "val",
    max_images: Annotated[
        int | None, opt.option("--max-images", "N", "Of --data, for AP: the first N.", PROOF, min=1)
    ] = None,
    max_drop: Annotated[
        float, opt.option("--max-drop", "AP", "Of int8: refuse a larger loss, in points of 100.", INT8, min=0)
    ] = 0.5,
    calibration: Annotated[
        int, opt.option("--calibration", "N", "Of int8: images of --data to calibrate with.", INT8, min=1)
    ] = 300,
    device: opt.DeviceOption = "auto",
    runner: Annotated[
        bool, opt.flag("--runner", "Print a program that runs ONNX files without PyTorch.", opt.OUTPUT)
    ] = False,
    force: opt.ReplaceOption = False,
    json_output: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
    overrides: opt.SetOption = None,
) -> None:
    """Export a checkpoint to ONNX, OpenVINO, TensorRT or torch.export.

    The file has the classes, the preprocessing and the protocol in it, and stands for the checkpoint: `codetr predict`
    and `codetr eval` take it.
    """
    console.set_mode(json=json_output, quiet=quiet)
    given = argument_or_option(context, "source", "checkpoint")
    if runner:
        if given is not None:
            raise ConfigError("--runner prints a program for every file: give no checkpoint with it")
        typer.echo((files("codetr_cli.export") / "runner.py").read_text(encoding="utf-8"), nl=False)
        return
    if given is None:
        raise ConfigError("give the checkpoint: codetr export CKPT --format onnx")
    named, given = given, resolve_weights(given) or given
    proof = ProofOptions(data=data, split=split, max_images=max_images, device=device, overrides=overrides or [])
    if verify_only is not None:
        show_proof(verify_only, prove(given, verify_only, proof, force=force), {"output": verify_only})
        return
    target_size, images = _size(size), _batch(batch)
    cut = tile_options(tiles, overlap, tta=False)

    from codetr_cli.export.options import ExportOptions

    options = ExportOptions(
        format=format,
        size=target_size,
        dynamic_size=dynamic_size,
        batch=images,
        precision=precision,
        attention=attention,
        preprocess=preprocess,
        postprocess=postprocess,
        tiles=cut,
    )
    target = _target(named, format, layout, out, verify=verify)
    if verify and layout == "file":
        check_report(target, force=force)
    writer = None
    if precision == "int8":
        from codetr_cli.export.int8 import Int8Options, Int8Writer

        if data is None:
            raise ConfigError("--precision int8 needs images with annotations to calibrate: --data DIR")
        writer = Int8Writer(
            Int8Options(data=data, split=split, images=calibration, max_drop=max_drop, max_images=max_images)
        )
    if layout == "triton":
        from codetr_cli.export.triton_repository import export_to_repository

        with console.without_bars_of_others():
            result = export_to_repository(
                given, options, target, kind=_kind(device), overrides=overrides or [], step=_step, writer=writer
            )
    else:
        from codetr_cli.export.job import DEVICE_FORMATS
        from codetr_cli.export.job import export as export_checkpoint
        from codetr_cli.runtime.devices import choose_device, use_device

        with console.without_bars_of_others():
            result = export_checkpoint(
                given,
                options,
                target,
                overrides=overrides or [],
                device=use_device(choose_device(device)) if format in DEVICE_FORMATS else None,
                force=force,
                step=_step,
                writer=writer,
            )
    _show(result)
    if layout == "triton":
        console.info(f"Triton serves it: tritonserver --model-repository {quote(str(target.absolute().parent))}")
    else:
        console.info(
            f"It takes the place of the checkpoint: codetr predict IMAGES --checkpoint {quote(str(result.path))}"
        )
    if not verify:
        asked = [word for override in overrides or [] for word in ("--set", override)]
        words = ["codetr", "export", named, *asked, "--verify-only", str(result.path)]
        console.info(f"Does it detect the same? {join(words)}")
    if writer is not None:
        console.result(writer.result.sentence)
    summary = {
        "output": result.path,
        "files": result.files,
        "bytes": sum(path.stat().st_size for path in result.files),
        "notes": result.notes,
        "metadata": result.metadata.model_dump(mode="json"),
    }
    if verify:
        show_proof(result.path, prove(given, result.path, proof, force=force), summary)
    else:
        console.result_json(summary)


def _step(text: str) -> None:
    console.info(f"{text} ...")


def _show(result: ExportResult) -> None:
    from codetr_cli.inference.exported.metadata import describe_inputs, describe_outputs

    for note in result.notes:
        console.info(f"{note}.")
    for title, lines in (("input", describe_inputs(result.metadata)), ("output", describe_outputs(result.metadata))):
        for line in lines:
            console.info(f"{title} {line}")
    for path in result.files:
        console.result(f"wrote {path}: {bytes_text(path.stat().st_size)}.")


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    if found is None:
        raise ConfigError(f"--size {text}: give height and width in pixels as in 800x1344")
    return int(found[1]), int(found[2])


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise ConfigError(f"--batch {text}: give a number of images, or dynamic")
    return int(text)


def _target(given: str, format: ExportFormat, layout: str, out: Path | None, *, verify: bool) -> Path:
    """Where the file is written, or the folder of a model of Triton."""
    from codetr_cli.export.options import SUFFIXES

    if layout == "file":
        return out or _default_target(given, SUFFIXES[format])
    if out is None:
        raise ConfigError("--layout triton needs the folder of the model, --out REPOSITORY/MODEL")
    if verify and format == "tensorrt":
        raise ConfigError(
            "--layout triton --verify: Triton's name of an engine, model.plan, is none that codetr runs. Verify the "
            "engine without --layout first"
        )
    return out


def _kind(device: str) -> Literal["cpu", "gpu"] | None:
    """Of processors that Triton runs a model on; None: its default."""
    return None if device == "auto" else "cpu" if device == "cpu" else "gpu"


def _default_target(given: str, suffix: str) -> Path:
    """Beside a checkpoint; of a preset, a URL or hf://, whose files are in a cache, in the current folder."""
    from codetr_cli.config.presets import preset_names
    from codetr_cli.inference.loading import find_checkpoint
    from codetr_cli.weights.urls import is_url

    if is_url(given):
        return Path(Path(urlsplit(given).path).with_suffix(suffix).name)
    if given in preset_names():
        return Path(f"{given}{suffix}")
    found = find_checkpoint(given) or Path(given)
    return found.with_suffix(suffix)
