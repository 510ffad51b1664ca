"""Schemes that follow the natural users of a dataset."""

from __future__ import annotations

import numpy as np

from fedsim.checks import require_choice, require_int
from fedsim.data.partition.arguments import require_users
from fedsim.data.partition.flower import deal
from fedsim.data.partition.index import Columns, Partition, by_owner
from fedsim.rng import SERVER, numpy_generator
from fedsim.types import FedsimError


def natural(columns: Columns, num_clients: int | None, seed: int) -> Partition:
    """A client is a user of the dataset, in the order of the users' numbers (flwr-datasets' NaturalIdPartitioner).

    num_clients None: every user with a row. Fewer than there are: as many users chosen by the seed; drops rows.
    """
    names, owner = np.unique(require_users("natural", columns), return_inverse=True)
    return _choose("users", owner, len(names), num_clients, seed)


def grouped_natural(
    columns: Columns,
    num_clients: int | None,
    seed: int,
    *,
    group_size: int = 10,
    mode: str = "allow-smaller",
    sort_unique_ids: bool = False,
) -> Partition:
    """A client is a group of group_size users, by chance or, with sort_unique_ids, neighbours in number.

    mode: what becomes of a remainder of users: allow-smaller (one smaller group), allow-bigger (spread over the
    groups), drop-reminder (left out; drops rows), strict (refused). num_clients None: every group; fewer than there
    are: as many groups chosen by the seed; drops rows.
    """
    codes = np.unique(require_users("grouped_natural", columns), return_inverse=True)[1]
    require_choice("partition.mode", mode, ("allow-smaller", "allow-bigger", "drop-reminder", "strict"))
    require_int("partition.group_size", group_size, low=1)
    groups = deal(
        codes,
        seed,
        lambda flwr, _: flwr.GroupedNaturalIdPartitioner("value", group_size, mode, sort_unique_ids),
        f"partition.group_size={group_size} does not fit {int(codes.max()) + 1} users in "
        f"partition.mode={mode}; lower partition.group_size or set partition.mode=allow-smaller",
    )
    owner = np.full(len(codes), -1)
    owner[groups.rows] = np.repeat(np.arange(groups.num_clients), groups.sizes)
    return _choose("groups of users", owner, groups.num_clients, num_clients, seed)


def _choose(what: str, owner: np.ndarray, there: int, num_clients: int | None, seed: int) -> Partition:
    """All of the `there` owners, or num_clients of them by chance, kept in order. owner: (n,), -1 for a dropped row."""
    if num_clients is None or num_clients == there:
        return by_owner(owner, there)
    require_int("population.num_clients", num_clients, low=1)
    if num_clients > there:
        raise FedsimError(
            f"population.num_clients={num_clients} is more than the {there} {what} that hold training rows; lower it, "
            "or set population.num_clients=null to take them all"
        )
    chosen = numpy_generator(seed, 0, SERVER, "partition/choice").choice(there, num_clients, replace=False)
    renamed = np.full(there + 1, -1)  # the last entry is where owner -1 looks
    renamed[np.sort(chosen)] = np.arange(num_clients)
    return by_owner(renamed[owner], num_clients)
