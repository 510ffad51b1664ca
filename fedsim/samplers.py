"""Which clients take part in a round. Our own, since a promise of privacy rests on how participants were drawn.

Each draws from `generator(seed, round, SERVER, "cohort")` and gives ascending client numbers; none costs more than the
cohort, whatever the population. Where only some clients may still take part, these are given as `eligible`.
"""

from __future__ import annotations

from typing import Protocol, Self

import numpy as np

from fedsim import rng
from fedsim.checks import require_int, require_number
from fedsim.types import FedsimError

DEFAULT_COHORT = 10


class Sampler(Protocol):
    """Draws a round's cohort from clients 0 .. num_clients - 1."""

    kind: str

    def cohort(self, seed: int, round: int, num_clients: int, eligible: np.ndarray | None = None) -> np.ndarray:
        """Ascending client numbers, (cohort,) int64, of those eligible (None: of all); may be empty."""

    def expected_size(self, num_clients: int) -> float:
        """How many clients take part in a round, on average."""

    def larger(self, factor: float, num_clients: int) -> Sampler:
        """One that asks so many times more clients; a sampler without it goes with no schedule.over_selection."""


class _Sized:
    """A cohort given as a number or as a fraction of the population; one of the two."""

    def __init__(self, cohort_size: int | None = None, fraction: float | None = None) -> None:
        if cohort_size is not None and fraction is not None:
            raise FedsimError(
                f"sampler.cohort_size={cohort_size} and sampler.fraction={fraction} exclude each other; set one of them to null"
            )
        if cohort_size is not None:
            require_int("sampler.cohort_size", cohort_size, low=1)
        if fraction is not None:
            require_number("sampler.fraction", fraction, above=0, high=1)
        self.cohort_size, self.fraction = cohort_size, fraction

    def expected_size(self, num_clients: int) -> float:
        """How many clients take part in a round, on average."""
        if self.fraction is not None:
            return self.fraction * num_clients
        if self.cohort_size is None:
            return min(DEFAULT_COHORT, num_clients)
        if self.cohort_size > num_clients:
            raise FedsimError(
                f"sampler.cohort_size={self.cohort_size} is larger than the population of {num_clients} clients; "
                "lower it, or raise population.num_clients"
            )
        return self.cohort_size

    def larger(self, factor: float, num_clients: int) -> Self:
        """One that asks so many times more clients, or all."""
        return (
            self
            if factor == 1
            else type(self)(fraction=min(1.0, factor * self.expected_size(num_clients) / num_clients))
        )


class FixedSampler(_Sized):
    """A fixed number of clients, uniformly without replacement."""

    kind = "fixed"

    def cohort(self, seed: int, round: int, num_clients: int, eligible: np.ndarray | None = None) -> np.ndarray:
        """Exactly the cohort's size, at least one; all that are eligible where these are fewer."""
        size = int(self.expected_size(num_clients))
        draw = rng.numpy_generator(seed, round, rng.SERVER, "cohort")
        if eligible is None:
            return _distinct(draw, num_clients, size)
        return eligible[_distinct(draw, len(eligible), min(size, len(eligible)))]

    def expected_size(self, num_clients: int) -> float:
        """The size itself: a whole number, since a fraction is rounded."""
        return max(1, round_half_up(super().expected_size(num_clients)))


class PoissonSampler(_Sized):
    """Every client takes part with the same chance, on its own: the sampling that amplifies privacy."""

    kind = "poisson"

    def cohort(self, seed: int, round: int, num_clients: int, eligible: np.ndarray | None = None) -> np.ndarray:
        """A binomial number of distinct clients, which is the same law as one coin a client; may be none."""
        draw = rng.numpy_generator(seed, round, rng.SERVER, "cohort")
        size = int(draw.binomial(num_clients, self.expected_size(num_clients) / num_clients))
        drawn = _distinct(draw, num_clients, size)
        return drawn if eligible is None else np.intersect1d(drawn, eligible, assume_unique=True)


class AllSampler:
    """Every client in every round."""

    kind = "all"

    def cohort(self, seed: int, round: int, num_clients: int, eligible: np.ndarray | None = None) -> np.ndarray:
        """All numbers."""
        return np.arange(num_clients) if eligible is None else eligible

    def expected_size(self, num_clients: int) -> float:
        """The population."""
        return num_clients

    def larger(self, factor: float, num_clients: int) -> AllSampler:
        """There are no more."""
        return self


def round_half_up(value: float) -> int:
    """0.5 up, so that a fraction of a small population does not depend on its parity."""
    return int(value + 0.5)


def _distinct(draw: np.random.Generator, num_clients: int, size: int) -> np.ndarray:
    return np.sort(draw.choice(num_clients, size=size, replace=False, shuffle=False))
