"""Rows in random order, and what a scheme makes of them: the client of each place in that order.

Rows are shuffled by the seed before they are dealt out (as Flower's FederatedDataset does), so that the order of the
source, often by class or by user, does not leak into a scheme.
"""

from __future__ import annotations

import numpy as np

from fedsim.data.partition.index import Partition, by_owner
from fedsim.rng import SERVER, numpy_generator
from fedsim.types import FedsimError

NOBODY = -1
"""The client of a row that is dropped."""


def shuffled_rows(rows: int, seed: int) -> np.ndarray:
    """(rows,) int64 row numbers in random order."""
    return numpy_generator(seed, 0, SERVER, "partition/order").permutation(rows).astype(np.int64)


def draws(seed: int) -> np.random.Generator:
    """For what a scheme leaves to chance beside the order of the rows."""
    return numpy_generator(seed, 0, SERVER, "partition")


def dealt(order: np.ndarray, owner: np.ndarray, clients: int, failure: str) -> Partition:
    """The partition in which row order[i] lies with client owner[i], NOBODY for none; both (n,).

    Raises FedsimError with the sentence `failure` where a client is left without a row.
    """
    if np.bincount(owner[owner != NOBODY], minlength=clients).min() == 0:
        raise FedsimError(failure)
    by_row = np.empty(len(order), np.int64)
    by_row[order] = owner
    return by_owner(by_row, clients)


def even_sizes(rows: int, clients: int) -> np.ndarray:
    """(clients,) sizes that sum to `rows` and differ by one at most, the larger ones first."""
    return rows // clients + (np.arange(clients) < rows % clients)


def in_blocks(sizes: np.ndarray, rows: int) -> np.ndarray:
    """(rows,) owners where each client gets the next sizes[client] places, and nobody the places beyond them."""
    owner = np.full(rows, NOBODY)
    owner[: sizes.sum()] = np.repeat(np.arange(len(sizes)), sizes)
    return owner
