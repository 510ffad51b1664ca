"""The order in which a client's rows come: by chance, by time, or by a distribution of classes that moves."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from fedsim.fleet.draws import uniforms
from fedsim.types import FedsimError

PURPOSE = "stream order"


def require_time(time: np.ndarray | None, dataset: str) -> np.ndarray:
    """The dataset's time (n,), where there is one and all of it is there."""
    if time is None:
        raise FedsimError(f"the rows of dataset {dataset} have no time to come by; set streams.order=random")
    if (np.isnat(time) if time.dtype.kind in "mM" else np.isnan(time)).any():
        raise FedsimError(
            f"some rows of dataset {dataset} have no time (NaN), so that no order follows; drop them, or set streams.order=random"
        )
    return time


def by_time(time: np.ndarray) -> np.ndarray:
    """(n,) places of a client's rows in the order of their time (n,); ties, and time that stands still, in the rows' own order."""
    return np.argsort(time, kind="stable")


def at_random(seed: int, client: int, rows: int) -> np.ndarray:
    """(rows,) places of a client's rows, each order alike likely."""
    return np.argsort(uniforms(seed, PURPOSE, np.full(rows, client), np.arange(rows)), kind="stable")


def backwards(time: np.ndarray, offsets: np.ndarray) -> int:
    """How many rows have a smaller time than the row before them of the same client, as the dataset has them.

    time: (n,) of all clients' rows, client after client. offsets: (num_clients + 1,) where each client's begin.
    """
    falls = np.zeros(len(time), bool)
    falls[1:] = time[1:] < time[:-1]
    inner = offsets[(offsets > 0) & (offsets < len(time))]
    falls[inner] = False
    return int(falls.sum())


def by_weight(
    seed: int,
    client: int,
    labels: np.ndarray,
    course: np.ndarray,
    amounts: np.ndarray,
    weights: Callable[[float], np.ndarray],
    *,
    again: bool,
) -> np.ndarray:
    """(course[-1],) places of a client's rows in the order in which they come, each drawn by the weight of its class then.

    labels: (n,) int class of each row. course: (rounds + 1,) how many have come until the end of rounds 0, 1, ... amounts:
    (rounds,) how far the new concept has come in rounds 1, 2, ... weights: a row's weight by class, (classes,), at an amount.
    again: whether a row may come again and again; else it comes once. What more rounds add changes nothing before.
    """
    ends = [*(np.flatnonzero(np.diff(amounts)) + 1).tolist(), len(amounts)]
    left, drawn = np.arange(len(labels)), [np.empty(0, np.int64)]
    for number, (begin, end) in enumerate(pairwise([0, *ends])):
        wanted = int(course[end] - course[begin])
        own = weights(float(amounts[begin]))[labels]
        if again:
            taken = _with_replacement(seed, client, own, np.arange(course[begin], course[end]))
        else:
            # As exponential clocks forget, those of the rows that are left may start anew whenever the weights change.
            draws = uniforms(seed, PURPOSE, np.full(len(left), client), number * len(labels) + left)
            turns = np.argsort(-np.log(draws) / own[left], kind="stable")
            taken, left = left[turns[:wanted]], left[turns[wanted:]]
        drawn.append(taken)
    return np.concatenate(drawn)


def _with_replacement(seed: int, client: int, weights: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """(k,) one row for each of the positions (k,), by weight (n,)."""
    upper = np.cumsum(weights)
    draws = uniforms(seed, PURPOSE, np.full(len(positions), client), positions)
    return np.minimum(np.searchsorted(upper, draws * upper[-1], side="right"), len(weights) - 1)
