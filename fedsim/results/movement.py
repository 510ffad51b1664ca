"""What data_drift.parquet of a finished run tells: how far each feature moved, window by window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.results.finished import Run
from fedsim.results.formats import DASH, count_text, number_text
from fedsim.streams.movement import LARGE, SMALL

MOST_ROWS = 12
"""Of the report's table; the file has them all."""


@dataclass(frozen=True)
class Moved:
    """rounds: (windows,) the last round of each; names: of the features, label and prediction at the end.

    index, wasserstein: (features, windows), NaN where there is none. by_chance: the largest index that chance gives on average.
    """

    rounds: np.ndarray
    names: list[str]
    index: np.ndarray
    wasserstein: np.ndarray
    by_chance: float


def moved_of(run: Run) -> Moved | None:
    """None where a run has no data-drift report, or fewer than two windows were compared."""
    import pyarrow.parquet as pq

    path = run.folder / "data_drift.parquet"
    if not path.is_file():
        return None
    columns = pq.read_table(path).to_pydict()
    if not columns["round"]:
        return None
    rounds, names = sorted(set(columns["round"])), list(dict.fromkeys(columns["feature"]))
    index, wasserstein = (np.full((len(names), len(rounds)), np.nan) for _ in range(2))
    for round, name, one, distance in zip(
        *(columns[key] for key in ("round", "feature", "stability_index", "wasserstein")), strict=True
    ):
        place = names.index(name), rounds.index(round)
        index[place], wasserstein[place] = one, np.nan if distance is None else distance
    return Moved(np.array(rounds), names, index, wasserstein, max(columns["by_chance"]))


def movement_words(run: Run) -> list[str]:
    """How to read the table; nothing without one."""
    moved = moved_of(run)
    if moved is None:
        return []
    large = [name for name, row in zip(moved.names, moved.index, strict=True) if np.nanmax(row) >= LARGE]
    what = f"{len(large)} of {len(moved.names)}" if large else "none"
    first = next(
        (int(round) for round, column in zip(moved.rounds, moved.index.T, strict=True) if (column >= LARGE).any()), None
    )
    when = "" if first is None else f", first in the window that ended with round {first}"
    return [
        f"Data drift: of the features, the label and the prediction {what} moved by a population stability index (PSI) of {LARGE} "
        f"or more against the first window{when}. Practice calls {SMALL} a small and {LARGE} a large change (Siddiqi 2006); with "
        f"windows of this size chance alone gives up to {number_text(moved.by_chance)} on average. This is the simulation's own "
        "look at what devices hold, which no promise of privacy covers."
    ]


def movement_rows(run: Run) -> list[tuple[str, ...]]:
    """Of what moved most: name, largest index, the window of that, largest Wasserstein distance, first window at LARGE."""
    moved = moved_of(run)
    if moved is None:
        return []
    order = np.argsort(-np.nanmax(moved.index, axis=1), kind="stable")[:MOST_ROWS]
    rows: list[tuple[str, ...]] = []
    for place in order.tolist():
        index, distance = moved.index[place], moved.wasserstein[place]
        at = np.flatnonzero(index >= LARGE)
        rows.append(
            (
                moved.names[place],
                number_text(float(np.nanmax(index))),
                count_text(int(moved.rounds[int(np.nanargmax(index))])),
                DASH if np.isnan(distance).all() else number_text(float(np.nanmax(distance))),
                count_text(int(moved.rounds[at[0]])) if len(at) else DASH,
            )
        )
    return rows
