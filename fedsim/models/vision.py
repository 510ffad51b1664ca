"""Convolutional models for images and for series of sensor readings."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from fedsim.models.dense import dropout_layer
from fedsim.types import FedsimError


class CNN(nn.Sequential):
    """Two 5x5 convolutions with 2x2 max pooling and one dense layer.

    The defaults on 28x28 images are the CNN of arXiv 1602.05629 (1,663,370 parameters); channels=[16, 32], hidden=128
    is a smaller one, about six times as fast. Input: (b, channels, height, width).
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        channels: Sequence[int] = (32, 64),
        hidden: int = 512,
        dropout: float = 0.0,
    ) -> None:
        if len(input_shape) != 3 or min(input_shape[1:]) < 4:
            raise FedsimError(
                f"model=cnn takes images of at least 4x4 pixels, not inputs of shape {tuple(input_shape)}; try model=mlp"
            )
        if len(channels) != 2:
            raise FedsimError(f"model.channels={list(channels)} must name two numbers of channels, as in [16,32]")
        colours, height, width = input_shape
        first, second = channels
        super().__init__(
            nn.Conv2d(colours, first, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(second * (height // 4) * (width // 4), hidden),
            nn.ReLU(),
            *([dropout_layer(dropout)] if dropout else []),
            nn.Linear(hidden, num_outputs),
        )


class TanhCNN(nn.Sequential):
    """The small CNN of arXiv 2011.11660 (table 10) for DP-SGD: 26,010 parameters on 28x28 images.

    Few parameters take little noise, and tanh bounds what a step of noise can do to the layers above (2007.14191). Two
    convolutions of stride 2, 8x8 and 4x4, each followed by tanh and a 2x2 max pooling of stride 1; one dense layer.
    Input: (b, channels, height, width).
    """

    def __init__(
        self, input_shape: Sequence[int], num_outputs: int, channels: Sequence[int] = (16, 32), hidden: int = 32
    ) -> None:
        if len(input_shape) != 3 or min(input_shape[1:]) < 16:
            raise FedsimError(
                f"model=tanh_cnn takes images of at least 16x16 pixels, not inputs of shape {tuple(input_shape)}; "
                "try model=mlp"
            )
        if len(channels) != 2:
            raise FedsimError(f"model.channels={list(channels)} must name two numbers of channels, as in [16,32]")
        first, second = channels
        # of the side n: (n + 4 - 8) // 2 + 1 by the first convolution, one less by each pooling, (n - 4) // 2 + 1 by the second
        height, width = (((side - 4) // 2 - 4) // 2 for side in input_shape[1:])
        super().__init__(
            nn.Conv2d(input_shape[0], first, 8, stride=2, padding=2),
            nn.Tanh(),
            nn.MaxPool2d(2, stride=1),
            nn.Conv2d(first, second, 4, stride=2),
            nn.Tanh(),
            nn.MaxPool2d(2, stride=1),
            nn.Flatten(),
            nn.Linear(second * height * width, hidden),
            nn.Tanh(),
            nn.Linear(hidden, num_outputs),
        )


class CNN1d(nn.Sequential):
    """Convolutions over time with global average pooling, for sensor series. Input: (b, sensors, time)."""

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        channels: Sequence[int] = (32, 64, 64),
        kernel_size: int = 7,
        groups: int = 8,
        dropout: float = 0.0,
    ) -> None:
        if len(input_shape) != 2:
            raise FedsimError(
                f"model=cnn1d takes series of shape (sensors, time), not {tuple(input_shape)}; try model=cnn or mlp"
            )
        layers: list[nn.Module] = []
        width = input_shape[0]
        for units in channels:
            layers += [
                nn.Conv1d(width, units, kernel_size, padding=kernel_size // 2),
                nn.GroupNorm(math.gcd(groups, units), units),
                nn.ReLU(),
                nn.MaxPool1d(2),
            ]
            width = units
        head: list[nn.Module] = [nn.AdaptiveAvgPool1d(1), nn.Flatten()]
        super().__init__(*layers, *head, *([dropout_layer(dropout)] if dropout else []), nn.Linear(width, num_outputs))
