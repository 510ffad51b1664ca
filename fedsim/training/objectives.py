"""What training minimises, by task. Outputs are what the model gives; every loss is a mean over the targets."""

from __future__ import annotations

from collections.abc import Callable

import torch
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


ONE_TARGET = (classification, regression)
"""Objectives whose batch mean weighs examples alike, since each example is one target."""


def client_losses(objective: Objective, outputs: Tensor, y: Tensor, clients: int, sizes: list[int]) -> Tensor:
    """(clients,) the objective of each client's own batch, where batches lie one after the other.

    outputs, y: (clients * b, ...). sizes: the first so many rows of each client's b count, the others fill up.
    """
    losses = row_losses(objective, outputs, y).view(clients, len(y) // clients, -1)  # (clients, b, targets)
    full = min(sizes) == losses.shape[1]
    if full and objective is regression:  # it alone ignores no target
        return losses.mean((1, 2))
    known = (
        torch.ones_like(losses, dtype=torch.bool) if objective is regression else (y != IGNORED_TARGET).view_as(losses)
    )
    if not full:
        places = torch.arange(losses.shape[1], device=y.device)
        known = known & (places < torch.tensor(sizes, device=y.device)[:, None])[..., None]
        losses = torch.where(known, losses, 0)
    return losses.sum((1, 2)) / known.sum((1, 2))


def client_gradients(
    objective: Objective, outputs: Tensor, y: Tensor, clients: int, sizes: list[int]
) -> tuple[Tensor, Tensor]:
    """`client_losses` of an objective in ONE_TARGET, and the gradient of their sum by the outputs, (clients * b, ...)."""
    losses, gradients = row_gradients(objective, outputs, y)
    if objective is regression:
        places = torch.arange(len(y) // clients, device=y.device)
        known = places < torch.tensor(sizes, device=y.device)[:, None]
    else:
        known = (y != IGNORED_TARGET).view(clients, -1)
    shares = known.to(losses.dtype)  # (clients, b)
    shares /= shares.sum(1, keepdim=True)
    own = (losses.view_as(shares) * shares).sum(1)
    return own, gradients.mul_(shares.nan_to_num().view(-1, 1))  # where no target counts: no mean, and no gradient


def row_gradients(objective: Objective, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(b,) `row_losses` of an objective in ONE_TARGET, and (b, ...) each one's gradient by its own outputs."""
    if objective is regression:
        gaps = outputs - y[:, None]
        return gaps.squeeze(-1).square(), 2 * gaps
    known = y != IGNORED_TARGET
    targets = torch.where(known, y, 0)[:, None]
    logs = F.log_softmax(outputs, 1)
    losses, gradients = -logs.gather(1, targets), logs.exp()
    gradients.scatter_add_(1, targets, torch.full_like(losses, -1))  # probabilities less the target's 1
    return losses.squeeze(1) * known, gradients.mul_(known[:, None])


def row_losses(objective: Objective, outputs: Tensor, y: Tensor) -> Tensor:
    """The loss of every target, in the shape of y; 0 where a target is IGNORED_TARGET. Raises KeyError for other objectives."""
    if objective is regression:
        return F.mse_loss(outputs.squeeze(-1), y, reduction="none")
    if objective not in (classification, next_token):
        raise KeyError(objective)
    flat = outputs.flatten(0, -2) if objective is next_token else outputs
    return F.cross_entropy(flat, y.flatten(), ignore_index=IGNORED_TARGET, reduction="none").view_as(y)
