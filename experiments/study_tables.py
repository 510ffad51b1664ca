"""The tables of what the sweeps of the ready studies found."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.drift_recovery import with_shared_level
from experiments.study_list import BACK, UNSAID, WORDS, Measure, Study
from fedsim.results.formats import DASH
from fedsim.results.store import read
from fedsim.studies.names import label_of, missing, target_name, value_text
from fedsim.studies.statistics import half_width
from fedsim.studies.varied import axes_of
from fedsim.types import FedsimError

if TYPE_CHECKING:
    import pandas as pd


class Mean(NamedTuple):
    """Over seeds. half: half of the 95% interval by Student's t, None of one seed, 0 where seeds hardly differ."""

    mean: float
    half: float | None
    digits: int = 3

    def __str__(self) -> str:
        """As in 0.812 ± 0.004, an interval never made smaller by rounding."""
        shown = f"{self.mean:,.{self.digits}f}"
        if self.half is None:
            return f"{shown} (one seed)"
        up = math.ceil(self.half * 10**self.digits - 1e-9) / 10**self.digits
        return f"{shown} ± {up:.{self.digits}f}"


Grid = dict[str, dict[str, Mean]]
"""A table: by row, by column; both as they are headed."""


def runs_of(study: Study, size: str, sweeps: Path) -> pd.DataFrame | None:
    """A row a finished run of this size, None where there is none. Raises FedsimError where other keys differ too."""
    folders = [folder for name in study.experiments if (folder := sweeps / name).is_dir()]
    if not any(True for folder in folders for _ in folder.glob("*/summary.json")):
        return None
    store = read(folders)
    runs = store.runs
    if "config.size" not in runs:
        return None
    runs = runs[(runs["config.size"] == size) & runs["experiment"].isin(study.experiments)].reset_index(drop=True)
    if runs.empty:
        return None
    allowed = {study.rows, *study.columns, *study.also, *study.within}
    if strange := [axis.key for axis in axes_of(runs).axes if axis.key not in allowed]:
        raise FedsimError(
            f"runs in {', '.join(map(str, folders))} differ in {', '.join(strange)} too, in which the study does not; "
            "move those of another question elsewhere, or name another folder with --sweeps"
        )
    return with_shared_level(runs, store.rounds) if BACK in study.measures else runs


def grid_of(study: Study, runs: pd.DataFrame) -> Grid:
    """The table's figures."""
    return {
        row: {heading: _mean(values.to_numpy(float), measure) for heading, (measure, values) in of_row.items()}
        for row, of_row in _by_seed(study, runs).items()
    }


def costs_of(study: Study, runs: pd.DataFrame) -> Grid:
    """Every column against the reference, or every row against the baseline, seed by seed: how much less it has, or by what
    factor. Nothing where a study has neither, or it was not run."""
    found = _by_seed(study, runs)
    baseline = found.pop(study.baseline, {})
    grid: Grid = {}
    for row, of_row in found.items():
        column = of_row.pop(study.reference, None)
        for heading, (measure, values) in of_row.items():
            against = column or baseline.get(heading)
            if against is None or against[0] != measure:
                continue
            pairs = values / against[1] if measure.ratio else against[1] - values
            if len(known := pairs.dropna().to_numpy(float)):
                grid.setdefault(row, {})[heading] = _mean(known, measure._replace(digits=3))
    return grid


def _by_seed(study: Study, runs: pd.DataFrame) -> dict[str, dict[str, tuple[Measure, pd.Series]]]:
    """By row, by column: what is told there, and its value for each seed, at least one; nothing that a seed does not tell."""
    rows, keys = _values(runs, study.rows), [_values(runs, key) for key in study.columns]
    found: dict[str, dict[str, tuple[Measure, pd.Series]]] = {}
    within = [_values(runs, key) for key in study.within]
    for value, *inside in _places([rows, *within]):
        own = rows == value
        for column, wanted in zip(within, inside, strict=True):
            own &= column == wanted
        if not own.any():
            continue
        parts = [value, *(one for one in inside if one not in UNSAID)]
        row = found.setdefault(", ".join(WORDS.get(one) or value_text(one) for one in parts), {})
        for place in _places(keys):
            chosen = own.copy()
            for column, wanted in zip(keys, place, strict=True):
                chosen &= column == wanted
            words = [_word(key, wanted) for key, wanted in zip(study.columns, place, strict=True)]
            for measure in study.measures:
                several = [measure.heading] if len(study.measures) > 1 or not words else []
                _tell(row, ", ".join([*words, *several]), measure, runs[chosen])
        for measure in study.once:
            _tell(row, measure.heading, measure, runs[own])
    return found


