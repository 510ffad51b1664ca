"""Logistic regression on a stream, without a step size: the model minimises a quadratic that lies above all losses seen so far.

For every class the curvature of an example's cross-entropy is at most x x^T / 2 (Boehning 1992, Annals of the Institute of
Statistical Mathematics 44). So with g the gradient at the received W, a client's loss at any V is at most

    loss(W) + <g, V - W> + tr((V - W)^T A (V - W)) / 2,  A = sum of x x^T / 2,

whose minimiser solves A V = b with b = A W - g. A does not depend on the classes: a client sends (d + 1)^2 + (d + 1) classes
numbers, where the Hessian itself would take ((d + 1) classes)^2. The server adds these quadratics up with forgetting, as for least
squares: stochastic majorisation-minimisation (Mairal 2013, arXiv 1306.4650, algorithm 1).
"""

from __future__ import annotations

import torch
from torch import nn

from fedsim.algorithms.base import Algorithm
from fedsim.algorithms.recursive import Recursive, design, linear_layer, packed
from fedsim.training import OBJECTIVES, ClientHalf, Device, Objective
from fedsim.types import FedsimError, Params


class LogisticBound(ClientHalf):
    """Sends the quadratic above the mean cross-entropy of its examples, laid on at the received weights."""

    sends_model, alone = False, True

    def check(self, model: nn.Module, objective: Objective, by_example: bool) -> None:
        """A linear model of classes."""
        linear_layer(model, "logistic")
        if objective is not OBJECTIVES["classification"]:
            raise FedsimError("strategy=logistic tells classes apart; choose a dataset of classes, or use strategy=rls")

    def statistics(self, device: Device) -> Params:
        """A_k (d + 1, d + 1), and b_k as weight (classes, d) and bias (classes,), in float64."""
        name, layer = linear_layer(device.model, "logistic")
        x, y = design(device)  # (n, d + 1), (n, classes)
        received = torch.cat([layer.weight, layer.bias[:, None]], 1).double()  # (classes, d + 1)
        received = received - received.mean(
            0
        )  # no chance changes, and the penalty is less: only the ridge would take this away
        chances = torch.softmax(x @ received.T, 1) * y.sum(1, keepdim=True)  # 0 where an example has no label
        gradient = (chances - y).T @ x / len(x)
        second = x.T @ x / (2 * len(x))
        return packed(name, layer, second, received @ second - gradient)


def logistic(ridge: float = 1.0, forgetting: float = 0.9) -> Algorithm:
    """Federated streaming logistic regression.

    ridge: an L2 penalty on weights and bias, in examples (scikit-learn's 1 / C). forgetting: what a round's examples count in the
    next round that brings some; 0 makes each round a descent step on what came in it.
    """
    return Algorithm(Recursive(ridge, forgetting), LogisticBound(), linear=True, one_vector=False)
