"""Learning from what comes, one step at a time: federated online gradient descent, and clients that fit their own step size."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg, FedAvgM
from torch import Tensor

from fedsim.algorithms.base import TAKE_ALL_SHOWN, Algorithm
from fedsim.checks import require_number
from fedsim.training import ClientHalf, Device
from fedsim.types import Params

SQUARES = "squares"
"""Name of the one number that a client with a step size of its own keeps."""


class OnlineDescent(FedAvgM):
    """Moves by server_lr / sqrt(t) of the mean update in round t: the step size of Zinkevich 2003 (ICML), theorem 1.

    Where clients make one step of all that came (client.epochs=1, client.batch_size=null) that is online gradient descent with
    step size client.lr * server_lr / sqrt(t), whose regret against the best fixed model grows as sqrt(t) on convex losses.
    """

    def __init__(self, server_lr: float) -> None:
        super().__init__(**TAKE_ALL_SHOWN, server_learning_rate=server_lr, server_momentum=0.0)
        self.first_lr = server_lr
        self.server_opt = True  # which Flower leaves out where the step size begins at 1

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """FedAvgM's, at this round's step size."""
        self.server_learning_rate = self.first_lr / math.sqrt(server_round)
        return super().aggregate_train(server_round, replies)


def fedogd(server_lr: float = 1.0) -> Algorithm:
    """Federated online gradient descent. server_lr: the share of the mean update that is taken in round 1."""
    require_number("strategy.server_lr", server_lr, above=0)
    return Algorithm(OnlineDescent(server_lr), linear=True, steps_buffers=True)


class OwnStepSize(ClientHalf):
    """Divides every step by the root of the squares of the client's gradients so far: AdaGrad-Norm (arXiv 1806.01811).

    b <- decay b + ||g||^2, then g <- g / sqrt(start^2 + b); b goes on from round to round on the device.
    """

    def __init__(self, start: float, decay: float) -> None:
        self.start, self.decay = start, decay
        self.squares = torch.zeros(())

    def begin(self, device: Device) -> dict[str, float]:
        """Take up what this client has seen."""
        self.squares = device.state.get(SQUARES, torch.zeros((), device=device.data.x.device))
        return {}

    def correct(self, gradients: list[Tensor], weights: list[Tensor], anchors: list[Tensor]) -> None:
        """See the class."""
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        self.squares = self.decay * self.squares + norm.square()
        torch._foreach_mul_(gradients, (self.start**2 + self.squares).rsqrt())

    def finish(self, device: Device, steps: int, lr: float) -> Params:
        """The sum of squares."""
        return {SQUARES: self.squares}


def adagrad_norm(start: float = 0.1, decay: float = 1.0) -> Algorithm:
    """FedAvg among clients whose step size follows their own gradients.

    start: steps are at most client.lr / start times the gradient. decay: below 1 old gradients are forgotten step by step, so that
    steps grow again after a drift; 1 is AdaGrad-Norm.
    """
    require_number("strategy.start", start, above=0)
    require_number("strategy.decay", decay, above=0, high=1)
    return Algorithm(FedAvg(**TAKE_ALL_SHOWN), OwnStepSize(start, decay), linear=True)
