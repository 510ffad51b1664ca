"""Schedules without rounds to wait for: `schedule=fedbuff|fedasync`.

Devices are always at work; the server moves whenever its buffer is full, by updates of models of different ages.
Events are few (a trip's end), so they wait in a heap of rows: processes of a simulation library are generators, which no
checkpoint can hold.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np

from fedsim import rng
from fedsim.checks import require_choice, require_int, require_number
from fedsim.fleet.field import Field
from fedsim.fleet.schedules import Choice, Schedule, Turn
from fedsim.fleet.trips import LATE, USED, columns, from_columns, joined, no_trips
from fedsim.types import FedsimError

TRIES = 64
"""Clients looked at by chance before all are, to find one that can be asked."""


class Asynchronous(Schedule):
    """A server that always has `sampler.cohort_size` clients at work, and ends a round when `buffer` updates are in.

    staleness: how an update of an old model is scaled, by s(0) = 1 and then constant | polynomial (1 + tau) ** -a | hinge
    (1 up to b, then 1 / (a (tau - b) + 1)), arXiv 1903.03934 section 5.2. max_staleness: older ones are dropped (None: none is).
    A client is sent the next model only after the round that uses its last: it is in no round twice.
    """

    secret = False
    mixes = True
    timed = True

    def __init__(self, buffer: int, staleness: str, a: float, b: float, max_staleness: int | None = None) -> None:
        require_int("schedule.buffer", buffer, low=1)
        require_choice("schedule.staleness", staleness, ("constant", "polynomial", "hinge"))
        require_number("schedule.a", a, low=0)
        require_number("schedule.b", b, low=0)
        if max_staleness is not None:
            require_int("schedule.max_staleness", max_staleness, low=0)
        self.buffer, self.staleness, self.a, self.b, self.max_staleness = buffer, staleness, a, b, max_staleness
        self._out: list[tuple[float, int, np.ndarray]] = []

    def needed(self, cohort: float) -> float:
        """See Schedule."""
        return self.buffer

    def weight(self, staleness: int) -> float:
        """See Schedule."""
        if self.staleness == "constant":
            return 1.0
        if self.staleness == "polynomial":
            return float((1 + staleness) ** -self.a)
        return 1.0 if staleness <= self.b else 1.0 / (self.a * (staleness - self.b) + 1.0)

    def out(self) -> set[int]:
        """See Schedule."""
        return {int(trip["version"][0]) for _, _, trip in self._out}

    def check(self, field: Field, cohort: float) -> None:
        """See Schedule; and a buffer that could never fill, since a client is in it once."""
        super().check(field, cohort)
        if self.buffer > (able := int(field.can_train.sum())):
            raise FedsimError(
                f"schedule.buffer={self.buffer} is more than the {able} clients whose device can train; lower it, or raise "
                "population.num_clients"
            )

    def turn(self, round: int, field: Field, choice: Choice) -> Turn:
        """See Schedule."""
        start, began, version = field.now, field.sent, round - 1
        in_buffer: list[np.ndarray] = []
        lost: list[np.ndarray] = []
        self._fill(field, choice, version, in_buffer)
        while len(in_buffer) < self.buffer:
            if not self._out:
                if len(choice.clients) == 0:  # nobody has anything to train on yet
                    break
                field.wait(self._free(choice, in_buffer))
                self._fill(field, choice, version, in_buffer)
                continue
            ended, _, trip = heapq.heappop(self._out)
            field.now = max(field.now, ended)
            if trip["outcome"][0] == USED and self._too_old(version - int(trip["version"][0])):
                trip["outcome"] = LATE
            (in_buffer if trip["outcome"][0] == USED else lost).append(trip)
            self._fill(field, choice, version, in_buffer)
        used = joined([no_trips(), *in_buffer])
        used = used[np.argsort(used["client"])]
        ended_trips = joined([used, *lost])
        used["round"] = ended_trips["round"] = round
        clients = used["client"].copy()
        return Turn(clients, clients, field.sent - began, used, ended_trips, field.now - start)

    def _too_old(self, staleness: int) -> bool:
        return self.max_staleness is not None and staleness > self.max_staleness

    def _free(self, choice: Choice, in_buffer: list[np.ndarray]) -> np.ndarray:
        taken = [int(trip["client"][0]) for trip in in_buffer]
        return np.setdiff1d(choice.clients, taken, assume_unique=True)

    def _fill(self, field: Field, choice: Choice, version: int, in_buffer: list[np.ndarray]) -> None:
        """Send the model until as many clients are at work as there may be, or nobody is left to ask."""
        while (room := choice.size - len(self._out)) > 0:
            draw = rng.numpy_generator(choice.seed, field.sent, rng.SERVER, "next client")
            found = _some(field, choice, draw, room, {int(trip["client"][0]) for trip in in_buffer})
            if len(found) == 0:
                return
            for trip in np.split(field.send(found, version), len(found)):
                heapq.heappush(self._out, (float(trip["ended"][0]), int(trip["client"][0]), trip))

    def state(self) -> dict[str, Any]:
        """See Schedule."""
        return {"out": columns(joined([trip for _, _, trip in sorted(self._out, key=lambda event: event[:2])]))}

    def load_state(self, state: dict[str, Any]) -> None:
        """See Schedule."""
        trips = from_columns(state["out"])
        self._out = [
            (float(t["ended"][0]), int(t["client"][0]), t) for t in np.split(trips, max(1, len(trips))) if len(t)
        ]
        heapq.heapify(self._out)


class FedBuff(Asynchronous):
    """Buffered asynchronous aggregation (Nguyen et al. 2022, arXiv 2106.06639, algorithm 1): `schedule=fedbuff`.

    The server moves by the sum of s(tau) times the updates in the buffer over their number, each weighted by its examples as in
    FedAvg; then the strategy's own step follows.
    """


class FedAsync(Asynchronous):
    """Asynchronous federated optimisation (Xie, Koyejo and Gupta 2019, arXiv 1903.03934, algorithm 1): `schedule=fedasync`.

    Each model that arrives is mixed into the server's: x <- (1 - alpha s(tau)) x + alpha s(tau) x_new. Its proximal term is
    strategy=fedprox.
    """

    mixes_models = True

    def __init__(self, mixing: float, staleness: str, a: float, b: float, max_staleness: int | None = None) -> None:
        require_number("schedule.mixing", mixing, above=0, high=1)
        super().__init__(1, staleness, a, b, max_staleness)
        self.mixing = mixing

    def weight(self, staleness: int) -> float:
        """Alpha s(tau)."""
        return self.mixing * super().weight(staleness)


def _some(field: Field, choice: Choice, draw: np.random.Generator, room: int, taken: set[int]) -> np.ndarray:
    """Up to `room` different clients that can be asked now, uniformly by chance; one by looking at a few, where one is enough."""
    clients = choice.clients
    if room == 1 and len(clients) > TRIES:
        tried = clients[draw.integers(len(clients), size=TRIES)]
        good = tried[field.there(tried, field.now) & ~np.isin(tried, list(taken))]
        if len(good):
            return good[:1]
    free = field.who(np.setdiff1d(clients, list(taken), assume_unique=True) if taken else clients)
    return np.sort(draw.choice(free, size=min(room, len(free)), replace=False)) if len(free) else free
