"""`codetr push`: publishes a checkpoint on the Hub of Hugging Face: weights, settings and a model card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.commands._weights import resolve_weights
from codetr_cli.errors import ConfigError
from codetr_cli.number_text import bytes_text

if TYPE_CHECKING:
    from codetr_cli.inference.hub.publication import Publication
    from codetr_cli.inference.hub.repository import Upload

EXAMPLES = (
    "codetr push runs/co_dino_r50/1 my-lab/cells --license Apache-2.0 --dry-run --out cells",
    "codetr push cells my-lab/cells",
)


def push(
    checkpoint: opt.CheckpointArgument = None,
    repository: Annotated[
        str | None, typer.Argument(metavar="ORG/NAME", help="The repository on the Hub, created if it does not exist.")
    ] = None,
    license: opt.LicenseOption = None,
    evaluation: opt.CardEvaluationOption = None,
    private: Annotated[bool, opt.flag("--private", "Make a new repository private.", opt.OUTPUT)] = False,
    message: Annotated[str | None, opt.option("--message", "TEXT", "Of the commit.", opt.OUTPUT)] = None,
    out: Annotated[Path | None, opt.option("--out", "DIR", "Keep the files there.", opt.OUTPUT)] = None,
    dry_run: Annotated[bool, opt.flag("--dry-run", "Show what would be sent, send nothing.", opt.OUTPUT)] = False,
    force: opt.ReplaceOption = False,
    json_output: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
) -> None:
    """Publish a checkpoint on the Hub of Hugging Face.

    Sends four files: the weights, the two settings files that transformers reads, and a model card written from the
    training and its evaluation. Weights whose licence is unknown are refused. A folder that --out has written is sent
    as it is, with the card as you have edited it.
    """
    console.set_mode(json=json_output, quiet=quiet)
    if checkpoint is None or repository is None:
        raise ConfigError("give the checkpoint and the repository: codetr push CHECKPOINT ORG/NAME")
    import torch

    from codetr_cli.inference.hub.publication import prepare_publication
    from codetr_cli.inference.hub.repository import check_login, check_repository, upload_folder
    from codetr_cli.inference.loading import find_checkpoint, load_detector

    check_repository(repository)
    path = find_checkpoint(resolve_weights(checkpoint) or checkpoint)
    if path is None:
        raise ConfigError(f"{checkpoint} has random weights: there is nothing to publish. Give a trained checkpoint")
    if not dry_run:
        check_login()
    with prepare_publication(
        path, repository, licence=license, evaluation=evaluation, out=out, force=force
    ) as publication:
        load_detector(publication.files[0], torch.device("cpu"), optimize=False)  # what is sent can be used
        _show(publication)
        upload = None
        if not dry_run:
            upload = upload_folder(
                publication.folder,
                repository,
                private=private or None,
                message=message,
                quiet=quiet or json_output,
            )
        _finish(publication, repository, upload, out)


def _show(publication: Publication) -> None:
    rows = [[path.name, bytes_text(path.stat().st_size)] for path in publication.files]
    console.table("Files", ["file", "size"], rows)
    console.result(f"Licence of the weights: {publication.licence.name} ({publication.licence.reason}).")
    if not publication.is_written:
        console.info(f"The files are those in {publication.folder}, as they are.")
    elif not publication.has_evaluation:
        console.warn(
            "no evaluation of these weights is known, so the card has no metrics: run `codetr eval`, or give "
            "--evaluation"
        )


def _finish(publication: Publication, repository: str, upload: Upload | None, out: Path | None) -> None:
    if upload is None:
        kept = f" They are in {publication.folder}."
        if publication.is_written and out is None:
            kept = " --out DIR keeps them, to read and edit the card."
        console.result(f"Nothing was sent. Without --dry-run, these files are sent to {repository}.{kept}")
    elif not upload.commit:
        console.result(f"{upload.url} has these files already.")
    else:
        console.result(f"Published: {upload.url} (commit {upload.commit[:12]}).")
    files: list[dict[str, Any]] = [{"name": path.name, "bytes": path.stat().st_size} for path in publication.files]
    console.result_json(
        {
            "repository": repository,
            "url": upload and upload.url,
            "commit": upload and upload.commit,
            "sent": upload is not None,
            "folder": out or (None if publication.is_written else publication.folder),
            "files": files,
            "licence": publication.licence.name,
            "licence_reason": publication.licence.reason,
        }
    )
