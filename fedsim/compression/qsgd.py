"""QSGD: random levels of each bucket's norm (arXiv 1610.02132)."""

from __future__ import annotations

import numpy as np

from fedsim.checks import require_int
from fedsim.compression.bucketed import Bucketed
from fedsim.compression.draws import Draws
from fedsim.compression.layout import Buckets
from fedsim.compression.rounding import rounded_at_random


class QSGD(Bucketed):
    """v_i becomes ||v||_2 sign(v_i) l / s, l being s |v_i| / ||v||_2 rounded at random (Alistarh et al. 2017, section 3.1).

    levels: s; 1 is ternary. Unbiased, with a squared error of at most min(n / s^2, sqrt(n) / s) ||v||_2^2 in a bucket of n
    coordinates (lemma 3.1). Most levels are then zero, so that an entropy coder pays. Their Elias code is not used:
    `entropy=ans` is shorter.
    """

    number = 2
    numbers = 1

    def __init__(
        self,
        levels: int = 7,
        bucket: int | None = 512,
        rotate: bool = False,
        entropy: str = "none",
        down_bits: int | None = None,
    ) -> None:
        self.levels = require_int("compression.levels", levels, low=1, high=127)
        super().__init__(2 * levels + 1, bucket, rotate, entropy, down_bits=down_bits)

    def summarise(self, vector: np.ndarray, buckets: Buckets) -> np.ndarray:
        """L2 norms; in float64, where squares of small numbers do not vanish."""
        return np.sqrt(buckets.reduce(np.add, np.square(vector, dtype=np.float64)))[None]

    def symbols(self, vector: np.ndarray, numbers: list[np.ndarray], draws: Draws) -> np.ndarray:
        """s plus the signed level."""
        (norm,) = numbers
        parts = np.divide(np.abs(vector), norm, out=np.zeros_like(vector), where=norm > 0) * np.float32(self.levels)
        drawn = np.minimum(rounded_at_random(parts, draws.private("rounding")), self.levels)
        return (self.levels + np.copysign(drawn, vector)).astype(np.uint8)

    def values(self, symbols: np.ndarray, numbers: list[np.ndarray]) -> np.ndarray:
        """See Bucketed."""
        return numbers[0] * ((symbols.astype(np.float32) - np.float32(self.levels)) / np.float32(self.levels))
