"""Computes what a training step keeps in memory, for networks that are too large to train here.

    python benchmarks/training_memory.py --preset co_dino_vit_l --size 1280x1920

Nothing is run: the network is built on PyTorch's meta device, and saved-tensor hooks count what autograd would keep
for the backward pass, with the recomputation of the settings. The losses, the RoI head's regions and temporary
gradients are not counted: a step needs somewhat more. Tensors are float32. `--processes N` adds the memory of each of
N processes with train.fsdp.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional

from codetr_cli.config.presets import load_preset
from codetr_cli.distributed.fsdp import units
from codetr_cli.models.backbones.swin import Block as SwinBlock
from codetr_cli.models.backbones.vit import Block as ViTBlock
from codetr_cli.models.build import build_model
from codetr_cli.models.codetr import CoDETR, Encoded
from codetr_cli.models.encoder import EncoderLayer, describe_tokens
from codetr_cli.models.queries import Queries
from codetr_cli.ops import deform_attn

RECOMPUTED = SwinBlock | ViTBlock | EncoderLayer
DENOISING_QUERIES = 200


class Kept:
    """Storages that are kept, each counted once."""

    def __init__(self) -> None:
        self.storages: dict[int, torch.UntypedStorage] = {}
        self.ignored: set[int] = set()

    def ignore(self, module: nn.Module) -> None:
        """Does not count a module's weights."""
        self.ignored |= {tensor.untyped_storage()._cdata for tensor in module.parameters()}

    def add(self, tensor: Tensor) -> Tensor:
        """Counts a tensor's storage."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.ignored:
            self.storages[storage._cdata] = storage  # keeping it prevents reuse of its address
        return tensor

    @property
    def gigabytes(self) -> float:
        """Of all storages."""
        return sum(storage.nbytes() for storage in self.storages.values()) / 1e9


@contextmanager
def keeping(model: nn.Module) -> Iterator[Kept]:
    """Collects what autograd keeps, and the inputs of parts that may be recomputed."""
    kept = Kept()
    kept.ignore(model)

    def border(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        for value in inputs:
            if isinstance(value, Tensor):
                kept.add(value)

    handles = [m.register_forward_pre_hook(border) for m in model.modules() if isinstance(m, RECOMPUTED)]
    with torch.autograd.graph.saved_tensors_hooks(kept.add, lambda tensor: tensor):
        yield kept
    for handle in handles:
        handle.remove()


@contextmanager
def fast_operators() -> Iterator[None]:
    """Makes attention and deformable attention keep what their kernels keep: the meta device has no kernels."""

    def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        if attn_mask is not None:  # with a trained mask not every kernel avoids the scores
            return plain(q, k, v, attn_mask=attn_mask)
        attended: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]
        return attended

    plain = functional.scaled_dot_product_attention
    with (
        mock.patch.object(functional, "scaled_dot_product_attention", attention),
        mock.patch.object(deform_attn, "_choose", return_value="cpu"),
    ):
        yield


def largest_recomputation(model: CoDETR, run: Callable[[], Any]) -> float:
    """Gigabytes that the largest recomputed part keeps while its own backward pass runs."""
    calls: list[tuple[nn.Module, tuple[Any, ...]]] = []
    parts = [m for m in model.modules() if isinstance(m, RECOMPUTED)]
    handles = [part.register_forward_pre_hook(lambda m, inputs: calls.append((m, inputs))) for part in parts]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    largest = 0.0
    for part, inputs in calls:
        with keeping(part) as kept:
            part(
                *(x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)
            )
        largest = max(largest, kept.gigabytes)
    return largest


def main() -> int:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="co_dino_vit_l")
    parser.add_argument("--size", default="1280x1920", help="HEIGHTxWIDTH in pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument(
        "--processes", type=int, default=1, help="that share the weights with train.fsdp; 1: not sharded"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    settings = load_preset(arguments.preset, arguments.set)
    height, width = (int(side) for side in arguments.size.split("x"))
    with torch.device("meta"):
        model = build_model(settings.model).train()
        images = torch.zeros(arguments.batch, 3, height, width)
        mask = torch.zeros(arguments.batch, height, width, dtype=torch.bool)
    with fast_operators():
        figures = step_figures(model, images, mask, settings.train.loss.max_positive_queries)
    weights = sum(parameter.numel() for parameter in model.parameters()) * 4 / 1e9
    copies = {"weights": 1, "gradients": 1, "adamw": 2, "averages": int(settings.train.ema_momentum > 0)}
    held = {name: round(weights * count, 2) for name, count in copies.items()}
    if arguments.processes > 1:
        figures["sharded"] = sharded_figures(model, copies, arguments.processes)
    kept = figures["kept"]
    # The encoder is recomputed after the backward pass of decoder and heads.
    while_recomputing = (
        sum(kept.values()) - kept["decoder"] - kept["auxiliary_heads"] + figures["largest_recomputation"]
    )
    total = round(sum(held.values()) + max(sum(kept.values()), while_recomputing), 1)
    print(  # noqa: T201 - the result of a script
        json.dumps({"preset": settings.name, "size": [height, width], "unit": "GB", **held, **figures, "total": total})
    )
    return 0


def sharded_figures(model: CoDETR, copies: dict[str, int], processes: int) -> dict[str, float]:
    """Gigabytes of weights and what belongs to them that the largest of several processes holds with train.fsdp.

    `gathered` is added while a step runs: the root's weights, and those of two units, of which one is being prefetched.
    """
    own = sum(-(-p.shape[0] // processes) * (p.numel() // p.shape[0]) if p.dim() else 1 for p in model.parameters())
    seen: set[int] = set()
    sizes = []
    for unit in (*units(model), model):  # children before their parents
        mine = [p for p in unit.parameters() if id(p) not in seen]
        seen |= {id(p) for p in mine}
        sizes.append(sum(p.numel() for p in mine))
    *of_units, root = sizes
    held = {name: round(own * count * 4 / 1e9, 2) for name, count in copies.items()}
    gathered = round((root + sum(sorted(of_units)[-2:])) * 4 / 1e9, 2)
    return {"processes": processes, **held, "gathered": gathered}


def step_figures(model: CoDETR, images: Tensor, mask: Tensor, positive_queries: int) -> dict[str, Any]:
    """Gigabytes that each stage of the network keeps, and that its largest recomputed part keeps while recomputed."""
    stages: dict[str, float] = {}
    heads = model.aux_heads
    assert heads is not None
    with keeping(model) as kept:

        def finish(name: str) -> None:
            stages[name] = round(kept.gigabytes - sum(stages.values()), 2)

        features = model.backbone(images)
        finish("backbone")
        maps = model.neck(features)
        finish("neck")
        layout = describe_tokens(maps, mask)
        encoded = Encoded(model.encoder(maps, layout), layout)
        finish("encoder")
        queries = model.matching_queries(model.select_queries(encoded))
        sizes = [DENOISING_QUERIES + queries.content.shape[1], positive_queries, positive_queries]
        repeated = -(-sum(sizes) // queries.content.shape[1])
        content, references = (t.repeat(1, repeated, 1)[:, : sum(sizes)] for t in (queries.content, queries.references))
        model.predict_layers(model.decode(Queries(content, references), encoded, group_sizes=sizes))
        finish("decoder")
        aux_maps = model.aux_maps(encoded)
        heads.rpn(aux_maps), heads.atss(aux_maps)
        finish("auxiliary_heads")
    recomputed = largest_recomputation(model, lambda: model.encode(images, mask))
    return {"kept": stages, "largest_recomputation": round(recomputed, 2)}


if __name__ == "__main__":
    sys.exit(main())
