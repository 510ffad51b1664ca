"""One series that is watched for drift, of all clients or of one, and what of it a checkpoint keeps.

A round's n errors are dealt into at most `observations` hands, one to each in turn, whose means are what a detector sees. So
an observation mixes all clients (a client's own level is not a change in time) and the cost does not grow with the arrivals.
Where a round brings less than one `hand` of values they wait for the next, so that small rounds are not noisier than large.
A model that learns makes fewer errors: only a rise by `margin` or more is an alarm.

What a detector of river depends on is what it was shown since it last began anew: a checkpoint keeps that, and
resuming shows it again. Nothing is pickled.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

State = dict[str, np.ndarray]
"""What a checkpoint keeps of one detector: arrays by name, each of one dimension."""

OF_THE_MODEL = ("errors", "losses")
OF_THE_DATA = ("features", "predictions")


class Detector:
    """One series that is watched."""

    def update(self, values: np.ndarray) -> bool:
        """Take a round's values, (n,) or (n, features), maybe none; whether this round is an alarm."""
        raise NotImplementedError

    def state(self) -> State:
        """All that later alarms depend on."""
        raise NotImplementedError

    def load_state(self, state: State) -> None:
        """Go on from what `state` gave."""
        raise NotImplementedError


class Blind(Detector):
    """Sees nothing."""

    def update(self, values: np.ndarray) -> bool:
        """Never an alarm."""
        return False

    def state(self) -> State:
        """Nothing."""
        return {}

    def load_state(self, state: State) -> None:
        """Nothing."""


def hands(values: np.ndarray, number: int) -> np.ndarray:
    """(number,) the means of values (n,), n >= number, that are dealt one by one to so many hands."""
    if not number:
        return np.empty(0)
    hand = np.arange(len(values)) % number
    return np.bincount(hand, weights=values) / np.bincount(hand)


