"""When devices are there. Simulated time is in seconds since the run began, in float64.

Whether a device is there is a pure function of (seed, client, time): no answer depends on what was asked before, so that
a server may look ahead, look back, ask about a few clients or about all, and resume. Devices come and go at moments
that belong to the spell which they begin: a device is there on [start, end).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedsim.types import FedsimError

HOUR, DAY = 3600, 86400
PATIENCE = 30 * DAY
"""Seconds that a server waits for anybody before it gives up."""


@dataclass(frozen=True)
class World:
    """What availability may know of a run.

    rank: gives (num_clients,) float64 in [0, 1), each client's place when ordered by the mean label of its rows; called
    only by an availability that goes by the data.
    """

    seed: int
    num_clients: int
    rank: Callable[[], np.ndarray]


class Availability:
    """Base class: `begin` once for a run, then `at` as often as one likes.

    always: whether every device is there at every time. charges: whether those that are there are on a charger.
    way_out: what a user may change when nobody ever comes.
    """

    always = False
    charges = False
    way_out = "choose another availability=..."

    def begin(self, world: World) -> None:
        """Take up the run's seed and clients; what needs the whole population is prepared here."""
        self.world = world
        self._asked, self._until = (np.full(world.num_clients, fill) for fill in (np.inf, -np.inf))
        self._there = np.zeros(world.num_clients, dtype=bool)

    def at(self, clients: np.ndarray, time: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of clients (n,) at `time`, one or (n,): are they there, (n,) bool, and when that ends, (n,) float64.

        The end is later than `time` and the first moment at which the other is true, inf where there is none.
        """
        clients = np.asarray(clients, dtype=np.int64)
        time = np.broadcast_to(np.asarray(time, dtype=np.float64), clients.shape)
        there, until = self._there[clients], self._until[clients]
        # An answer holds until its end, so a server that asks for everybody in each round pays for those that changed.
        new = np.flatnonzero((time < self._asked[clients]) | (time >= until))
        if new.size:
            who, when = clients[new], time[new]
            there[new], until[new] = self._at(who, when)
            self._asked[who], self._there[who], self._until[who] = when, there[new], until[new]
        return there, until

    def _at(self, clients: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `at`, both (n,)."""
        raise NotImplementedError


class Always(Availability):
    """Every device, at every time."""

    always = True

    def begin(self, world: World) -> None:
        """As in Availability; no answer is kept."""
        self.world = world

    def at(self, clients: np.ndarray, time: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As in Availability."""
        return np.ones(len(clients), dtype=bool), np.full(len(clients), np.inf)


def waiting(availability: Availability, clients: np.ndarray, time: float) -> float:
    """The earliest time, `time` or later, at which any of the clients (n,) is there.

    Raises FedsimError where that is more than 30 days away.
    """
    now = time
    while now <= time + PATIENCE:
        there, until = availability.at(clients, now)
        if there.any():
            return now
        now = float(until.min(initial=np.inf))
    raise FedsimError(
        f"none of {len(clients)} devices is there for {PATIENCE // DAY} simulated days from second {time:.0f} on; "
        f"{availability.way_out}"
    )


def whole_periods(time: np.ndarray, period: float) -> np.ndarray:
    """(n,) float64 whole numbers k with k * period <= time < (k + 1) * period as float64 has it, which a division may miss."""
    whole = np.floor(time / period)
    whole += (whole + 1) * period <= time
    return whole - (whole * period > time)
