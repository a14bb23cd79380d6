"""Necks: backbone maps to maps with the same number of channels.

Behaviour of mmdet/models/necks/channel_mapper.py, and of sfp.py in Sense-X/Co-DETR (arXiv 2203.16527).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from codetr_cli.models.layers import ConvNorm, LayerNorm2d


class ChannelMapper(nn.Module):
    """A 1x1 convolution per backbone map and strided 3x3 convolutions for additional levels.

    Args:
        in_channels: channels of the backbone maps, finest first.
        out_channels: channels of every output.
        num_levels: number of outputs, at least the number of inputs.
        norm_groups: groups of the norms.
    """

    def __init__(self, *, in_channels: Sequence[int], out_channels: int, num_levels: int, norm_groups: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            ConvNorm(channels, out_channels, kernel_size=1, norm_groups=norm_groups) for channels in in_channels
        )
        extra = num_levels - len(in_channels)
        self.extra_convs = nn.ModuleList(
            ConvNorm(
                in_channels[-1] if i == 0 else out_channels,
                out_channels,
                kernel_size=3,
                stride=2,
                norm_groups=norm_groups,
            )
            for i in range(extra)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps the backbone's (B, C_i, H_i, W_i) to `num_levels` maps (B, out_channels, ...).

        Parity: the first extra level is computed from the last backbone map, not from its mapped version.
        """
        outputs = [conv(feature) for conv, feature in zip(self.convs, features, strict=True)]
        coarse = features[-1]
        for conv in self.extra_convs:
            coarse = conv(coarse)
            outputs.append(coarse)
        return outputs


class FeaturePyramid(nn.Module):
    """Five maps of strides 4 to 64 from one map of stride 16, each by a separate path.

    Args:
        in_channels: channels of the backbone's map.
        out_channels: channels of every output.
    """

    def __init__(self, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        double, halve = nn.Upsample(scale_factor=2, mode="nearest"), nn.MaxPool2d(3, stride=2, padding=1)
        half, quarter = in_channels // 2, in_channels // 4
        self.p2 = nn.Sequential(
            double,
            *_conv_norm_gelu(in_channels, half, 3),
            double,
            *_conv_norm_gelu(half, quarter, 3),
            *_projection(quarter, out_channels),
        )
        self.p3 = nn.Sequential(double, *_conv_norm_gelu(in_channels, half, 3), *_projection(half, out_channels))
        self.p4 = nn.Sequential(*_projection(in_channels, out_channels))
        self.p5 = nn.Sequential(halve, *_projection(in_channels, out_channels))
        self.p6 = nn.Sequential(
            halve, *_conv_norm_gelu(in_channels, in_channels, 3, stride=2), *_projection(in_channels, out_channels)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps the backbone's only map (B, in_channels, H, W) to five, of 4, 2, 1, 1/2 and 1/4 times the sides."""
        (feature,) = features
        return [path(feature) for path in (self.p2, self.p3, self.p4, self.p5, self.p6)]


def _conv_norm_gelu(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
    return [conv, LayerNorm2d(out_channels), nn.GELU()]


def _projection(in_channels: int, out_channels: int) -> list[nn.Module]:
    """End of every path: 1x1 to the output channels, then 3x3 without an activation."""
    return [*_conv_norm_gelu(in_channels, out_channels, 1), *_conv_norm_gelu(out_channels, out_channels, 3)[:-1]]
