"""The noise of DP-FTRL by the keys of `privacy=user`: which matrix, and the limits that its promise rests on."""

from __future__ import annotations

from fedsim.privacy.banded import BandedNoise, optimized_coefficients, sqrt_coefficients
from fedsim.privacy.matrix import CorrelatedNoise
from fedsim.privacy.noise import NoiseSource
from fedsim.privacy.tree import TreeNoise
from fedsim.types import FedsimError

MOST_BANDS = 32
"""Bands where none are asked for: each more keeps one more model of noise in the server's memory."""


def make_correlated_noise(
    kind: str,
    source: NoiseSource,
    *,
    rounds: int,
    max_participations: int | None = None,
    min_separation: int | None = None,
    restart: int | None = None,
    bands: int | None = None,
    strategy_matrix: str = "sqrt",
    num_clients: int | None = None,
    cohort_size: float | None = None,
) -> CorrelatedNoise:
    """The noise of privacy.mechanism=tree or banded, by the keys of `privacy=user`.

    Where min_separation is None it is as large as num_clients and cohort_size allow (without these: bands, or 1); where
    max_participations is None, as often as that allows; restart: one tree; bands: min_separation, at most MOST_BANDS.
    """
    if min_separation is None:
        possible = int(num_clients / cohort_size) if num_clients and cohort_size else bands or 1
        min_separation = max(1, min(possible, rounds))
    if kind == "tree":
        return TreeNoise(source, rounds, max_participations, min_separation, restart or rounds)
    if bands is None:
        bands = min(min_separation, rounds, MOST_BANDS)
    if bands > rounds:
        raise FedsimError(f"privacy.bands={bands} is more than rounds={rounds}; give privacy.bands={rounds} or less")
    coefficients = sqrt_coefficients(bands) if strategy_matrix == "sqrt" else optimized_coefficients(rounds, bands)
    return BandedNoise(source, rounds, max_participations, min_separation, coefficients)
