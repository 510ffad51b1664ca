"""Train and test rows of data that come without a split of their own: by class, by time, or by user.

Every function returns two sorted int64 arrays of row numbers, train then test, which share no row and miss none. They
depend on the arguments alone, so the same file gives the same split on every machine.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from fedsim.checks import require_number
from fedsim.rng import SERVER, numpy_generator
from fedsim.types import FedsimError

Split: TypeAlias = tuple[np.ndarray, np.ndarray]


def stratified_split(y: np.ndarray, test_share: float, seed: int = 0, name: str = "") -> Split:
    """A random share of each class, so that train and test hold the classes in the same proportions.

    y: (n,) labels of any sortable type. The test rows are round(n * test_share) in all, shared over the classes by
    largest remainder; the last row of a class always stays in train.

    name: of a dataset that has its own fixed draw, so that every run and every paper tests on the same rows.
    """
    _check_share(test_share)
    y = np.asarray(y)
    _, label, counts = np.unique(y, return_inverse=True, return_counts=True)
    by_class = np.split(np.argsort(label, kind="stable"), np.cumsum(counts)[:-1])
    rng = numpy_generator(seed, 0, SERVER, f"split/{name}" if name else "split")
    is_test = np.zeros(len(y), dtype=bool)
    for rows, size in zip(by_class, _largest_remainders(counts, test_share), strict=True):
        is_test[rng.permutation(rows)[:size]] = True
    return _whole(np.arange(len(y)), is_test, len(y))


def random_split(n: int, test_share: float, seed: int) -> Split:
    """A random share of n rows: for targets that are not classes."""
    _check_share(test_share)
    order = numpy_generator(seed, 0, SERVER, "split").permutation(n)
    return _whole(order, np.arange(n) < round(n * test_share), n)


def time_split(time: np.ndarray, test_share: float) -> Split:
    """The newest rows are the test: at least the share of them, and no moment is on both sides.

    time: (n,) any sortable type. Rows of the moment at the border go to test, or to train where test would take all.
    """
    _check_share(test_share)
    time = np.asarray(time)
    moments, step, counts = np.unique(time, return_inverse=True, return_counts=True)
    wanted = max(1, round(len(time) * test_share))
    newest_first = np.cumsum(counts[::-1])
    taken = min(int(np.searchsorted(newest_first, wanted)) + 1, len(moments) - 1)
    return _whole(np.arange(len(time)), step >= len(moments) - taken, len(time))


def user_split(user: np.ndarray, test_share: float, seed: int) -> Split:
    """A random share of the users is the test, with all their rows: how the model does for people it never saw.

    user: (n,) any sortable type. round(users * test_share) users are drawn, at least one.
    """
    _check_share(test_share)
    users, index = np.unique(np.asarray(user), return_inverse=True)
    drawn = numpy_generator(seed, 0, SERVER, "split").permutation(len(users))[: max(1, round(len(users) * test_share))]
    return _whole(np.arange(len(index)), np.isin(index, drawn), len(index))


def _check_share(test_share: float) -> None:
    require_number("dataset.test_share", test_share, above=0, below=1)


def _largest_remainders(counts: np.ndarray, share: float) -> np.ndarray:
    """How many rows of each class (k,) make up round(n * share), never all rows of a class."""
    ideal = counts * share
    sizes = np.floor(ideal).astype(np.int64)
    missing = round(float(ideal.sum())) - int(sizes.sum())
    by_remainder = np.argsort(sizes - ideal, kind="stable")
    by_remainder = by_remainder[(sizes < counts - 1)[by_remainder]]  # a class's last row is not for the test
    sizes[by_remainder[:missing]] += 1
    return sizes


def _whole(rows: np.ndarray, is_test: np.ndarray, n: int) -> Split:
    train, test = np.sort(rows[~is_test]), np.sort(rows[is_test])
    if len(train) == 0 or len(test) == 0:
        raise FedsimError(
            f"{n} rows cannot be split into train and test this way (it leaves {len(train)} and {len(test)}); "
            "give more rows, another dataset.test_share, or another way to split"
        )
    return train.astype(np.int64), test.astype(np.int64)
