"""Signs and a scale."""

from __future__ import annotations

import numpy as np

from fedsim.compression.bucketed import Bucketed
from fedsim.compression.draws import Draws
from fedsim.compression.layout import Buckets


class Sign(Bucketed):
    """One bit a coordinate: v becomes (||v||_1 / d) sign(v) (EF-signSGD, Karimireddy et al. 2019, arXiv 1901.09847, algorithm 1).

    Zero counts as positive. bucket: coordinates that share a scale; null is one an array. A squared error of
    (1 - ||v||_1^2 / (d ||v||_2^2)) ||v||_2^2: it converges with error feedback, and need not without.
    """

    number = 4
    numbers = 1

    def __init__(self, bucket: int | None = None, error_feedback: bool = True, down_bits: int | None = None) -> None:
        super().__init__(2, bucket, error_feedback=error_feedback, down_bits=down_bits)

    def summarise(self, vector: np.ndarray, buckets: Buckets) -> np.ndarray:
        """Mean magnitudes."""
        return (buckets.reduce(np.add, np.abs(vector).astype(np.float64)) / buckets.lengths)[None]

    def symbols(self, vector: np.ndarray, numbers: list[np.ndarray], draws: Draws) -> np.ndarray:
        """1 where it is not negative."""
        return (vector >= 0).astype(np.uint8)

    def values(self, symbols: np.ndarray, numbers: list[np.ndarray]) -> np.ndarray:
        """See Bucketed."""
        return np.where(symbols == 1, numbers[0], -numbers[0])
