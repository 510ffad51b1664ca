"""How a client trains: the keys of `client.*`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor
from torch.optim import Optimizer

from fedsim.checks import require_int, require_number
from fedsim.types import FedsimError


@dataclass(frozen=True)
class LocalTraining:
    """Local training of one client in one round.

    epochs: passes over the client's examples. batch_size: None for all of them at once. lr: step size, times
    lr_decay ** (round - 1). momentum, weight_decay: as in torch.optim.SGD. max_steps: an upper bound on the steps of a
    round, or None. max_grad_norm: clip the norm of a step's gradient, or None (no privacy follows from it).
    optimizer: None for SGD, or a callable that takes (parameters, lr=...) and gives a torch optimiser.
    """

    epochs: int = 1
    batch_size: int | None = 10
    lr: float = 0.1
    lr_decay: float = 1.0
    momentum: float = 0.0
    weight_decay: float = 0.0
    max_steps: int | None = None
    max_grad_norm: float | None = None
    optimizer: Callable[..., Optimizer] | None = None

    def __post_init__(self) -> None:
        require_int("client.epochs", self.epochs, low=1)
        require_number("client.lr", self.lr, above=0)
        require_number("client.lr_decay", self.lr_decay, above=0, high=1)
        require_number("client.momentum", self.momentum, low=0, below=1)
        require_number("client.weight_decay", self.weight_decay, low=0)
        if self.batch_size is not None:
            require_int("client.batch_size", self.batch_size, low=1)
        if self.max_steps is not None:
            require_int("client.max_steps", self.max_steps, low=1)
        if self.max_grad_norm is not None:
            require_number("client.max_grad_norm", self.max_grad_norm, above=0)
        if self.optimizer is not None:
            self._check_optimizer()

    def _check_optimizer(self) -> None:
        if not callable(self.optimizer):
            raise FedsimError(
                f"client.optimizer={self.optimizer} cannot make an optimiser; use client=adamw, or leave it out for SGD"
            )
        for key in ("momentum", "weight_decay"):
            if getattr(self, key):
                raise FedsimError(
                    f"client.{key}={getattr(self, key):g} is of SGD alone; set it to 0, or set client.optimizer=null"
                )

    def steps(self, num_examples: int) -> int:
        """Steps that a client with so many examples makes in a round."""
        batch = self.batch_size or num_examples
        steps = self.epochs * math.ceil(num_examples / batch) if num_examples else 0
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def lr_in(self, round: int) -> float:
        """The step size of this round; the first round is 1."""
        return self.lr * self.lr_decay ** (round - 1)

    def make_optimizer(self, weights: Iterable[Tensor], lr: float) -> Optimizer | None:
        """A fresh torch optimiser for one client's round, or None for plain SGD (see `steps.py`)."""
        return None if self.optimizer is None else self.optimizer(list(weights), lr=lr)
