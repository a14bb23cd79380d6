"""Necks."""

from __future__ import annotations

CHANNEL_MAPPER = {
    "neck.convs.{}.conv.weight": "neck.convs.{}.conv.weight",
    "neck.convs.{}.gn.weight": "neck.convs.{}.norm.weight",
    "neck.convs.{}.gn.bias": "neck.convs.{}.norm.bias",
    "neck.extra_convs.{}.conv.weight": "neck.extra_convs.{}.conv.weight",
    "neck.extra_convs.{}.gn.weight": "neck.extra_convs.{}.norm.weight",
    "neck.extra_convs.{}.gn.bias": "neck.extra_convs.{}.norm.bias",
}
