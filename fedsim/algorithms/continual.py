"""Learning on without forgetting: what mattered are held (EWC), or the old answers are (LwF); the server half is FedAvg's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

from fedsim.algorithms.base import TAKE_ALL_SHOWN, Algorithm
from fedsim.checks import require_number
from fedsim.training import OBJECTIVES, ClientHalf, Device, Objective
from fedsim.training.layer_gradients import Stacked
from fedsim.training.objectives import IGNORED_TARGET
from fedsim.training.per_example import functorch, trainable
from fedsim.types import ClientData, FedsimError, Params

FISHER, ANCHOR = "fisher/", "anchor/"
"""Before the names of what a client keeps of each weight: its importance F, and its value w* when it last trained."""

NUMBERS_AT_ONCE = 2**24
"""Numbers of single examples' gradients that are in memory at a time."""


class ElasticWeights(ClientHalf):
    """Adds strength / 2 sum of F_i (w_i - w*_i)^2 to the local loss (arXiv 1612.00796, equation 3), as its gradient.

    Each client has an F and a w* of its own: the weights that it trained last, and the diagonal of the Fisher information there,
    with the labels as they were. A stream has no tasks, so F is a moving average over the rounds (EWC++, arXiv 1801.10112).
    """

    def __init__(self, strength: float, decay: float) -> None:
        self.strength, self.decay = strength, decay
        self.fisher: list[Tensor] = []
        self.anchor: list[Tensor] = []

    def check(self, model: nn.Module, objective: Objective, by_example: bool) -> None:
        """Not beside DP-SGD."""
        if by_example:
            raise FedsimError(
                "strategy=ewc steers steps by squared gradients of the examples, which privacy=example does not cover; "
                "use privacy=user, or strategy=fedavg"
            )

    def begin(self, device: Device) -> dict[str, float]:
        """Take up what this client holds on to; nothing where it has never trained."""
        names = trainable(device.model) if device.state else ()
        self.fisher = [device.state[f"{FISHER}{name}"] for name in names]
        self.anchor = [device.state[f"{ANCHOR}{name}"] for name in names]
        return {}

    def correct(self, gradients: list[Tensor], weights: list[Tensor], anchors: list[Tensor]) -> None:
        """g <- g + strength F (w - w*)."""
        if self.fisher:
            with torch.no_grad():
                moved = torch._foreach_sub(weights, self.anchor)
                torch._foreach_addcmul_(gradients, self.fisher, moved, value=self.strength)

    def finish(self, device: Device, steps: int, lr: float) -> Params:
        """F <- decay F + (1 - decay) that of what the client has just trained on; w* <- what it trained."""
        found = fisher(device.model, device.objective, device.data)
        for new, old in zip(found.values(), self.fisher, strict=False):
            new.lerp_(old, self.decay)
        kept = {f"{FISHER}{name}": array for name, array in found.items()}
        return kept | {f"{ANCHOR}{name}": weight.detach() for name, weight in trainable(device.model).items()}


def fisher(model: nn.Module, objective: Objective, data: ClientData) -> Params:
    """The mean over the examples of each weight's squared gradient, by name; in evaluation mode."""
    weights = trainable(model)
    sums = {name: torch.zeros_like(weight, requires_grad=False) for name, weight in weights.items()}
    width = max(1, NUMBERS_AT_ONCE // sum(weight.numel() for weight in weights.values()))
    model.eval()
    with functorch(model, objective) as per_example:
        for x, y in zip(data.x.split(width), data.y.split(width), strict=True):
            for total, gradients in zip(sums.values(), per_example(x, y), strict=True):
                assert isinstance(gradients, Stacked)
                total += gradients.rows.square().sum(0)
    model.train()
    return {name: total / len(data.x) for name, total in sums.items()}


def ewc(strength: float = 10.0, decay: float = 0.9) -> Algorithm:
    """Elastic weight consolidation. strength: lambda; 0 is FedAvg. decay: of F, each time that a client trains.

    A step is stable while client.lr * strength * F is below 2.
    """
    require_number("strategy.strength", strength, low=0)
    require_number("strategy.decay", decay, low=0, high=1)
    return Algorithm(FedAvg(**TAKE_ALL_SHOWN), ElasticWeights(strength, decay), linear=True)


class OldAnswers(ClientHalf):
    """Adds strength T^2 KL(received model's answer || own answer), softened by the temperature T, on the new examples.

    Li and Hoiem, arXiv 1606.09282, equation 2; times T^2, by which its gradient does not shrink with T (arXiv 1503.02531, section
    2). The received model's answers are computed once a round, in evaluation mode.
    """

    alone = True

    def __init__(self, strength: float, temperature: float) -> None:
        self.strength, self.temperature = strength, temperature
        self.old = torch.empty(0)
        self.known = torch.empty(0)

    def check(self, model: nn.Module, objective: Objective, by_example: bool) -> None:
        """Of classes, and not beside DP-SGD, which clips the gradients of the plain loss."""
        if objective is OBJECTIVES["regression"]:
            raise FedsimError("strategy=lwf keeps a model's answers among classes; use strategy=ewc for a regression")
        if by_example:
            raise FedsimError(
                "strategy=lwf adds to the loss whose gradients privacy=example clips; use privacy=user, or strategy=fedavg"
            )

    def begin(self, device: Device) -> dict[str, float]:
        """Ask the received model."""
        device.model.eval()
        with torch.no_grad():
            self.old = self._softened(device.model(device.data.x))
        self.known = (device.data.y != IGNORED_TARGET).to(self.old.dtype)
        device.model.train()
        return {}

    def extra_loss(self, outputs: Tensor, rows: Tensor | None) -> Tensor:
        """The mean over the targets that count."""
        old, known = (self.old, self.known) if rows is None else (self.old[rows], self.known[rows])
        apart = F.kl_div(self._softened(outputs), old, reduction="none", log_target=True).sum(-1)  # in the shape of y
        return self.strength * self.temperature**2 * (apart * known).sum() / known.sum()

    def _softened(self, outputs: Tensor) -> Tensor:
        return F.log_softmax(outputs / self.temperature, -1)


def lwf(strength: float = 1.0, temperature: float = 2.0) -> Algorithm:
    """Learning without forgetting. strength: of the old answers beside the new labels; 0 is FedAvg."""
    require_number("strategy.strength", strength, low=0)
    require_number("strategy.temperature", temperature, above=0)
    return Algorithm(FedAvg(**TAKE_ALL_SHOWN), OldAnswers(strength, temperature), linear=True)
