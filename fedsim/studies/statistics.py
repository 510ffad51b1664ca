"""How sure a mean over seeds is, whether two settings differ, and which settings no other beats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
"""Of every interval: the share of repetitions of the whole study whose interval holds the true mean."""


class Comparison(NamedTuple):
    """Two settings compared seed by seed.

    difference: mean over seeds of first minus second. low, high: its interval by Student's t. p_t, p_wilcoxon: two-sided,
    as they are. n: seeds that both have. Everything but n and difference is NaN of fewer than two seeds.
    """

    n: int
    difference: float
    low: float
    high: float
    p_t: float
    p_wilcoxon: float


def half_width(std: Any, n: Any) -> Any:
    """Half of the interval of a mean by Student's t; NaN of fewer than two values.

    std, n: numbers or arrays (...): the sample's standard deviation (n - 1 below the fraction bar) and its size.
    """
    std, n = np.asarray(std, dtype=float), np.asarray(n, dtype=float)
    enough = n >= 2
    size = np.where(enough, n, 2.0)
    return np.where(enough, stats.t.ppf(0.5 + LEVEL / 2, size - 1) * std / np.sqrt(size), np.nan)


def paired(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> Comparison:
    """Compare two settings, (seeds,) each in the same order of seeds; a seed that one of them lacks (NaN) is left out.

    Differences that are all zero have p = 1; differences that are all the same and not zero have no p by t (NaN).
    """
    both = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    both = both[np.isfinite(both)]
    n = len(both)
    if n < 2:
        return Comparison(n, float(both.mean()) if n else math.nan, math.nan, math.nan, math.nan, math.nan)
    mean, half = float(both.mean()), float(half_width(both.std(ddof=1), n))
    if not both.any():
        return Comparison(n, 0.0, 0.0, 0.0, 1.0, 1.0)
    constant = np.ptp(both) == 0
    p_t = math.nan if constant else float(stats.ttest_1samp(both, 0.0).pvalue)
    return Comparison(n, mean, mean - half, mean + half, p_t, float(stats.wilcoxon(both).pvalue))


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's correction of a family of tests (m,): p-values that hold for all at once. One that is missing stays NaN.

    Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    p = np.asarray(p, dtype=float)
    corrected = np.full(len(p), np.nan)
    order = np.argsort(p, kind="stable")[: np.isfinite(p).sum()]  # NaN sorts last
    steps = p[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def pareto_front(points: np.ndarray, higher: Sequence[bool]) -> np.ndarray:
    """(points,) bool: those that no other point beats, that is, is at least as good in every measure and better in one.

    points: (points, measures); one with a missing measure is not on the front. higher: whether more of a measure is better.
    """
    cost = np.where(np.asarray(higher), -1.0, 1.0) * np.asarray(points, dtype=float)
    known = np.isfinite(cost).all(1)
    on_front = np.zeros(len(cost), dtype=bool)
    for index in np.flatnonzero(known):
        others = cost[known]
        on_front[index] = not ((others <= cost[index]).all(1) & (others < cost[index]).any(1)).any()
    return on_front
