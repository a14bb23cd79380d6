"""`codetr serve`: answers requests for detections over HTTP until it is stopped."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from codetr_cli import console
from codetr_cli.closed_streams import tolerate_closed_streams
from codetr_cli.commands import _options as opt
from codetr_cli.commands._option_values import argument_or_option, batch_of
from codetr_cli.commands._weights import place_exported, resolve_weights
from codetr_cli.commands.predict import newest_run

if TYPE_CHECKING:
    import torch

    from codetr_cli.serving.options import ServeOptions
    from codetr_cli.serving.run import Running
    from codetr_cli.serving.workers import ServeJob

EXAMPLES = (
    "codetr serve runs/co_dino_r50/1",
    "codetr serve co_dino_r50.safetensors --port 9000 --batch 8 --max-wait-ms 20",
    "codetr serve runs/co_dino_r50/1 --host 0.0.0.0 --gpus 4",
)


def serve(
    context: typer.Context,
    checkpoint: opt.CheckpointArgument = None,
    checkpoint_option: opt.SameCheckpointOption = None,
    host: opt.HostOption = "127.0.0.1",
    port: opt.PortOption = 8000,
    api_key: opt.ApiKeyOption = None,
    cors_origins: opt.CorsOption = None,
    batch: opt.ServeBatchOption = "auto",
    max_wait_ms: opt.MaxWaitOption = 10.0,
    queue: opt.QueueOption = 32,
    timeout: opt.TimeoutOption = 60.0,
    read_timeout: opt.ReadTimeoutOption = 30.0,
    max_images: opt.MaxRequestImagesOption = 16,
    max_pixels: opt.MaxPixelsOption = 50_000_000,
    max_body: opt.MaxBodyOption = 32,
    max_tiles: opt.MaxTilesOption = 64,
    gpus: opt.GpusOption = None,
    device: opt.DeviceOption = "auto",
    workers: opt.ServeWorkersOption = None,
    threads: opt.ThreadsOption = None,
    precision: opt.InferencePrecisionOption = "auto",
    log_requests: opt.LogRequestsOption = False,
    json_output: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
    overrides: opt.SetOption = None,
) -> None:
    """Answer requests for detections over HTTP.

    POST /v1/detect takes images as files of a form or as base64 in JSON; /openapi.json describes all. Only this machine
    is served unless --host says otherwise. Ctrl-C or SIGTERM ends the server after it has answered what it accepted.
    """
    console.set_mode(json=json_output, quiet=quiet)
    from codetr_cli.serving.options import MEGABYTE, ServeOptions
    from codetr_cli.serving.requirements import check_installed

    given = argument_or_option(context, "checkpoint", "checkpoint_option")
    options = ServeOptions(
        host=host,
        port=port,
        api_key=api_key,
        cors_origins=tuple(cors_origins or ()),
        batch=batch_of(batch),
        max_wait_ms=max_wait_ms,
        queue=queue,
        max_images=min(max_images, queue) if _is_default(context, "max_images") else max_images,
        max_pixels=max_pixels,
        max_body=max_body * MEGABYTE,
        max_tiles=max_tiles,
        timeout_s=timeout,
        read_timeout_s=read_timeout,
        log_requests=log_requests,
    )
    check_installed()
    for sentence in options.warnings():
        console.warn(f"{sentence}.")

    from codetr_cli.inference.loading import find_checkpoint
    from codetr_cli.serving.workers import ServeJob, place_workers, shared_port

    weights = resolve_weights(given) or str(newest_run())
    find_checkpoint(weights)  # an error before processes start
    device_settings = place_exported(context, weights)
    device = context.params["device"]
    job = ServeJob(weights, [*device_settings, *(overrides or [])], precision, options, threads=threads)
    placement = place_workers(device, gpus=gpus, workers=workers)
    with tolerate_closed_streams(), shared_port(job, placement) as job:
        arguments = (job, placement.device, gpus, json_output, quiet)
        if placement.processes == 1:
            _serve_here(*arguments)
        else:
            from codetr_cli.serving.supervisor import supervise

            supervise(_serve_here, arguments, placement.processes)


def _is_default(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "DEFAULT"


def _serve_here(job: ServeJob, device: torch.device, gpus: int | None, json_output: bool, quiet: bool) -> None:
    """Serves in this process, alone or as one of several."""
    from codetr_cli.serving.workers import serve_here

    console.set_mode(json=json_output, quiet=quiet)
    with tolerate_closed_streams(), console.log_to_console():
        serve_here(
            job, device, gpus=gpus, announce=lambda running, processes: _announce(running, job.options, processes)
        )


def _announce(running: Running, options: ServeOptions, processes: int) -> None:
    """What is served, where, with which limits, and a command to try it."""
    from codetr_cli.inference.exported.network import precision_of, runtime_facts

    detector = running.detector
    url = f"http://{options.url_host}:{running.port}"
    path = detector.loaded.path
    name = f"{path} ({detector.loaded.settings.name})" if path else detector.loaded.settings.name
    precision = precision_of(detector.loaded.model, detector.precision)
    where = f"{detector.device}, {precision}" + (f", {processes} processes" if processes > 1 else "")
    console.result(f"Serving {name}, {len(detector.class_names)} classes, at {url} ({where})")
    console.info(
        f"Limits: {options.max_images} images and {options.max_body // 1_000_000} MB a request, "
        f"{options.max_pixels:,} pixels and {options.max_tiles} tiles an image, a queue of {options.queue} images, "
        f"{options.timeout_s:g} s a request; API key: {'required' if options.api_key else 'none'}"
    )
    key = '-H "Authorization: Bearer $CODETR_API_KEY" ' if options.api_key else ""
    console.info(f"Try: curl {key}-F images=@photo.jpg -F score=0.5 {url}/v1/detect")
    sys.stdout.flush()  # also where a log file or a pipe reads it
    console.result_json(
        {
            "url": url,
            "host": options.host,
            "port": running.port,
            "checkpoint": path and str(path),
            "preset": detector.loaded.settings.name,
            "classes": detector.class_names,
            "device": str(detector.device),
            "precision": precision,
            **runtime_facts(detector.loaded.model),
            "processes": processes,
            "api_key": options.api_key is not None,
            "limits": {
                "images": options.max_images,
                "body_bytes": options.max_body,
                "pixels": options.max_pixels,
                "tiles": options.max_tiles,
                "queue": options.queue,
                "timeout_s": options.timeout_s,
                "read_timeout_s": options.read_timeout_s,
            },
        }
    )
