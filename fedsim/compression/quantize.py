"""Uniform quantisation between each bucket's minimum and maximum."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from fedsim.checks import require_int
from fedsim.compression.bucketed import Bucketed
from fedsim.compression.draws import Draws
from fedsim.compression.layout import Buckets, Layout
from fedsim.compression.rounding import uniform_symbols, uniform_values
from fedsim.types import FedsimError


class Quantize(Bucketed):
    """2^bits levels, rounded at random so that the mean is kept (Suresh et al. 2017, arXiv 1611.00429, section 2).

    One bit is their stochastic binary quantisation. The error is below one step, (max - min) / (2^bits - 1). With error
    feedback it is rounded to the nearest level instead, off by half a step at most: what was left out must shrink, which
    a bucket below 2 (2^bits - 1)^2 coordinates ensures, as (max - min)^2 is at most twice its squared norm.
    """

    number = 1
    numbers = 2

    def __init__(
        self,
        bits: int = 4,
        bucket: int | None = 256,
        rotate: bool = False,
        entropy: str = "none",
        error_feedback: bool = False,
        down_bits: int | None = None,
    ) -> None:
        self.bits = require_int("compression.bits", bits, low=1, high=8)
        super().__init__(2**bits, bucket, rotate, entropy, error_feedback, down_bits)

    def check(self, shapes: Mapping[str, torch.Size]) -> None:
        """See Compression."""
        super().check(shapes)
        longest = int(max(self._buckets(Layout.of(shapes)).lengths, default=0))
        limit = 2 * (2**self.bits - 1) ** 2
        if self.error_feedback and longest >= limit:
            raise FedsimError(
                f"compression.error_feedback=true at compression.bits={self.bits} needs buckets below {limit:,} coordinates, or "
                f"what is left out may grow, and one has {longest:,}; set compression.bucket or more bits"
            )

    def summarise(self, vector: np.ndarray, buckets: Buckets) -> np.ndarray:
        """Minimum and maximum."""
        return np.stack([buckets.reduce(np.minimum, vector), buckets.reduce(np.maximum, vector)])

    def symbols(self, vector: np.ndarray, numbers: list[np.ndarray], draws: Draws) -> np.ndarray:
        """See Bucketed."""
        low, high = numbers
        generator = None if self.error_feedback else draws.private("rounding")
        return uniform_symbols(vector, low, high, self.alphabet, generator)

    def values(self, symbols: np.ndarray, numbers: list[np.ndarray]) -> np.ndarray:
        """See Bucketed."""
        low, high = numbers
        return uniform_values(symbols, low, high, self.alphabet)
