"""Devices that come and go by chance, at any moment or once a slot.

Both rest on Poisson processes, one a client, of which any stretch can be looked at without the rest. Time is cut into
windows; the marks of a window are walked from its start by exponential gaps drawn for this client and window. As a
Poisson process has no memory, windows that begin anew make up one process. A look costs a handful of draws, however far
in the past or future it lies.
"""

from __future__ import annotations

import numpy as np

from fedsim.checks import require_number
from fedsim.fleet.availability import Availability, World, whole_periods
from fedsim.fleet.draws import uniforms

_DRAWS = 64
"""Numbers set aside for a window, which has at most 1.42 marks on average: one with 64 is not met in 1e80 windows."""


class Marks:
    """A Poisson process on the whole line for each client, past times included, by random access.

    Windows are a power of two long, so that times and positions in windows turn into each other without rounding:
    a mark which was given as a time is found at that very time.
    """

    def __init__(self, seed: int, purpose: str) -> None:
        self.seed, self.purpose = seed, purpose

    def last(self, clients: np.ndarray, time: np.ndarray, gap: np.ndarray, since: np.ndarray | float) -> np.ndarray:
        """(n,) the newest mark at or before `time` (n,); where there is none after `since` it may be -inf instead.

        gap: (n,) mean distance of each client's marks. since: one or (n,), for callers whom older marks do not concern.
        """
        return self._search(clients, time, gap, -1, since)

    def next(self, clients: np.ndarray, time: np.ndarray, gap: np.ndarray) -> np.ndarray:
        """(n,) the first mark after `time` (n,); gap as in `last`."""
        return self._search(clients, time, gap, 1, -np.inf)

    def _search(
        self, clients: np.ndarray, time: np.ndarray, gap: np.ndarray, step: int, since: np.ndarray | float
    ) -> np.ndarray:
        """Window after window in steps of 1 or -1, those of the clients that have not found a mark yet."""
        length = np.ldexp(1.0, np.rint(np.log2(gap)).astype(np.int64))
        gap, place, bound = gap / length, time / length, since / length
        window, found, rows = np.floor(place).astype(np.int64), np.empty(len(clients)), np.arange(len(clients))
        while rows.size:
            found[rows] = self._walk(clients[rows], window[rows], place[rows], gap[rows], step)
            rows = rows[np.isinf(found[rows]) & (window[rows] > bound[rows])]
            window[rows] += step
            place[rows] = -step * np.inf
        return found * length

    def _walk(
        self, clients: np.ndarray, window: np.ndarray, place: np.ndarray, gap: np.ndarray, step: int
    ) -> np.ndarray:
        """(n,) of each `window` the first mark after `place` (inf: none) or, for step -1, the last that is not after it (-inf).

        Places, gaps and marks are in windows.
        """
        found = np.full(len(clients), step * np.inf)
        rows, mark, number = np.arange(len(clients)), window.astype(np.float64), 0
        while rows.size:
            mark = mark - np.log(uniforms(self.seed, self.purpose, clients, window * _DRAWS + number)) * gap
            inside, passed = mark < window + 1, mark <= place
            if step > 0:
                stop = np.flatnonzero(inside & ~passed)
                found[rows[stop]] = mark[stop]
            on = np.flatnonzero(inside & passed)
            rows, clients, window = rows[on], clients[on], window[on]
            mark, place, gap = mark[on], place[on], gap[on]
            if step < 0:
                found[rows] = mark
            number += 1
        return found


