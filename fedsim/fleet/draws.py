"""Random numbers of many devices at once, by name: any device's are the same whoever else is asked for.

`rng.generator` makes a generator a client, which a hundred thousand devices cannot wait for at every tick of a clock. Here
a draw is a mixing function of (key, client, index), where the key is SHA-256 of the seed and the purpose: random access, in numpy.
"""

from __future__ import annotations

import numpy as np

from fedsim.rng import SERVER, derive_seed

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def uniforms(seed: int, purpose: str, clients: np.ndarray, index: int | np.ndarray = 0) -> np.ndarray:
    """(n,) float64 strictly between 0 and 1: draw number `index` (one, or (n,)) of this purpose for each of the clients (n,).

    SplitMix64's finaliser (Steele, Lea and Flood 2014, doi 10.1145/2660193.2660195) over the client's key plus the index
    times its odd constant, the client's key being the finaliser of the client's number under the purpose's key.
    """
    key = np.uint64(derive_seed(seed, 0, SERVER, f"fleet: {purpose}"))
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        own = _mixed(key + (np.asarray(clients).astype(np.uint64) + np.uint64(1)) * _GOLDEN)
        bits = _mixed(own + (np.asarray(index).astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _mixed(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * _FIRST
    bits = (bits ^ (bits >> np.uint64(27))) * _SECOND
    return bits ^ (bits >> np.uint64(31))
