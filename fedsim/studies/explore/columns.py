"""The columns that a page over many runs offers: settings that differ, and figures. What is missing stays missing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim.results.loggers import without_credentials
from fedsim.studies.names import FIRST, target_name

if TYPE_CHECKING:
    import pandas as pd

CONFIG = "config."
TARGET = "._target_"
NAMES = ("experiment", "dataset.name", "partition", "model", "strategy", "seed")
"""Of summary.json, what is a choice of the user's rather than a figure."""

MAIN = (
    *("accuracy", "loss", "best_accuracy", "macro_f1", "ece", "epsilon", "delta", "noise_multiplier"),
    *("federated.accuracy_mean", "federated.accuracy_worst10", "bytes_up", "bytes_down", "seconds"),
    *("simulated_seconds", "joules", "grams_co2", "client_rounds_per_second", "peak_memory_mb"),
    *("num_clients", "rounds"),
)
"""Figures in the order in which they are offered; all others follow by name."""

IDLE_SETTINGS = ("hydra", "resume", "resume_rounds", "dry_run", "baselines", "checkpoint", "logger", "name", "size")
"""Keys of the configuration that change no result; loggers' may also hold what is nobody else's business."""

IDLE_FIGURES = ("versions", "host", "config", "command", "run", "execution", "rounds_asked")
LONGEST = 120


class Column(NamedTuple):
    """key: unique. label: what a reader sees. role: setting | figure. values: a run each, float, int, str or None (missing)."""

    key: str
    label: str
    role: str
    values: list[Any]

    @property
    def numeric(self) -> bool:
        return not any(isinstance(value, str) for value in self.values)


def columns_of(runs: pd.DataFrame) -> list[Column]:
    """Settings that differ between the runs, then figures, of a table with a row a run (see `results.store`)."""
    table = {str(name): _clean(runs[name]) for name in runs.columns}
    targets = {name: values for name, values in table.items() if name.endswith(TARGET)}
    settings = [
        Column(name, _label(name), "setting", values)
        for name, values in table.items()
        if name.startswith(CONFIG)
        and name.split(".")[1] not in IDLE_SETTINGS
        and _differs(values, targets.get(f"{name.rpartition('.')[0]}{TARGET}"))
    ]
    names = [Column(name, name, "setting", table[name]) for name in NAMES if _differs(table.get(name, []))]
    chosen = [*names, *sorted(_without_echoes(settings, names), key=_rank)]
    chosen.sort(key=lambda column: column.label == "seed")  # last: what settings are measured against
    figures = [Column(name, name, "figure", values) for name, values in _figures(table)]
    return _unlike(chosen, figures)


def _clean(values: pd.Series) -> list[Any]:
    """Whole numbers, floats and strings of one column; None where there is nothing, or nothing finite."""
    cleaned = [_plain(value) for value in values.tolist()]
    if any(isinstance(value, str) for value in cleaned):
        return [value if value is None or isinstance(value, str) else f"{value:g}" for value in cleaned]
    return cleaned


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        if not math.isfinite(value):
            return None
        return int(value) if float(value).is_integer() and abs(value) < 2**53 else float(value)
    if isinstance(value, list | dict):
        value = json.dumps(value)
    if value is None or not isinstance(value, str):  # pandas' own marks of what is missing
        return None
    text = without_credentials(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _differs(values: Sequence[Any], target: Sequence[Any] | None = None) -> bool:
    """Whether runs have several values, or some none while the same part is chosen: a part that has no such key is no setting."""
    known = {value for value in values if value is not None}
    if len(known) > 1:
        return True
    same_part = target is None or len(set(target)) == 1
    return bool(known) and same_part and None in values


def _label(name: str) -> str:
    return name.removeprefix(CONFIG).removesuffix(TARGET)


def _rank(column: Column) -> tuple[int, str]:
    """As studies tell of them."""
    key = column.key.removeprefix(CONFIG)
    return (FIRST.index(key) if key in FIRST else len(FIRST)), key


def _without_echoes(settings: list[Column], names: list[Column]) -> Iterator[Column]:
    """Leave out what says the same as a name: a part's `_target_`, the seed."""
    for column in settings:
        echoes = [name for name in names if name.key in (column.label, f"{column.label}.name")]
        if any(_splits(column.values) == _splits(name.values) for name in echoes):
            continue
        if column.key.endswith(TARGET):
            column = column._replace(values=[value and target_name(value) for value in column.values])
        yield column


def _splits(values: Sequence[Any]) -> list[int]:
    """Which runs have equal values, whatever they are called."""
    numbers: dict[Any, int] = {}
    return [numbers.setdefault(value, len(numbers)) for value in values]


def _figures(table: dict[str, list[Any]]) -> Iterator[tuple[str, list[Any]]]:
    rank = {name: place for place, name in enumerate(MAIN)}
    for name in sorted(table, key=lambda name: (rank.get(name, len(rank)), name)):
        values = table[name]
        if name.split(".")[0] in IDLE_FIGURES or name in NAMES or any(isinstance(value, str) for value in values):
            continue
        known = {value for value in values if value is not None}
        if len(known) > 1 or (known and name in rank):
            yield name, values


def _unlike(settings: list[Column], figures: list[Column]) -> list[Column]:
    """A figure that repeats a setting (rounds that were asked and run) goes; of two alike in name, the setting tells its file."""
    by_label = {column.label: column for column in settings}
    figures = [one for one in figures if one.label not in by_label or by_label[one.label].values != one.values]
    taken = {column.label for column in figures} | {name.label for name in settings if not name.key.startswith(CONFIG)}
    told = [one._replace(label=one.key) if one.label in taken and one.key != one.label else one for one in settings]
    return [*told, *figures]
