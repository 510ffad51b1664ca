"""Shamir's secret sharing (How to Share a Secret, CACM 1979): any `threshold` shares give a secret, fewer say nothing of it.

A secret of 32 bytes is the constant of a polynomial of degree threshold - 1 whose other coefficients are uniform in a prime
field; a holder's share is the polynomial at its point. Through fewer points there is a polynomial for every secret.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedsim.types import FedsimError

PRIME = 2**256 + 297
"""The smallest prime above every 32-byte secret."""

SECRET_BYTES, SHARE_BYTES = 32, 33
_DRAW_BYTES = 64  # per coefficient: modulo the prime it is uniform up to 2^-255


def bytes_needed(threshold: int) -> int:
    """How many random bytes `split` consumes."""
    return _DRAW_BYTES * (threshold - 1)


def split(secret: bytes, threshold: int, points: Sequence[int], randomness: bytes) -> dict[int, bytes]:
    """A share of 33 bytes for each point (distinct, above 0). randomness: `bytes_needed(threshold)` secret bytes."""
    if len(secret) != SECRET_BYTES or len(randomness) != bytes_needed(threshold):
        raise ValueError("a secret of 32 bytes and just as much randomness as is needed")
    if not 1 <= threshold <= len(points) or len(set(points)) < len(points) or min(points) < 1:
        raise ValueError("distinct points above 0, at least as many as the threshold")
    pieces = (randomness[start : start + _DRAW_BYTES] for start in range(0, len(randomness), _DRAW_BYTES))
    coefficients = [int.from_bytes(piece, "big") % PRIME for piece in pieces]  # highest power first
    return {point: _at(point, coefficients, int.from_bytes(secret, "big")) for point in points}


def _at(point: int, coefficients: Sequence[int], constant: int) -> bytes:
    value = 0
    for coefficient in coefficients:
        value = (value + coefficient) * point % PRIME
    return ((value + constant) % PRIME).to_bytes(SHARE_BYTES, "big")


def weights_at_zero(points: Sequence[int]) -> list[int]:
    """Lagrange's weights: the constant is their sum product with the shares at these points."""
    weights = []
    for own in points:
        above, below = 1, 1
        for other in points:
            if other != own:
                above, below = above * other % PRIME, below * (other - own) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return weights


def combine(shares: Mapping[int, bytes], weights: Sequence[int] | None = None) -> bytes:
    """The secret from a threshold of shares by point. Raises FedsimError where they cannot be shares of one.

    weights: of these points in this order, where they are known already.
    """
    values = [int.from_bytes(share, "big") for share in shares.values()]
    if any(len(share) != SHARE_BYTES for share in shares.values()) or any(value >= PRIME for value in values):
        raise FedsimError("secure aggregation: a revealed share is not a number of the field, so it is refused")
    weights = weights_at_zero(list(shares)) if weights is None else weights
    secret = sum(weight * value for weight, value in zip(weights, values, strict=True)) % PRIME
    if secret >= 2 ** (8 * SECRET_BYTES):
        raise FedsimError("secure aggregation: the revealed shares belong to no secret, so they are refused")
    return secret.to_bytes(SECRET_BYTES, "big")