class Observations:
    """From a round's values to what a detector sees.

    number: observations a round at most. hand: values that one of them averages at least.
    watch: `errors`; `losses`, told in units of the mean of the first round of them that is finite, x, as x / (1 + x), so that
    they lie in [0, 1] and thresholds fit any scale; `features` or `predictions`, of which examples are picked evenly.
    """

    def __init__(self, watch: str, number: int, hand: int) -> None:
        self.watch, self.number, self.hand = watch, number, hand
        self._unit = math.nan
        self._waiting = np.empty(0)

    @property
    def of_the_data(self) -> bool:
        """Whether any change matters, and not a rise alone."""
        return self.watch in OF_THE_DATA

    def seen(self, values: np.ndarray) -> np.ndarray:
        """(k, 1) float32, or (k, features) of the data themselves; k at most `number`."""
        values = np.asarray(values, dtype=np.float64)
        if self.of_the_data:
            rows = np.linspace(0, len(values) - 1, min(len(values), self.number)).round().astype(np.int64)
            return values[rows].reshape(len(rows), -1).astype(np.float32)
        if self.watch == "losses":
            values = self._in_units(values)
        values = np.concatenate([self._waiting, values])
        number = min(len(values) // self.hand, self.number)
        self._waiting = values[:0] if number else values
        return hands(values, number).reshape(-1, 1).astype(np.float32)

    def _in_units(self, losses: np.ndarray) -> np.ndarray:
        if math.isnan(self._unit) and len(losses) and np.isfinite(losses).all():
            self._unit = max(float(losses.mean()), 1e-12)
        ratio = np.nan_to_num(losses / self._unit, nan=np.inf, posinf=np.inf).clip(min=0)
        return 1 - 1 / (1 + ratio)  # a loss that is not a number is the worst there is

    def state(self) -> State:
        """As of a detector."""
        return {"unit": np.array([self._unit]), "waiting": self._waiting.copy()}

    def load_state(self, state: State) -> None:
        """As of a detector."""
        self._unit, self._waiting = float(state["unit"][0]), np.array(state["waiting"], dtype=np.float64)


class Shown(Detector):
    """A detector of river, and all that it was shown since it began.

    It begins anew at every change. The mean of the last observations, a round of them but at most half of all, is held against
    that of those before: where it rose by `margin` that is an alarm, else the new one is shown the last `kept` again.
    """

    def __init__(self, new: Callable[[], Any], observations: Observations, margin: float, kept: int) -> None:
        """new: makes a detector of river that was shown nothing. kept: observations, after a change that is no alarm."""
        self._new, self._observations, self._margin, self._kept = new, observations, margin, kept
        self._begin([])

    def _begin(self, shown: list[float]) -> None:
        self._river, self._shown = self._new(), shown
        for value in shown:
            self._river.update(value)

    def update(self, values: np.ndarray) -> bool:
        """As in Detector."""
        alarm = False
        for value in self._observations.seen(values)[:, 0].tolist():
            self._river.update(value)
            self._shown.append(value)
            if self._river.drift_detected:
                alarm |= self._changed()
        return alarm

    def _changed(self) -> bool:
        """Begin anew; whether the change is an alarm."""
        last = max(1, min(self._observations.number, len(self._shown) // 2))
        before, after = self._shown[:-last], self._shown[-last:]
        alarm = bool(before) and float(np.mean(after) - np.mean(before)) >= self._margin
        self._begin([] if alarm else self._shown[-self._kept :])
        return alarm

    def state(self) -> State:
        """As in Detector."""
        return {"shown": np.array(self._shown, dtype=np.float32), **self._observations.state()}

    def load_state(self, state: State) -> None:
        """As in Detector, by showing it again what it was shown."""
        self._observations.load_state(state)
        self._begin(state["shown"].tolist())


class Windows(Detector):
    """The observations of the last rounds that had any: the newest `recent` against the `reference` rounds before them."""

    def __init__(
        self,
        differ: Callable[[np.ndarray, np.ndarray, int], bool],
        observations: Observations,
        margin: float,
        reference: int,
        recent: int,
    ) -> None:
        """differ: of two samples (rows, features) and the number of the test, 1, 2, ..., whether they differ."""
        self._differ, self._observations, self._margin = differ, observations, margin
        self._reference, self._recent = reference, recent
        self._rounds: deque[np.ndarray] = deque(maxlen=reference + recent)
        self._tests = 0

    def update(self, values: np.ndarray) -> bool:
        """As in Detector; an alarm empties both windows."""
        seen = self._observations.seen(values)
        if not len(seen):
            return False
        self._rounds.append(seen)
        if len(self._rounds) < self._reference + self._recent:
            return False
        rounds = list(self._rounds)
        before, recent = np.concatenate(rounds[: self._reference]), np.concatenate(rounds[self._reference :])
        self._tests += 1
        risen = float(recent.mean() - before.mean()) >= self._margin
        if not (risen or self._observations.of_the_data) or not self._differ(before, recent, self._tests):
            return False
        self._rounds.clear()
        return True

    def state(self) -> State:
        """As in Detector."""
        rows = np.concatenate(self._rounds) if self._rounds else np.empty((0, 1), dtype=np.float32)
        return {
            "shown": rows.reshape(-1),
            "rows": np.array([len(one) for one in self._rounds], dtype=np.int64),
            "features": np.array([rows.shape[1]], dtype=np.int64),
            "tests": np.array([self._tests], dtype=np.int64),
            **self._observations.state(),
        }

    def load_state(self, state: State) -> None:
        """As in Detector."""
        rows = np.asarray(state["shown"], dtype=np.float32).reshape(-1, int(state["features"][0]))
        self._rounds.clear()
        self._rounds.extend(np.split(rows, np.cumsum(state["rows"])[:-1]) if len(state["rows"]) else [])
        self._tests = int(state["tests"][0])
        self._observations.load_state(state)
