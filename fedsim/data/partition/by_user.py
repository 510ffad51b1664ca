"""Schemes that follow the natural users of a dataset."""

from __future__ import annotations

import numpy as np

from fedsim.checks import require_choice, require_int
from fedsim.data.partition.arguments import require_users
from fedsim.data.partition.index import Blocks, Columns, Partition, by_owner
from fedsim.data.partition.shuffled import NOBODY, even_sizes, shuffled_rows
from fedsim.rng import SERVER, numpy_generator
from fedsim.types import FedsimError


def natural(columns: Columns, num_clients: int | None, seed: int) -> Partition:
    """A client is a user of the dataset, in the order of the users' numbers (flwr-datasets' NaturalIdPartitioner).

    num_clients None: every user with a row. Fewer than there are: as many users chosen by the seed; drops rows.
    """
    user = require_users("natural", columns)
    if isinstance(user, Blocks):
        return user.partition(_chosen("users", user.users, num_clients, seed))
    names, owner = np.unique(user, return_inverse=True)
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
    place = _places(codes, shuffled_rows(len(codes), seed), sort_unique_ids)
    group = _group_of_place(len(place), group_size, mode)
    return _choose("groups of users", group[place][codes], int(group.max()) + 1, num_clients, seed)


def _places(codes: np.ndarray, order: np.ndarray, sort_unique_ids: bool) -> np.ndarray:
    """(users,) the place of each user among all: its own number, or when its first row comes in `order` (n,)."""
    users, first = np.unique(codes[order], return_index=True)
    return users if sort_unique_ids else np.argsort(np.argsort(first))


def _group_of_place(users: int, group_size: int, mode: str) -> np.ndarray:
    """(users,) the group of the user at each place, NOBODY where it is left out."""
    whole, remainder = divmod(users, group_size)
    if (whole == 0 and mode != "allow-smaller") or (remainder and mode == "strict"):
        raise FedsimError(
            f"partition.group_size={group_size} does not fit {users} users in partition.mode={mode}; lower "
            "partition.group_size or set partition.mode=allow-smaller"
        )
    if mode == "allow-bigger":
        return np.arange(whole).repeat(even_sizes(users, whole))
    group = np.arange(users) // group_size
    return np.where(group < whole, group, NOBODY) if mode == "drop-reminder" else group


def _choose(what: str, owner: np.ndarray, there: int, num_clients: int | None, seed: int) -> Partition:
    """All of the `there` owners, or num_clients of them by chance, kept in order. owner: (n,), NOBODY for a dropped row."""
    chosen = _chosen(what, there, num_clients, seed)
    if chosen is None:
        return by_owner(owner, there)
    renamed = np.full(there + 1, NOBODY)  # the last entry is where owner NOBODY, -1, looks
    renamed[chosen] = np.arange(len(chosen))
    return by_owner(renamed[owner], len(chosen))


def _chosen(what: str, there: int, num_clients: int | None, seed: int) -> np.ndarray | None:
    """num_clients of so many, ascending; None where it is all of them."""
    if num_clients is None or num_clients == there:
        return None
    require_int("population.num_clients", num_clients, low=1)
    if num_clients > there:
        raise FedsimError(
            f"population.num_clients={num_clients} is more than the {there} {what} that hold training rows; lower it, "
            "or set population.num_clients=null to take them all"
        )
    return np.sort(numpy_generator(seed, 0, SERVER, "partition/choice").choice(there, num_clients, replace=False))
