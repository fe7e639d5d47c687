"""The head that all levels share (FCOS, arXiv:1904.01355; centerness on the box branch as in arXiv:2006.09214)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import STRIDES, FCOSConfig

CLASS_PRIOR = 0.01
"""Initial class scores, so that the many background points do not dominate the first steps (arXiv:1708.02002, 4.1)."""


class Heads(NamedTuple):
    """Raw outputs for the P points of P3..P7, row by row, level after level."""

    class_logits: Tensor  # [N, P, C]
    distances: Tensor  # [N, P, 4] canvas pixels, >= 0
    centerness: Tensor  # [N, P] logits


class Tower(nn.Module):
    """[convolution, norm, ReLU] several times. The levels share convolutions, but not BatchNorm's statistics."""

    def __init__(self, config: FCOSConfig) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_conv(config) for _ in range(config.head_convs))
        self.norms = nn.ModuleList(nn.ModuleList(_norms(config)) for _ in range(config.head_convs))

    def forward(self, x: Tensor, level: int) -> Tensor:
        for conv, norms in zip(self.convs, self.norms, strict=True):
            assert isinstance(norms, nn.ModuleList)
            x = F.relu(norms[level % len(norms)](conv(x)))
        return x


class Head(nn.Module):
    """Class logits, distances and centerness of every point.

    Args:
        config: channels, number of classes, tower convolutions, norm.
    """

    def __init__(self, config: FCOSConfig) -> None:
        super().__init__()
        channels = config.channels
        self.class_tower = Tower(config)
        self.box_tower = Tower(config)
        self.class_logits = nn.Conv2d(channels, len(config.classes), 3, padding=1)
        self.distances = nn.Conv2d(channels, 4, 3, padding=1)
        self.centerness = nn.Conv2d(channels, 1, 3, padding=1)
        # One factor per level, applied before the activation, lets shared weights cover sizes from 8 to 800 px.
        self.scales = nn.ParameterList(torch.ones(()) for _ in STRIDES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # N(0, 0.01) is the paper's for a full convolution; a depthwise kernel sums over only k*k inputs, and so
                # small a spread would silence it: it gets unit gain.
                if module.groups > 1:
                    nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                else:
                    nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.class_logits.get_parameter("bias"), -math.log((1 - CLASS_PRIOR) / CLASS_PRIOR))

    def forward(self, pyramid: list[Tensor]) -> Heads:
        """pyramid: P3..P7, each [N, channels, h, w]."""
        classes, distances, centerness = [], [], []
        for level, (x, stride) in enumerate(zip(pyramid, STRIDES, strict=True)):
            class_features, box_features = self.class_tower(x, level), self.box_tower(x, level)
            classes.append(_rows(self.class_logits(class_features)))
            distances.append(F.relu(self.scales[level] * _rows(self.distances(box_features)).float()) * stride)
            centerness.append(_rows(self.centerness(box_features)))
        return Heads(
            torch.cat(classes, 1).float(), torch.cat(distances, 1), torch.cat(centerness, 1).flatten(1).float()
        )


def _rows(x: Tensor) -> Tensor:
    """[N, c, h, w] -> [N, h*w, c]: points row by row."""
    return x.flatten(2).transpose(1, 2)


def _conv(config: FCOSConfig) -> nn.Module:
    channels, kernel = config.channels, config.head_kernel
    if config.head_conv == "full":
        return nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
    return nn.Sequential(
        nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1),
    )


def _norms(config: FCOSConfig) -> list[nn.Module]:
    if config.norm == "gn":
        return [nn.GroupNorm(config.norm_groups, config.channels)]
    return [nn.BatchNorm2d(config.channels) for _ in STRIDES]
