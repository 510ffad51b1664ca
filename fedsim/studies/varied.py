"""Which configuration keys differ between runs: the axes of a study. The seed is none: it is what axes are measured against."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fedsim.studies.names import FIRST, label_of, missing, target_name, value_text

PREFIX = "config."
NO_AXIS = {"seed", "resume", "resume_rounds", "dry_run", "baselines", "device", "size"}
NO_AXIS_GROUPS = {"grid", "logger", "checkpoint", "hydra", "evaluation", "pairs", "objectives"}
"""Keys that change where and how a run is computed or told of, and not what it learns."""
ABSENT = "\N{EMPTY SET}"


@dataclass(frozen=True)
class Axis:
    """A configuration key that the runs differ in.

    key: as users type it. values: in order, those of runs without one (None) last. numeric: whether all of them are numbers.
    follows: keys that differ too, but always in the same way as this axis (and others together) does. absent: what runs
    without a value are called.
    """

    key: str
    values: tuple[Any, ...]
    numeric: bool
    follows: tuple[str, ...] = ()
    absent: str = ""

    @property
    def label(self) -> str:
        """The key in words."""
        return label_of(self.key)

    @property
    def known(self) -> tuple[Any, ...]:
        """The values without that of runs which have none."""
        return tuple(value for value in self.values if not missing(value))

    def phrase(self, value: Any) -> str:
        """A value with what it is a value of: `1,000 clients`, `ε = 2`, `fedadam`."""
        text = value_text(value)
        if missing(value):
            return self.absent or f"no {self.label}"
        if self.key == "population.num_clients":
            return f"{text} client" if value == 1 else f"{text} clients"
        if self.key == "name" or self.key.endswith("_target_"):
            return text
        equals = "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}"  # so that no line ends within
        return f"{self.label}{equals}{text}" if self.numeric else f"{self.label}: {text}"


class Varied(NamedTuple):
    """axes: in the order of telling. ignored: keys that differ and are no axis. shared: the values of all others."""

    axes: tuple[Axis, ...]
    ignored: dict[str, tuple[Any, ...]]
    shared: dict[str, Any]


def axes_of(runs: pd.DataFrame) -> Varied:
    """The axes of runs (a row a run), from their `config.KEY` columns.

    A key that is constant wherever another axis is constant follows that axis: learning rates of strategies follow the
    strategy, the second key of a zipped sweep follows the first. With one run a value nothing tells a follower from an axis of
    its own, so then it counts as one, unless its part of the configuration was exchanged as a whole.
    """
    runs = without_idle(runs)
    columns = {name.removeprefix(PREFIX): name for name in runs.columns if name.startswith(PREFIX)}
    codes = {key: _codes(runs[name]) for key, name in columns.items()}
    differing = [key for key, code in codes.items() if code.max(initial=0) > 0]
    shared = {key: runs[columns[key]].iloc[0] for key in columns if key not in differing} if len(runs) else {}
    wanted = sorted((key for key in differing if not _is_no_axis(key)), key=_rank)
    chosen: dict[str, list[str]] = {}
    for key in wanted:
        leader = _leader(key, list(chosen), codes)
        if leader is None:
            chosen[key] = []
        else:
            chosen[leader].append(key)
    absent = {key: _exchange(chosen, key, runs, columns) for key in list(chosen)}
    axes = tuple(_axis(key, runs[columns[key]], follows, absent.get(key) or "") for key, follows in chosen.items())
    ignored = {key: tuple(_distinct(runs[columns[key]])) for key in differing if _is_no_axis(key) and key != "seed"}
    return Varied(axes, ignored, shared)


def readable(key: str, column: pd.Series) -> pd.Series:
    """The values of a key as a study shows them: numbers where all are, names of what a `_target_` names."""
    known = column[~column.map(missing)]
    if key.endswith("_target_"):
        return column.map(lambda value: None if missing(value) else target_name(str(value)))
    if len(known) and all(_is_number(value) for value in known):
        return pd.to_numeric(column, errors="coerce").astype(float)
    return column.map(lambda value: None if missing(value) else value if isinstance(value, bool) else str(value))


def without_idle(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with the keys of `privacy` missing where no mechanism reads them: privacy=none has no epsilon."""
    if (target := f"{PREFIX}privacy._target_") not in runs:
        return runs
    none = runs[target].map(lambda value: not missing(value) and target_name(str(value)) == "none")
    idle = [name for name in runs.columns if name.startswith(f"{PREFIX}privacy.") and name != target]
    return runs.assign(**{name: runs[name].where(~none) for name in idle}) if none.any() and idle else runs


