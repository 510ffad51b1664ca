"""How often an example of a stream is trained on: what the promise to each of them is accounted by.

An example lies in its client's memory from the round of its label on, without a break, until it is let go for good. Of the rounds
in which the client trains in that time each makes some steps of DP-SGD at some rate, by how many examples the memory then holds;
so the account of an example is a number of steps for each rate. Which examples a memory holds when follows from how many come, from
their labels' rounds, and from draws, never from what is in them.

Of a client, the example that has been held longest, of those that are held in a round, has been in every step that any of these
has been in. So a client's examples need one account for each of its rounds, and most of these are below another.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from fedsim.privacy import accounting
from fedsim.privacy.example_accounts import classes
from fedsim.streams.stream import Stream
from fedsim.training import LocalTraining
from fedsim.training.dpsgd import expected_batch

if TYPE_CHECKING:  # importing it takes most of a second
    from dp_accounting import DpEvent

MOST_RATES = 24
"""Rates that are told apart; where there are more, neighbours count as the largest of them."""

PACK = 4_000_000
"""Numbers in hand at a time."""

FRONT = 512
"""Accounts that are compared with each other at a time."""


@dataclass(frozen=True)
class MixedReleases:
    """Steps of DP-SGD at several rates, as an accountant sees them. One release is all of them together.

    parts: (rate, steps) of each. Neighbours: the same stream with an example that gives no gradient in the place of one.
    """

    noise_multiplier: float
    parts: tuple[tuple[float, int], ...]
    adjacency: str = "zero-out"
    accountants: tuple[str, ...] = ("pld", "rdp")

    @property
    def width(self) -> int:
        """See Mechanism: every rate takes its own time to put on a grid; at this width epsilon is some 0.01% larger."""
        return 1 if len(self.parts) == 1 else 50

    def events(self, count: int) -> DpEvent:
        """See Mechanism."""
        from dp_accounting import ComposedDpEvent

        each = [
            accounting.GaussianReleases(self.noise_multiplier, "poisson", rate, adjacency=self.adjacency).events(
                steps * count
            )
            for rate, steps in self.parts
        ]
        return each[0] if len(each) == 1 else ComposedDpEvent(each)


@dataclass(frozen=True)
class Exposure:
    """What trains on the examples of each client, by round. Arrays are (clients, rounds + 1), of rounds 0 .. `rounds`.

    sizes: examples in memory. since: since which round the one is there that has been there longest, see Stream.held_through.
    """

    sizes: np.ndarray
    since: np.ndarray
    training: LocalTraining

    @classmethod
    def of(cls, stream: Stream, training: LocalTraining, rounds: int) -> Exposure:
        """Of a whole run of so many rounds."""
        shape = (len(stream.sizes), rounds + 1)
        sizes, since = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        for client in range(len(sizes)):
            sizes[client], since[client] = stream.held_through(client, rounds)
        return cls(sizes, since, training)

    @property
    def held(self) -> np.ndarray:
        """(clients, rounds + 1) bool: where there is anything to train on."""
        return self.sizes > 0

    @cached_property
    def steps(self) -> np.ndarray:
        """(clients, rounds + 1) int64 steps that a client makes in a round in which it takes part."""
        return self._by_size[1][self.sizes]

    @cached_property
    def rates(self) -> np.ndarray:
        """(rates,) of an example in a step, falling."""
        rates = self._by_size[0]
        kinds = self._by_size[2]
        return np.array([rates[kinds == kind].max() for kind in range(kinds.max() + 1)])

    @cached_property
    def kinds(self) -> np.ndarray:
        """(clients, rounds + 1) int64 which of `rates` a round's steps are at; that of an empty memory means nothing."""
        return np.maximum(self._by_size[2][self.sizes], 0)

    @cached_property
    def _by_size(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(most + 1,) each, by examples in memory: the rate, the steps, and which of `rates` it counts as (-1 where none does)."""
        sizes = np.unique(self.sizes)
        rates, steps = np.zeros(sizes[-1] + 1), np.zeros(sizes[-1] + 1, np.int64)
        kinds = np.full(sizes[-1] + 1, -1)
        sizes = sizes[sizes > 0]
        rates[sizes] = [expected_batch(self.training, int(size)) / int(size) for size in sizes]
        steps[sizes] = [self.training.steps(int(size)) for size in sizes]
        if len(sizes):
            kinds[sizes] = classes(rates[sizes], MOST_RATES)
        return rates, steps, kinds

    def accounts(
        self, clients: np.ndarray, times: np.ndarray, limit: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(n,) owners among `clients` and (n, rates) int64 steps by rate: of their examples that have taken part most.

        clients: (k,). times: (k, rounds + 1) how often each trained in each round. limit: rounds in which a client trains at most,
        whichever these are; what it allows at most is an account of its own: the highest rates, the most steps.
        """
        found = [
            self._accounts(clients[start : start + self._pack], times[start : start + self._pack], limit)
            for start in range(0, len(clients), self._pack)
        ]
        none = (np.zeros(0, np.int64), np.zeros((0, len(self.rates)), np.int64))
        owners, usages = zip(*(found or [none]), strict=True)
        return np.concatenate(owners), np.concatenate(usages)

    @property
    def _pack(self) -> int:
        return max(1, PACK // (self.sizes.shape[1] * len(self.rates)))

    def _accounts(self, clients: np.ndarray, times: np.ndarray, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
        since, trained = self.since[clients], times > 0
        # a later round whose oldest example has been there as long has all of this round's steps in its account
        later = np.where(trained, since, np.iinfo(since.dtype).max)
        later = np.minimum.accumulate(later[:, ::-1], axis=1)[:, ::-1]
        last = trained.copy()
        last[:, :-1] &= later[:, 1:] > since[:, :-1]
        rows, rounds = np.nonzero(last)
        begins = since[rows, rounds] - 1
        steps = self._until(clients, times * self.steps[clients])
        usages = steps[rows, rounds] - steps[rows, begins]
        if limit is not None:
            parts = self._until(clients, times)
            took = parts[rows, rounds] - parts[rows, begins]  # (n, rates) rounds
            most = np.diff(np.minimum(took.cumsum(1), limit), axis=1, prepend=0)
            most *= (trained * self.steps[clients]).max(1)[rows, None]
            usages = np.where(took.sum(1, keepdims=True) <= limit, usages, most)
        return clients[rows], usages

    def _until(self, clients: np.ndarray, values: np.ndarray) -> np.ndarray:
        """(k, rounds + 1, rates) sums of the values (k, rounds + 1) until the end of each round, by rate."""
        by_rate = np.zeros((*values.shape, len(self.rates)), np.int64)
        np.put_along_axis(by_rate, self.kinds[clients][..., None], values[..., None], axis=2)
        return by_rate.cumsum(1)

    def account_in(self, clients: np.ndarray, times: np.ndarray, round: int) -> np.ndarray:
        """(k, rates) int64 steps by rate of each client's longest-held example, were it to train in `round` once more."""
        times = times[:, : round + 1].copy()
        times[:, round] += 1
        inside = np.arange(round + 1) >= self.since[clients, round, None]
        values = np.where(inside, times * self.steps[clients, : round + 1], 0)
        usages = np.zeros((len(clients), len(self.rates)), np.int64)
        for kind in range(len(self.rates)):
            usages[:, kind] = np.where(self.kinds[clients, : round + 1] == kind, values, 0).sum(1)
        return usages

    def mechanism(self, usage: np.ndarray, noise_multiplier: float) -> MixedReleases:
        """The steps of an account (rates,), which holds some, as an accountant sees them."""
        parts = [(float(rate), int(steps)) for rate, steps in zip(self.rates, usage, strict=True) if steps]
        return MixedReleases(noise_multiplier, tuple(parts))

    def weight(self, usages: np.ndarray) -> np.ndarray:
        """(n,) how much accounts (n, rates) cost, roughly: the root of the sum of q^2 (Bu et al. 2019, arXiv 1911.11607)."""
        return np.asarray(np.sqrt(usages @ self.rates**2))


def front(usages: np.ndarray) -> np.ndarray:
    """(m, rates) those accounts that no other covers, of accounts (n, rates) whose rates fall.

    One covers another that has, for each of its steps, a step at no smaller rate: what is drawn more often is hidden less.
    """
    usages = np.unique(usages, axis=0)
    while True:
        parts = [_uncovered(usages[start : start + FRONT]) for start in range(0, len(usages), FRONT)]
        if len(parts) <= 1:
            return parts[0] if parts else usages
        left = np.concatenate(parts)
        if len(left) > 0.9 * len(usages):  # as few as it gets without comparing all with all
            return left
        usages = left


def _uncovered(usages: np.ndarray) -> np.ndarray:
    """Of distinct accounts."""
    sums = usages.cumsum(1)
    covers = (sums[:, None] >= sums[None]).all(2)  # (n, n), each itself too
    return usages[covers.sum(0) == 1]
