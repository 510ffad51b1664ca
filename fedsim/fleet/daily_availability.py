"""Devices that keep the hours of the day: by night, or on a charger and on Wi-Fi.

Simulated time begins at midnight UTC. Hours are those of a device's own time zone, which lies a whole number of hours
ahead of UTC.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedsim.checks import require_bool, require_number, shown
from fedsim.fleet.availability import DAY, HOUR, Availability, World
from fedsim.fleet.draws import uniforms
from fedsim.fleet.random_availability import Coins
from fedsim.types import FedsimError


class Daily(Availability):
    """Base class: a time zone for each client.

    Where the zones go by the data, one half of the day has other data than the other half, as in arXiv 1904.10120.
    """

    def __init__(self, zones: Sequence[float] | None, by_data: bool) -> None:
        """zones: weights of up to 24 zones, UTC first, each an hour ahead of the one before; None: 24 equal ones.

        by_data: clients are dealt to the zones in the order of their data's mean label instead of by chance.
        """
        self.weights, self.by_data = _weights(zones), require_bool("availability.by_data", by_data)

    def begin(self, world: World) -> None:
        """As in Availability."""
        super().begin(world)
        if self.by_data:
            position = np.asarray(world.rank())
        else:
            position = uniforms(world.seed, "availability zone", np.arange(world.num_clients))
        upper = np.cumsum(self.weights)
        self.zone = np.searchsorted(upper / upper[-1], position, side="right")  # (num_clients,) hours ahead of UTC

    def _day(self, clients: np.ndarray, time: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
        """(n,) number of the day that began last, and (n,) when, in simulated seconds, for days that begin at second `start`.

        In whole seconds, so that nothing is rounded.
        """
        offset = start - HOUR * self.zone[clients]
        day = (np.floor(time).astype(np.int64) - offset) // DAY
        return day, day * DAY + offset


class DayNight(Daily):
    """There in the night hours with one chance, in the rest of the day with another; a coin for each night and each day."""

    way_out = "raise availability.rate_in or availability.rate_out"

    def __init__(
        self,
        from_hour: float = 22.0,
        to_hour: float = 6.0,
        rate_in: float = 0.8,
        rate_out: float = 0.2,
        zones: Sequence[float] | None = None,
        by_data: bool = False,
    ) -> None:
        """from_hour, to_hour: local hours, 0 to 24, over midnight where the second is not the later one.

        rate_in, rate_out: chances to be there from `from_hour` to `to_hour`, and in the rest of the day; the defaults
        have the ratio of 4 between night and day that arXiv 1902.01046 saw. zones, by_data: as in Daily.
        """
        super().__init__(zones, by_data)
        start, end = _seconds("from_hour", from_hour), _seconds("to_hour", to_hour)
        self.rate_in = require_number("availability.rate_in", rate_in, low=0, high=1)
        self.rate_out = require_number("availability.rate_out", rate_out, low=0, high=1)
        self.start, self.length = start, (end - start) % DAY
        if self.length == 0:
            raise FedsimError(
                f"availability.from_hour={from_hour:g} and availability.to_hour={to_hour:g} are the same hour of the day; "
                "set them apart, or choose availability=independent"
            )

    def begin(self, world: World) -> None:
        """As in Availability."""
        super().begin(world)
        self._inside = Coins(world.seed, "availability night", self.rate_in)
        self._outside = Coins(world.seed, "availability day", self.rate_out)

    def _at(self, clients: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        day, begun = self._day(clients, time, self.start)
        inside = time < begun + self.length
        there = np.where(inside, self._inside.at(clients, day), self._outside.at(clients, day))
        nights = self._inside.first(clients, day + 1, ~there) - day
        days = self._outside.first(clients, day + ~inside, ~there) - day
        return there, begun + np.minimum(nights * DAY, days * DAY + self.length)


class Charging(Daily):
    """There while on a charger and on Wi-Fi, as production asks of phones (arXiv 1902.01046): once a day at most.

    Each day has a time of plugging in, a time on the charger and a coin for Wi-Fi. A device is off its charger 12 hours
    after `plug_hour` at the latest.
    """

    charges = True
    way_out = "raise availability.wifi"

    def __init__(
        self,
        plug_hour: float = 23.0,
        spread_hours: float = 1.5,
        charge_hours: float = 7.0,
        charge_spread_hours: float = 2.0,
        wifi: float = 0.9,
        zones: Sequence[float] | None = None,
        by_data: bool = False,
    ) -> None:
        """plug_hour, spread_hours: mean and standard deviation of the local hour of plugging in (normal, within 12 hours).

        charge_hours, charge_spread_hours: of the time on the charger (normal, above 0). wifi: chance that the charger
        of a day has Wi-Fi. zones, by_data: as in Daily.
        """
        super().__init__(zones, by_data)
        self.plug = _seconds("plug_hour", plug_hour)
        self.plug_spread = _seconds("spread_hours", spread_hours)
        self.charge = HOUR * require_number("availability.charge_hours", charge_hours, above=0, high=24)
        self.charge_spread = _seconds("charge_spread_hours", charge_spread_hours)
        self.wifi = require_number("availability.wifi", wifi, low=0, high=1)

    def begin(self, world: World) -> None:
        """As in Availability."""
        super().begin(world)
        self._wifi = Coins(world.seed, "availability Wi-Fi", self.wifi)

    def _at(self, clients: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        day, begun = self._day(clients, time, self.plug - DAY // 2)
        start, end = self._session(clients, day, begun)
        wifi = self._wifi.at(clients, day)
        there = wifi & (start <= time) & (time < end)
        until = np.where(there, end, start)
        later = np.flatnonzero(~there & ~(wifi & (time < start)))  # nothing more today
        until[later] = self._next_start(clients[later], day[later], begun[later])
        return there, until

    def _next_start(self, clients: np.ndarray, day: np.ndarray, begun: np.ndarray) -> np.ndarray:
        """(n,) when the first session after `day` (n,) starts; inf: never."""
        start, found = (
            np.full(len(clients), np.inf),
            self._wifi.first(clients, day + 1, np.ones(len(clients), dtype=bool)),
        )
        ever = np.flatnonzero(np.isfinite(found))
        to = found[ever].astype(np.int64)
        start[ever], _ = self._session(clients[ever], to, begun[ever] + (to - day[ever]) * DAY)
        return start

    def _session(self, clients: np.ndarray, day: np.ndarray, begun: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) start and (n,) end on the charger on each client's `day`, which began at `begun`.

        Both are whole seconds inside the day, so that the sessions of two days never meet.
        """
        seed, half = self.world.seed, DAY / 2
        start = half + _normal(uniforms(seed, "availability plug", clients, day), self.plug_spread, -half, half)
        start = begun + np.clip(np.floor(start), 1, DAY - 2)
        draw = uniforms(seed, "availability charge", clients, day)
        length = self.charge + _normal(draw, self.charge_spread, -self.charge, math.inf)
        return start, np.minimum(start + np.maximum(np.floor(length), 1), begun + DAY - 1)


