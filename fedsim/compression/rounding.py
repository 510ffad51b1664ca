"""Rounding to levels, at random so that the mean is kept, or to the nearest."""

from __future__ import annotations

import numpy as np


def rounded_at_random(levels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(d,) float32 numbers, each up or down to an integer, its mean kept to 2^-24."""
    low = np.floor(levels)
    return low + (generator.random(len(levels), dtype=np.float32) < levels - low)


def uniform_symbols(
    vector: np.ndarray, low: np.ndarray, high: np.ndarray, alphabet: int, generator: np.random.Generator | None
) -> np.ndarray:
    """Which of `alphabet` equidistant levels from low to high: (d,) unsigned integers. All are (d,) float32.

    At random, so that the mean is kept; without a generator the nearest. A span of zero has the first level alone.
    """
    span = high - low
    levels = np.divide(vector - low, span, out=np.zeros_like(vector), where=span > 0) * np.float32(alphabet - 1)
    levels = np.rint(levels) if generator is None else rounded_at_random(levels, generator)
    return np.minimum(levels, alphabet - 1).astype(np.uint8 if alphabet <= 256 else np.uint16)


def uniform_values(symbols: np.ndarray, low: np.ndarray, high: np.ndarray, alphabet: int) -> np.ndarray:
    """(d,) float32: the levels themselves."""
    return low + (high - low) * (symbols.astype(np.float32) / np.float32(alphabet - 1))
