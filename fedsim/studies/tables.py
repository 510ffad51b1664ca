"""The tables of a study's report, as text; and table.csv, as numbers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fedsim.results.files import read_json
from fedsim.results.formats import DASH, at_most, count_text, known, number_text, text
from fedsim.results.privacy_words import Promise
from fedsim.studies.comparisons import Tested, against_best, between_values
from fedsim.studies.names import Measure, target_name, value_text
from fedsim.studies.study import STATISTICS, Study
from fedsim.studies.varied import Axis
from fedsim.studies.words import cell_at, gap_text, p_text, plus_minus

MOST_ROWS = 200
"""Of a table in the report; table.csv has them all."""
MOST_TESTS = 40
MOST_CROSSED = 12


class Table(NamedTuple):
    """headings, rows: as text. strong: numbers of rows that stand out. words: what must be known to read it."""

    headings: list[str]
    rows: list[list[str]]
    strong: tuple[int, ...] = ()
    words: str = ""
    title: str = ""


def csv_of(study: Study) -> pd.DataFrame:
    """table.csv: a row a cell; the axes by their configuration keys, `seeds`, and MEASURE_STATISTIC, empty where unknown."""
    names = {f"{one.name}.{statistic}": f"{one.name}_{statistic}" for one in study.measures for statistic in STATISTICS}
    return study.cells[[*(axis.key for axis in study.axes), "seeds", *names]].rename(columns=names)


def cells_table(study: Study) -> Table:
    """Mean and interval of every measure in every cell."""
    shown = [one for one in study.measures if one.name != "macro_f1"]
    numbers = {one.name: [study.statistic(one, name) for name in ("mean", "low", "high")] for one in shown}
    cells = [int(cell) for cell in study.cells.index][:MOST_ROWS]
    rows = [
        [
            *(_value(study, cell, axis) for axis in study.axes),
            count_text(int(study.seeds[cell])),
            *(plus_minus(one, *(float(column[cell]) for column in numbers[one.name])) for one in shown),
        ]
        for cell in cells
    ]
    best = study.ranking()[:1]
    left_out = len(study.cells) - len(cells)
    words = f"{left_out:,} more rows are in table.csv." if left_out else ""
    return Table(
        [*(axis.label for axis in study.axes), "seeds", *(one.short for one in shown)], rows, tuple(best), words
    )


def _value(study: Study, cell: int, axis: Axis) -> str:
    value = study.value(cell, axis)
    return axis.absent or DASH if value is None else value_text(value)


def crossed(study: Study) -> Table | None:
    """Of a study of two axes: the measure by both, an interval in every place; a dash where nothing was run."""
    if len(study.axes) != 2 or any(len(axis.values) > MOST_CROSSED for axis in study.axes):
        return None
    down, across = study.axes
    mean, low, high = (study.statistic(study.measure, name) for name in ("mean", "low", "high"))

    def place(row: Any, column: Any) -> str:
        cell = cell_at(study, {down.key: row, across.key: column})
        return DASH if cell is None else plus_minus(study.measure, *(float(one[cell]) for one in (mean, low, high)))

    rows = [[down.phrase(row), *(place(row, column) for column in across.values)] for row in down.values]
    return Table(["", *(across.phrase(column) for column in across.values)], rows)


def tests_tables(study: Study) -> list[Table]:
    """Paired tests between the values of each axis of names, and of every cell against the best."""
    if len(study.cells) < 2:
        return []
    found = []
    for axis in study.categorical:
        tests = between_values(study, axis)
        averaged = (
            "; each seed counts once, by its mean difference over what else varied" if len(study.axes) > 1 else ""
        )
        names = [(axis.phrase(one.first), axis.phrase(one.second)) for one in tests]
        found.append(
            _tests(study.measure, tests, names, f"Between values of {axis.label}", f"Paired by seed{averaged}.")
        )
    tests = against_best(study)
    names = [(study.label(one.first), study.label(one.second)) for one in tests]
    words = "Paired by seed. The best was picked by these same runs, so its lead is likelier too large than too small."
    return [*found, _tests(study.measure, tests, names, "The best cell against every other", words)] if tests else found


def _tests(measure: Measure, tests: list[Tested], names: list[tuple[str, str]], title: str, words: str) -> Table:
    rows = [
        [*pair, count_text(one.found.n), gap_text(measure, one, sign=True), p_text(one.p_t), p_text(one.p_wilcoxon)]
        for one, pair in zip(tests, names, strict=True)
    ]
    more = (
        f" The first {MOST_TESTS} of {len(rows)} are shown; p-values are corrected for all."
        if len(rows) > MOST_TESTS
        else ""
    )
    settled = tuple(number for number, one in enumerate(tests[:MOST_TESTS]) if one.settled)
    headings = ["first", "second", "seeds", "first minus second", "p, t-test", "p, Wilcoxon"]
    return Table(headings, rows[:MOST_TESTS], settled, words + more, title)


def ledger_table(study: Study) -> Table | None:
    """What each cell promises, by its first run's privacy.json; None where no run has a mechanism."""
    largest = study.runs.groupby("cell")["epsilon"].max() if "epsilon" in study.runs else pd.Series(dtype=float)
    cells = [int(cell) for cell in study.cells.index][:MOST_ROWS]
    ledgers = [_ledger(study.folder(cell)) for cell in cells]
    if all((ledger or {}).get("mechanism") in (None, "none") for ledger, _ in ledgers):
        return None
    rows = [
        [study.label(cell), *_promise(ledger, audit, float(largest.get(cell, np.nan)))]
        for cell, (ledger, audit) in zip(cells, ledgers, strict=True)
    ]
    headings = ["", "mechanism", "hides one", "adjacency", "noise multiplier", "δ", "ε", "ε by accountant"]
    words = "Of the first run of each cell; ε is the largest of its runs. An ε is rounded up."
    if any((ledger or {}).get("generator", "").startswith("seeded") for ledger, _ in ledgers):
        words += " Noise drawn from a run's seed is for research: who knows the seed can subtract it."
    return Table(headings, rows, (), words)