def _weights(zones: Sequence[float] | None) -> np.ndarray:
    """(24 or fewer,) float64 weights of the zones."""
    if zones is None:
        return np.ones(24)
    weights = list(zones) if isinstance(zones, Sequence) and not isinstance(zones, str) else []
    if not 1 <= len(weights) <= 24:
        raise FedsimError(
            f"availability.zones={shown(zones)} is no list of 1 to 24 weights; give one for each hour that a zone is ahead of UTC, "
            "as in availability.zones=[1,0.5]"
        )
    found = np.array([require_number(f"availability.zones[{i}]", weight, low=0) for i, weight in enumerate(weights)])
    if not found.any():
        raise FedsimError(f"availability.zones={shown(zones)} gives no zone a weight above 0; give one at least")
    return found


def _seconds(key: str, hours: object) -> int:
    """Whole seconds of hours from 0 to 24. Raises FedsimError naming availability.`key` otherwise."""
    return round(HOUR * require_number(f"availability.{key}", hours, low=0, high=24))


def _normal(draw: np.ndarray, spread: float, low: float, high: float) -> np.ndarray:
    """(n,) normal numbers of mean 0 and standard deviation `spread`, kept within [low, high] by drawing those alone."""
    from scipy.special import ndtr, ndtri

    if spread == 0:
        return np.zeros(len(draw))
    below, above = ndtr(low / spread), ndtr(high / spread)
    return np.clip(spread * ndtri(below + draw * (above - below)), low, high)
