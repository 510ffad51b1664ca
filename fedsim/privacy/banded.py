"""Banded matrix factorisation: noise that the next few rounds take back, for clients that rest as long (2306.08153)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.sparse import csc_array

from fedsim.privacy.matrix import CorrelatedNoise
from fedsim.privacy.noise import NoiseSource
from fedsim.types import MissingPackageError


class BandedNoise(CorrelatedNoise):
    """Banded matrix factorisation (Choquette-Choo et al. 2023, arXiv 2306.08153), Toeplitz up to the scale of its columns.

    With min_separation >= bands no two participations share a row of C, and the sensitivity is the root of their number.
    The columns are scaled to norm 1: the last bands - 1 of them, which the end of the run cuts, need less noise for that.
    """

    def __init__(
        self,
        source: NoiseSource,
        rounds: int,
        max_participations: int | None,
        min_separation: int,
        coefficients: np.ndarray,
    ) -> None:
        super().__init__(source, rounds, max_participations, min_separation)
        self.coefficients = np.asarray(coefficients, dtype=np.float64)  # (bands,) the first column

    def matrix(self) -> csc_array:
        """Column j is the coefficients from row j on, as far as there are rounds, over their norm."""
        bands, rounds = len(self.coefficients), self.rounds
        rows = np.arange(rounds)[:, None] + np.arange(bands)  # (rounds, bands), by column
        inside = rows < rounds
        columns = np.broadcast_to(np.arange(rounds)[:, None], rows.shape)
        norms = np.array([self.column_norm(j + 1) for j in range(rounds)])
        values = self.coefficients / norms[:, None]
        return csc_array((values[inside], (rows[inside], columns[inside])), shape=(rounds, rounds))

    def column_norm(self, round: int) -> float:
        """Of this round's column before it is scaled."""
        return float(np.linalg.norm(self.coefficients[: self.rounds - round + 1]))

    def advance(self, fresh: torch.Tensor, round: int) -> torch.Tensor:
        """See CorrelatedNoise. memory: the last bands - 1 rows of the unscaled recurrence, the newest first."""
        row = fresh.clone()
        for coefficient, earlier in zip(self.coefficients[1:], self.memory, strict=False):
            row.sub_(earlier, alpha=float(coefficient))
        row /= float(self.coefficients[0])
        self.memory = [row, *self.memory][: len(self.coefficients) - 1]
        return row * self.column_norm(round)  # dividing C's column multiplies the row of C^-1

    def state(self) -> dict[str, Any]:
        """See CorrelatedNoise; and the matrix, which another machine's optimiser might not give to the last bit."""
        return super().state() | {"coefficients": self.coefficients}

    def load_state(self, state: dict[str, Any]) -> None:
        """See CorrelatedNoise."""
        super().load_state(state)
        self.coefficients = np.array(state["coefficients"], dtype=np.float64)


def sqrt_coefficients(bands: int) -> np.ndarray:
    """(bands,) of (1 - x)^(-1/2), to norm 1: the square root of the prefix sums, cut (Kalinin and Lampert, arXiv 2405.13763)."""
    steps = np.arange(1, bands)
    coefficients = np.cumprod(np.concatenate([[1.0], (2 * steps - 1) / (2 * steps)]))
    return coefficients / np.linalg.norm(coefficients)


def optimized_coefficients(rounds: int, bands: int) -> np.ndarray:
    """(bands,) those of the least mean squared error of prefix sums, by jax-privacy. Raises MissingPackageError without it."""
    try:
        from jax_privacy.matrix_factorization import toeplitz
    except ImportError as error:
        raise MissingPackageError(
            "privacy.strategy_matrix=optimized needs jax-privacy: pip install 'fedsim-flower[matrix]', "
            "or use privacy.strategy_matrix=sqrt"
        ) from error
    coefficients = np.asarray(toeplitz.optimize_banded_toeplitz(rounds, bands=bands), dtype=np.float64)
    return coefficients / np.linalg.norm(coefficients)
