"""One optimiser step on a device."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedsim.training.settings import LocalTraining
from fedsim.training.stand_ins import NoStandIn

if TYPE_CHECKING:
    from fedsim.training.stack import Copies

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


ELEMENTWISE = (
    *(torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax),
    *(torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.RMSprop, torch.optim.Rprop, torch.optim.ASGD),
)
"""Optimisers that treat every number by itself, so that stacked weights are stepped as each client's would be."""


def make_stacked_step(settings: LocalTraining, copies: Copies, lr: float) -> Step:
    """As `make_step`, for the stacked weights of clients that train in lockstep.

    An optimiser of torch's steps all rows, those left behind too: what they should keep must be copied before. Raises
    NoStandIn where the optimiser is not one of ELEMENTWISE.
    """
    everything = [copies.arrays[name].detach().requires_grad_() for name in copies.trained]
    optimizer = settings.make_optimizer(everything, lr)
    if optimizer is None:
        return SGD(lr, settings.momentum, settings.weight_decay)
    if type(optimizer) not in ELEMENTWISE:
        raise NoStandIn(f"the optimiser {type(optimizer).__name__} may look at a client's weights as a whole")
    if len(optimizer.param_groups) > 1:  # by their shapes perhaps, which have one dimension more here
        raise NoStandIn(f"the optimiser {type(optimizer).__name__} treats some weights unlike others")

    def step(weights: list[Tensor], gradients: list[Tensor]) -> None:
        for weight, gradient in zip(everything, gradients, strict=True):
            if len(gradient) < len(weight):
                gradient = torch.cat([gradient, gradient.new_zeros(len(weight) - len(gradient), *gradient.shape[1:])])
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
                self.velocity = [velocity[: len(g)] for velocity, g in zip(self.velocity, gradients, strict=True)]
                torch._foreach_mul_(self.velocity, self.momentum)
                torch._foreach_add_(self.velocity, gradients)
            gradients = self.velocity
        torch._foreach_add_(weights, gradients, alpha=-self.lr)


@lru_cache(maxsize=256)
def last_coefficients(settings: LocalTraining, lr: float, steps: int) -> tuple[float, ...]:
    """By how much each step's gradient is taken from the weights in the end, by torch.optim.SGD's recurrence.

    It is one recurrence for all of them: what a gradient has done only depends on how many steps followed.
    """
    velocity, taken, by_age = 1.0, 0.0, list[float]()
    for _ in range(steps):
        taken += lr * velocity
        by_age.append(taken)
        velocity = settings.momentum * velocity - settings.weight_decay * taken
    return tuple(reversed(by_age))


def clip_each(gradients: list[Tensor], max_norm: float) -> None:
    """As `clip_gradients`, for stacked gradients (k, ...): each client's own to `max_norm`."""
    norms = torch.stack([torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1) for g in gradients])  # (parameters, k)
    factors = (max_norm / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))


def clip_gradients(gradients: list[Tensor], max_norm: float) -> None:
    """Scale the gradients, seen as one vector, to at most `max_norm` in place."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