class Coins:
    """Independent coins, numbered by whole numbers, for each client: true with chance `rate`.

    The rarer side is where a Poisson process has a mark between this number and the next one. So the next coin of a
    rare side is found in a few draws as well, where tossing one after the other would take 1 / rate.
    """

    def __init__(self, seed: int, purpose: str, rate: float) -> None:
        self.rare, chance = rate <= 0.5, min(rate, 1 - rate)
        self._marks = Marks(seed, purpose)
        self._gap = -1 / np.log1p(-chance) if chance > 0 else np.inf

    def at(self, clients: np.ndarray, number: np.ndarray) -> np.ndarray:
        """(n,) bool: coin `number` (n,) of each client."""
        return (self._marked(clients, number) == number) == self.rare

    def first(self, clients: np.ndarray, number: np.ndarray, side: np.ndarray) -> np.ndarray:
        """(n,) float64: the first number from `number` (n,) on whose coin is `side` (n,) bool; inf where none ever is."""
        marked = self._marked(clients, number)
        plain, rows = number.astype(np.float64), np.flatnonzero((side != self.rare) & (marked == number))
        while rows.size:
            plain[rows] += 1
            rows = rows[self._marked(clients[rows], plain[rows]) == plain[rows]]
        return np.where(side == self.rare, marked, plain)

    def _marked(self, clients: np.ndarray, number: np.ndarray) -> np.ndarray:
        """(n,) float64: the first number from `number` on that holds a mark."""
        if np.isinf(self._gap):
            return np.full(len(clients), np.inf)
        mark = self._marks.next(clients, number.astype(np.float64), np.full(len(clients), self._gap))
        return np.ceil(mark) - 1  # one exactly on a number belongs to the number before, as `next` has it


class Independent(Availability):
    """A coin a slot and client, independent of all others: the assumption under which most theory stands."""

    way_out = "raise availability.rate"

    def __init__(self, rate: float = 0.5, period: float = 3600.0) -> None:
        """rate: chance that a device is there in a slot, 0 to 1. period: seconds of a slot, above 0."""
        self.rate = require_number("availability.rate", rate, low=0, high=1)
        self.period = require_number("availability.period", period, above=0)

    def begin(self, world: World) -> None:
        """As in Availability."""
        super().begin(world)
        self._coins = Coins(world.seed, "availability slots", self.rate)

    def _at(self, clients: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        slot = whole_periods(time, self.period)
        there = self._coins.at(clients, slot)
        return there, self._coins.first(clients, slot + 1, ~there) * self.period


class Markov(Availability):
    """On and off by turns, each for an exponential time: a Markov chain in continuous time, as in arXiv 2301.04632.

    Calls to come arrive at rate 1 / mean_off and calls to go at rate 1 / mean_on, independently; a device follows the
    newest. Spells are exponential then, and as the calls have arrived for ever, the chain is in its stationary law.
    """

    way_out = "lower availability.mean_off"

    def __init__(self, mean_on: float = 1800.0, mean_off: float = 5400.0, spread: float = 0.0) -> None:
        """mean_on, mean_off: seconds, above 0. spread: standard deviation of the logarithm of a client's own two means.

        Over clients these means are lognormal and independent, with `mean_on` and `mean_off` as their averages.
        """
        self.mean_on = require_number("availability.mean_on", mean_on, above=0)
        self.mean_off = require_number("availability.mean_off", mean_off, above=0)
        self.spread = require_number("availability.spread", spread, low=0, high=5)

    def begin(self, world: World) -> None:
        """As in Availability."""
        super().begin(world)
        self._come, self._go = (Marks(world.seed, f"availability calls to {call}") for call in ("come", "go"))
        self.means_on, self.means_off = self._means("on", self.mean_on), self._means("off", self.mean_off)

    def _means(self, state: str, mean: float) -> np.ndarray:
        """(num_clients,) float64 seconds: the mean length of each client's spells of this state."""
        from scipy.special import ndtri

        draws = uniforms(self.world.seed, f"availability mean {state}", np.arange(self.world.num_clients))
        return mean * np.exp(self.spread * ndtri(draws) - self.spread**2 / 2)

    def _at(self, clients: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        on, off = self.means_on[clients], self.means_off[clients]
        left = self._go.last(clients, time, on, since=-np.inf)
        there = self._come.last(clients, time, off, since=left) > left
        until = np.empty(len(clients))
        until[there] = self._go.next(clients[there], time[there], on[there])
        until[~there] = self._come.next(clients[~there], time[~there], off[~there])
        return there, until
