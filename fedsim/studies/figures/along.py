"""What learning curves may run along: rounds, or what devices had spent by then, on a grid that a cell's seeds share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from fedsim.studies.names import BY_NAME, Measure
from fedsim.studies.statistics import half_width
from fedsim.studies.study import Study

GRID_POINTS = 120
SAME = 0.01
"""Relative difference up to which cells count as having spent the same: along that, curves are those over rounds once more."""


class Along(NamedTuple):
    """columns: of rounds.parquet, whose sum a round spends. measure: what the sum over a run is."""

    columns: tuple[str, ...]
    measure: Measure


ALONG = (
    Along(("simulated_seconds",), BY_NAME["simulated_seconds"]),
    Along(("bytes_up", "bytes_down"), BY_NAME["bytes"]),
    Along(("joules",), BY_NAME["joules"]),
)


def judged(study: Study, name: str) -> pd.DataFrame | None:
    """A row a round in which `name` was measured: `run`, `round`, its value, `cell`, `seed`; None of fewer than two rounds."""
    rounds = study.tables.rounds
    if name not in rounds or "round" not in rounds:
        return None
    known = rounds.loc[rounds[name].notna(), ["run", "round", name]]
    where = study.runs.set_index("run")[["cell", "seed"]]
    known = known.assign(run=known["run"].astype(str)).join(where, on="run", how="inner")
    return None if known["round"].nunique() < 2 else known


def over_rounds(study: Study, name: str | None = None) -> pd.DataFrame | None:
    """(cell, round) -> mean, low, high over seeds of a column (None: the study's measure); None of fewer than two rounds."""
    name = name or study.measure.name
    known = judged(study, name)
    if known is None:
        return None
    return _with_intervals(known.groupby(["cell", "round", "seed"], dropna=False)[name].mean())


def over_costs(study: Study, along: Along) -> pd.DataFrame | None:
    """(cell, cost) -> mean, low, high of the study's measure over seeds; None where no run tells the cost.

    Between the rounds that were judged each run's measure is interpolated, onto costs evenly spaced over what all runs of the
    cell have been through: no mean is over fewer seeds at its end than at its beginning. Where all cells spend the same in
    bytes by the same rounds, there is nothing to see, and the answer is None too.
    """
    name = study.measure.name
    known, spent = judged(study, name), _spent(study, along)
    if known is None or spent is None:
        return None
    known = known.merge(spent, on=["run", "round"]).dropna(subset=["cost"])
    if along.measure.name == "bytes" and _all_alike(known):
        return None
    parts = [
        part for cell, runs in known.groupby("cell") if (part := _on_a_grid(int(str(cell)), runs, name)) is not None
    ]
    return (
        _with_intervals(pd.concat(parts).groupby(["cell", "cost", "seed"], dropna=False)["value"].mean())
        if parts
        else None
    )


def _spent(study: Study, along: Along) -> pd.DataFrame | None:
    """`run`, `round`, `cost`: what each run had spent by the end of each round; missing after a round that does not tell."""
    rounds = study.tables.rounds
    if any(name not in rounds or rounds[name].isna().all() for name in along.columns):
        return None
    table = rounds[["run", "round", *along.columns]].sort_values(["run", "round"], kind="stable")
    each = table[list(along.columns)].sum(axis=1, skipna=False).astype(float)
    cost = each.groupby(table["run"]).transform(lambda one: np.cumsum(one.to_numpy()))
    return table[["run", "round"]].assign(run=table["run"].astype(str), cost=cost)


def _all_alike(known: pd.DataFrame) -> bool:
    by_round = known.groupby(["round", "cell"])["cost"].mean().groupby(level="round")
    return bool(((by_round.max() - by_round.min()) <= SAME * by_round.max()).all())


def _on_a_grid(cell: int, runs: pd.DataFrame, name: str) -> pd.DataFrame | None:
    """A row a point of the grid and run: `cell`, `seed`, `cost`, `value`; None where the runs of a cell have no cost in common."""
    curves = [
        (one["seed"].iloc[0], one["cost"].to_numpy(dtype=float), one[name].to_numpy(dtype=float))
        for _, one in runs.sort_values("round").groupby("run")
    ]
    low, high = max(cost[0] for _, cost, _ in curves), min(cost[-1] for _, cost, _ in curves)
    if not 0 <= low < high:
        return None
    grid = np.linspace(low, high, GRID_POINTS)
    return pd.concat(
        pd.DataFrame({"cell": cell, "seed": seed, "cost": grid, "value": np.interp(grid, cost, values)})
        for seed, cost, values in curves
    )


def _with_intervals(by_seed: pd.Series) -> pd.DataFrame:
    """by_seed: (cell, place, seed) -> value."""
    found = by_seed.groupby(level=[0, 1]).agg(["mean", "std", "count"])
    half = half_width(found["std"], found["count"])
    return pd.DataFrame({"mean": found["mean"], "low": found["mean"] - half, "high": found["mean"] + half})
