"""What a sum of discrete noise costs: Renyi bounds of the papers, turned into epsilon by dp_accounting.

Neighbours differ by one client whose update is zero instead (zero-out: it takes part all the same, as the server sees). That
moves the sum of the rounded vectors by at most Delta_2 in L2 and Delta_1 in L1, in units of the granularity.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedsim.privacy.discrete import rounded_l1, rounded_norm

if TYPE_CHECKING:
    from dp_accounting import DpEvent

ORDERS = np.array([*range(2, 257), *(2**k for k in range(9, 21))], dtype=np.float64)
"""Whole numbers, which is what the Skellam bound is proved for."""


@dataclass(frozen=True)
class DiscreteSum(ABC):
    """A release of the sum of rounded vectors with discrete noise; a Mechanism as accounting.py has it.

    noise_multiplier: of the noise in the sum, over the clipping norm before rounding. scale: the clipping norm over the
    granularity. dimension: of the padded vector. shares: the fewest clients by whom the noise is added.
    """

    noise_multiplier: float
    scale: float
    dimension: int
    shares: int
    adjacency: str = "zero-out"
    accountants: tuple[str, ...] = ("exact",)  # its own epsilon below, which is an RDP bound and is reported as one

    @property
    def l2(self) -> float:
        """Delta_2: the norm that rounding may leave."""
        return rounded_norm(self.scale, self.dimension)

    @property
    def l1(self) -> float:
        """Delta_1."""
        return rounded_l1(self.l2, self.dimension)

    @property
    def variance(self) -> float:
        """Of the noise in the sum, in units of the granularity squared."""
        return (self.noise_multiplier * self.scale) ** 2

    @abstractmethod
    def rdp(self, orders: np.ndarray) -> np.ndarray:
        """The Renyi divergence of one release at each of these whole orders, at most."""

    def epsilon(self, count: int, delta: float) -> float:
        """Of `count` releases: Renyi divergences add up; dp_accounting converts (2004.00010, proposition 12)."""
        if count == 0 or self.noise_multiplier == 0:
            return math.inf if count else 0.0
        from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

        curve = self.rdp(ORDERS)
        return float(compute_epsilon(ORDERS, count * curve, delta)[0]) if np.isfinite(curve).all() else math.inf

    def events(self, count: int) -> DpEvent:
        """See Mechanism. dp_accounting has no event for it: what composes is the curve."""
        from dp_accounting import UnsupportedDpEvent

        return UnsupportedDpEvent()


@dataclass(frozen=True)
class SkellamSum(DiscreteSum):
    """Skellam noise: shares sum to it exactly, however many there are (Agarwal et al. 2021, arXiv 2110.04995)."""

    def rdp(self, orders: np.ndarray) -> np.ndarray:
        """Theorem 3.5 and corollary 4.1: alpha D2^2/2mu + min(((2 alpha - 1) D2^2 + 6 D1)/4mu^2, 3 D1/2mu), mu the variance."""
        mu = self.variance
        more = np.minimum(((2 * orders - 1) * self.l2**2 + 6 * self.l1) / (4 * mu**2), 3 * self.l1 / (2 * mu))
        return orders * self.l2**2 / (2 * mu) + more


@dataclass(frozen=True)
class DiscreteGaussianSum(DiscreteSum):
    """Discrete Gaussian noise: a sum of shares is close to one, up to tau (Kairouz et al. 2021, arXiv 2102.06387)."""

    @property
    def tau(self) -> float:
        """10 sum over k < shares of exp(-2 pi^2 sigma^2 k / (k + 1)), sigma the deviation of one share (theorem 1)."""
        k = np.arange(1, self.shares)
        return float(10 * np.exp(-2 * math.pi**2 * self.variance / self.shares * k / (k + 1)).sum())

    def rdp(self, orders: np.ndarray) -> np.ndarray:
        """Proposition 14; infinite where a share's deviation is below 1/2, for which it is not proved."""
        if self.variance / self.shares < 0.25:
            return np.full(len(orders), np.inf)
        std = math.sqrt(self.variance)
        far, tau, d = self.l2 / std, self.tau, self.dimension
        first = orders / 2 * far**2 + tau * d
        second = orders / 2 * (far**2 + 2 * self.l1 / std * tau + tau**2 * d)
        third = orders / 2 * (far + tau * math.sqrt(d)) ** 2
        return np.minimum(first, np.minimum(second, third))


def noise_tail(variance: float, dimension: int, chance: float) -> float:
    """What no coordinate of the noise exceeds in a round, but for this chance (Bernstein's bound, for either noise).

    Skellam noise is a sum of independent steps of +-1, the discrete Gaussian is subgaussian (2004.00010): both tails are
    below 2 exp(-t^2 / (2 (variance + t/3))).
    """
    log = math.log(2 * dimension / chance)
    return log / 3 + math.sqrt(log**2 / 9 + 2 * log * variance)
