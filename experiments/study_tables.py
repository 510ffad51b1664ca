"""The ready studies, and the tables of what their sweeps found."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedsim.results.formats import DASH
from fedsim.results.store import read
from fedsim.studies.names import label_of, missing, target_name, value_text
from fedsim.studies.statistics import half_width
from fedsim.studies.varied import axes_of
from fedsim.types import FedsimError

if TYPE_CHECKING:
    import pandas as pd

SIZES = ("small", "full")


class Measure(NamedTuple):
    """What a table tells. name: of the runs' table. scale: what is shown is so many times that. exact: seeds hardly differ."""

    name: str
    heading: str
    digits: int = 3
    scale: float = 1.0
    exact: bool = False


ACCURACY = Measure("accuracy", "test accuracy")
WORST = Measure("federated.accuracy_worst10", "clients' worst tenth")
SENT = Measure("bytes_up", "MB sent by clients", 1, 1e-6, exact=True)


class Study(NamedTuple):
    """A ready study.

    experiments: of conf/experiment/. rows, columns: configuration keys that the table is laid out by, several beside each
    other in one heading. figures: of its report, that are kept; `table` is its table drawn. also: further keys in which its
    runs may differ.
    reference: the heading that all others are compared with.
    """

    experiments: tuple[str, ...]
    rows: str
    columns: tuple[str, ...]
    figures: tuple[str, ...]
    measures: tuple[Measure, ...] = (ACCURACY,)
    also: tuple[str, ...] = ()
    reference: str = ""


STUDIES = {
    "client_scaling": Study(
        ("client_scaling", "client_scaling_per_client"), "population.num_clients", ("name",), ("accuracy_vs_clients",)
    ),
    "privacy_vs_clients": Study(
        ("privacy_vs_clients",),
        "population.num_clients",
        ("privacy.epsilon",),
        ("pareto_accuracy_epsilon", "accuracy_vs_clients"),
        also=("privacy._target_",),
        reference="no privacy",
    ),
    "heterogeneity": Study(("heterogeneity",), "partition.alpha", ("strategy._target_", "client.lr"), ("table",)),
    "participation": Study(
        ("participation",),
        "sampler.cohort_size",
        (),
        ("accuracy_vs_cohort_size", "pareto_accuracy_bytes"),
        (ACCURACY, WORST, SENT),
    ),
    "label_noise": Study(
        ("label_noise",),
        "corruption.label_noise",
        ("strategy._target_", "client.epochs"),
        ("table",),
    ),
}
WORDS = {
    "client_scaling": "the same data over all",
    "client_scaling_per_client": "as much data each",
    "fedavg": "FedAvg",
    "fedavgm": "FedAvgM",
    "fedmedian": "median",
}
"""What values are called."""


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
    runs = read(folders).runs
    if "config.size" not in runs:
        return None
    runs = runs[(runs["config.size"] == size) & runs["experiment"].isin(study.experiments)].reset_index(drop=True)
    if runs.empty:
        return None
    allowed = {study.rows, *study.columns, *study.also}
    if strange := [axis.key for axis in axes_of(runs).axes if axis.key not in allowed]:
        raise FedsimError(
            f"runs in {', '.join(map(str, folders))} differ in {', '.join(strange)} too, in which the study does not; "
            "move those of another question elsewhere, or name another folder with --sweeps"
        )
    return runs


def grid_of(study: Study, runs: pd.DataFrame) -> Grid:
    """The table's figures."""
    return {
        row: {heading: _mean(values.to_numpy(float), measure) for heading, (measure, values) in of_row.items()}
        for row, of_row in _by_seed(study, runs).items()
    }


def costs_of(study: Study, runs: pd.DataFrame) -> Grid:
    """How much less than the reference each column has, seed by seed; nothing where a study has none, or it was not run."""
    grid: Grid = {}
    for row, of_row in _by_seed(study, runs).items():
        if study.reference not in of_row:
            continue
        _, reference = of_row.pop(study.reference)
        for heading, (measure, values) in of_row.items():
            if len(less := (reference - values).dropna().to_numpy(float)):
                grid.setdefault(row, {})[heading] = _mean(less, measure)
    return grid


def _by_seed(study: Study, runs: pd.DataFrame) -> dict[str, dict[str, tuple[Measure, pd.Series]]]:
    """By row, by column: what is told there, and its value for each seed, at least one."""
    keys = [_values(runs, key) for key in study.columns]
    found: dict[str, dict[str, tuple[Measure, pd.Series]]] = {}
    for value in _ordered(runs[f"config.{study.rows}"]):
        row = found.setdefault(value_text(value), {})
        for place in _places(keys):
            chosen = runs[f"config.{study.rows}"] == value
            for column, wanted in zip(keys, place, strict=True):
                chosen &= column == wanted
            words = [_word(key, wanted) for key, wanted in zip(study.columns, place, strict=True)]
            for measure in study.measures:
                values = runs.loc[chosen].groupby("seed")[measure.name].mean().dropna().astype(float)
                if len(values):
                    row[", ".join(words) or measure.heading] = (measure, values * measure.scale)
    return found


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


def stated(readme: Path, size: str) -> Grid:
    """What a study's README states at this size, read back from its table; empty where nothing is filled in."""
    block = re.search(
        rf"<!-- table {size} -->\n(.*?)<!-- end of table {size} -->", readme.read_text(encoding="utf-8"), re.DOTALL
    )
    if block is None:
        raise FedsimError(f"{readme} has no marks for a table of size={size}")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in block[1].splitlines() if line[:1] == "|"]
    return {
        name: {head: mean for head, cell in zip(lines[0][1:], cells, strict=True) if (mean := _parsed(cell))}
        for name, *cells in lines[2:]
    }


def _parsed(cell: str) -> Mean | None:
    found = re.fullmatch(r"([\d.,]+) ± ([\d.]+)", cell)
    return Mean(float(found[1].replace(",", "")), float(found[2]), len(found[1].partition(".")[2])) if found else None
