"""Dense models."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from fedsim.checks import require_int, require_number


def dropout_layer(chance: float) -> nn.Dropout:
    """Dropout with a checked chance."""
    return nn.Dropout(require_number("model.dropout", chance, low=0, below=1))


class Linear(nn.Sequential):
    """(Multinomial logistic) regression on the flattened input."""

    def __init__(self, input_shape: Sequence[int], num_outputs: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(math.prod(input_shape), num_outputs))


class MLP(nn.Sequential):
    """Dense layers with ReLU. hidden=[200, 200] on 28x28 images is the 2NN of arXiv 1602.05629 (199,210 parameters)."""

    def __init__(
        self, input_shape: Sequence[int], num_outputs: int, hidden: Sequence[int] = (200, 200), dropout: float = 0.0
    ) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        width = math.prod(input_shape)
        for units in hidden:
            require_int("model.hidden", units, low=1)
            layers += [nn.Linear(width, units), nn.ReLU()]
            if dropout:
                layers.append(dropout_layer(dropout))
            width = units
        super().__init__(*layers, nn.Linear(width, num_outputs))
