"""FedAvg and the server optimisers over its mean: all of Flower's own strategies, FedAvg's client half."""

from __future__ import annotations

from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi

from fedsim.algorithms.base import TAKE_ALL_SHOWN, Algorithm
from fedsim.checks import require_number


def fedavg() -> Algorithm:
    """The mean of the clients' arrays, weighted by their examples (arXiv 1602.05629)."""
    return Algorithm(FedAvg(**TAKE_ALL_SHOWN), linear=True)


def fedavgm(server_lr: float, server_momentum: float) -> Algorithm:
    """FedAvg with momentum on the server (arXiv 1909.06335)."""
    require_number("strategy.server_lr", server_lr, above=0)
    require_number("strategy.server_momentum", server_momentum, low=0, below=1)
    strategy = FedAvgM(**TAKE_ALL_SHOWN, server_learning_rate=server_lr, server_momentum=server_momentum)
    return Algorithm(strategy, linear=True, steps_buffers=True)


def fedadam(server_lr: float, beta_1: float, beta_2: float, tau: float) -> Algorithm:
    """Adam on the server (FedOpt, arXiv 2003.00295, algorithm 2), with the bias correction that Flower adds to it."""
    _check(server_lr, tau, beta_1, beta_2)
    return Algorithm(
        FedAdam(**TAKE_ALL_SHOWN, eta=server_lr, beta_1=beta_1, beta_2=beta_2, tau=tau), linear=True, steps_buffers=True
    )


def fedyogi(server_lr: float, beta_1: float, beta_2: float, tau: float) -> Algorithm:
    """Yogi on the server (FedOpt, arXiv 2003.00295, algorithm 2)."""
    _check(server_lr, tau, beta_1, beta_2)
    return Algorithm(
        FedYogi(**TAKE_ALL_SHOWN, eta=server_lr, beta_1=beta_1, beta_2=beta_2, tau=tau), linear=True, steps_buffers=True
    )


def fedadagrad(server_lr: float, tau: float) -> Algorithm:
    """Adagrad on the server (FedOpt, arXiv 2003.00295, algorithm 2)."""
    _check(server_lr, tau)
    return Algorithm(FedAdagrad(**TAKE_ALL_SHOWN, eta=server_lr, tau=tau), linear=True, steps_buffers=True)


def _check(server_lr: float, tau: float, beta_1: float = 0.0, beta_2: float = 0.0) -> None:
    require_number("strategy.server_lr", server_lr, above=0)
    require_number("strategy.tau", tau, above=0)
    require_number("strategy.beta_1", beta_1, low=0, below=1)
    require_number("strategy.beta_2", beta_2, low=0, below=1)
