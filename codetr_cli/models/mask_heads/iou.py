"""Estimated quality of a mask, from the region and the mask (Mask Scoring R-CNN, arXiv 1903.00241).

Behaviour of mmdet's MaskIoUHead. Shape letters: C channels, K classes, R regions, s cells along a pooled region's side.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codetr_cli.models.layers import LayerNorm2d
from codetr_cli.models.mask_heads.fcn import init_mask_convs
from codetr_cli.models.mask_heads.refine import NORM_EPS


class MaskIouHead(nn.Module):
    """Estimates the IoU of a region's mask with the object's whole mask, for every class.

    Args:
        in_dim: channels of the pooled regions.
        dim: C.
        num_convs: convolutions, the last of stride 2.
        fc_dim: channels of the fully connected layer.
        num_classes: K.
        pooled_size: s.
    """

    def __init__(
        self, *, in_dim: int, dim: int, num_convs: int, fc_dim: int, num_classes: int, pooled_size: int
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(in_dim + 1 if i == 0 else dim, dim, 3, 2 if i == num_convs - 1 else 1, padding=1, bias=False)
            for i in range(num_convs)
        )
        self.norms = nn.ModuleList(LayerNorm2d(dim, eps=NORM_EPS) for _ in range(num_convs))
        self.fc = nn.Linear(dim * ((pooled_size + 1) // 2) ** 2, fc_dim)
        self.iou = nn.Linear(fc_dim, num_classes)
        init_mask_convs(self)
        nn.init.kaiming_uniform_(self.fc.weight, a=1)
        nn.init.normal_(self.iou.weight, std=0.01)
        for layer in (self.fc, self.iou):
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor, mask_logits: Tensor, labels: Tensor) -> Tensor:
        """Estimates the IoU (R,) in [0, 1].

        Args:
            pooled: (R, in_dim, s, s).
            mask_logits: (R, 1, 2 s, 2 s).
            labels: (R,) classes.
        """
        x = torch.cat([pooled, F.max_pool2d(mask_logits.sigmoid(), 2)], 1)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        x = self.iou(F.relu(self.fc(x.flatten(1))))
        return x.gather(1, labels[:, None])[:, 0].sigmoid()
