"""Linear models learnt from sums: what clients send of their examples adds up to what one machine would compute of them all.

A round's clients send a second-order statistic A_k and a first-order one b_k of the examples that came to them. The server keeps
A <- forgetting A + sum of A_k and b <- forgetting b + sum of b_k, and its model solves (A + ridge I) W = b. Nothing is lost by the
data being spread: W is that of central recursive least squares with the same forgetting, up to rounding in float64.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

from fedsim import flower
from fedsim.algorithms.base import TAKE_ALL_SHOWN, Algorithm
from fedsim.checks import require_number
from fedsim.training import OBJECTIVES, ClientHalf, Device, Objective
from fedsim.training.objectives import IGNORED_TARGET
from fedsim.types import FedsimError, Params

SECOND = "second_order"
"""Name of A_k, (d + 1, d + 1), among the arrays that a client sends; b_k lies in the names and shapes of the weight and bias."""


class Recursive(FedAvg):
    """The server half. A and b are sums over examples, so `ridge` is an L2 penalty in units of examples, on the bias too.

    second: A, (d + 1, d + 1); first: b, (d + 1, outputs); both float64, None before the first round that brings examples. Rounds
    that bring none forget nothing.
    """

    def __init__(self, ridge: float, forgetting: float) -> None:
        super().__init__(**TAKE_ALL_SHOWN)
        self.ridge = require_number("strategy.ridge", ridge, low=0)
        self.forgetting = require_number("strategy.forgetting", forgetting, low=0, high=1)
        self.second: np.ndarray | None = None
        self.first: np.ndarray | None = None

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take a round's statistics in; gives the model that solves for all of them."""
        replies = list(replies)
        means, metrics = super().aggregate_train(server_round, replies)  # in float64, weighted by examples
        if means is None:
            return None, metrics
        examples = sum(_examples(reply, self.weighted_by_key) for reply in replies if not reply.has_error())
        arrays = {name: array.numpy() for name, array in means.items()}
        second, (weight, bias) = arrays.pop(SECOND), arrays
        first = np.concatenate([arrays[weight].T, arrays[bias][None]])  # (d + 1, outputs)
        self.second = examples * second + (0 if self.second is None else self.forgetting * self.second)
        self.first = examples * first + (0 if self.first is None else self.forgetting * self.first)
        solved = self.solution()
        return ArrayRecord({weight: Array(solved[:-1].T.copy()), bias: Array(solved[-1].copy())}), metrics

    def solution(self) -> np.ndarray:
        """(d + 1, outputs) float64 W, the bias in its last row: what the run's model is rounded from.

        Without a ridge, directions that no example has shown are left at 0 (the least-squares solution of least norm).
        """
        if self.second is None or self.first is None:
            raise FedsimError("no example has come yet, so there is nothing to solve; let a round be played first")
        values, vectors = np.linalg.eigh(self.second)
        values = values + self.ridge
        shown = values > np.finfo(np.float64).eps * len(values) * values[-1]
        return vectors[:, shown] / values[shown] @ (vectors[:, shown].T @ self.first)


class LeastSquares(ClientHalf):
    """Sends the means of x x^T and x y^T over its examples, x with a 1 for the bias; y is one-hot where there are classes."""

    sends_model, alone = False, True

    def check(self, model: nn.Module, objective: Objective, by_example: bool) -> None:
        """A linear model, of values or classes."""
        linear_layer(model, "rls")
        if objective is OBJECTIVES["next_token"]:
            raise FedsimError(
                "strategy=rls solves for values or classes, not for the next token; choose another dataset=..."
            )

    def statistics(self, device: Device) -> Params:
        """A_k (d + 1, d + 1), and b_k as weight (outputs, d) and bias (outputs,), in float64."""
        name, layer = linear_layer(device.model, "rls")
        x, y = design(device)  # (n, d + 1), (n, outputs)
        return packed(name, layer, x.T @ x / len(x), y.T @ x / len(x))


def rls(ridge: float = 1e-6, forgetting: float = 1.0) -> Algorithm:
    """Exact federated recursive least squares.

    ridge: an L2 penalty, in examples. forgetting: what a round's examples count in the next round that brings some; 1 forgets
    nothing and is batch least squares on all that came, 0 keeps the newest round alone.
    """
    return Algorithm(Recursive(ridge, forgetting), LeastSquares(), linear=True, one_vector=False)


def linear_layer(model: nn.Module, strategy: str) -> tuple[str, nn.Linear]:
    """A linear model's one layer, and what its arrays' names begin with. Raises FedsimError for any other model."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    passive = (nn.Linear, nn.Flatten, nn.Identity)
    plain = all(isinstance(m, passive) or type(m).forward is nn.Sequential.forward for m in model.modules())
    if (
        len(layers) != 1
        or not plain
        or layers[0][1].bias is None
        or not all(w.requires_grad for w in model.parameters())
    ):
        raise FedsimError(
            f"strategy={strategy} solves for the weights of a linear model with a bias, which this one is not; use model=linear"
        )
    ((name, layer),) = layers
    return f"{name}." if name else "", layer


def design(device: Device) -> tuple[Tensor, Tensor]:
    """x (n, d + 1) with a last column of 1, and targets (n, outputs), in float64; all 0 where an example has no label."""
    x, y = device.data.x.flatten(1).double(), device.data.y
    x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    if y.is_floating_point():
        return x, y[:, None].double()
    known = y != IGNORED_TARGET
    if not known.any():
        raise FedsimError("none of its examples has a label")
    classes = next(m.out_features for m in device.model.modules() if isinstance(m, nn.Linear))
    targets = nn.functional.one_hot(torch.where(known, y, 0), classes).double()
    return x * known[:, None], targets * known[:, None]


def packed(name: str, layer: nn.Linear, second: Tensor, first: Tensor) -> Params:
    """Statistics as they travel. second: (d + 1, d + 1); first: (outputs, d + 1)."""
    return {f"{name}weight": first[:, :-1].contiguous(), f"{name}bias": first[:, -1].contiguous(), SECOND: second}


def _examples(reply: Message, key: str) -> float:
    return float(reply.content[flower.METRICS][key])  # type: ignore[arg-type]
