"""Necks: backbone maps to maps of one width. ChannelMapper behaves as mmdet/models/necks/channel_mapper.py."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from codetr_cli.models.layers import ConvNorm


class ChannelMapper(nn.Module):
    """A 1x1 convolution per backbone map and strided 3x3 convolutions for further levels.

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

        Parity: the first extra level is made from the last backbone map, not from its mapped version.
        """
        outputs = [conv(feature) for conv, feature in zip(self.convs, features, strict=True)]
        coarse = features[-1]
        for conv in self.extra_convs:
            coarse = conv(coarse)
            outputs.append(coarse)
        return outputs