def _exchange(chosen: dict[str, list[str]], key: str, runs: pd.DataFrame, columns: dict[str, str]) -> str | None:
    """Where a part was exchanged for one without `key`, and that is all that its `_target_` tells, let it follow `key`.

    Gives what runs without the key are called: `no privacy`, `iid`.
    """
    target = f"{key.split('.')[0]}._target_"
    if key not in chosen or key == target or target not in chosen:
        return None
    none = runs[columns[key]].map(missing)
    names = readable(target, runs[columns[target]])
    if (
        not none.any()
        or names[none].nunique() != 1
        or names[~none].nunique() != 1
        or set(names[none]) & set(names[~none])
    ):
        return None
    chosen[key] += [target, *chosen.pop(target)]
    name = str(names[none].iloc[0])
    return f"no {key.split('.')[0]}" if name == "none" else name


def _axis(key: str, column: pd.Series, follows: Iterable[str], absent: str) -> Axis:
    values = readable(key, column)
    known = [value for value in _distinct(values) if not missing(value)]
    numeric = all(_is_number(value) for value in known)
    ordered = sorted(known) if numeric else known
    return Axis(
        key, (*ordered, *([None] if len(known) < len(_distinct(values)) else [])), numeric, tuple(follows), absent
    )


def _leader(key: str, chosen: list[str], codes: dict[str, np.ndarray]) -> str | None:
    """The axis that `key` follows, or None where it is an axis of its own."""
    for group in (
        "name",
        f"{key.split('.')[0]}._target_",
    ):  # exchanged as a whole: an experiment, a part of a configuration
        if group in chosen and _depends(codes[key], [codes[group]]):
            return group
    for one in chosen:
        if _repeats([codes[one]]) and _depends(codes[key], [codes[one]]):
            return one
    together = [codes[one] for one in chosen]
    return chosen[-1] if len(chosen) > 1 and _repeats(together) and _depends(codes[key], together) else None


def _depends(code: np.ndarray, on: list[np.ndarray]) -> bool:
    """Whether `code` (runs,) is constant wherever all of `on` are."""
    return _combinations([*on, code]) == _combinations(on)


def _repeats(codes: list[np.ndarray]) -> bool:
    """Whether there are at least two runs to a combination of values."""
    return 2 * _combinations(codes) <= len(codes[0])


def _combinations(codes: list[np.ndarray]) -> int:
    return len(np.unique(np.stack(codes, 1), axis=0))


def _codes(column: pd.Series) -> np.ndarray:
    """(runs,) which of its distinct values each run has; a missing one is a value of its own."""
    text = column.map(
        lambda value: ABSENT if missing(value) else f"{float(value)!r}" if _is_number(value) else str(value)
    )
    return pd.factorize(text)[0]


def _distinct(column: pd.Series) -> list[Any]:
    return [None if missing(value) else value for value in column.drop_duplicates()]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool | np.bool_)


def _is_no_axis(key: str) -> bool:
    return key in NO_AXIS or key.split(".")[0] in NO_AXIS_GROUPS


def _rank(key: str) -> tuple[int, str]:
    return (FIRST.index(key), "") if key in FIRST else (len(FIRST) - key.endswith("_target_"), key)
