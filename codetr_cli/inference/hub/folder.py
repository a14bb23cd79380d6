"""A model as a folder of four files, for a disk or the Hub: weights, settings for transformers, and the model card.

The weights are a checkpoint of codetr: every command that takes a checkpoint takes the folder.
"""

from __future__ import annotations

import json
from pathlib import Path

from codetr_cli.errors import ConfigError, listed
from codetr_cli.files import WEIGHTS_NAME, check_folder
from codetr_cli.inference.hub.card import CARD_NAME, model_card
from codetr_cli.inference.hub.facts import ModelFacts
from codetr_cli.inference.hub.tables import MODEL_TYPE, model_table, processor_table
from codetr_cli.reading import parse_json, read_bytes
from codetr_cli.result_files import ResultRecord, refuse_taken, write_result
from codetr_cli.runs.lineage import REPOSITORY
from codetr_cli.weights.checkpoint import save_checkpoint

CONFIG_NAME = "config.json"
PROCESSOR_NAME = "preprocessor_config.json"
FILES = (WEIGHTS_NAME, CONFIG_NAME, PROCESSOR_NAME, CARD_NAME)
"""All files of a model; nothing else is ever uploaded."""
MAX_CONFIG_BYTES = 16 << 20


def write_folder(
    folder: Path, facts: ModelFacts, *, name: str = "", repository: str = "", force: bool = False, by: str = "push"
) -> list[Path]:
    """Writes a model.

    Args:
        folder: is created; files of others in it stay.
        facts: of the checkpoint.
        name: of the model in its card; empty: that of the repository, or of the folder.
        repository: `org/name` where it will be published; empty: not known.
        force: replace the files of a model that codetr has written there.
        by: the verb that writes.

    Returns:
        the files, in the order of `FILES`.

    Raises:
        ConfigError: a file that may not be replaced is in the way.
        ResourceError: no space left, or the folder cannot be written.
    """
    check_folder(folder, "the folder of the model")
    paths = [folder / each for each in FILES]
    refuse_taken(paths, force=force)
    checkpoint = facts.checkpoint
    classes = checkpoint.class_names, checkpoint.category_ids
    card = model_card(
        facts, name=name or repository.rpartition("/")[2] or folder.absolute().name, repository=repository
    )
    save_checkpoint(
        folder / WEIGHTS_NAME,
        checkpoint.state,
        settings=checkpoint.settings,
        class_names=checkpoint.class_names,
        category_ids=checkpoint.category_ids,
        extra={
            **checkpoint.extra,
            **facts.licence.as_extra,
            **({REPOSITORY: repository} if repository else {}),
        },
        on_written=lambda temporary: ResultRecord(folder).add(folder / WEIGHTS_NAME, temporary, by=by),
    )
    for path, text in (
        (folder / CONFIG_NAME, _json(model_table(checkpoint.settings, *classes))),
        (folder / PROCESSOR_NAME, _json(processor_table(checkpoint.settings))),
        (folder / CARD_NAME, card),
    ):
        with write_result(path, by=by, force=force) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return paths


def is_model_folder(path: Path) -> bool:
    """Whether a folder has the files of a model, as `write_folder` wrote them or edited since."""
    if not all((path / name).is_file() for name in FILES):
        return False
    try:
        table = parse_json(read_bytes(path / CONFIG_NAME, MAX_CONFIG_BYTES))
    except (OSError, ValueError):
        return False
    return isinstance(table, dict) and table.get("model_type") == MODEL_TYPE


def check_model_folder(path: Path) -> Path:
    """The weights of a model in a folder.

    Raises:
        ConfigError: there are none.
    """
    if not (path / WEIGHTS_NAME).is_file():
        found = sorted(entry.name for entry in path.iterdir())[:100]
        raise ConfigError(
            f"{path} has no {WEIGHTS_NAME}, the weights of a model, but {listed(found, 5) or 'nothing'}: give the "
            "folder that save_pretrained or `codetr push --out` wrote, or a repository of the Hub as org/name"
        )
    return path / WEIGHTS_NAME


def _json(table: dict[str, object]) -> str:
    return json.dumps(table, indent=2, ensure_ascii=False) + "\n"
