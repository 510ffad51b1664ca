"""The arrivals of one run: what has come to whom by the end of a round, whose labels are known, and what is in memory.

A client's examples are numbered by their place in its own order of coming: positions 0, 1, 2, ... Nothing here depends on what
was asked before; what is kept is kept for speed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fedsim.fleet.draws import uniforms
from fedsim.streams import memory
from fedsim.streams.arrivals import Arrivals

NEVER = int(np.iinfo(np.int64).max)
"""The round of what does not come."""

HORIZON = 2**20
"""Rounds beyond which an example that has not come yet counts as one that never does."""

PACK = 16_384
"""Clients whose examples are gone through at a time."""

KEPT_BYTES = 2**27
"""Of sums over rounds, one a client, that are kept of earlier rounds."""


class _Come(NamedTuple):
    """Examples of one client, each (n,): positions, the rounds that they and their labels came in, and their memory's draws."""

    positions: np.ndarray
    came: np.ndarray
    known: np.ndarray
    draws: np.ndarray


class Stream:
    """One run's arrivals. sizes: (num_clients,) rows that each client has to be streamed."""

    def __init__(self, arrivals: Arrivals, seed: int, sizes: np.ndarray) -> None:
        self.arrivals, self.seed, self.sizes = arrivals, seed, np.asarray(sizes, dtype=np.int64)
        self._all = np.arange(len(self.sizes))
        self.rates = arrivals.rates(seed, len(self.sizes))
        self.starts = arrivals.starts(seed, len(self.sizes))
        self._drawn = _Sums(len(self.sizes), lambda round: self._come(self._all, round))
        self._labels = _Sums(len(self.sizes), self._labels_coming)
        self._pending: dict[int, list[np.ndarray]] = {}  # by round, the clients that get a label then, each as often
        self._pending_from = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process counts for itself."""
        return Stream, (self.arrivals, self.seed, self.sizes)

    # All clients

    def counts(self, round: int) -> np.ndarray:
        """(num_clients,) int64 examples that have come to each client until the end of `round`; none in round 0."""
        return self._within(self._drawn.until(round), self.sizes)

    def label_counts(self, round: int) -> np.ndarray:
        """(num_clients,) int64 examples whose label has come until the end of `round`."""
        return self.counts(round) if self.arrivals.labels_at_once else self._labels.until(round).copy()

    def missing_counts(self, round: int) -> np.ndarray:
        """(num_clients,) int64 examples that have come until the end of `round` and whose label never comes."""
        missing, chance = np.zeros(len(self.sizes), np.int64), self.arrivals.label_missing
        counts = self.counts(round)
        for start in range(0, len(self.sizes) if chance else 0, PACK):
            pack = slice(start, start + PACK)
            clients, positions = _numbered(self._all[pack], counts[pack], np.zeros(1, np.int64))
            missing += np.bincount(clients[self._lost(clients, positions)], minlength=len(missing))
        return missing

    def can_train(self, round: int) -> np.ndarray:
        """(num_clients,) bool: whether `held` of this client and round holds anything."""
        labels = self.label_counts(round)
        return labels > (self.label_counts(round - 1) if self.arrivals.memory == "once" else 0)

    def exhausted(self, round: int) -> np.ndarray:
        """(num_clients,) bool: whose rows have all come by the end of `round`, so that nothing comes any more."""
        return np.zeros(len(self.sizes), bool) if self.arrivals.repeat else self.counts(round) >= self.sizes

    # One client

    def arriving(self, client: int, round: int) -> np.ndarray:
        """(n,) int64 positions of what comes to the client in this round, ascending."""
        return np.arange(self.counts(round - 1)[client], self.counts(round)[client])

    def course(self, client: int, round: int) -> np.ndarray:
        """(round + 1,) int64 examples that have come to one client until the end of rounds 0 .. `round`."""
        drawn = self._drawn.course(client, round)
        if drawn is None:
            come = self._come(np.full(round, client), np.arange(1, round + 1))
            drawn = np.concatenate(([0], np.cumsum(come)))
        return self._within(drawn, self.sizes[client])

    def came(self, client: int, positions: np.ndarray) -> np.ndarray:
        """(n,) int64 round in which each of the positions (n,) comes; NEVER where it does not."""
        last, horizon = int(positions.max(initial=-1)), 64
        if not self.arrivals.repeat:
            last = min(last, int(self.sizes[client]) - 1)
        course = self.course(client, horizon)
        while course[-1] <= last and horizon < HORIZON and self.sizes[client]:
            horizon *= 4
            course = self.course(client, horizon)
        return rounds_of(course, positions)

    def labelled(self, client: int, positions: np.ndarray) -> np.ndarray:
        """(n,) int64 round in which the label of each of the positions (n,) comes; NEVER where it does not."""
        return self._labelled(np.full(len(positions), client), positions, self.came(client, positions))

    def known(self, client: int, round: int) -> tuple[np.ndarray, np.ndarray]:
        """(n,) int64 positions, ascending, whose label has come by the end of `round`, and (n,) the round in which each came."""
        come = self._told(client, round)
        there = come.known <= round
        return come.positions[there], come.came[there]

    def held(
        self, client: int, round: int, asked: np.ndarray | None = None, guessed: np.ndarray | None = None
    ) -> np.ndarray:
        """(n,) int64 positions, ascending, that the client may train on in this round.

        They have come, their label is known, and they are in the device's memory; it holds labelled examples alone, those that
        wait for their label lie beside it. `once`: those whose label comes in this very round. asked: positions (a,) whose label
        was asked for, where no other comes; None: all. guessed: positions (g,) that have a guess from when they came.
        """
        come = self._told(client, round, asked)
        if guessed is not None:
            come = come._replace(known=np.where(np.isin(come.positions, guessed), come.came, come.known))
        return come.positions[self._kept(come, round)]

    def is_labelled(
        self, client: int, positions: np.ndarray, round: int, asked: np.ndarray | None = None
    ) -> np.ndarray:
        """(n,) bool: whether the label of each of the positions (n,), which have come, is known by now. asked: see `held`."""
        return np.asarray(self._told(client, round, asked).known[positions] <= round)

    def waiting(self, client: int, round: int, asked: np.ndarray | None = None) -> np.ndarray:
        """(n,) int64 positions, ascending, that have come and whose label will, after this round. asked: see `held`."""
        come = self._told(client, round, asked)
        return come.positions[(come.known > round) & (come.known != NEVER)]

    def held_through(self, client: int, rounds: int) -> tuple[np.ndarray, np.ndarray]:
        """(rounds + 1,) int64 each, of rounds 0 .. `rounds`: how many examples `held` gives, and how long the oldest has been one.

        The latter is the round of its label, from which on it was held in every round: no memory takes up again what it has let
        go. Where nothing is held it is the round itself. It never falls.
        """
        come = self._told(client, rounds)
        sizes, since = np.zeros(rounds + 1, np.int64), np.arange(rounds + 1)
        for round in range(1, rounds + 1):
            known = come.known[self._kept(come, round)]
            sizes[round] = len(known)
            since[round] = known.min(initial=round)
        return sizes, since

    # How

    def _told(self, client: int, round: int, asked: np.ndarray | None = None) -> _Come:
        """What has come to one client until the end of `round`, whether its label has or not. asked: see `held`."""
        course, form = self.course(client, round), self.arrivals
        positions = np.arange(course[-1])
        came = rounds_of(course, positions)
        known = self._labelled(np.full(len(positions), client), positions, came)
        if asked is not None:
            known = np.where(np.isin(positions, asked), known, NEVER)
        drawn = form.memory in ("reservoir", "decayed")
        draws = memory.priorities(self.seed, client, positions) if drawn else np.zeros(len(positions))
        return _Come(positions, came, known, draws)

    def _kept(self, come: _Come, round: int) -> np.ndarray:
        """(k,) int64, ascending: which of what has come the memory holds in this round."""
        form = self.arrivals
        there = np.flatnonzero(come.known == round if form.memory == "once" else come.known <= round)
        if form.memory in ("all", "once"):
            return there
        if form.memory == "window":
            return memory.window(there, form.memory_size)
        if form.memory == "reservoir":
            return memory.reservoir(there, come.draws[there], form.memory_size)
        return memory.decayed(there, come.came[there], come.draws[there], form.memory_size, form.half_life)

    def _come(self, clients: np.ndarray, rounds: int | np.ndarray) -> np.ndarray:
        """(n,) int64 what would come to each client in its round, were its rows endless."""
        drawn = self.arrivals.come(self.seed, clients, rounds, self.rates[clients])
        return np.where(rounds >= self.starts[clients], drawn, 0)

    def _within(self, counts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Counts as far as there are rows."""
        return np.where(sizes > 0, counts, 0) if self.arrivals.repeat else np.minimum(counts, sizes)

    def _labelled(self, clients: np.ndarray, positions: np.ndarray, came: np.ndarray) -> np.ndarray:
        """(n,) int64 round of the label of each client's position, given the round in which that came."""
        form, known = self.arrivals, came
        if form.label_delay:
            later = np.full(len(came), int(form.label_delay))
            if form.label_delay_kind == "geometric":  # P(delay >= d) = (mean / (1 + mean))^d
                draws = uniforms(self.seed, "stream label delay", clients, positions)
                later = np.floor(np.log(draws) / np.log(form.label_delay / (1 + form.label_delay))).astype(np.int64)
            known = np.where(came == NEVER, NEVER, came + np.where(came == NEVER, 0, later))
        if form.label_missing:
            known = np.where(self._lost(clients, positions), NEVER, known)
        return known

    def _lost(self, clients: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """(n,) bool: whether the label of each client's position never comes."""
        return uniforms(self.seed, "stream label missing", clients, positions) < self.arrivals.label_missing

    def _labels_coming(self, round: int) -> np.ndarray:
        """(num_clients,) int64 labels that come in this round; asked for in the order of rounds, or all over from round 1."""
        if round != self._pending_from:
            self._pending, self._pending_from = {}, 1
        coming = self._all[:0]
        for now in range(self._pending_from, round + 1):
            before = self.counts(now - 1)
            clients, positions = _numbered(self._all, self.counts(now) - before, before)
            known = self._labelled(clients, positions, np.full(len(clients), now))
            order = np.argsort(known, kind="stable")
            when, begins = np.unique(known[order], return_index=True)
            ends = np.append(begins, len(order))[1:]
            for later, begin, end in zip(when.tolist(), begins, ends, strict=True):
                self._pending.setdefault(later, []).append(clients[order[begin:end]])
            self._pending.pop(NEVER, None)
            coming = np.bincount(np.concatenate(self._pending.pop(now, [self._all[:0]])), minlength=len(self.sizes))
        self._pending_from = round + 1
        return coming


class _Sums:
    """Sums over rounds 1, 2, ... of (clients,) int64 each; some of those of earlier rounds are kept."""

    def __init__(self, clients: int, step: Callable[[int], np.ndarray]) -> None:
        self._step, self._none = step, np.zeros(clients, np.int64)
        self._kept: dict[int, np.ndarray] = {}
        self._most = max(4, KEPT_BYTES // max(1, self._none.nbytes))

    def until(self, round: int) -> np.ndarray:
        """(clients,) the sum over rounds 1 .. `round`; not to be changed in place."""
        if round in self._kept:
            return self._kept[round]
        begin = max((known for known in self._kept if known <= round), default=0)
        total = self._kept.get(begin, self._none)
        for now in range(begin + 1, round + 1):
            total = total + self._step(now)
            self._kept[now] = total
            while len(self._kept) > self._most:
                del self._kept[next(iter(self._kept))]  # the one that was worked out longest ago
        return total

    def course(self, client: int, round: int) -> np.ndarray | None:
        """(round + 1,) of one client the sums until rounds 0 .. `round`; None where not all of them are kept."""
        if len(self._kept) < round or any(now not in self._kept for now in range(1, round + 1)):
            return None
        return np.array([0, *(self._kept[now][client] for now in range(1, round + 1))], dtype=np.int64)


def _numbered(clients: np.ndarray, number: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) clients, each of them (k,) as often as its `number` (k,) says, and (n,) positions, from its `first` (k,) or (1,) on."""
    skipped = np.cumsum(number) - number
    owners = np.repeat(clients, number)
    return owners, np.arange(len(owners)) + np.repeat(first - skipped, number)


def rounds_of(course: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """(n,) int64 the first round whose count goes beyond each position; NEVER where none does. course: see `course`."""
    rounds = np.searchsorted(course, positions, side="right")
    return np.where(rounds < len(course), rounds, NEVER)
