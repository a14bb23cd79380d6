"""Necks."""

from __future__ import annotations

CHANNEL_MAPPER = {
    "neck.convs.{}.conv.weight": "neck.convs.{}.conv.weight",
    "neck.convs.{}.gn.*": "neck.convs.{}.norm.*",
    "neck.extra_convs.{}.conv.weight": "neck.extra_convs.{}.conv.weight",
    "neck.extra_convs.{}.gn.*": "neck.extra_convs.{}.norm.*",
}
