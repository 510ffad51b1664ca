"""Schemes in which a Dirichlet draw mixes the classes of a client."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsim.checks import require_number
from fedsim.data.partition.arguments import class_codes, require_clients, require_sizes, spare_rows
from fedsim.data.partition.index import Columns, Partition
from fedsim.data.partition.shuffled import NOBODY, dealt, draws, even_sizes, shuffled_rows
from fedsim.types import FedsimError

TRIES = 11
"""Draws before `dirichlet` gives up; Flower's number."""


def dirichlet(
    columns: Columns,
    num_clients: int | None,
    seed: int,
    *,
    alpha: float = 0.5,
    min_size: int = 1,
    self_balancing: bool = False,
) -> Partition:
    """Label skew: each class is divided by its own Dirichlet(alpha) draw over clients (arXiv 1905.12022).

    alpha: to 0 a class lies with few clients, to infinity IID. min_size: fewest rows of a client; drawn anew up to
    eleven times to reach it. self_balancing: a client above the average size gets no more of later classes.
    """
    clients = require_clients("dirichlet", columns, num_clients)
    require_number("partition.alpha", alpha, above=0)
    spare_rows(columns, clients, min_size)
    failure = (
        f"partition=dirichlet drew no split that leaves each of {clients} clients {min_size} row(s) at "
        f"alpha={alpha}; raise partition.alpha or lower partition.min_size or population.num_clients"
    )
    order = shuffled_rows(len(columns.label), seed)
    codes = class_codes("dirichlet", columns)[order]
    rows_of_class, random = np.bincount(codes), draws(seed)
    for _ in range(TRIES):
        sizes = _dirichlet_sizes(rows_of_class, clients, float(alpha), self_balancing, random)
        if sizes.sum(0).min() >= min_size:
            owner = np.empty(len(order), np.int64)
            owner[np.argsort(codes, kind="stable")] = np.tile(np.arange(clients), len(sizes)).repeat(sizes.ravel())
            return dealt(order, owner, clients, failure)
    raise FedsimError(failure)


def _dirichlet_sizes(
    rows_of_class: np.ndarray, clients: int, alpha: float, self_balancing: bool, random: np.random.Generator
) -> np.ndarray:
    """(classes, clients) rows of each class that each client gets. rows_of_class: (classes,)."""
    sizes = np.zeros((len(rows_of_class), clients), np.int64)
    held = np.zeros(clients, np.int64)
    for own, rows in zip(sizes, rows_of_class, strict=True):
        shares = random.dirichlet(np.full(clients, alpha))
        if self_balancing:
            open_shares = np.where(held > rows_of_class.sum() / clients, 0, shares)
            if (left := np.cumsum(open_shares)[-1]) > 0:  # else the draw went to closed clients alone, and it stands
                shares = open_shares / left
        cuts = np.minimum((np.cumsum(shares)[:-1] * rows).astype(np.int64), rows)
        own[:] = np.diff(cuts, prepend=0, append=rows)
        held += own
    return sizes


def inner_dirichlet(
    columns: Columns,
    num_clients: int | None,
    seed: int,
    *,
    alpha: float = 0.5,
    partition_sizes: Sequence[int] | None = None,
) -> Partition:
    """Label skew at given sizes: a client's mix of classes is a Dirichlet(alpha) draw over classes (arXiv 2111.04263).

    partition_sizes: rows of each client, None for equal ones; drops rows where they sum to less than the rows there
    are. Rows are dealt out one at a time, some 5 us each.
    """
    rows = len(columns.label)
    if partition_sizes is None:
        sizes = even_sizes(rows, require_clients("inner_dirichlet", columns, num_clients))
    else:
        sizes = np.array(require_sizes("inner_dirichlet", columns, num_clients, partition_sizes))
    require_number("partition.alpha", alpha, above=0)
    failure = (
        f"partition=inner_dirichlet ran out of the classes that clients want at alpha={alpha}; raise partition.alpha"
    )
    order = shuffled_rows(rows, seed)
    codes = class_codes("inner_dirichlet", columns)[order]
    places = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    owner = _one_by_one(places, sizes, float(alpha), rows, draws(seed))
    if owner is None:
        raise FedsimError(failure)
    return dealt(order, owner, len(sizes), failure)


def _one_by_one(
    places: list[np.ndarray], sizes: np.ndarray, alpha: float, rows: int, random: np.random.Generator
) -> np.ndarray | None:
    """(rows,) owners; None where a client wants only classes that are used up. places: those of each class.

    A client by chance takes the last row that is left of a class by its own chances, and so on until all are full.
    """
    chances = random.dirichlet(np.full(len(places), alpha), size=len(sizes))  # (clients, classes)
    upto = _cumulated(chances)
    owner = np.full(rows, NOBODY)
    left, left_of_class, open_clients = sizes.tolist(), [len(of_class) for of_class in places], list(range(len(sizes)))
    to_deal = sum(left)
    while to_deal:
        client = open_clients[at := int(random.integers(len(open_clients)))]
        if left[client] == 0:
            open_clients.pop(at)
            continue
        while True:
            if np.isnan(upto[client, -1]):
                return None
            chosen = int(upto[client].searchsorted(random.random(), side="right"))
            if left_of_class[chosen]:
                break
            chances[:, chosen] = 0
            with np.errstate(invalid="ignore"):  # 0 / 0 is a client that wants nothing that is left
                chances /= chances.sum(axis=1, keepdims=True)
            upto = _cumulated(chances)
        left[client] -= 1
        left_of_class[chosen] -= 1
        owner[places[chosen][left_of_class[chosen]]] = client
        to_deal -= 1
    return owner


def _cumulated(chances: np.ndarray) -> np.ndarray:
    """(clients, classes) cumulated chances that end at 1, as `Generator.choice` makes them."""
    upto = chances.cumsum(axis=1)
    return upto / upto[:, -1:]
