"""Clients that are promised different epsilons: groups by share of the population, drawn by the run's seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedsim import rng
from fedsim.checks import require_number, shown
from fedsim.types import FedsimError


class Group(NamedTuple):
    """share: of the clients, above 0. epsilon: what each of them is promised."""

    name: str
    share: float
    epsilon: float


def read_groups(budgets: Mapping[str, Any]) -> tuple[Group, ...]:
    """The groups of `privacy.budgets`, as in {careful: {share: 0.3, epsilon: 1}, open: {share: 0.7, epsilon: 8}}."""
    groups = []
    for name, keys in budgets.items():
        if not isinstance(keys, Mapping) or set(keys) != {"share", "epsilon"}:
            raise FedsimError(
                f"privacy.budgets.{name}={shown(keys)} must hold share and epsilon, as in "
                "privacy.budgets={careful: {share: 0.3, epsilon: 1}, open: {share: 0.7, epsilon: 8}}"
            )
        share = require_number(f"privacy.budgets.{name}.share", keys["share"], above=0, high=1)
        groups.append(
            Group(str(name), share, require_number(f"privacy.budgets.{name}.epsilon", keys["epsilon"], above=0))
        )
    total = sum(group.share for group in groups)
    if groups and abs(total - 1) > 1e-6:
        raise FedsimError(f"the shares in privacy.budgets add up to {total:g}; make them add up to 1")
    return tuple(groups)


def draw_groups(shares: Sequence[float], num_clients: int, seed: int) -> np.ndarray:
    """(clients,) the group of each client, by position in `shares`, which add up to 1; sizes are the shares, rounded.

    The same for the same three arguments: it depends on nobody's data, and may be known to everyone.
    """
    edges = np.floor(np.cumsum(shares) * num_clients + 0.5).astype(np.int64)
    edges[-1] = num_clients
    sorted_groups = np.searchsorted(edges, np.arange(num_clients), side="right")
    return sorted_groups[rng.numpy_generator(seed, 0, rng.SERVER, "budget groups").permutation(num_clients)]