def _ledger(folder: Path) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """privacy.json and audit.json of a run, None and {} where they are not there."""
    found = []
    for name in ("privacy.json", "audit.json"):
        value = read_json(folder / name, "the study") if (folder / name).is_file() else None
        found.append(value if isinstance(value, dict) else None)
    return found[0], found[1] or {}


def _promise(ledger: dict[str, Any] | None, audit: dict[str, Any], largest: float) -> list[str]:
    if ledger is None:
        return [DASH] * 7
    if ledger.get("mechanism") == "none":
        return ["none", *[DASH] * 6]
    promise = Promise(ledger, audit)
    stated = {"refuted": "refuted by the audit", "removed": "none: noise left out"}.get(promise.standing)
    epsilon = stated or at_most(largest if known(largest) else ledger.get("epsilon"))
    by = ledger.get("epsilon_by") or {}
    accountants = ", ".join(f"{name.upper()} {at_most(value)}" for name, value in by.items() if known(value))
    return [
        text(ledger.get("mechanism")),
        text(ledger.get("unit")),
        text(ledger.get("adjacency")),
        number_text(ledger.get("noise_multiplier")),
        at_most(ledger.get("delta")),
        epsilon,
        accountants or text(ledger.get("accountant")),
    ]


def differences(study: Study) -> Table:
    """Which keys of the configuration differ between runs, and how."""
    rows = [[axis.key, _few(map(value_text, axis.values)), ", ".join(axis.follows) or DASH] for axis in study.axes]
    for key, values in sorted(study.varied.ignored.items()):
        shown = (target_name(str(value)) if key.endswith("_target_") else value_text(value) for value in values)
        rows.append([key, _few(shown), "taken to change no result"])
    return Table(["key", "values", "and with it"], rows)


def _few(values: Iterable[str], most: int = 12) -> str:
    shown = list(values)
    return ", ".join(shown[:most]) + (f", … ({len(shown)} in all)" if len(shown) > most else "")


MACHINE = {
    "Device": "device",
    "Processor": "host.cpu",
    "Cores": "host.cores",
    "Memory, GB": "host.memory_gb",
    "System": "host.system",
}


def machine_table(study: Study) -> Table:
    """Where the runs were made, and with which versions; several where runs differ."""
    runs = study.tables.runs
    rows = [[name, _distinct(runs, column)] for name, column in MACHINE.items()]
    versions = [name for name in runs.columns if name.startswith("versions.")]
    return Table([], rows + [[name.removeprefix("versions."), _distinct(runs, name)] for name in versions])


def _distinct(runs: pd.DataFrame, column: str) -> str:
    if column not in runs:
        return DASH
    values = list(dict.fromkeys(value_text(value) for value in runs[column].dropna()))
    return _few(sorted(values), 6) or DASH


def shared_config(study: Study) -> str:
    """The keys that are the same in all runs, a line each."""
    return "\n".join(
        f"{key}: {value_text(value)}" for key, value in sorted(study.varied.shared.items()) if key != "seed"
    )


def client_words(study: Study) -> str | None:
    """How unequal clients fare in the best cell; None where nothing was measured on them."""
    names = {one.name: one for one in study.measures}
    ranking = study.ranking()
    if "federated.accuracy_worst10" not in names or not ranking:
        return None
    best = ranking[0]
    shown = [
        plus_minus(names[name], *(float(study.statistic(names[name], one)[best]) for one in ("mean", "low", "high")))
        for name in ("federated.accuracy_mean", "federated.accuracy_worst10", "federated.accuracy_std")
        if name in names
    ]
    if len(shown) < 3 or DASH in shown:
        return None
    return (
        f"On their own held-out rows the clients of {study.label(best)} average {shown[0]} accuracy, the worst 10% of them "
        f"{shown[1]}; the standard deviation over clients is {shown[2]}."
    )
