"""`codetr demo`: a page in the browser that runs a checkpoint on pictures and videos."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.commands._option_values import argument_or_option
from codetr_cli.commands._weights import resolve_weights
from codetr_cli.errors import ConfigError

if TYPE_CHECKING:
    from codetr_cli.inference.detector import Detector

EXAMPLES = (
    "codetr demo runs/co_dino_r50/1",
    "codetr demo co_dino_r50.safetensors --examples photos/ --device cuda",
    "codetr demo runs/co_dino_r50/1 --host 0.0.0.0 --port 8000",
)
MEGABYTE = 1_000_000
LOCAL = ("127.0.0.1", "localhost", "::1")


def demo(
    context: typer.Context,
    checkpoint: opt.CheckpointArgument = None,
    checkpoint_option: opt.SameCheckpointOption = None,
    examples: opt.ExamplesOption = None,
    head: opt.HeadOption = None,
    host: opt.HostOption = "127.0.0.1",
    port: opt.DemoPortOption = None,
    share: opt.ShareOption = False,
    max_upload: opt.MaxUploadOption = 200,
    device: opt.DeviceOption = "auto",
    precision: opt.InferencePrecisionOption = "auto",
    json_output: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
    overrides: opt.SetOption = None,
) -> None:
    """Try a checkpoint on a page in the browser.

    Drop a picture or a video on the page; see, filter and download the detections. The page is only for this machine
    unless --host or --share opens it to others, and sends nothing anywhere. Ctrl-C ends it. (`codetr prepare --demo`
    is something else: it writes a synthetic dataset.)
    """
    console.set_mode(json=json_output, quiet=quiet)
    checkpoint = argument_or_option(context, "checkpoint", "checkpoint_option")
    if checkpoint is None:
        raise ConfigError("which checkpoint? codetr demo CHECKPOINT, e.g. a run folder or a .safetensors file")
    if examples is not None and not examples.is_dir():
        raise ConfigError(f"--examples {examples} is not a folder: give one with pictures or videos")

    from codetr_cli.serving.page_server import PagePlace, serve_page

    weights = resolve_weights(checkpoint)
    settings = [*([f"test.head={head}"] if head else []), *(overrides or [])]

    def load() -> Detector:
        from codetr_cli.inference.detector import Detector

        return Detector.load(weights or checkpoint, device=device, precision=precision, overrides=settings)

    def ready(address: str, public: str | None) -> None:
        console.result(f"{address} is ready: open it in a browser. Ctrl-C ends it.")
        if public is not None:
            console.result(f"{public} is the same page for everybody who has this address.")
        elif host not in LOCAL:
            console.warn(f"--host {host}: everybody who can reach this machine can use the page.")
        console.result_json({"address": address, "public_address": public})

    serve_page(
        load,
        PagePlace(host=host, port=port, share=share),
        examples=examples,
        max_upload_bytes=max_upload * MEGABYTE,
        ready=ready,
    )
