"""Paired tests by seed: between the values of an axis, and of every cell against the best."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fedsim.studies.names import missing
from fedsim.studies.statistics import Comparison, holm, paired
from fedsim.studies.study import Study
from fedsim.studies.varied import Axis

MOST_VALUES = 12
"""Of an axis; of more, the pairs would be too many to correct for, and the first ones are compared."""
SURE = 0.05


class Tested(NamedTuple):
    """A comparison within its family of tests.

    first, second: what is compared: values of an axis, or numbers of cells. p_t, p_wilcoxon: by Holm's correction.
    """

    first: Any
    second: Any
    found: Comparison
    p_t: float
    p_wilcoxon: float

    @property
    def settled(self) -> bool:
        """Whether the corrected t-test tells the two apart."""
        return bool(self.p_t < SURE)


def between_values(study: Study, axis: Axis) -> list[Tested]:
    """All pairs of an axis' values. Seeds are what is independent, so each seed counts once: by the mean of its differences
    over the combinations of the other axes that both values have."""
    names = [one.key for one in study.axes if one is not axis]
    table = _wide(study, names, axis.key)
    values = [value for value in axis.values if _name(value) in table.columns][:MOST_VALUES]
    pairs = list(combinations(values, 2))
    return _family(pairs, [_over_seeds(table[_name(a)] - table[_name(b)]) for a, b in pairs])


def against_best(study: Study) -> list[Tested]:
    """Every cell against the one with the best mean, in the order of the ranking: best minus the other, by their common seeds."""
    ranking = study.ranking()
    if len(ranking) < 2:
        return []
    table = study.by_seed[study.measure.name].unstack("cell")
    best, *others = ranking
    return _family(
        [(best, cell) for cell in others], [paired(table[best].to_numpy(), table[cell].to_numpy()) for cell in others]
    )


def extremes(study: Study, axis: Axis) -> Tested | None:
    """The largest value of a numeric axis minus the smallest, as in `between_values`."""
    if len(axis.known) < 2:
        return None
    low, high = axis.known[0], axis.known[-1]
    table = _wide(study, [one.key for one in study.axes if one is not axis], axis.key)
    if not {_name(low), _name(high)} <= set(table.columns):
        return None
    return _family([(high, low)], [_over_seeds(table[_name(high)] - table[_name(low)])])[0]


def _wide(study: Study, others: list[str], key: str) -> pd.DataFrame:
    """(seed and values of the other axes) x (values of an axis): the study's measure."""
    keys = study.cells[[*others, key]].map(_name)
    long = study.by_seed[[study.measure.name]].reset_index().join(keys, on="cell")
    return long.pivot_table(index=["seed", *others], columns=key, values=study.measure.name, aggfunc="mean")


def _over_seeds(differences: pd.Series) -> Comparison:
    by_seed = differences.dropna().groupby(level="seed").mean().to_numpy()
    return paired(by_seed, np.zeros(len(by_seed)))


def _family(pairs: Sequence[tuple[Any, Any]], found: Sequence[Comparison]) -> list[Tested]:
    t, wilcoxon = holm([one.p_t for one in found]), holm([one.p_wilcoxon for one in found])
    rows = zip(pairs, found, t, wilcoxon, strict=True)
    return [Tested(*pair, one, float(p), float(q)) for pair, one, p, q in rows]


def _name(value: Any) -> str:
    """A value that can name a column, whatever its type."""
    return "" if missing(value) else repr(float(value)) if isinstance(value, int | float) else str(value)
