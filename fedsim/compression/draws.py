"""The random numbers of one message, by name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim import rng


@dataclass(frozen=True)
class Draws:
    """Of a client's message in a round; or of the server's, where the client is `rng.SERVER`."""

    seed: int
    round: int
    client: int

    def private(self, purpose: str) -> np.random.Generator:
        """Numbers that the receiver need not know."""
        return rng.numpy_generator(self.seed, self.round, self.client, f"compression: {purpose}")

    def public(self, purpose: str) -> int:
        """A 63-bit seed to put in the message."""
        return rng.derive_seed(self.seed, self.round, self.client, f"compression: {purpose}")

    def shared(self, purpose: str) -> int:
        """As `public`, but the same for all clients of the round."""
        return rng.derive_seed(self.seed, self.round, rng.SERVER, f"compression: {purpose}")
