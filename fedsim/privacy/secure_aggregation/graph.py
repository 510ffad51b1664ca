"""Who masks with whom: everyone with everyone in a small cohort, a random k-regular graph in a large one.

Bell et al. 2020 (SecAgg+, ePrint 2020/704): a Harary graph on a shuffled ring, of a degree that grows with the logarithm of
the cohort, does what the complete graph does, except with a chance that one chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

COLLUDING = 0.1
"""The share of the cohort that may work with the server, for which a degree is chosen."""

SMALL = 32
"""Up to this many clients the graph is complete: then the devices themselves refuse a sum of fewer than `least`."""

FAILS, UNSAFE = 2.0**-30, 2.0**-40
"""Chances a round: that tolerated dropouts leave some client too few shares; that colluders hold enough of them."""


@dataclass(frozen=True)
class Graph:
    """neighbours: of each client, ascending. threshold: shares of the holders (a client and its neighbours) that reveal."""

    neighbours: dict[int, list[int]]
    threshold: int


def make_graph(clients: Sequence[int], least: int, degree: int | None, draw: np.random.Generator) -> Graph:
    """A graph on these clients (at least two), of which at least `least` will stay. degree: None for Bell et al.'s rule.

    Complete, any `least` clients reveal; sparse, a bare majority of a client's holders does. Either way no two disjoint sets
    of holders can reveal, so that a client cannot be shown as dropped to some and as present to others.
    """
    size = len(clients)
    degree = degree_for(size, size - least) if degree is None else degree + degree % 2
    if degree >= size - 1:
        return Graph({one: [other for other in clients if other != one] for one in clients}, max(least, size // 2 + 1))
    ring = draw.permutation(np.array(clients)).tolist()
    steps = [step for near in range(1, degree // 2 + 1) for step in (near, -near)]
    neighbours = {one: sorted(ring[(place + step) % size] for step in steps) for place, one in enumerate(ring)}
    return Graph(neighbours, degree // 2 + 1)


def degree_for(size: int, dropouts: int) -> int:
    """The smallest even degree under which, for these dropouts, failing and colluding are as rare as said above.

    Both are tails of the hypergeometric law (Bell et al. 2020, section 3.2), summed over all clients. size - 1: complete.
    """
    if size <= SMALL:
        return size - 1
    from scipy.stats import hypergeom

    colluders = int(COLLUDING * size)
    for degree in range(2, size - 1, 2):
        threshold = degree // 2 + 1
        too_few = hypergeom.cdf(threshold - 1, size - 1, size - 1 - dropouts, degree)
        held = hypergeom.sf(threshold - 1, size - 1, colluders, degree)
        alone = hypergeom.sf(degree - 1, size - 1, min(size - 1, dropouts + colluders), degree)
        if size * too_few <= FAILS and size * (held + alone) <= UNSAFE:
            return degree
    return size - 1
