"""What training minimises, by task. Outputs are what the model gives; every loss is a mean over the targets."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

IGNORED_TARGET = -100
"""A target that counts in no loss and no metric: the padding of a short line (torch's own `ignore_index`)."""

Objective = Callable[[Tensor, Tensor], Tensor]


def classification(outputs: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy. outputs: (b, classes), y: (b,) int64 -> scalar."""
    return F.cross_entropy(outputs, y)


def next_token(outputs: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of every position. outputs: (b, length, symbols), y: (b, length) int64 -> scalar."""
    return F.cross_entropy(outputs.flatten(0, 1), y.flatten(), ignore_index=IGNORED_TARGET)


def regression(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean squared error. outputs: (b, 1), y: (b,) float32 -> scalar."""
    return F.mse_loss(outputs.squeeze(-1), y)


OBJECTIVES: dict[str, Objective] = {
    "classification": classification,
    "next_token": next_token,
    "regression": regression,
}
