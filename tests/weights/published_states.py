"""A small network's checkpoint as the publishers would write it, and files in all their forms."""

from __future__ import annotations

import sys
import types
from collections import OrderedDict
from contextlib import contextmanager

import numpy as np
import torch

from codetr_cli.config.presets import load_preset
from codetr_cli.models.build import build_model
from codetr_cli.weights.names import to_published

SMALL = [
    "model.backbone.layers=[1, 1, 1, 1]",
    "model.backbone.base_channels=8",
    "model.embed_dim=32",
    "model.num_heads=4",
    "model.num_points=2",
    "model.norm_groups=8",
    "model.ffn_dim=16",
    "model.encoder_layers=1",
    "model.decoder_layers=2",
    "model.num_queries=12",
    "model.roi.fc_dim=16",
]


def small_settings(num_classes=3, *more):
    return load_preset("co_dino_r50", [*SMALL, f"model.num_classes={num_classes}", *more])


def small_preset(folder, name="small", num_classes=3):
    """A TOML file of the small architecture; its path is what --preset takes."""
    from codetr_cli.config.overrides import to_toml

    path = folder / f"{name}.toml"
    path.write_text(to_toml(small_settings(num_classes).model_copy(update={"name": name})))
    return str(path)


def small_model(num_classes=3, *more, seed=0, aux_heads=True):
    torch.manual_seed(seed)
    return build_model(small_settings(num_classes, *more).model, aux_heads=aux_heads)


def published_state(num_classes=3, naming="mmdet3", *more):
    """State dict of the small model under published names, batch counters included as the publishers have them."""
    state = OrderedDict()
    for name, value in small_model(num_classes, *more).state_dict().items():
        published = to_published(name, naming)
        assert published is not None, name
        state[published] = value.clone()
        if published.endswith("running_var"):
            state[published.replace("running_var", "num_batches_tracked")] = torch.tensor(7)
    return state


def raw_state():
    return small_model().state_dict()


@contextmanager
def fake_mmengine():
    """Modules of mmengine's names with classes that pickle as the real ones do; gone again at the end."""

    class HistoryBuffer:
        _statistics_methods = {}

        def __init__(self, values):
            self.max_length = 1000000
            self._statistics_methods.setdefault("mean", HistoryBuffer.mean)
            self._log_history = np.array(values, dtype=np.float64)
            self._count_history = np.ones(len(values), dtype=np.int64)

        def mean(self):
            return self._log_history.mean()

        def __getstate__(self):
            return {**self.__dict__, "statistics_methods": self._statistics_methods}

    class ConfigDict(dict):
        def __reduce_ex__(self, protocol):
            return (type(self), (dict(self),), None, None, None)

    names = {
        "mmengine.logging.history_buffer": HistoryBuffer,
        "mmengine.config.config": ConfigDict,
    }
    modules = {}
    for dotted, cls in names.items():
        parts = dotted.split(".")
        for end in range(1, len(parts) + 1):
            modules.setdefault(".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
        cls.__module__, cls.__qualname__ = dotted, cls.__name__
        setattr(modules[dotted], cls.__name__, cls)
    HistoryBuffer.mean.__module__ = "mmengine.logging.history_buffer"
    HistoryBuffer.mean.__qualname__ = "HistoryBuffer.mean"
    saved = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield HistoryBuffer, ConfigDict
    finally:
        for name, module in saved.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def save_mmengine(path, state, *, classes=("cat", "dog", "hen"), averages=None, **sections):
    """A checkpoint as mmengine's runner writes it: log histories, numpy numbers, configuration objects."""
    with fake_mmengine() as (HistoryBuffer, ConfigDict):
        content = {
            "meta": {
                "cfg": "model = dict()",
                "dataset_meta": {"classes": tuple(classes), "palette": [(1, 2, 3)]},
                "epoch": 12,
                "seed": np.int64(5),
                "experiment_name": "co_dino",
                "hook": ConfigDict(type="X"),
            },
            "state_dict": state,
            "message_hub": {
                "log_scalars": OrderedDict([("train/loss", HistoryBuffer([3.0, 2.0]))]),
                "runtime_info": OrderedDict(iter=np.float32(3.5), table=np.zeros((2, 3))),
                "resumed_keys": OrderedDict(),
            },
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]},
            "param_schedulers": [{"last_step": 3}],
            **sections,
        }
        if averages is not None:
            content["ema_state_dict"] = averages
        torch.save(content, path)
    assert "mmengine" not in sys.modules
    return path
