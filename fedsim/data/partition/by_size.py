"""Schemes that decide how many rows a client holds, and leave which ones to chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsim.checks import require_number
from fedsim.data.partition.arguments import require_clients, require_sizes, spare_rows
from fedsim.data.partition.flower import deal
from fedsim.data.partition.index import Columns, Partition, by_owner, offsets_of
from fedsim.rng import SERVER, numpy_generator
from fedsim.types import FedsimError


def iid(columns: Columns, num_clients: int | None, seed: int) -> Partition:
    """Rows in random order, split evenly; sizes differ by one at most.

    The same rows as flwr-datasets' IidPartitioner deals out of the shuffled dataset; done here because theirs slices a
    dataset once a client, at a millisecond or more: some twenty minutes for 1,000,000 clients, against a second or two.
    """
    clients = require_clients("iid", columns, num_clients)
    order = numpy_generator(seed, 0, SERVER, "partition/order").permutation(len(columns.label)).astype(np.int64)
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
    shares = numpy_generator(seed, 0, SERVER, "partition").dirichlet(np.full(clients, float(alpha)))
    cuts = np.minimum((np.cumsum(shares)[:-1] * spare).astype(np.int64), spare)
    sizes = min_size + np.diff(cuts, prepend=0, append=spare)
    order = numpy_generator(seed, 0, SERVER, "partition/order").permutation(len(columns.label))
    owner = np.empty(len(order), np.int64)
    owner[order] = np.repeat(np.arange(clients), sizes)
    return by_owner(owner, clients)


def size(
    columns: Columns, num_clients: int | None, seed: int, *, partition_sizes: Sequence[int] | None = None
) -> Partition:
    """Given sizes, labels IID. partition_sizes: rows of each client; drops the rows beyond their sum."""
    if partition_sizes is None:
        raise FedsimError("partition=size needs the rows of each client; set partition.partition_sizes=[...]")
    sizes = require_sizes("size", columns, num_clients, partition_sizes)
    return deal(
        np.zeros(len(columns.label), np.int64),
        seed,
        lambda flwr, _: flwr.SizePartitioner(sizes),
        "partition.partition_sizes does not fit the training rows; lower them",
    )


def linear(columns: Columns, num_clients: int | None, seed: int) -> Partition:
    """Sizes that grow as client + 1, labels IID; the last client also gets what rounding leaves."""
    return _by_size_law("linear", "LinearPartitioner", columns, num_clients, seed)


def square(columns: Columns, num_clients: int | None, seed: int) -> Partition:
    """Sizes that grow as (client + 1) squared, labels IID; the last client also gets what rounding leaves."""
    return _by_size_law("square", "SquarePartitioner", columns, num_clients, seed)


def exponential(columns: Columns, num_clients: int | None, seed: int) -> Partition:
    """Sizes that grow as exp(client + 1), labels IID: for about ten clients, since the first must still get a row."""
    return _by_size_law("exponential", "ExponentialPartitioner", columns, num_clients, seed)


def _by_size_law(scheme: str, partitioner: str, columns: Columns, num_clients: int | None, seed: int) -> Partition:
    clients = require_clients(scheme, columns, num_clients)
    return deal(
        np.zeros(len(columns.label), np.int64),
        seed,
        lambda flwr, _: getattr(flwr, partitioner)(clients),
        f"partition={scheme} leaves the smallest of {clients} clients without a row; lower population.num_clients",
    )
