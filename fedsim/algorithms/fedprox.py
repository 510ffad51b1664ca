"""FedProx (arXiv 1812.06127): a proximal term holds local training near the server's arrays."""

from __future__ import annotations

import torch
from flwr.serverapp.strategy import FedProx
from torch import Tensor

from fedsim.algorithms.base import TAKE_ALL_SHOWN, Algorithm
from fedsim.checks import require_number
from fedsim.training import ClientHalf


class Proximal(ClientHalf):
    """Adds mu / 2 ||w - w_t||^2 to the local loss (equation 2), as its gradient mu (w - w_t)."""

    elementwise = True

    def __init__(self, mu: float) -> None:
        self.mu = mu

    def correct(self, gradients: list[Tensor], weights: list[Tensor], anchors: list[Tensor]) -> None:
        """g <- g + mu (w - w_t)."""
        with torch.no_grad():
            torch._foreach_add_(gradients, weights, alpha=self.mu)
            torch._foreach_sub_(gradients, anchors, alpha=self.mu)


def fedprox(proximal_mu: float) -> Algorithm:
    """The proximal term on the device; the server half is FedAvg's."""
    require_number("strategy.proximal_mu", proximal_mu, above=0)
    return Algorithm(FedProx(**TAKE_ALL_SHOWN, proximal_mu=proximal_mu), Proximal(proximal_mu), linear=True)
