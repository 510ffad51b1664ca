"""The devices out there, on a virtual clock: who can be asked now, how long a trip takes, what it costs, and what breaks it off.

The clock is a number of simulated seconds that the schedule moves. All of it follows from the run's seed and the times
that were asked for: nothing from the wall clock, and nothing from where or how wide devices are trained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fedsim.fleet.availability import DAY, PATIENCE, Always, Availability, waiting
from fedsim.fleet.draws import uniforms
from fedsim.fleet.fleet import Fleet, Ideal
from fedsim.fleet.hardware import Hardware
from fedsim.fleet.trips import (
    BATTERY,
    NETWORK,
    OUTCOMES,
    TRIP,
    USED,
    USER,
    columns,
    from_columns,
    joined,
    joules,
    no_trips,
)
from fedsim.types import FedsimError

BLOCK = 100_000
"""Devices whose hardware is drawn at a time where all are gone through."""

KEPT_TRIPS = 100_000
"""Newest trips that are kept for dispatches.parquet."""

JOULES_A_KWH = 3.6e6

PLUGGED = 1 / 12
"""Share of the time that a device is on its charger, where its availability does not say: two hours a day, spread over the day."""


@dataclass
class Load:
    """What one trip takes: counted work, not guessed.

    flops, memory: of clients (n,), (n,) floating-point operations of their training in a round, and bytes that it needs.
    bytes_down, bytes_up: of the messages; up is what is expected before one was made, and then the mean of the last round's.
    """

    flops: Callable[[np.ndarray], np.ndarray]
    memory: Callable[[np.ndarray], np.ndarray]
    bytes_down: float
    bytes_up: float


class Field:
    """All devices of a run. now: simulated seconds since the start. sent: how many models were sent."""

    def __init__(self, fleet: Fleet, availability: Availability, load: Load, seed: int, num_clients: int) -> None:
        self.fleet, self.availability, self.load = fleet, availability, load
        self.seed, self.num_clients = seed, num_clients
        self.now, self.sent = 0.0, 0
        self.trips = no_trips()
        self.counts: Counter[str] = Counter()
        size = num_clients if fleet.modelled else 0
        self.busy_until, self.since, self.drained, self.joules, self.busy = (np.zeros(size) for _ in range(5))
        self.dropouts = np.zeros(size, np.int32)

    @property
    def modelled(self) -> bool:
        """Whether devices take time at all; the ideal ones do not."""
        return self.fleet.modelled

    @cached_property
    def can_train(self) -> np.ndarray:
        """(clients,) bool: whether what training needs fits in the device's memory."""
        if not self.modelled:
            return np.ones(self.num_clients, bool)
        blocks = _blocks(np.arange(self.num_clients))
        return np.concatenate([self.fleet.hardware(b, self.seed).memory >= self.load.memory(b) for b in blocks])

    @cached_property
    def kinds(self) -> np.ndarray:
        """(clients,) which of the fleet's kinds each device is."""
        return np.concatenate([self.fleet.hardware(b, self.seed).kind for b in _blocks(np.arange(self.num_clients))])

    def fastest(self) -> float:
        """Seconds of the shortest trip that any device could make, if nothing broke it off."""
        blocks = _blocks(np.flatnonzero(self.can_train))
        return min((float(self._edges(block, 0.0)[-1].min()) for block in blocks), default=np.inf)

    def require_able(self) -> None:
        """Refuse a fleet in which no device can hold what training needs."""
        if not self.can_train.any():
            needed = float(self.load.memory(np.arange(min(self.num_clients, BLOCK))).min())
            raise FedsimError(
                f"no device has the {needed / 1e6:,.3g} MB that training this model needs; choose a smaller model=..., a smaller "
                "client.batch_size, or another fleet=..."
            )

    def there(self, clients: np.ndarray, time: float) -> np.ndarray:
        """(n,) bool: which of these can be asked at `time`: able to train, idle, charged, and to be had."""
        if not self.modelled:
            return np.ones(len(clients), bool)
        found = self.can_train[clients] & (self.busy_until[clients] <= time)
        used = np.flatnonzero(found & (self.drained[clients] > 0))
        if len(used):
            hardware = self.fleet.hardware(clients[used], self.seed)
            missing, battery = self._missing(clients[used], hardware, time), hardware.battery
            found[used] = np.isinf(battery) | (battery - missing >= self.fleet.min_battery * battery)
        if not self.availability.always:
            found &= self.availability.at(clients, time)[0]
        return found

    def who(self, clients: np.ndarray, time: float | None = None) -> np.ndarray:
        """Of these (n,) the ones that can be asked at `time` (None: now)."""
        return clients[self.there(clients, self.now if time is None else time)]

    def wait(self, clients: np.ndarray) -> np.ndarray:
        """Of these the ones that can be asked, at the first moment at which there is one; the clock moves there.

        Raises FedsimError where there will be none.
        """
        able = clients[self.can_train[clients]]
        if len(able) == 0:
            raise FedsimError(
                "no client that may still take part has a device that can train; choose another fleet=..."
            )
        patience = self.now + PATIENCE
        while len(found := self.who(able)) == 0:
            if self.now > patience:
                raise FedsimError(
                    f"no device could be asked for {PATIENCE / DAY:.0f} simulated days; have devices there more often "
                    "(availability=...), or charged more (fleet.kinds, fleet.min_battery)"
                )
            idle = able[self.busy_until[able] <= self.now]
            times = [self.now + 60.0] if len(idle) else []  # of those that only charge
            if len(idle) and not self.availability.always and not self.availability.at(idle, self.now)[0].any():
                times = [waiting(self.availability, idle, self.now)]
            if len(idle) < len(able):
                times.append(float(self.busy_until[able][self.busy_until[able] > self.now].min()))
            self.now = min(times)
        return found

    def send(self, clients: np.ndarray, version: int, time: float | None = None) -> np.ndarray:
        """(n,) trips of the model of `version`, sent to these clients at `time` (None: now); devices are busy until they end."""
        start = self.now if time is None else time
        trips = np.zeros(len(clients), TRIP)
        trips["client"], trips["version"], trips["sent"] = clients, version, start
        number = self.sent + np.arange(len(clients))
        self.sent += len(clients)
        if not self.modelled:
            for name in ("received", "trained", "arrived", "ended"):
                trips[name] = start
            return trips
        hardware, edges = self.fleet.hardware(clients, self.seed), self._edges(clients, start)
        watts = np.stack([hardware.down_watts, hardware.compute_watts, hardware.up_watts])
        ended, outcome = self._ends(clients, hardware, number, edges, watts)
        trips["ended"], trips["outcome"] = ended, outcome
        for name, moment in zip(("received", "trained", "arrived"), edges[1:], strict=True):
            trips[name] = np.where(moment <= ended, moment, np.nan)
        spent = watts * np.clip(ended - edges[:-1], 0, np.diff(edges, axis=0))
        trips["joules_down"], trips["joules_compute"], trips["joules_up"] = spent
        trips["bytes_down"] = self.load.bytes_down * _share(
            ended - start - hardware.latency, edges[1] - start - hardware.latency
        )
        trips["bytes_up"] = self.load.bytes_up * _share(
            ended - edges[2] - hardware.latency, edges[3] - edges[2] - hardware.latency
        )
        self._spend(clients, hardware, start, ended, spent.sum(axis=0))
        return trips

    def _edges(self, clients: np.ndarray, start: float) -> np.ndarray:
        """(4, n) when each device is sent the model, has it, has trained, and has sent its update, if nothing breaks it off."""
        hardware, load = self.fleet.hardware(clients, self.seed), self.load
        down = hardware.latency + load.bytes_down / hardware.down
        up = hardware.latency + load.bytes_up / hardware.up
        parts = [np.full(len(clients), start), down, load.flops(clients) / hardware.flops, up]
        return np.cumsum(np.stack(parts), axis=0)

    def _ends(
        self, clients: np.ndarray, hardware: Hardware, number: np.ndarray, edges: np.ndarray, watts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(n,) when each trip ends, and how: what comes first of arrival and the three ways to be lost."""
        start, arrived = edges[0], edges[-1]
        with np.errstate(divide="ignore"):
            broken = start - np.log(uniforms(self.seed, "lost connections", clients, number)) / hardware.failures
        charge = self._charge(clients, hardware, float(start[0]) if len(start) else 0.0)
        empty = _when_spent(charge, edges, watts)
        gone = np.full(len(clients), np.inf)
        if not self.availability.always:
            gone = self.availability.at(clients, start)[1]
        moments = np.stack([arrived, broken, empty, gone])
        which = moments.argmin(axis=0)  # arrival where two come together
        return moments.min(axis=0), np.array([USED, NETWORK, BATTERY, USER], np.int8)[which]

    def _charge(self, clients: np.ndarray, hardware: Hardware, time: float) -> np.ndarray:
        """(n,) joules in the battery at `time`: full at the start, less what was drained, plus what has been charged since."""
        return hardware.battery - self._missing(clients, hardware, time)

    def _missing(self, clients: np.ndarray, hardware: Hardware, time: float) -> np.ndarray:
        """(n,) joules that were drained and are not charged yet."""
        watts = PLUGGED * hardware.charge_watts
        return np.maximum(self.drained[clients] - watts * (time - self.since[clients]), 0.0)

    def _spend(
        self, clients: np.ndarray, hardware: Hardware, start: float, ended: np.ndarray, joules: np.ndarray
    ) -> None:
        missing = self._missing(clients, hardware, start)
        plugged = np.isinf(hardware.battery) | self.availability.charges
        self.drained[clients] = np.where(plugged, 0.0, missing + joules)
        self.since[clients] = self.busy_until[clients] = ended
        self.busy[clients] += ended - start
        self.joules[clients] += joules

    def record(self, trips: np.ndarray) -> None:
        """Keep trips whose outcome is final."""
        if self.modelled and len(trips):
            self.trips = joined([self.trips, trips])[-KEPT_TRIPS:]
            lost = trips["client"][trips["outcome"] != USED]
            np.add.at(self.dropouts, lost, 1)
            self.counts.update(OUTCOMES[code] for code in trips["outcome"].tolist())

    def costs(self, trips: np.ndarray, seconds: float) -> dict[str, float | None]:
        """The round's columns of time and energy; null where nothing is modelled."""
        if not self.modelled:
            return dict.fromkeys(("simulated_seconds", "joules", "grams_co2"))
        spent = float(joules(trips).sum())
        grams = spent / JOULES_A_KWH * self.fleet.carbon_intensity
        return {"simulated_seconds": seconds, "joules": spent, "grams_co2": grams}

    def describe(self) -> dict[str, Any] | None:
        """What summary.json says of the fleet."""
        if not self.modelled:
            return None
        numbers = np.bincount(self.kinds, minlength=len(self.fleet.kinds)).tolist()
        return {
            "kinds": dict(zip(self.fleet.kinds, numbers, strict=True)),
            "cannot_train": int((~self.can_train).sum()),
            "dropouts": {name: self.counts[name] for name in OUTCOMES if name != "used"},
        }

    def plan(self) -> dict[str, Any]:
        """The keys of plan.json that devices fill in: what a trip will take, of all that can train, if nothing breaks it off."""
        if not self.modelled:
            return {"cannot_train": None, "trip_seconds": None}
        blocks = _blocks(np.flatnonzero(self.can_train))
        seconds = np.concatenate([self._edges(block, 0.0)[-1] for block in blocks])
        quantiles = dict(zip(("fastest", "median", "slowest"), np.quantile(seconds, (0, 0.5, 1)).tolist(), strict=True))
        return {"cannot_train": int((~self.can_train).sum()), "trip_seconds": quantiles}

    def client_columns(self, clients: int) -> dict[str, Any]:
        """More columns of clients.parquet, null for as many clients where nothing is modelled."""
        import pyarrow as pa

        names = ("device", "can_train", "joules", "busy_seconds", "dropouts")
        types = (pa.string(), pa.bool_(), pa.float64(), pa.float64(), pa.int32())
        if not self.modelled:
            return {name: pa.nulls(clients, kind) for name, kind in zip(names, types, strict=True)}
        device = pa.DictionaryArray.from_arrays(pa.array(self.kinds.astype(np.int32)), pa.array(self.fleet.kinds))
        values = (device.cast(pa.string()), self.can_train, self.joules, self.busy, self.dropouts)
        return {name: pa.array(value, kind) for name, value, kind in zip(names, values, types, strict=True)}

    _ARRAYS = ("busy_until", "since", "drained", "joules", "busy", "dropouts")

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        if not self.modelled:
            return {}
        used = np.flatnonzero(self.busy_until > 0)
        arrays = {name: getattr(self, name)[used] for name in self._ARRAYS}
        numbers = {"now": self.now, "sent": self.sent, "bytes_up": self.load.bytes_up, "counts": dict(self.counts)}
        return {"used": used, "trips": columns(self.trips), **arrays, **numbers}

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        if not self.modelled:
            return
        used = state["used"]
        for name in self._ARRAYS:
            getattr(self, name)[used] = state[name]
        self.trips, self.counts = from_columns(state["trips"]), Counter(state["counts"])
        self.now, self.sent, self.load.bytes_up = float(state["now"]), int(state["sent"]), float(state["bytes_up"])


def ideal_field(num_clients: int) -> Field:
    """Devices that take no time and are always there."""
    return Field(Ideal(), Always(), Load(np.zeros_like, np.zeros_like, 0, 0), 0, num_clients)


def _blocks(clients: np.ndarray) -> list[np.ndarray]:
    """Clients (n,) in pieces whose hardware fits in memory however many there are."""
    return np.array_split(clients, -(-len(clients) // BLOCK)) if len(clients) else []


def _share(elapsed: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """(n,) how much of a transfer of so many seconds is done after so many of them."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(elapsed < 0, 0.0, np.where(needed > 0, np.clip(elapsed / needed, 0, 1), 1.0))


def _when_spent(charge: np.ndarray, edges: np.ndarray, watts: np.ndarray) -> np.ndarray:
    """(n,) when the battery's joules are spent; inf where the trip leaves some.

    edges: (4, n) times between which the device draws watts (3, n).
    """
    moment, left = np.full(charge.shape, np.inf), charge.copy()
    for phase, power in enumerate(watts):
        needs = power * (edges[phase + 1] - edges[phase])
        runs_out = np.isinf(moment) & (needs > left)
        with np.errstate(divide="ignore", invalid="ignore"):
            moment = np.where(runs_out, edges[phase] + np.maximum(left, 0) / power, moment)
        left = left - needs
    return moment
