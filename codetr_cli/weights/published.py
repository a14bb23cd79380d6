"""Published weights of presets and pretrained backbones: their URLs and their paths in the cache.

This module does not import torch, so that `codetr download --dry-run` is fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codetr_cli.config.model_settings import ResNetConfig, SwinConfig, ViTConfig
from codetr_cli.config.schema import Settings
from codetr_cli.files import WEIGHTS_NAME, cache_dir
from codetr_cli.weights.remote import Remote
from codetr_cli.weights.urls import local_name


@dataclass(frozen=True)
class PublishedWeights:
    """The published weights of a preset.

    Args:
        preset: the preset's settings.
        file: path of the published file in the cache.
        converted: path of the converted checkpoint in the cache.
        remote: URL, size and hash of the file; None if it has no direct URL.
    """

    preset: Settings
    file: Path
    converted: Path
    remote: Remote | None

    @property
    def known(self) -> bool:
        """Whether weights have been published for this preset."""
        source = self.preset.source
        return any(value is not None for value in (source.url, source.page, source.filename, source.sha256))

    @property
    def ready(self) -> bool:
        """Whether the weights are in the cache."""
        return self.converted.is_file() or self.file.is_file()


def published_weights(settings: Settings, *, url: str | None = None) -> PublishedWeights:
    """The published weights of a preset; `url` replaces its URL.

    Raises:
        ConfigError: an invalid URL.
    """
    source = settings.source
    url = url or source.url
    name = source.filename
    remote = None
    if url is not None:
        remote = Remote.from_url(url, filename=source.filename, bytes=source.bytes, sha256=source.sha256)
        name = remote.filename
    if name is None:
        name = f"{Path(source.config).stem if source.config else settings.name}.pth"
    name = local_name(name)
    if name == WEIGHTS_NAME:  # the name of the conversion
        name = f"published_{name}"
    folder = cache_dir() / "presets" / local_name(settings.name)
    return PublishedWeights(settings, folder / name, folder / WEIGHTS_NAME, remote)


@dataclass(frozen=True)
class PretrainedBackbone:
    """A published pretrained backbone; `name` is its name on the command line and in settings."""

    name: str
    title: str
    url: str
    licence: str
    bytes: int | None = None
    sha256: str | None = None

    @property
    def file(self) -> Path:
        """Its path in the cache."""
        return cache_dir() / "backbones" / self.remote().filename

    def remote(self, url: str | None = None) -> Remote:
        """URL, size and hash of the file; `url` replaces the published URL."""
        published = Remote.from_url(self.url, bytes=self.bytes, sha256=self.sha256)
        return Remote.from_url(url or self.url, filename=published.filename, bytes=self.bytes, sha256=published.sha256)


_SWIN = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"

# The backbones of the published configs; Swin-B and -L with 384 pixels and 12 x 12 windows.
BACKBONES = {
    backbone.name: backbone
    for backbone in (
        PretrainedBackbone(
            "resnet50",
            "ResNet-50 of torchvision, ImageNet-1k",
            "https://download.pytorch.org/models/resnet50-0676ba61.pth",
            "BSD-3-Clause (torchvision)",
            bytes=102_530_333,
            sha256="0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
        ),
        PretrainedBackbone(
            "swin_t", "Swin-T of Microsoft, ImageNet-1k", _SWIN + "swin_tiny_patch4_window7_224.pth", "MIT"
        ),
        PretrainedBackbone(
            "swin_s", "Swin-S of Microsoft, ImageNet-1k", _SWIN + "swin_small_patch4_window7_224.pth", "MIT"
        ),
        PretrainedBackbone(
            "swin_b", "Swin-B of Microsoft, ImageNet-22k", _SWIN + "swin_base_patch4_window12_384_22k.pth", "MIT"
        ),
        PretrainedBackbone(
            "swin_l", "Swin-L of Microsoft, ImageNet-22k", _SWIN + "swin_large_patch4_window12_384_22k.pth", "MIT"
        ),
        PretrainedBackbone(
            "eva02_l",
            "EVA-02 L of BAAI, Merged-38M, patches of 16",
            "https://huggingface.co/Yuxin-CV/EVA-02/resolve/main/eva02/pt/eva02_L_pt_m38m_p14to16.pt",
            "MIT",
        ),
    )
}


def pretrained_name(settings: Settings) -> str | None:
    """Name of the pretrained backbone with the sizes of these settings; None if none has been published."""
    backbone = settings.model.backbone
    if isinstance(backbone, ResNetConfig):
        sizes: tuple[Any, ...] = (backbone.norm, backbone.block, backbone.base_channels, backbone.layers)
        return "resnet50" if sizes == ("frozen_batch", "bottleneck", 64, (3, 4, 6, 3)) else None
    if isinstance(backbone, SwinConfig):
        deep, shallow = (2, 2, 18, 2), (2, 2, 6, 2)
        known = {
            (96, shallow, 7): "swin_t",
            (96, deep, 7): "swin_s",
            (128, deep, 12): "swin_b",
            (192, deep, 12): "swin_l",
        }
        return known.get((backbone.embed_dim, backbone.layers, backbone.window_size))
    assert isinstance(backbone, ViTConfig)
    sizes = (backbone.embed_dim, backbone.depth, backbone.num_heads, backbone.hidden_dim)
    return "eva02_l" if sizes == (1024, 24, 16, 2730) else None
