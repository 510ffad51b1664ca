"""What of the examples that came, and are labelled, a device still holds: by its memory's rule, without a history.

A rule is a pure function of the examples' positions, the rounds that they came in, and a random priority of each, which
stays the same for ever. Keeping the smallest of the priorities among what has come is reservoir sampling (Vitter 1985,
doi 10.1145/3147.3165) without going through the stream, and its weighted form is that of Efraimidis and Spirakis (2006,
doi 10.1016/j.ipl.2005.11.003): an example of weight w has the key log(draw) / w, and the largest keys stay.
"""

from __future__ import annotations

import numpy as np

from fedsim.fleet.draws import uniforms


def window(positions: np.ndarray, size: int) -> np.ndarray:
    """(k,) the newest `size` of the positions (n,), ascending."""
    return positions[-size:]


def reservoir(positions: np.ndarray, draws: np.ndarray, size: int) -> np.ndarray:
    """(k,) of the positions (n,), ascending: a uniform sample without replacement. draws: (n,) in (0, 1), one a position."""
    return _smallest(positions, draws, size)


def decayed(positions: np.ndarray, rounds: np.ndarray, draws: np.ndarray, size: int, half_life: float) -> np.ndarray:
    """(k,) of the positions (n,), ascending: drawn one after the other, each time by the weights of those that are left.

    An example that came in round r weighs 2^(r / half_life): as all fade at the same pace, only rounds' differences count,
    and what has once been left out stays so. rounds, draws: (n,) of each position.
    """
    # -log(draw) / w of the paper, in logarithms, since 2^(r / half_life) leaves float64 behind after 1,024 half-lives
    keys = np.log(-np.log(draws)) - rounds * (np.log(2) / half_life)
    return _smallest(positions, keys, size)


def priorities(seed: int, client: int, positions: np.ndarray) -> np.ndarray:
    """(n,) float64 in (0, 1), the draws of a client's positions."""
    return uniforms(seed, "stream memory", np.full(len(positions), client), positions)


def _smallest(positions: np.ndarray, keys: np.ndarray, size: int) -> np.ndarray:
    if len(positions) <= size:
        return positions
    return np.sort(positions[np.argpartition(keys, size)[:size]])
