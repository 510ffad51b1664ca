"""A study: runs, the cells that they fall into, and each cell's means over seeds with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from fedsim.studies.names import BY_NAME, MEASURES, TRADED, Measure, missing
from fedsim.studies.statistics import half_width
from fedsim.studies.varied import PREFIX, Axis, Varied, axes_of, readable, without_idle

STATISTICS = ("mean", "std", "low", "high", "n")


class Tables(Protocol):
    """What is read of `fedsim.results.store.Store`."""

    @property
    def runs(self) -> pd.DataFrame:
        """A row a run."""

    @property
    def rounds(self) -> pd.DataFrame:
        """A row a round, with its `run`."""

    def sql(self, query: str) -> pd.DataFrame:
        """The answer to a query over the views runs, rounds, clients."""


@dataclass(frozen=True)
class Study:
    """What a set of runs says.

    runs: a row a run: `run` (its folder), `seed`, `cell`, the measures, and a column for each axis, named by its key.
    cells: a row a cell, numbered from 0 in the order of the axes' values: the axes' columns, `seeds`, and `MEASURE.STATISTIC`.
    by_seed: (cell, seed) -> the measures; runs that repeat a seed of their cell are averaged. repeated: how many such runs.
    measure: what settles who wins: accuracy where it was measured, else loss. measures: those that any run has.
    """

    tables: Tables
    runs: pd.DataFrame
    varied: Varied
    cells: pd.DataFrame
    by_seed: pd.DataFrame
    measure: Measure
    measures: tuple[Measure, ...]
    repeated: int = 0

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The configuration keys that differ."""
        return self.varied.axes

    @property
    def numeric(self) -> tuple[Axis, ...]:
        """Axes of at least two numbers."""
        return tuple(axis for axis in self.axes if axis.numeric and len(axis.known) > 1)

    @property
    def categorical(self) -> tuple[Axis, ...]:
        """Axes of names."""
        return tuple(axis for axis in self.axes if not axis.numeric and len(axis.values) > 1)

    @property
    def most_seeds(self) -> int:
        """Of any cell."""
        return int(self.seeds.max())

    @property
    def seeds(self) -> np.ndarray:
        """(cells,) how many seeds each has."""
        return self.cells["seeds"].to_numpy(dtype=int)

    def axis(self, key: str) -> Axis | None:
        """The axis of this configuration key."""
        return next((axis for axis in self.axes if axis.key == key), None)

    def label(self, cell: int, without: Sequence[str] = ()) -> str:
        """A cell in words: `100 clients, ε = 2`."""
        axes = [axis for axis in self.axes if axis.key not in without]
        return ", ".join(axis.phrase(self.value(cell, axis)) for axis in axes) or "all runs"

    def value(self, cell: int, axis: Axis) -> Any:
        """The cell's value of an axis, None where it has none."""
        value = self.cells.at[cell, axis.key]
        return None if missing(value) else value

    def statistic(self, measure: Measure, name: str) -> np.ndarray:
        """(cells,) one of STATISTICS of a measure, NaN where it is unknown."""
        return self.cells[f"{measure.name}.{name}"].to_numpy(dtype=float)

    def ranking(self) -> list[int]:
        """Cells from the best mean of the study's measure to the worst; those without one left out."""
        means = self.statistic(self.measure, "mean")
        order = np.argsort(-means if self.measure.higher else means, kind="stable")
        return [int(cell) for cell in order if np.isfinite(means[cell])]

    def varying(self) -> list[Measure]:
        """The measures of TRADED that exist and differ between cells by more than chance alone could make them."""
        return [measure for name in TRADED if (measure := BY_NAME[name]) in self.measures and self._varies(measure)]

    def _varies(self, measure: Measure) -> bool:
        means = self.statistic(measure, "mean")
        means = means[np.isfinite(means)]
        if len(means) < 2:
            return False
        least = 1e-3 if measure.is_share else 0.05 * np.abs(means).max()
        return bool(np.ptp(means) > least)

    def folder(self, cell: int) -> Path:
        """The run that stands for a cell: that of its first seed."""
        runs = self.runs[self.runs["cell"] == cell].sort_values(["seed", "run"], kind="stable")
        return Path(str(runs["run"].iloc[0]))


def study_of(tables: Tables) -> Study:
    """Sort runs into cells and average them. The tables hold at least one run."""
    runs = without_idle(tables.runs.sort_values("run", kind="stable").reset_index(drop=True))
    varied = axes_of(runs)
    axes = {axis.key: readable(axis.key, runs[PREFIX + axis.key]) for axis in varied.axes}
    own = pd.DataFrame({"run": runs["run"].astype(str), "seed": _column(runs, "seed")} | axes)
    measures = _measured(runs)
    own = pd.concat([own, measures], axis=1)
    own["cell"] = _cell_numbers(own, varied.axes)
    names = list(measures.columns)
    by_seed = own.groupby(["cell", "seed"], dropna=False)[names].mean()
    cells = _cells(own, by_seed, [axis.key for axis in varied.axes], names)
    measure = BY_NAME["loss"] if "loss" in names and "accuracy" not in names else BY_NAME["accuracy"]
    known = tuple(one for one in MEASURES if one.name in names)
    return Study(tables, own, varied, cells, by_seed, measure, known, len(own) - len(by_seed))


def _column(runs: pd.DataFrame, name: str) -> pd.Series:
    if name not in runs:
        return pd.Series(np.nan, index=runs.index)
    return pd.to_numeric(runs[name], errors="coerce").astype(float)


def _measured(runs: pd.DataFrame) -> pd.DataFrame:
    """(runs, measures) of those that any run has, the study's own measure always among them."""
    columns = {measure.name: _column(runs, measure.name) for measure in MEASURES}
    columns["bytes"] = _column(runs, "bytes_up") + _column(runs, "bytes_down")
    found = {name: column for name, column in columns.items() if np.isfinite(column).any()}
    if "accuracy" not in found and "loss" not in found:
        found = {"accuracy": columns["accuracy"]} | found
    return pd.DataFrame(found).replace([np.inf, -np.inf], np.nan)


def _cell_numbers(runs: pd.DataFrame, axes: tuple[Axis, ...]) -> np.ndarray:
    """(runs,) the number of each run's cell: cells in the order of the first axis' values, then of the second's, ..."""
    if not axes:
        return np.zeros(len(runs), dtype=int)
    ranks = []
    for axis in axes:
        rank = {value: place for place, value in enumerate(axis.values) if not missing(value)}
        ranks.append([len(axis.values) if missing(value) else rank[value] for value in runs[axis.key]])
    return np.unique(np.array(ranks), axis=1, return_inverse=True)[1].ravel()


def _cells(runs: pd.DataFrame, by_seed: pd.DataFrame, axes: list[str], names: list[str]) -> pd.DataFrame:
    grouped = by_seed.groupby(level="cell")
    cells = runs.groupby("cell")[axes].first() if axes else pd.DataFrame(index=pd.Index([0], name="cell"))
    columns: dict[str, Any] = {"seeds": grouped.size()}
    mean, std, count = grouped[names].mean(), grouped[names].std(), grouped[names].count()
    for name in names:
        half = half_width(std[name], count[name])
        columns |= {f"{name}.mean": mean[name], f"{name}.std": std[name]}
        columns |= {f"{name}.low": mean[name] - half, f"{name}.high": mean[name] + half, f"{name}.n": count[name]}
    return pd.concat([cells, pd.DataFrame(columns)], axis=1)