def _tell(row: dict[str, tuple[Measure, pd.Series]], heading: str, measure: Measure, runs: pd.DataFrame) -> None:
    """What these runs say of a measure, the mean of each seed; a mean over the seeds that reached a target would flatter."""
    values = runs.groupby("seed")[measure.name].agg(lambda one: one.mean(skipna=False)).astype(float)
    if len(values) and values.notna().all():
        row[heading] = (measure, values * measure.scale)


def _places(keys: list[pd.Series]) -> list[tuple[Any, ...]]:
    """What stands beside each other: all combinations of the keys' values, one of nothing where there are no keys."""
    places: list[tuple[Any, ...]] = [()]
    for column in keys:
        places = [(*place, value) for place in places for value in _ordered(column)]
    return places


def _values(runs: pd.DataFrame, key: str) -> pd.Series:
    """(runs,) a key's values; a run without privacy has no epsilon, whatever its configuration says."""
    values = runs[f"config.{key}"]
    if key == "privacy.epsilon":
        return values.where(runs["config.privacy._target_"].map(target_name) != "none", math.inf).astype(float)
    return values.map(target_name) if key.endswith("_target_") else values


def _ordered(column: pd.Series) -> list[Any]:
    """Numbers by size, names in the order of WORDS."""
    values = [value for value in column.drop_duplicates() if not missing(value)]
    return sorted(values, key=lambda value: list(WORDS).index(value) if value in WORDS else value)


def _word(key: str, value: Any) -> str:
    """A value in a heading."""
    if key == "privacy.epsilon":
        return "no privacy" if value == math.inf else f"ε = {value:g}"
    return WORDS.get(value) or f"{label_of(key)} {value_text(value)}"


def _mean(values: np.ndarray, measure: Measure) -> Mean:
    if len(values) < 2:
        return Mean(float(values.mean()), None, measure.digits)
    half = 0.0 if measure.exact else float(half_width(values.std(ddof=1), len(values)))
    return Mean(float(values.mean()), half, measure.digits)


def markdown(study: Study, grid: Grid) -> str:
    """The table in Markdown; a dash where nothing was run."""
    headings = list(dict.fromkeys(heading for row in grid.values() for heading in row))
    lines = [f"| {label_of(study.rows)} | {' | '.join(headings)} |", "| --- |" + " --- |" * len(headings)]
    for name, row in grid.items():
        lines.append(f"| {name} | {' | '.join(str(row.get(heading, DASH)) for heading in headings)} |")
    return "\n".join(lines) + "\n"


def stated(readme: Path, size: str, what: str = "table") -> Grid:
    """What a study's README states at this size, read back from its table (or cost); empty where nothing is filled in."""
    marks = rf"<!-- {what} {size} -->\n(.*?)<!-- end of {what} {size} -->"
    block = re.search(marks, readme.read_text(encoding="utf-8"), re.DOTALL)
    if block is None:
        raise FedsimError(f"{readme} has no marks for a {what} of size={size}")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in block[1].splitlines() if line[:1] == "|"]
    return {
        name: {head: mean for head, cell in zip(lines[0][1:], cells, strict=True) if (mean := _parsed(cell))}
        for name, *cells in lines[2:]
    }


def _parsed(cell: str) -> Mean | None:
    found = re.fullmatch(r"(-?[\d.,]+) ± ([\d.]+)", cell)
    return Mean(float(found[1].replace(",", "")), float(found[2]), len(found[1].partition(".")[2])) if found else None
