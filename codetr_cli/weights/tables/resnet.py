"""ResNet backbones, with torchvision's names."""

from __future__ import annotations

RESNET = {
    "backbone.conv1.weight": "backbone.conv1.weight",
    "backbone.bn1.*": "backbone.bn1.*",
    "backbone.bn1.running_mean": "backbone.bn1.running_mean",
    "backbone.bn1.running_var": "backbone.bn1.running_var",
    "backbone.layer{}.{}.conv{}.weight": "backbone.layer{}.{}.conv{}.weight",
    "backbone.layer{}.{}.bn{}.*": "backbone.layer{}.{}.bn{}.*",
    "backbone.layer{}.{}.bn{}.running_mean": "backbone.layer{}.{}.bn{}.running_mean",
    "backbone.layer{}.{}.bn{}.running_var": "backbone.layer{}.{}.bn{}.running_var",
    "backbone.layer{}.{}.downsample.0.weight": "backbone.layer{}.{}.downsample.0.weight",
    "backbone.layer{}.{}.downsample.1.*": "backbone.layer{}.{}.downsample.1.*",
    "backbone.layer{}.{}.downsample.1.running_mean": "backbone.layer{}.{}.downsample.1.running_mean",
    "backbone.layer{}.{}.downsample.1.running_var": "backbone.layer{}.{}.downsample.1.running_var",
}
