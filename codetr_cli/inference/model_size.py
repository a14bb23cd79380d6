"""Whether a network of given settings can be built here, found out before anything is allocated for it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from codetr_cli.config.schema import Settings
from codetr_cli.errors import CheckpointError, ConfigError, ResourceError
from codetr_cli.models.build import model_outline
from codetr_cli.runtime.memory import gib_text, main_memory_left
from codetr_cli.weights.load_state import check_exact

MAX_TABLE_BYTES = 256 << 20  # of what a network computes from its sizes; the published ones need less than 1 MB


def check_size(
    settings: Settings,
    state: Mapping[str, Tensor] | None = None,
    *,
    aux_heads: bool = True,
    source: str = "the checkpoint",
) -> None:
    """Compares a network with the weights to load into it; without weights, with the memory that is left.

    Args:
        settings: of the network.
        state: the entries of the checkpoint to load, None for random weights.
        aux_heads: as for `build_model`.
        source: the checkpoint's name in error messages.

    Raises:
        CheckpointError: the checkpoint does not fit the settings, or these need large tables.
        ConfigError: the model settings do not fit together, or need large tables.
        ResourceError: the network does not fit into memory.
    """
    try:
        outline = model_outline(settings.model, aux_heads=aux_heads)
        entries = outline.state_dict()
        tables = sum(buffer.nbytes for name, buffer in outline.named_buffers() if name not in entries)
        if tables > MAX_TABLE_BYTES:
            raise ValueError(f"attention windows of these sizes need tables of {gib_text(tables)} GiB")
    except ValueError as error:
        if state is not None:
            raise CheckpointError(f"{source} has no settings of a network: {error}.") from error
        raise ConfigError(f"{error}. Change the settings below model.") from error
    if state is not None:
        check_exact(state, entries, source=source)
        return
    needed, left = sum(value.nbytes for value in entries.values()), main_memory_left()
    if left is not None and needed > left:
        raise ResourceError(
            f"the network of preset {settings.name!r} has {gib_text(needed)} GiB of weights, and {gib_text(left)} GiB "
            "of memory are left: use a smaller preset, or a machine with more memory."
        )


def model_shapes(settings: Settings) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all entries of the network of these settings.

    Raises:
        ConfigError: the model settings do not fit together.
    """
    try:
        return {name: tuple(value.shape) for name, value in model_outline(settings.model).state_dict().items()}
    except ValueError as error:
        raise ConfigError(f"{error}. Change the settings below model.") from error
