"""What a run's rounds say of its drifts in a few numbers: how soon they were noticed and recovered from, and what was forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedsim.streams.regret import Recovery, average_forgetting, judge_alarms, recoveries

CONCEPTS = ("old_concept_accuracy", "new_concept_accuracy")
"""Columns of rounds.parquet: accuracy on the test rows of each concept, that of amount 0 and that of amount 1."""


class Verdict(NamedTuple):
    """drifts: rounds in which they begin, ascending. recoveries, delays: one a drift, see `fedsim.streams.regret`.

    false_alarms: alarms that belong to no drift. forgetting: the mean over the concepts that were before
    and are no more of the best accuracy on it less that of the end (`fedsim.streams.regret.average_forgetting`); None where there
    is no such concept, or none was measured.
    """

    drifts: list[int]
    recoveries: list[Recovery]
    delays: list[int | None]
    false_alarms: int
    forgetting: float | None

    def recovery_rounds(self, rounds: int) -> float | None:
        """The mean number of rounds from a drift until accuracy was back; None without drifts.

        A drift that was not recovered from counts as all the rounds that there were until the next one, or the end: it took
        more than these, so the mean is then a lower bound.
        """
        ends = [*self.drifts, rounds + 1][1:]
        pairs = zip(self.recoveries, ends, strict=False)  # without drifts there is an end all the same
        took = [end - one.round if one.rounds is None else one.rounds for one, end in pairs]
        return float(np.mean(took)) if took else None


def verdict(columns: Mapping[str, np.ndarray], events: Sequence[Mapping[str, Any]]) -> Verdict:
    """columns: of rounds.parquet by name, (rounds,) float64, NaN where there is no number. events: the truth about the drift."""
    rounds = len(columns["round"])
    nothing = np.full(rounds, np.nan)
    drifts = sorted({int(event["round"]) for event in events})
    accuracy = columns.get("round_accuracy", nothing)
    detected = columns.get("detected", np.zeros(rounds))
    alarms = judge_alarms([int(one) for one in columns["round"][detected > 0]], drifts, max(rounds, 1))
    recovered = recoveries(accuracy, drifts) if drifts else []
    return Verdict(drifts, recovered, alarms.delays, alarms.false, _forgotten(columns, nothing))


def _forgotten(columns: Mapping[str, np.ndarray], nothing: np.ndarray) -> float | None:
    table = np.stack([columns.get(name, nothing) for name in CONCEPTS], axis=1)  # (rounds, concepts)
    current = columns.get("concept", nothing)
    judged = ~np.isnan(table).all(axis=1) & ~np.isnan(current)
    if not judged.any():
        return None
    forgotten = float(average_forgetting(table[judged], current[judged].astype(int).tolist())[-1])
    return None if np.isnan(forgotten) else forgotten
