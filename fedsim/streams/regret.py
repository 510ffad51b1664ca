"""What a run's record says in hindsight: regret, recovery after a drift, forgetting, and how good the alarms were.

Rounds count from 1; the r-th entry of a series is that of round r + 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

Fixed = TypeVar("Fixed")


class Regret(NamedTuple):
    """series: (rounds,) float64, the regret up to each round; best: the fixed model that lost least over all of them.

    losses: (rounds,) of each fixed model, cumulative.
    """

    series: np.ndarray
    best: str
    losses: dict[str, np.ndarray]


def regret(played: np.ndarray, fixed: Mapping[str, Fixed], losses_of: Callable[[Fixed], np.ndarray]) -> Regret:
    """Sum of the losses of the models that were played, less that of the best fixed one, up to each round.

    played: (rounds,) the summed loss of a round's arrivals under the model that was judged on them. fixed: candidates by name,
    such as the final model and one trained on all the data at once. losses_of: (rounds,) the same sums, of the same
    examples, under one of them. The best is chosen anew for each round, which is what regret means (Zinkevich 2003);
    over a few candidates it is at most the regret against all fixed models, and equal to it where the best is among them.
    Raises ValueError where no model is given, or the numbers of rounds differ.
    """
    played = np.asarray(played, dtype=np.float64)
    losses = {name: np.cumsum(np.asarray(losses_of(model), dtype=np.float64)) for name, model in fixed.items()}
    if not losses or any(one.shape != played.shape for one in losses.values()):
        raise ValueError(f"regret over {len(played)} rounds needs a loss for each from one fixed model or more")
    table = np.stack(list(losses.values()))  # (models, rounds)
    best = list(losses)[int(np.argmin(table[:, -1]))] if len(played) else next(iter(losses))
    return Regret(np.cumsum(played) - table.min(axis=0), best, losses)


class Recovery(NamedTuple):
    """What a drift did. round: when it came; level: smoothed accuracy before it; lowest: after it, until the next one.

    rounds: from the drift until accuracy was back, 0 where it never fell; None where it was not back before the next drift.
    """

    round: int
    level: float
    lowest: float
    rounds: int | None


def recoveries(
    accuracy: np.ndarray,
    drifts: Sequence[int],
    tolerance: float = 0.02,
    smoothing: int = 5,
    level: float | None = None,
) -> list[Recovery]:
    """The recovery after each drift, of accuracy (rounds,) on each round's arrivals (NaN where nothing came).

    Level: the mean over the last `smoothing` rounds before the drift. After it, round r counts as the mean over the last
    `smoothing` rounds that are not before the drift. Accuracy has fallen in the first round that counts below level -
    tolerance, and is back in the first round after that one that does not; a drift ends where the next one begins. A
    drift before which nothing was judged has a level of NaN and no recovery. level: that of all drifts instead, such as another
    run's, by which several runs are compared.
    """
    accuracy = np.asarray(accuracy, dtype=np.float64)
    drifts = sorted(set(drifts))
    ends = [*drifts[1:], len(accuracy) + 1]
    return [_recovery(accuracy, one, end, tolerance, smoothing, level) for one, end in zip(drifts, ends, strict=True)]


def _recovery(
    accuracy: np.ndarray, drift: int, end: int, tolerance: float, smoothing: int, wanted: float | None
) -> Recovery:
    level = _mean(accuracy[max(0, drift - 1 - smoothing) : drift - 1]) if wanted is None else wanted
    after = accuracy[drift - 1 : end - 1]
    smooth = np.array([_mean(after[max(0, r + 1 - smoothing) : r + 1]) for r in range(len(after))])
    judged = smooth[~np.isnan(smooth)]
    lowest = float(judged.min()) if len(judged) else np.nan
    if np.isnan(level) or not len(judged):
        return Recovery(drift, level, lowest, None)
    low = np.flatnonzero(smooth < level - tolerance)
    if not len(low):
        return Recovery(drift, level, lowest, 0)
    back = np.flatnonzero(smooth[low[0] :] >= level - tolerance)
    return Recovery(drift, level, lowest, int(low[0] + back[0]) if len(back) else None)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan


def forgetting(accuracy: np.ndarray) -> np.ndarray:
    """(times, concepts) how much each concept is forgotten: its best earlier accuracy less that of now, in [-1, 1].

    accuracy: (times, concepts), that of the model of each time on held-out examples of each concept; NaN where it was not
    measured. NaN before there is something earlier. Chaudhry et al. 2018, arXiv 1801.10112, equation 3.
    """
    accuracy = np.asarray(accuracy, dtype=np.float64)
    best = np.fmax.accumulate(accuracy, axis=0)
    earlier = np.vstack([np.full((1, accuracy.shape[1]), np.nan), best[:-1]])
    forgotten: np.ndarray = earlier - accuracy
    return forgotten


def average_forgetting(accuracy: np.ndarray, current: Sequence[int]) -> np.ndarray:
    """(times,) the mean forgetting over the old concepts: those current before and not now; NaN where there are none.

    current: (times,) the concept that clients see at each time. With one concept after another it is the F_k below that
    equation.
    """
    forgotten, now = forgetting(accuracy), np.asarray(current)
    return np.array([_mean(forgotten[time, np.setdiff1d(now[:time], now[time])]) for time in range(len(now))])


class Alarms(NamedTuple):
    """delays: rounds from each drift to its first alarm, None where it was missed; false: alarms that belong to no drift."""

    delays: list[int | None]
    false: int


def judge_alarms(alarms: Sequence[int], drifts: Sequence[int], within: int) -> Alarms:
    """Alarms against the truth, both rounds. An alarm belongs to the newest drift that came at most `within` - 1 rounds before.

    Later ones of the same drift are neither right nor false: a response to the first may well cause them.
    """
    delays: dict[int, int] = {}
    false = 0
    for alarm in sorted(alarms):
        cause = max((drift for drift in drifts if drift <= alarm < drift + within), default=None)
        if cause is None:
            false += 1
        else:
            delays.setdefault(cause, alarm - cause)
    return Alarms([delays.get(drift) for drift in drifts], false)
