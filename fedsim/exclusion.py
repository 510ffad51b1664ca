"""A run without some of its clients: nobody else's draws change, and the others hold what they held.

Both parts are configuration (`sampler._target_`, `partition._target_`), so that a run that goes on later stays without them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from fedsim.data.partition import Columns, Partition
from fedsim.data.partition.index import offsets_of
from fedsim.samplers import Sampler


class WithoutClients:
    """The cohorts that another sampler draws, less some clients, in whose place nobody comes."""

    def __init__(self, sampler: Sampler, clients: Collection[int]) -> None:
        self.sampler, self.clients = sampler, np.array(sorted(clients), dtype=np.int64)
        self.kind = sampler.kind

    def cohort(self, seed: int, round: int, num_clients: int, eligible: np.ndarray | None = None) -> np.ndarray:
        """Ascending client numbers; may be empty."""
        drawn = self.sampler.cohort(seed, round, num_clients, eligible)
        return drawn[~np.isin(drawn, self.clients)]

    def expected_size(self, num_clients: int) -> float:
        """The other sampler's: with it the chance of every remaining client, the noise and its denominator stay as they were."""
        return self.sampler.expected_size(num_clients)

    def larger(self, factor: float, num_clients: int) -> WithoutClients:
        """See Sampler."""
        return WithoutClients(self.sampler.larger(factor, num_clients), self.clients.tolist())


def without_clients(
    columns: Columns,
    num_clients: int | None,
    seed: int,
    *,
    partition: Callable[[Columns, int | None, int], Partition],
    clients: Collection[int],
) -> Partition:
    """Another scheme's index in which some clients hold no rows; everyone else's number and rows stay the same.

    Drops rows, and is no scheme by the laws of `fedsim.data.partition`: these clients hold nothing.
    """
    index = partition(columns, num_clients, seed)
    stays = ~np.isin(np.arange(index.num_clients), list(clients))
    rows = np.asarray(index.rows)[np.repeat(stays, index.sizes)]
    return Partition(offsets_of(np.where(stays, index.sizes, 0)), rows)
