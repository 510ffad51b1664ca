"""Aggregation that withstands some malicious or broken clients: Flower's own strategies. None is linear."""

from __future__ import annotations

from flwr.serverapp.strategy import Bulyan, FedMedian, FedTrimmedAvg, Krum, MultiKrum

from fedsim.algorithms.base import TAKE_ALL_SHOWN, Algorithm
from fedsim.checks import require_int, require_number


def fedmedian() -> Algorithm:
    """The median of every coordinate (arXiv 1803.01498)."""
    return Algorithm(FedMedian(**TAKE_ALL_SHOWN))


def fedtrimmedavg(beta: float) -> Algorithm:
    """The mean of every coordinate without its largest and smallest share `beta` (arXiv 1803.01498)."""
    require_number("strategy.beta", beta, low=0, below=0.5)
    return Algorithm(FedTrimmedAvg(**TAKE_ALL_SHOWN, beta=beta))


def krum(num_malicious: int) -> Algorithm:
    """The one update closest to its neighbours; bears f malicious clients of at least 2 f + 3 (arXiv 1703.02757)."""
    require_int("strategy.num_malicious", num_malicious, low=0)
    strategy = Krum(**TAKE_ALL_SHOWN, num_malicious_nodes=num_malicious)
    return Algorithm(strategy, min_cohort=2 * num_malicious + 3)


def multikrum(num_malicious: int, num_selected: int) -> Algorithm:
    """The mean of the `num_selected` updates that Krum ranks best (arXiv 1703.02757)."""
    require_int("strategy.num_malicious", num_malicious, low=0)
    require_int("strategy.num_selected", num_selected, low=1)
    strategy = MultiKrum(**TAKE_ALL_SHOWN, num_malicious_nodes=num_malicious, num_nodes_to_select=num_selected)
    return Algorithm(strategy, min_cohort=max(2 * num_malicious + 3, num_selected))


def bulyan(num_malicious: int) -> Algorithm:
    """Krum's selection, then a trimmed mean around the median; bears f of at least 4 f + 3 clients (arXiv 1802.07927)."""
    require_int("strategy.num_malicious", num_malicious, low=0)
    strategy = Bulyan(**TAKE_ALL_SHOWN, num_malicious_nodes=num_malicious)
    return Algorithm(strategy, min_cohort=4 * num_malicious + 3)
