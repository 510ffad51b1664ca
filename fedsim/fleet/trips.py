"""Trips: what became of each model that was sent to a device, one row each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsim.types import FedsimError

OUTCOMES = ("used", "late", "network", "battery", "user", "failed", "away")
"""used: in a round's aggregate. late: it came when the round was over. network, battery, user: lost on the way because the
connection broke, the battery ran out, or the device was no longer to be had. failed: its training raised. away: it was drawn
when it was not there, so nothing was sent."""

USED, LATE, NETWORK, BATTERY, USER, FAILED, AWAY = range(len(OUTCOMES))

TRIP = np.dtype(
    [
        ("round", np.int32),
        ("client", np.int64),
        ("version", np.int32),
        ("sent", np.float64),
        ("received", np.float64),
        ("trained", np.float64),
        ("arrived", np.float64),
        ("ended", np.float64),
        ("outcome", np.int8),
        ("bytes_down", np.float64),
        ("bytes_up", np.float64),
        ("joules_down", np.float64),
        ("joules_compute", np.float64),
        ("joules_up", np.float64),
    ]
)
"""round: in which it was used or given up, 0 while it is out. version: finished rounds of the model that was sent. sent,
received, trained, arrived: simulated seconds since the start; what a lost device did not come to is NaN. ended: when it
arrived, or was lost. bytes_*, joules_*: until then."""


def no_trips() -> np.ndarray:
    """(0,) trips."""
    return np.empty(0, TRIP)


def joules(trips: np.ndarray) -> np.ndarray:
    """(n,) of each trip."""
    return trips["joules_down"] + trips["joules_compute"] + trips["joules_up"]


def in_order(trips: np.ndarray) -> np.ndarray:
    """The trips as they ended; of those that ended together the lower client first."""
    return trips[np.lexsort((trips["client"], trips["ended"]))]


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """One array of all of them."""
    return np.concatenate(parts) if parts else no_trips()


def columns(trips: np.ndarray) -> dict[str, np.ndarray]:
    """A plain array a column: what a checkpoint holds."""
    return {name: np.ascontiguousarray(trips[name]) for name in TRIP.names or ()}


def from_columns(found: dict[str, np.ndarray]) -> np.ndarray:
    """What `columns` was given. Raises FedsimError where they are not a checkpoint's."""
    try:
        trips = np.empty(len(found["client"]), TRIP)
        for name in TRIP.names or ():
            trips[name] = found[name]
    except (KeyError, ValueError, TypeError) as error:
        raise FedsimError(
            "the checkpoint's trips of devices do not fit each other, so it is corrupt; start anew"
        ) from error
    return trips
