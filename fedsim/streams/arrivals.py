"""How examples come to clients, round by round: the keys of `streams.*`.

What comes in a round is a pure function of (seed, client, round), drawn by `fedsim.fleet.draws`, so that all clients in one
round and one client in many rounds are both one call, and agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsim.checks import require_bool, require_choice, require_int, require_number
from fedsim.fleet.draws import uniforms
from fedsim.streams.poisson import poisson_quantile
from fedsim.types import FedsimError

ORDERS = ("random", "time")
MEMORIES = ("all", "window", "reservoir", "decayed", "once")
DELAYS = ("fixed", "geometric")


class Unstreamed:
    """No stream: every client holds all of its rows from the start."""

    streamed: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """Base class: what all arrival processes share. Rounds are numbered 1, 2, ...

    rate: mean examples a round and client. spread: standard deviation of the logarithm of a client's own rate, which is
    lognormal with mean `rate`. order: a client's rows come at `random`, or by `time` (the dataset's). memory: what of the
    labelled examples a device may train on, see `fedsim.streams.memory`. memory_size: examples that window, reservoir and
    decayed hold. half_life: rounds after which `decayed` weighs an example half. label_delay: mean rounds between an example
    and its label, `fixed` or `geometric` (0, 1, 2, ...) by label_delay_kind. label_missing: chance that a label never comes.
    start: first round in which anything comes. join: rounds over which clients' own starts are spread evenly by chance.
    repeat: whether a client whose rows are used up starts over.
    """

    streamed: ClassVar[bool] = True

    rate: float = 5.0
    spread: float = 0.0
    order: str = "random"
    memory: str = "window"
    memory_size: int = 100
    half_life: float = 10.0
    label_delay: float = 0.0
    label_delay_kind: str = "fixed"
    label_missing: float = 0.0
    start: int = 1
    join: int = 0
    repeat: bool = False

    def __post_init__(self) -> None:
        require_number("streams.rate", self.rate, above=0)
        require_number("streams.spread", self.spread, low=0, high=5)
        require_choice("streams.order", self.order, ORDERS)
        require_choice("streams.memory", self.memory, MEMORIES)
        require_int("streams.memory_size", self.memory_size, low=1)
        require_number("streams.half_life", self.half_life, above=0)
        require_number("streams.label_delay", self.label_delay, low=0, high=1e6)
        require_choice("streams.label_delay_kind", self.label_delay_kind, DELAYS)
        require_number("streams.label_missing", self.label_missing, low=0, high=1)
        require_int("streams.start", self.start, low=1)
        require_int("streams.join", self.join, low=0)
        require_bool("streams.repeat", self.repeat)
        if self.label_delay_kind == "fixed" and self.label_delay != int(self.label_delay):
            raise FedsimError(
                f"streams.label_delay={self.label_delay:g} is no whole number of rounds; round it, or set "
                "streams.label_delay_kind=geometric"
            )

    @property
    def most_held(self) -> float:
        """Examples that a device trains on in a round, at most; on average, where it keeps none."""
        if self.memory == "all":
            return math.inf
        return max(1.0, round(self.rate)) if self.memory == "once" else float(self.memory_size)

    @property
    def labels_at_once(self) -> bool:
        """Whether every example comes with its label."""
        return self.label_delay == 0 and self.label_missing == 0

    def rates(self, seed: int, num_clients: int) -> np.ndarray:
        """(num_clients,) float64, each client's own mean examples a round."""
        from scipy.special import ndtri

        if self.spread == 0:
            return np.full(num_clients, float(self.rate))
        draws = uniforms(seed, "stream rate", np.arange(num_clients))
        return np.asarray(self.rate * np.exp(self.spread * ndtri(draws) - self.spread**2 / 2))

    def starts(self, seed: int, num_clients: int) -> np.ndarray:
        """(num_clients,) int64, the first round in which anything may come to each client: start .. start + join."""
        late = (self.join + 1) * uniforms(seed, "stream start", np.arange(num_clients))
        return self.start + np.floor(late).astype(np.int64)

    def come(self, seed: int, clients: np.ndarray, rounds: int | np.ndarray, rates: np.ndarray) -> np.ndarray:
        """(n,) int64 examples that come to each of the clients (n,) in its round, one or (n,). rates: (n,), see `rates`."""
        means = rates * self.factor(seed, clients, rounds)
        return poisson_quantile(uniforms(seed, "stream arrivals", clients, rounds), means)

    def factor(self, seed: int, clients: np.ndarray, rounds: int | np.ndarray) -> np.ndarray | float:
        """What the clients' rates are multiplied by in their rounds, one or (n,); its mean over rounds is 1."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Steady(Arrivals):
    """As many examples in each round as in any other, to within one where the rate is no whole number."""

    def come(self, seed: int, clients: np.ndarray, rounds: int | np.ndarray, rates: np.ndarray) -> np.ndarray:
        """See Arrivals: whole parts of rate * round + a client's own fraction, so that clients' odd ones fall apart."""
        fraction = uniforms(seed, "stream fraction", clients)
        until, before = (np.floor(rates * end + fraction) for end in (rounds, np.asarray(rounds) - 1))
        return (until - before).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Poisson(Arrivals):
    """A Poisson number of examples in each round, independent of all others."""

    def factor(self, seed: int, clients: np.ndarray, rounds: int | np.ndarray) -> float:
        """See Arrivals."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Bursts(Arrivals):
    """Poisson, with rounds of a client in which `burst_size` times as many come as in its other rounds.

    burst_chance: that a round is one of them, by a coin for each round and client. `rate` is the mean over all rounds.
    """

    burst_chance: float = 0.1
    burst_size: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("streams.burst_chance", self.burst_chance, low=0, high=1)
        require_number("streams.burst_size", self.burst_size, low=1)

    def factor(self, seed: int, clients: np.ndarray, rounds: int | np.ndarray) -> np.ndarray:
        """See Arrivals."""
        burst = uniforms(seed, "stream burst", clients, rounds) < self.burst_chance
        return np.where(burst, self.burst_size, 1.0) / (1 + self.burst_chance * (self.burst_size - 1))


@dataclass(frozen=True, kw_only=True)
class DayNight(Arrivals):
    """Poisson with a rate that goes up and down as a sine does.

    period: rounds of a day. depth: how far up and down, as a share of the rate. zones: share of a day over which clients'
    own time zones are spread by chance; 0: all have day at once.
    """

    period: float = 24.0
    depth: float = 0.8
    zones: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("streams.period", self.period, above=0)
        require_number("streams.depth", self.depth, low=0, high=1)
        require_number("streams.zones", self.zones, low=0, high=1)

    def factor(self, seed: int, clients: np.ndarray, rounds: int | np.ndarray) -> np.ndarray:
        """See Arrivals."""
        ahead = self.zones * uniforms(seed, "stream zone", clients)
        return 1 + self.depth * np.sin(2 * np.pi * (rounds / self.period + ahead))
