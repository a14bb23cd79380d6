"""`codetr card`: writes the model card of a checkpoint or run, as `codetr push` publishes it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.commands._weights import resolve_weights
from codetr_cli.errors import ConfigError

if TYPE_CHECKING:
    from codetr_cli.inference.hub.facts import ModelFacts

EXAMPLES = (
    "codetr card runs/co_dino_r50/1",
    "codetr card runs/co_dino_r50/1 --license Apache-2.0 --out -",
    "codetr card model.safetensors --out MODEL_CARD.md",
)
STDOUT = "-"


def card(
    checkpoint: opt.CheckpointArgument = None,
    name: Annotated[str | None, opt.option("--name", "TEXT", "Of the model. Default: of the run.", opt.INPUT)] = None,
    license: opt.LicenseOption = None,
    evaluation: opt.CardEvaluationOption = None,
    out: Annotated[
        Path | None,
        opt.option("--out", "FILE", "-: print it. Default: README.md in the run folder; else print it.", opt.OUTPUT),
    ] = None,
    force: opt.ReplaceOption = False,
    json_output: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
) -> None:
    """Write the model card of a checkpoint: data, recipe, protocol, AP, limits, licence, time.

    Everything in it is read from the checkpoint, its run folder, and the results and report of `codetr eval` there;
    what is not known is named as not known. A card that you have edited is never replaced.
    """
    console.set_mode(json=json_output, quiet=quiet)
    if checkpoint is None:
        raise ConfigError("give the checkpoint or the run folder: codetr card runs/co_dino_r50/1")
    from codetr_cli.inference.hub.card import model_card, write_card
    from codetr_cli.inference.hub.facts import describe_checkpoint
    from codetr_cli.inference.hub.publication import find_licence
    from codetr_cli.inference.loading import find_checkpoint
    from codetr_cli.runs.lineage import name_of, run_of

    weights = find_checkpoint(resolve_weights(checkpoint) or checkpoint)
    if weights is None:
        raise ConfigError(f"{checkpoint} has random weights: there is nothing to describe. Give a trained checkpoint")
    facts = describe_checkpoint(weights, licence=find_licence(weights, license), evaluation=evaluation)
    text = model_card(facts, name=name or name_of(weights))
    run = run_of(weights)
    path = out or (run / "README.md" if run is not None else None)
    if path is not None and str(path) == STDOUT:
        path = None
    if path is not None:
        write_card(path, text, force=force)
    console.result_json(_as_json(facts, text, path))
    if not json_output:
        _show(facts, text, path)


def _show(facts: ModelFacts, text: str, path: Path | None) -> None:
    if path is None:
        console.result_lines(text)
    else:
        console.result(f"model card: {path}")
    if facts.evaluation is None:
        console.warn("no evaluation of these weights is known, so the card has no metrics: run `codetr eval --report`")
    if facts.licence.name is None:
        console.warn(f"the licence of the weights is unknown: {facts.licence.reason}. Name it with --license")


def _as_json(facts: ModelFacts, text: str, path: Path | None) -> dict[str, object]:
    return {
        "path": path,
        "card": text,
        "licence": facts.licence.name,
        "licence_reason": facts.licence.reason,
        "metrics": None if facts.evaluation is None else dict(facts.evaluation.metrics),
        "ap_interval": None if facts.findings is None else facts.findings.ap_interval,
        "training": None if facts.cost is None else asdict(facts.cost),
    }
