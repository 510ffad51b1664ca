"""Whose work counts for a round, and when the round ends: `schedule=synchronous|over_selection|...`.

The server's loop asks its schedule what arrives next. In a synchronous round the model goes out to a cohort and the round
ends when enough of it is back; an asynchronous server hands out work all the time (asynchronous.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.checks import require_choice, require_int, require_number
from fedsim.fleet.field import Field
from fedsim.fleet.trips import AWAY, LATE, TRIP, USED, columns, from_columns, in_order, joined, no_trips
from fedsim.types import FedsimError


@dataclass(frozen=True)
class Choice:
    """Who may be asked in a round.

    draw: gives the round's cohort out of clients (n,) ascending, or of all (None). clients: those that may take part, ascending.
    blind: the cohort is drawn among all of them, there or not: what a secret draw promises must not rest on who is there.
    size: clients a round, or at work at a time.
    """

    draw: Callable[[np.ndarray | None], np.ndarray]
    clients: np.ndarray
    blind: bool
    size: int
    seed: int


@dataclass(frozen=True)
class Turn:
    """One round.

    cohort: who was drawn for it, there or not, ascending. present: those of them that were there. asked: how many trips were begun
    in it. used: the trips whose work it aggregates, by client. ended: those that are over with it, used ones among them. seconds:
    simulated, that it took.
    """

    cohort: np.ndarray
    present: np.ndarray
    asked: int
    used: np.ndarray
    ended: np.ndarray
    seconds: float


class Schedule:
    """Base of all schedules.

    over_selection: how many more clients are asked than are waited for. secret: whether a client's part in a round follows from
    its own draw alone, so that sampling may amplify privacy. mixes: whether the work of several models meets in a round.
    mixes_models: whether it is trained models that move the server, not what training changed. timed: needs devices that take time.
    """

    over_selection: float = 1.0
    secret: bool = True
    mixes: bool = False
    mixes_models: bool = False
    timed: bool = False

    def turn(self, round: int, field: Field, choice: Choice) -> Turn:
        """Play the clock to the end of this round, whose model is that of `round - 1`."""
        raise NotImplementedError

    def needed(self, cohort: float) -> float:
        """How many clients' work a round aggregates, at most, of a cohort of this expected size."""
        return cohort

    def weight(self, staleness: int) -> float:
        """By which an update counts that is so many rounds old."""
        return 1.0

    def out(self) -> set[int]:
        """Versions of the model whose trips may still come in."""
        return set()

    def check(self, field: Field, cohort: float) -> None:
        """Refuse, before the run, what can never work with these devices."""
        if self.timed and not field.modelled:
            raise FedsimError(
                "fleet=ideal takes no time, so there is nothing to schedule; choose fleet=phones (or iot, silos, mixed, table), "
                "or the plain schedule=synchronous"
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""


class Synchronous(Schedule):
    """Rounds: the model goes to a cohort, and the round ends by the keys of `schedule=synchronous`.

    deadline: simulated seconds after which it ends in any case. over_selection: so many times more clients are asked than are
    waited for; the round ends when as many as the sampler's size are back (1.3 in arXiv 1902.01046, section 2). wait_for: or
    when so many are. stragglers: drop the work of those that come later, or use it in the round in which they come, scaled by
    (1 + staleness) ** -staleness_power. Without any of these the server waits for everyone; it hears of a lost device when
    that is lost.
    """

    def __init__(
        self,
        deadline: float | None = None,
        over_selection: float = 1.0,
        wait_for: int | None = None,
        stragglers: str = "drop",
        staleness_power: float = 0.5,
    ) -> None:
        if deadline is not None:
            require_number("schedule.deadline", deadline, above=0)
        require_number("schedule.over_selection", over_selection, low=1)
        if wait_for is not None:
            require_int("schedule.wait_for", wait_for, low=1)
        require_choice("schedule.stragglers", stragglers, ("drop", "use"))
        require_number("schedule.staleness_power", staleness_power, low=0)
        self.deadline, self.over_selection, self.wait_for = deadline, float(over_selection), wait_for
        self.uses_late, self.power = stragglers == "use", staleness_power
        first = over_selection > 1 or wait_for is not None  # who counts then depends on how fast others are
        self.timed = first or deadline is not None or self.uses_late
        self.secret = not first and not self.uses_late
        self.mixes = self.uses_late
        self._late = no_trips()

    def needed(self, cohort: float) -> float:
        """See Schedule."""
        return cohort if self.wait_for is None else min(self.wait_for, cohort)

    def weight(self, staleness: int) -> float:
        """See Schedule."""
        return float((1 + staleness) ** -self.power)

    def out(self) -> set[int]:
        """See Schedule."""
        return set(self._late["version"].tolist())

    def check(self, field: Field, cohort: float) -> None:
        """See Schedule; and a deadline that no device can meet."""
        super().check(field, cohort)
        if self.wait_for is not None and self.wait_for > round(cohort * self.over_selection):
            raise FedsimError(
                f"schedule.wait_for={self.wait_for} is more than the {cohort * self.over_selection:g} clients that are asked; "
                "lower it, or raise sampler.cohort_size or schedule.over_selection"
            )
        if self.deadline is not None and (fastest := field.fastest()) > self.deadline:
            raise FedsimError(
                f"schedule.deadline={self.deadline:g} s can be met by no device: the fastest takes {fastest:.4g} s; raise it, "
                "or give devices less to do (client.epochs, model=..., compression=...)"
            )

    def turn(self, round: int, field: Field, choice: Choice) -> Turn:
        """See Schedule."""
        began = field.now
        cohort, present = self._ask(field, choice)
        start = field.now  # later, where the server had to wait for somebody
        trips = in_order(field.send(present, round - 1))
        late = self._late
        end = self._end(start, trips, choice.size)
        self._late = no_trips()
        came = (trips["outcome"] == USED) & (trips["ended"] <= end)
        if self.over_selection > 1 or self.wait_for is not None:
            came &= np.cumsum(came) <= self._enough(choice.size)
        overdue = (trips["outcome"] == USED) & ~came
        if self.uses_late:
            self._late, trips = trips[overdue], trips[~overdue]
            came = came[~overdue]
            came_late = late["ended"] <= end
            self._late = joined([late[~came_late], self._late])
            trips, came = joined([late[came_late], trips]), np.append(np.ones(int(came_late.sum()), bool), came)
        else:
            trips["outcome"][overdue] = LATE
        trips["round"] = round
        away = np.setdiff1d(cohort, present, assume_unique=True)
        field.now = end
        used = trips[came]
        return Turn(
            cohort,
            present,
            len(present),
            used[np.argsort(used["client"])],
            joined([trips, _away(away, round, start)]),
            end - began,
        )

    @staticmethod
    def _ask(field: Field, choice: Choice) -> tuple[np.ndarray, np.ndarray]:
        """The cohort, and those of it that are there."""
        if not field.modelled:
            cohort = choice.draw(None if len(choice.clients) == field.num_clients else choice.clients)
            return cohort, cohort
        if len(choice.clients) == 0:  # nobody has anything to train on yet
            return choice.clients, choice.clients
        there = field.wait(choice.clients)
        if choice.blind:
            cohort = choice.draw(choice.clients)
            return cohort, np.intersect1d(cohort, there, assume_unique=True)
        cohort = choice.draw(there)
        return cohort, cohort

    def _enough(self, size: int) -> int:
        return size if self.wait_for is None else self.wait_for

    def _end(self, start: float, trips: np.ndarray, size: int) -> float:
        """When the round is over. trips: in the order in which they end."""
        if len(trips) == 0:
            return start if self.deadline is None else start + self.deadline
        end = float(trips["ended"][-1])
        back = trips["ended"][trips["outcome"] == USED]
        if (self.over_selection > 1 or self.wait_for is not None) and len(back) >= self._enough(size):
            end = float(back[self._enough(size) - 1])
        return end if self.deadline is None else min(end, start + self.deadline)

    def state(self) -> dict[str, Any]:
        """See Schedule."""
        return {"late": columns(self._late)} if self.uses_late else {}

    def load_state(self, state: dict[str, Any]) -> None:
        """See Schedule."""
        if self.uses_late:
            self._late = from_columns(state["late"])


class OverSelection(Synchronous):
    """`schedule=over_selection`: as Synchronous, of a few more clients than are waited for."""

    def __init__(
        self,
        deadline: float | None = None,
        over_selection: float = 1.3,
        wait_for: int | None = None,
        stragglers: str = "drop",
        staleness_power: float = 0.5,
    ) -> None:
        super().__init__(deadline, over_selection, wait_for, stragglers, staleness_power)


def _away(clients: np.ndarray, round: int, time: float) -> np.ndarray:
    """Trips that never began, of clients that were drawn when they were not there."""
    trips = np.zeros(len(clients), TRIP)
    trips["round"], trips["client"], trips["version"], trips["outcome"] = round, clients, round - 1, AWAY
    trips["sent"] = trips["ended"] = time
    trips["received"] = trips["trained"] = trips["arrived"] = np.nan
    return trips
