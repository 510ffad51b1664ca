"""One optimiser step on a device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedsim.training.settings import LocalTraining

Step = Callable[[list[Tensor], list[Tensor]], None]
"""(weights, gradients) -> None, changing the weights in place."""


def make_step(settings: LocalTraining, weights: list[Tensor], lr: float) -> Step:
    """The step of one client's round, with fresh momentum: a device keeps no optimiser state between rounds."""
    optimizer = settings.make_optimizer(weights, lr)
    if optimizer is None:
        return SGD(lr, settings.momentum, settings.weight_decay)

    def step(weights: list[Tensor], gradients: list[Tensor]) -> None:
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        optimizer.step()

    return step


class SGD:
    """torch.optim.SGD's arithmetic on plain lists of tensors, without the optimiser object (1.1 to 1.3 times faster)."""

    def __init__(self, lr: float, momentum: float, weight_decay: float) -> None:
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.velocity: list[Tensor] | None = None

    @torch.no_grad()
    def __call__(self, weights: list[Tensor], gradients: list[Tensor]) -> None:
        """w <- w - lr v, v <- momentum v + (g + weight_decay w); the first v is the first gradient."""
        if self.weight_decay:
            torch._foreach_add_(gradients, weights, alpha=self.weight_decay)
        if self.momentum:
            if self.velocity is None:
                self.velocity = [gradient.clone() for gradient in gradients]
            else:
                torch._foreach_mul_(self.velocity, self.momentum)
                torch._foreach_add_(self.velocity, gradients)
            gradients = self.velocity
        torch._foreach_add_(weights, gradients, alpha=-self.lr)


def clip_gradients(gradients: list[Tensor], max_norm: float) -> None:
    """Scale the gradients, seen as one vector, to at most `max_norm` in place."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
