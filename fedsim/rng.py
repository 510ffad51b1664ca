"""Every random draw of a run, by name: `generator(seed, round, client, purpose)`.

A draw depends on these four words alone, never on which process makes it, how many were made before it, or whether
the run was killed in between. That is what makes 1, 2 or 8 workers, and a resumed run, give the same bits.

`generator` is for training, where a stream that comes twice does no harm. The noise and the secret draws of a privacy
mechanism come from `wide_generator`: what is promised rests on their independence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch

from fedsim.types import FedsimError

SERVER = -1
"""The `client` of draws that belong to no client."""

WORDS = 624
"""Of 32 bits, in the state of the Mersenne twister (mt19937)."""


def derive_seed(seed: int, round: int, client: int, purpose: str) -> int:
    """A 63-bit seed from the four words, by SHA-256: close words give unrelated seeds. numpy takes all of it."""
    digest = hashlib.sha256(f"{seed}/{round}/{client}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, round: int, client: int, purpose: str) -> torch.Generator:
    """A torch generator on the CPU for this purpose of this client in this round.

    One of 2^32 streams: torch's generator on the CPU takes the low 32 bits of a seed and no more. Of n different purposes
    n^2 / 2^33 pairs share one, so some do from 100,000 on: for noise that protects, see `wide_generator`.
    """
    return torch.Generator().manual_seed(derive_seed(seed, round, client, purpose))


def wide_generator(seed: int, round: int, client: int, purpose: str) -> torch.Generator:
    """As `generator`, but its whole state is SHAKE-256 of the four words: no two of them share a stream.

    Some 20 us instead of 4. Raises FedsimError where this torch keeps the state of a generator in another layout.
    """
    name = f"{seed}/{round}/{client}/{purpose}".encode()
    return _twister(_layout(), np.frombuffer(hashlib.shake_256(name).digest(4 * WORDS), dtype="<u4"))


def _twister(layout: np.ndarray, words: np.ndarray) -> torch.Generator:
    """A generator whose next number begins a new block after (624,) uint32 words."""
    state = layout.copy()
    state[24 : 24 + 8 * WORDS] = words.astype(np.uint64).view(np.uint8)
    generator = torch.Generator()
    generator.set_state(torch.from_numpy(state))
    return generator


@lru_cache(maxsize=1)
def _layout() -> np.ndarray:
    """(bytes,) uint8 the state of a torch generator that was just seeded, whose words `_twister` may put in place.

    Found out once a process by comparing two blocks of raw numbers with those of numpy's Mersenne twister.
    """
    layout = torch.Generator().manual_seed(0).get_state().numpy().copy()
    words = np.frombuffer(hashlib.shake_256(b"layout").digest(4 * WORDS), dtype="<u4")
    if not np.array_equal(_torch_words(layout, words), _numpy_words(words)):
        raise FedsimError(
            f"torch {torch.__version__} keeps the state of its generators in a way that fedsim does not know, so noise cannot be "
            "seeded without repeating itself; set privacy.secure_rng=true, or pip install 'torch==2.13.0', which is known to work"
        )
    return layout


def _torch_words(layout: np.ndarray, words: np.ndarray) -> np.ndarray:
    """(1248,) uint32, the two blocks that follow by torch; zeros where it refuses the state."""
    try:
        source = _twister(layout, words)
    except (RuntimeError, ValueError):
        return np.zeros(2 * WORDS, dtype=np.uint32)
    pairs = torch.empty(WORDS, dtype=torch.int64).random_(-(2**63), None, generator=source)
    return (
        pairs.numpy().view(np.uint64).astype(">u8").view(">u4").astype(np.uint32)
    )  # the first of a pair is the high half


def _numpy_words(words: np.ndarray) -> np.ndarray:
    """(1248,) uint32, the same by numpy."""
    twister = np.random.MT19937(0)
    twister.state = {"bit_generator": "MT19937", "state": {"key": words.astype(np.uint32), "pos": WORDS}}
    return twister.random_raw(2 * WORDS).astype(np.uint32)


def numpy_generator(seed: int, round: int, client: int, purpose: str) -> np.random.Generator:
    """As `generator`, for numpy."""
    return np.random.default_rng(derive_seed(seed, round, client, purpose))


@contextmanager
def seeded_globally(seed: int, round: int, client: int, purpose: str) -> Iterator[None]:
    """Seed torch's global generators inside the block (dropout and module initialisation draw from them); put back after.

    Not by `torch.manual_seed`, which formats a stack trace (2 ms) and keeps it for every kind of accelerator not in use.
    """
    number = derive_seed(seed, round, client, purpose)
    cuda = torch.cuda.is_initialized()
    before, cuda_before = torch.get_rng_state(), torch.cuda.get_rng_state_all() if cuda else []
    torch.default_generator.manual_seed(number)
    if cuda:
        torch.cuda.manual_seed_all(number)
    try:
        yield
    finally:
        torch.set_rng_state(before)
        if cuda:
            torch.cuda.set_rng_state_all(cuda_before)
