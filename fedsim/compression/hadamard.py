"""The fast Walsh-Hadamard transform, and a random rotation of vectors of any length.

A rotation spreads what stands out over all coordinates, so that one scale fits them all (Suresh et al. 2017, arXiv
1611.00429, section 3; Konecny et al. 2016, arXiv 1610.05492, section 3).
"""

from __future__ import annotations

import math

import numpy as np


def hadamard(vector: np.ndarray) -> np.ndarray:
    """(d,) -> (d,), d a power of two: the transform in its natural order over sqrt(d), which is its own inverse.

    Each of the log2(d) passes adds and subtracts neighbours and puts the sums before the differences. Sums of two at a time
    in a fixed order, so that the bits do not depend on threads.
    """
    half = len(vector) // 2
    this, other = vector.copy(), np.empty_like(vector)
    for _ in range(len(vector).bit_length() - 1):
        np.add(this[0::2], this[1::2], out=other[:half])
        np.subtract(this[0::2], this[1::2], out=other[half:])
        this, other = other, this
    return this / vector.dtype.type(math.sqrt(len(vector)))


def _signs(size: int, seed: int) -> np.ndarray:
    """(2, size) float32 of +-1."""
    bits = np.random.default_rng(seed).integers(0, 256, 2 * ((size + 7) // 8), dtype=np.uint8)
    return 1 - 2 * np.unpackbits(bits).astype(np.float32).reshape(2, -1)[:, :size]


def rotate(vector: np.ndarray, seed: int) -> np.ndarray:
    """(d,) float32 -> (d,), orthonormal for each seed.

    With p the largest power of two within d, random signs and the transform are applied to the first p coordinates, and then
    again to the last p: no padding, which would make up to twice as many coordinates to send.
    """
    out, span, signs = vector.copy(), _span(len(vector)), _signs(_span(len(vector)), seed)
    out[:span] = hadamard(out[:span] * signs[0])
    if span < len(out):
        out[-span:] = hadamard(out[-span:] * signs[1])
    return out


def rotate_back(vector: np.ndarray, seed: int) -> np.ndarray:
    """The inverse of `rotate`."""
    out, span, signs = vector.copy(), _span(len(vector)), _signs(_span(len(vector)), seed)
    if span < len(out):
        out[-span:] = hadamard(out[-span:]) * signs[1]
    out[:span] = hadamard(out[:span]) * signs[0]
    return out


def _span(size: int) -> int:
    return 1 << (size.bit_length() - 1) if size else 0
