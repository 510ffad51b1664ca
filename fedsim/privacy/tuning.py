"""What choosing the best of several private runs costs (Papernot and Steinke 2021, arXiv 2110.03620).

Training K times and keeping the best looks at the private data K times. Where K is itself drawn at random, from one of two
families, and every trial draws its hyperparameters by itself, the choice costs little more than one run; the theorems say how
much. Where K is fixed, or trials depend on what earlier ones gave, they say nothing: then all trials compose.

Orders and divergences are Renyi's: a curve holds, at each order lambda > 1, an epsilon such that a run is (lambda, epsilon)-RDP.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fedsim.checks import require_choice, require_number
from fedsim.rng import numpy_generator
from fedsim.types import FedsimError

POISSON, NEGATIVE_BINOMIAL = "poisson", "negative_binomial"
MOST_TRIALS = 1_000_000


class Curve(NamedTuple):
    """orders: (n,) above 1, ascending. divergences: (n,) of a run, at least 0, infinite where no bound is known."""

    orders: np.ndarray
    divergences: np.ndarray

    @classmethod
    def of(cls, ledger: dict[str, Any]) -> Curve | None:
        """What privacy.json holds as `renyi`; None where its mechanism has no such bound."""
        found = ledger.get("renyi")
        if not found:
            return None
        divergences = [math.inf if value is None else value for value in found["divergences"]]
        return cls(np.array(found["orders"], dtype=float), np.array(divergences, dtype=float))

    def epsilon(self, delta: float) -> float:
        """The smallest epsilon at `delta` that the curve gives, by dp-accounting's conversion."""
        from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

        if not np.isfinite(self.divergences).any():
            return math.inf
        return float(compute_epsilon(self.orders, self.divergences, delta)[0])

    def delta(self, epsilon: float) -> float:
        """The smallest delta at `epsilon`, by dp-accounting's conversion."""
        from dp_accounting.rdp.rdp_privacy_accountant import compute_delta

        return float(compute_delta(self.orders, self.divergences, epsilon)[0])


@dataclass(frozen=True)
class Trials:
    """How the number of trials K is drawn.

    distribution: poisson (K may be 0), or negative_binomial: truncated, so that K is at least 1. mean: the expectation of K.
    shape: eta of the truncated negative binomial (Definition 1): 1 is the geometric distribution, 0 the logarithmic one; above -1.
    """

    distribution: str
    mean: float
    shape: float = 1.0

    def __post_init__(self) -> None:
        require_choice("trials", self.distribution, (POISSON, NEGATIVE_BINOMIAL))
        if self.distribution == POISSON:
            require_number("the mean of trials", self.mean, above=0, high=MOST_TRIALS)
        else:
            require_number("the mean of trials", self.mean, above=1, high=MOST_TRIALS)
        require_number("the shape of trials", self.shape, above=-1, high=1e3)

    @property
    def gamma(self) -> float:
        """The truncated negative binomial's success probability, by bisection on its mean; never above it, which is safe."""
        low, high = 0.0, 1.0
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (low, middle) if middle == 0 or mean_trials(self.shape, middle) < self.mean else (middle, high)
        if low == 0:
            raise FedsimError(f"trials of mean {self.mean:g} and shape {self.shape:g} cannot be drawn; raise the shape")
        return low

    def draw(self, seed: int) -> int:
        """K, the same for the same seed."""
        draw = numpy_generator(seed, 0, 0, "trials")
        if self.distribution == POISSON:
            return int(draw.poisson(self.mean))
        left, gamma, count = float(draw.random()), self.gamma, 1
        chance = first_chance(self.shape, gamma)
        while left >= chance and count < MOST_TRIALS:
            left -= chance
            chance *= (1 - gamma) * (count + self.shape) / (count + 1)
            count += 1
        return count

    def selected(self, one: Curve) -> Curve:
        """The curve of training K times and showing the best run alone. Raises FedsimError where no bound holds."""
        return _poisson(one, self.mean) if self.distribution == POISSON else _negative_binomial(one, self)

    def words(self) -> str:
        """As in `poisson of mean 10`."""
        shape = f" and shape {self.shape:g}" if self.distribution == NEGATIVE_BINOMIAL else ""
        return f"{self.distribution.replace('_', ' ')} of mean {self.mean:g}{shape}"


def mean_trials(shape: float, gamma: float) -> float:
    """E[K] of the truncated negative binomial (Definition 1): eta (1 - gamma) / (gamma (1 - gamma^eta)); at eta = 0 its limit."""
    if shape == 0:
        return (1 / gamma - 1) / math.log(1 / gamma)
    return shape * (1 / gamma - 1) / -math.expm1(shape * math.log(gamma))


def first_chance(shape: float, gamma: float) -> float:
    """P[K = 1] (Definition 1): (1 - gamma) eta / (gamma^-eta - 1); at eta = 0 its limit (1 - gamma) / log(1 / gamma)."""
    if shape == 0:
        return (1 - gamma) / math.log(1 / gamma)
    return (1 - gamma) * shape / math.expm1(-shape * math.log(gamma))


def _negative_binomial(one: Curve, trials: Trials) -> Curve:
    """Theorem 2: if a run is (l, e)-RDP and (m, f)-RDP, the choice is (l, e')-RDP with

    e' = e + (1 + eta) (1 - 1/m) f + (1 + eta) log(1 / gamma) / m + log(E[K]) / (l - 1), for whichever m makes it least.
    """
    gamma, eta, orders = trials.gamma, trials.shape, one.orders
    beside = (1 + eta) * ((1 - 1 / orders) * one.divergences - math.log(gamma) / orders)
    return _monotone(orders, one.divergences + beside.min() + math.log(mean_trials(eta, gamma)) / (orders - 1))


def _poisson(one: Curve, mean: float) -> Curve:
    """Theorem 6: if a run is (l, e)-RDP and (f, d)-DP with exp(f) <= 1 + 1 / (l - 1), the choice is (l, e')-RDP with

    e' = e + mean d + log(mean) / (l - 1). A mean below 1 counts as 1 in the last term, which makes the bound no smaller.
    """
    deltas = np.array([one.delta(math.log1p(1 / (order - 1))) for order in one.orders])
    return _monotone(one.orders, one.divergences + mean * deltas + math.log(max(mean, 1.0)) / (one.orders - 1))


def _monotone(orders: np.ndarray, divergences: np.ndarray) -> Curve:
    """A bound at a higher order is one at a lower order too."""
    return Curve(orders, np.minimum.accumulate(divergences[::-1])[::-1])


def worst(curves: Sequence[Curve]) -> Curve:
    """Of runs with different noise or rounds: a curve that holds for whichever of them is drawn. They have the same orders."""
    return Curve(curves[0].orders, np.max([curve.divergences for curve in curves], axis=0))


def composed(curves: Sequence[Curve]) -> Curve:
    """All of them shown: divergences add up (Mironov 2017, arXiv 1702.07476, Proposition 1). They have the same orders."""
    return Curve(curves[0].orders, np.sum([curve.divergences for curve in curves], axis=0))
