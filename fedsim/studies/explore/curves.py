"""Learning curves for the page: a few numbers of each, in four digits, so that thousands of runs fit into one file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

OFFERED = ("accuracy", "loss", "federated_accuracy", "federated_accuracy_worst10", "train_loss", "epsilon")
MOST_POINTS = 200
FEWEST_POINTS = 12
MOST_NUMBERS = 600_000
"""In all: about 4 MB of the file. Beyond that each curve has fewer points."""


def curves_of(rounds: pd.DataFrame, runs: Sequence[str]) -> dict[str, Any]:
    """For the page: `names` of the curves there are, `points` that each has at most, `rounds` (lists that runs share), and
    `of`: by name, a run each, None or [place in `rounds`, values]. Only what was measured: nothing is filled in.
    """
    names = [name for name in OFFERED if name in rounds.columns and rounds[name].notna().any()]
    points = _points(len(runs) * len(names))
    place: dict[Any, int] = {run: number for number, run in enumerate(runs)}
    shared: dict[tuple[int, ...], int] = {}
    of: dict[str, list[Any]] = {name: [None] * len(runs) for name in names}
    for run, table in rounds.groupby("run", sort=False):
        if run not in place:
            continue
        at = table["round"].to_numpy()
        for name in names:
            values = table[name].to_numpy(dtype=float, na_value=np.nan)
            chosen = _evenly(np.flatnonzero(np.isfinite(values)), points)
            if len(chosen):
                number = shared.setdefault(tuple(at[chosen].tolist()), len(shared))
                of[name][place[run]] = [number, [float(f"{value:.4g}") for value in values[chosen].tolist()]]
    return {"names": names, "points": points, "rounds": [list(one) for one in shared], "of": of}


def _points(curves: int) -> int:
    return max(FEWEST_POINTS, min(MOST_POINTS, MOST_NUMBERS // max(curves, 1)))


def _evenly(indices: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the indices, first and last among them."""
    if len(indices) <= most:
        return indices
    return indices[np.round(np.linspace(0, len(indices) - 1, most)).astype(int)]
