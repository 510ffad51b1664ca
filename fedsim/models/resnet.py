"""A small residual network with GroupNorm, which unlike BatchNorm mixes no examples (arXiv 1512.03385, 1910.00189)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.types import FedsimError


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; the first convolution halves the picture where stride is 2."""

    def __init__(self, width: int, units: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, units, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(math.gcd(groups, units), units)
        self.conv2 = nn.Conv2d(units, units, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(math.gcd(groups, units), units)
        same = stride == 1 and width == units
        self.shortcut = nn.Identity() if same else nn.Conv2d(width, units, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, width, h, w) -> (b, units, h / stride, w / stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Sequential):
    """A stem, one stage for each width with `blocks` blocks, average pooling, a linear head. Input: (b, channels, h, w).

    The defaults are a ResNet-8 of about 77,000 parameters; blocks=3 gives ResNet-20.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        widths: Sequence[int] = (16, 32, 64),
        blocks: int = 1,
        groups: int = 8,
    ) -> None:
        if len(input_shape) != 3:
            raise FedsimError(f"model=resnet takes images, not inputs of shape {tuple(input_shape)}; try model=mlp")
        width = widths[0]
        layers: list[nn.Module] = [
            nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False),
            nn.GroupNorm(math.gcd(groups, width), width),
            nn.ReLU(),
        ]
        for stage, units in enumerate(widths):
            for block in range(blocks):
                layers.append(Block(width, units, 2 if stage and not block else 1, groups))
                width = units
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_outputs))
