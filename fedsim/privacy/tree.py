"""Binary tree aggregation: the noise of a prefix sum is that of the few tree nodes that tile it (arXiv 2103.00039)."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csc_array

from fedsim.privacy.forest import MOST_WORK, forest_sensitivities
from fedsim.privacy.matrix import CorrelatedNoise
from fedsim.privacy.noise import NoiseSource


class TreeNoise(CorrelatedNoise):
    """Binary tree aggregation (Kairouz et al. 2021, arXiv 2103.00039): a prefix sum carries the noise of log2(t) nodes.

    Only the nodes that some prefix sum uses are drawn, and one ends with each round: round t's covers the last lowbit(t)
    rounds, and takes the place of the smaller nodes that it covers. A new tree starts every `restart` rounds.
    Honaker's variance reduction, which uses the other nodes as well, is left out.
    """

    def __init__(
        self, source: NoiseSource, rounds: int, max_participations: int | None, min_separation: int, restart: int
    ) -> None:
        super().__init__(source, rounds, max_participations, min_separation)
        self.restart = min(restart, rounds)

    def matrix(self) -> csc_array:
        """Row t has ones on the rounds that t's node covers."""
        lows = [lowbit(t % self.restart + 1) for t in range(self.rounds)]
        rows = np.repeat(np.arange(self.rounds), lows)
        columns = np.concatenate([np.arange(t + 1 - low, t + 1) for t, low in enumerate(lows)])
        return csc_array((np.ones(len(rows)), (rows, columns)), shape=(self.rounds, self.rounds))

    def sensitivities(self, most: int) -> np.ndarray:
        """See CorrelatedNoise: exact, unless that would take long."""
        if self.rounds**2 * self.min_separation > MOST_WORK:
            return super().sensitivities(most)
        return forest_sensitivities(self.rounds, self.restart, most, self.min_separation)

    def advance(self, fresh: torch.Tensor, round: int) -> torch.Tensor:
        """See CorrelatedNoise. memory: this tree's nodes in the prefix sum so far, the largest first."""
        place = (round - 1) % self.restart + 1
        if place == 1:
            self.memory = []
        kept = lowbit(place).bit_length() - 1  # as many as the covered nodes
        covered = self.memory[len(self.memory) - kept :]
        self.memory = [*self.memory[: len(self.memory) - kept], fresh]
        row = fresh.clone()
        for node in covered:
            row -= node
        return row


def lowbit(t: int) -> int:
    """The largest power of two that divides t."""
    return t & -t
