"""Schemes that decide how many rows a client holds, and leave which ones to chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fedsim.checks import require_number
from fedsim.data.partition.arguments import require_clients, require_sizes, spare_rows
from fedsim.data.partition.index import Columns, Partition, by_owner, offsets_of
from fedsim.data.partition.shuffled import draws, in_blocks, shuffled_rows
from fedsim.types import FedsimError


def iid(columns: Columns, num_clients: int | None, seed: int) -> Partition:
    """Rows in random order, split evenly; sizes differ by one at most.

    1,000,000 clients take a second or two.
    """
    clients = require_clients("iid", columns, num_clients)
    order = shuffled_rows(len(columns.label), seed)
    size, longer = divmod(len(order), clients)
    cut = longer * (size + 1)
    # Two blocks of equal sizes: sorting along an axis is several times faster than one sort by (client, row).
    order[:cut].reshape(longer, size + 1).sort(axis=1)
    order[cut:].reshape(clients - longer, size).sort(axis=1)
    return Partition(offsets_of(np.full(clients, size) + (np.arange(clients) < longer)), order)


def quantity(
    columns: Columns, num_clients: int | None, seed: int, *, alpha: float = 0.5, min_size: int = 1
) -> Partition:
    """Quantity skew: sizes from Dirichlet(alpha) over clients, labels IID (NIID-Bench, arXiv 2102.02079).

    Each client first gets min_size rows and the Dirichlet draw divides the others; NIID-Bench draws anew until the
    smallest client is large enough, which at many clients is never.
    """
    clients = require_clients("quantity", columns, num_clients)
    require_number("partition.alpha", alpha, above=0)
    spare = spare_rows(columns, clients, min_size)
    shares = draws(seed).dirichlet(np.full(clients, float(alpha)))
    cuts = np.minimum((np.cumsum(shares)[:-1] * spare).astype(np.int64), spare)
    return _of_sizes(min_size + np.diff(cuts, prepend=0, append=spare), len(columns.label), seed)


def size(
    columns: Columns, num_clients: int | None, seed: int, *, partition_sizes: int | Sequence[int] | None = None
) -> Partition:
    """Given sizes, labels IID. partition_sizes: rows of each client, or of every one; drops the rows beyond their sum."""
    if partition_sizes is None:
        raise FedsimError("partition=size needs the rows of each client; set partition.partition_sizes=[...]")
    if isinstance(partition_sizes, int):
        partition_sizes = [partition_sizes] * require_clients("size", columns, num_clients)
    sizes = require_sizes("size", columns, num_clients, partition_sizes)
    return _of_sizes(np.array(sizes), len(columns.label), seed)


def linear(columns: Columns, num_clients: int | None, seed: int) -> Partition:
    """Sizes that grow as client + 1, labels IID; the last client also gets what rounding leaves."""
    return _by_law("linear", np.positive, columns, num_clients, seed)


def square(columns: Columns, num_clients: int | None, seed: int) -> Partition:
    """Sizes that grow as (client + 1) squared, labels IID; the last client also gets what rounding leaves."""
    return _by_law("square", np.square, columns, num_clients, seed)


def exponential(columns: Columns, num_clients: int | None, seed: int) -> Partition:
    """Sizes that grow as exp(client + 1), labels IID: for about ten clients, since the first must still get a row."""
    return _by_law("exponential", np.exp, columns, num_clients, seed)


def _by_law(
    scheme: str, law: Callable[[np.ndarray], np.ndarray], columns: Columns, num_clients: int | None, seed: int
) -> Partition:
    """Sizes in proportion to law(client + 1), rounded down; the last client gets what rounding leaves."""
    clients, rows = require_clients(scheme, columns, num_clients), len(columns.label)
    with np.errstate(all="ignore"):  # an overflow ends in a size that is refused
        units = law(np.arange(1.0, clients + 1))
        sizes = (units / units.sum() * rows).astype(np.int64)
        sizes[-1] += rows - sizes.sum()
    if sizes.min() < 1:
        raise FedsimError(
            f"partition={scheme} leaves the smallest of {clients} clients without a row; lower population.num_clients"
        )
    return _of_sizes(sizes, rows, seed)


def _of_sizes(sizes: np.ndarray, rows: int, seed: int) -> Partition:
    """Random rows in these sizes (clients,); drops those beyond their sum."""
    owner = np.empty(rows, np.int64)
    owner[shuffled_rows(rows, seed)] = in_blocks(sizes, rows)
    return by_owner(owner, len(sizes))
