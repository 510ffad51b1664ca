"""Every random draw of a run, by name: `generator(seed, round, client, purpose)`.

A draw depends on these four words alone, never on which process makes it, how many were made before it, or whether
the run was killed in between. That is what makes 1, 2 or 8 workers, and a resumed run, give the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

SERVER = -1
"""The `client` of draws that belong to no client."""


def derive_seed(seed: int, round: int, client: int, purpose: str) -> int:
    """A 63-bit seed from the four words, by SHA-256: close words give unrelated seeds."""
    digest = hashlib.sha256(f"{seed}/{round}/{client}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, round: int, client: int, purpose: str) -> torch.Generator:
    """A torch generator on the CPU for this purpose of this client in this round."""
    return torch.Generator().manual_seed(derive_seed(seed, round, client, purpose))


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
