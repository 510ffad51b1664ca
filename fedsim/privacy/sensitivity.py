"""How far one client can move what a matrix mechanism releases: the noise of correlated rounds is measured against this.

The mechanism releases C x + noise, x the sum of updates by round. A client that takes part in the rounds of a pattern p, each
time with an update of norm 1 or less, moves it by at most the root of sum |(C^T C)[i, j]| over i, j in p.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csc_array

COLUMNS = 256  # of the Gram matrix at a time, so that thousands of rounds fit in memory


def most_participations(rounds: int, separation: int) -> int:
    """How often a client can take part at all in `rounds` rounds, `separation` apart (1: in each)."""
    return -(-rounds // separation)


def sensitivities(matrix: csc_array, participations: int, separation: int) -> np.ndarray:
    """(participations,) the most that a client moves C x by taking part at most 1, 2, ... times, `separation` rounds apart.

    matrix: C, (rounds, rounds). Every update's norm is at most 1. Exact where such columns are orthogonal; else an upper
    bound, which lets each column choose its own worst companions (2306.08153, Algorithm 4): where no column could choose
    better than the worst pattern does, it is exact too.
    """
    rounds = matrix.shape[1]
    weights = np.empty((participations, rounds))
    for start in range(0, rounds, COLUMNS):
        gram = abs(matrix.T @ matrix[:, start : start + COLUMNS]).toarray()  # (rounds, columns)
        mine = np.arange(start, start + gram.shape[1])
        weights[:, mine] = gram[mine, np.arange(len(mine))]
        gram[abs(np.arange(rounds)[:, None] - mine) < separation] = 0
        if participations > 1 and gram.any():
            weights[1:, mine] += heaviest(gram, participations - 1, separation)
    distinct, which = np.unique(weights, axis=0, return_inverse=True)  # in a band there is room for few companions
    squares = heaviest(distinct.T, participations, separation)
    return np.sqrt(squares[np.arange(participations), which])


def heaviest(values: np.ndarray, most: int, separation: int) -> np.ndarray:
    """(most, ...) the largest sum of at most 1, 2, ... of the rounds' values, `separation` apart, by dynamic programming.

    values: (rounds, ...), not negative.
    """
    sums = np.empty((most, *values.shape[1:]))
    best = np.zeros_like(values)  # best[t]: among the rounds up to t
    for m in range(most):
        before = np.zeros_like(values)
        before[separation:] = best[:-separation]
        last, best = best, np.maximum.accumulate(values + before, axis=0)
        sums[m:] = best[-1]
        if np.array_equal(best, last):
            break  # there is no room for more
    return sums
