"""The scheme that follows an order of the rows: by label, by a real target, or by time."""

from __future__ import annotations

import numpy as np

from fedsim.checks import require_choice, require_number
from fedsim.data.partition.arguments import require_clients
from fedsim.data.partition.index import Columns, Partition
from fedsim.data.partition.shuffled import dealt, draws, even_sizes, in_blocks, shuffled_rows
from fedsim.rng import SERVER, numpy_generator
from fedsim.types import FedsimError


def continuous(
    columns: Columns, num_clients: int | None, seed: int, *, partition_by: str = "label", strictness: float = 0.5
) -> Partition:
    """Rows sorted by strictness * z + (1 - strictness) * noise and split evenly; z is a standardized column.

    partition_by: label (also a real target) or time. strictness: 0 IID, 1 the column's own order.
    """
    clients = require_clients("continuous", columns, num_clients)
    require_choice("partition.partition_by", partition_by, ("label", "time"))
    column = columns.label if partition_by == "label" else columns.time
    if column is None:
        raise FedsimError("the dataset's rows have no time; set partition.partition_by=label or choose another dataset")
    require_number("partition.strictness", strictness, low=0, high=1)
    failure = f"partition=continuous cannot order the rows by {partition_by}; set partition.strictness=0"
    values = _ranks(column, seed) if strictness in (0, 1) else _standardized(column, partition_by)
    order = shuffled_rows(len(values), seed)
    noise = draws(seed).normal(size=len(order))
    score = noise if strictness == 0 else strictness * _single(values[order], failure) + (1 - strictness) * noise
    owner = np.empty(len(order), np.int64)
    owner[np.argsort(score, kind="stable")] = in_blocks(even_sizes(len(order), clients), len(order))
    return dealt(order, owner, clients, failure)


def _single(values: np.ndarray, failure: str) -> np.ndarray:
    """(n,) standardized in float32, as flwr-datasets has it: so that rows fall where its partitioner puts them."""
    values = values.astype(np.float32)
    spread = values.std()
    if spread < 1e-6:
        raise FedsimError(failure)
    return (values - values.mean()) / spread


def _ranks(column: np.ndarray, seed: int) -> np.ndarray:
    """(n,) distinct ranks, ties broken by the seed: for strictness 0 and 1, where nothing but the order can count.

    Sorted as they are, tied values would fall as the machine's unstable sort has it, and a constant divide by 0.
    """
    ties = numpy_generator(seed, 0, SERVER, "partition/ties").permutation(len(column))
    ranks = np.empty(len(column))
    ranks[np.lexsort((ties, column))] = np.arange(len(column))
    return ranks


def _standardized(column: np.ndarray, partition_by: str) -> np.ndarray:
    """(n,) float64 of zero mean and unit variance; here since flwr-datasets' float32 blurs times far from 0."""
    values = (column - column.min()).astype(np.float64)  # a difference, so that dates become numbers too
    spread = values.std()
    if not (np.isfinite(spread) and spread > 0):
        raise FedsimError(
            f"partition.partition_by={partition_by} has one value only, or some that are not finite, so that no order "
            "follows from it; set partition.strictness=0 or partition by another column"
        )
    return (values - values.mean()) / spread
