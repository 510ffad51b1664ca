"""From an update to integers with noise, and back: rotation, scaling, conditional rounding, and exact discrete noise.

Kairouz, Liu and Steinke 2021 (The Distributed Discrete Gaussian Mechanism, arXiv 2102.06387, algorithm 1): the update is
flattened and rotated at random so that no coordinate stands out, divided by the granularity, and rounded stochastically to
integers, again and again until the norm is one that rounding exceeds with a chance of at most 1 - e^-1/2. The noise is
drawn in integers, so no floating-point number that leaks its low bits is ever added to another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from torch import Tensor

from fedsim.types import Params

RETRIES = math.exp(-0.5)
"""beta: rounding is repeated until the norm holds, which each try does with a chance of at least 1 - beta."""


class Words:
    """Uniform 64-bit words, as many as are asked for: the ChaCha20 stream of a 32-byte key."""

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()

    def words(self, size: int) -> np.ndarray:
        """(size,) uint64."""
        return np.frombuffer(self._cipher.update(bytes(8 * size)), dtype=np.uint64)

    def below(self, limit: int, size: int) -> np.ndarray:
        """At most `size` uniform integers in [0, limit), (<= size,) int64: those words that favour no remainder."""
        words = self.words(size)
        fair = words[words < np.uint64(2**64 - 2**64 % limit)] if 2**64 % limit else words
        return (fair % np.uint64(limit)).astype(np.int64)

    def uniforms(self, size: int) -> np.ndarray:
        """(size,) float64 in (0, 1], from 64 bits, and 64 more where these are few, so that small ones are as exact as large."""
        words = self.words(size)
        drawn = (words.astype(np.float64) + 0.5) * 2.0**-64
        small = np.flatnonzero(words < 2**44)
        drawn[small] = words[small] * 2.0**-64 + (self.words(len(small)) + 0.5) * 2.0**-128
        return drawn

    def happens(self, exponent: np.ndarray) -> np.ndarray:
        """Coins that fall True with chance exp(-exponent), exponent >= 0."""
        return self.uniforms(len(exponent)) <= np.exp(-exponent)


def _fill(size: int, propose: Callable[[int], np.ndarray]) -> np.ndarray:
    """`size` accepted draws, where `propose(n)` makes n proposals and gives those that it accepts."""
    drawn: list[np.ndarray] = []
    missing = size
    while missing > 0:
        drawn.append(propose(missing + missing // 2 + 16)[:missing])
        missing -= len(drawn[-1])
    return np.concatenate(drawn) if drawn else np.empty(0, dtype=np.int64)


def _discrete_laplace(words: Words, scale: int, size: int) -> np.ndarray:
    """At most `size` draws with chances proportional to exp(-|y| / scale) (Canonne et al. 2020, algorithm 2)."""
    remainder = words.below(scale, size)
    remainder = remainder[words.happens(remainder / scale)]
    magnitude = remainder + scale * np.floor(-np.log(words.uniforms(len(remainder)))).astype(np.int64)
    negative = (words.words(len(magnitude)) & np.uint64(1)).astype(bool)
    keep = ~(negative & (magnitude == 0))  # zero once, not twice
    return np.where(negative, -magnitude, magnitude)[keep]


def discrete_gaussian(words: Words, variance: float, size: int) -> np.ndarray:
    """(size,) int64 with chances proportional to exp(-y^2 / (2 variance)) (Canonne, Kamath, Steinke 2020, 2004.00010).

    Their algorithm 3: integers from the discrete Laplace law, rejected. Integers are exact; coins compare a uniform of 128
    bits with an exponential in float64, so that every chance is right up to a factor of 1 +- 1e-12. Over a run that moves
    epsilon by at most 2e-12 for each coordinate, share and round, which is why it may be neglected.
    """
    if variance == 0:
        return np.zeros(size, dtype=np.int64)
    scale = math.isqrt(int(variance)) + 1

    def propose(number: int) -> np.ndarray:
        drawn = _discrete_laplace(words, scale, number)
        return drawn[words.happens((np.abs(drawn) - variance / scale) ** 2 / (2 * variance))]

    return _fill(size, propose)


LARGE = 1000.0
"""The variance from which the asymptotic series of a Bessel function gives Skellam chances to 13 digits."""


def skellam(words: Words, variance: float, size: int) -> np.ndarray:
    """(size,) int64: the law of the difference of two Poissons of mean variance / 2 (arXiv 2110.04995). Sums stay in the family.

    Small variances are drawn as that difference; large ones at once, by rejection as `discrete_gaussian`, and as exact.
    """
    if variance < LARGE:
        return _poisson(words, variance / 2, size) - _poisson(words, variance / 2, size)
    scale = math.isqrt(int(variance)) + 1

    def excess(magnitude: np.ndarray) -> np.ndarray:
        return _log_skellam(magnitude, variance) + magnitude / scale

    # concave in the magnitude; it turns where pmf(k + 1) / pmf(k), which is about exp(-asinh(k / variance)), is exp(-1 / scale)
    turn = int(variance * math.sinh(1 / scale)) + np.arange(-5, 6)
    highest = float(excess(np.maximum(turn, 0).astype(np.float64)).max()) + 1e-9

    def propose(number: int) -> np.ndarray:
        drawn = _discrete_laplace(words, scale, number)
        return drawn[words.happens(highest - excess(np.abs(drawn).astype(np.float64)))]

    return _fill(size, propose)


def _log_skellam(magnitude: np.ndarray, variance: float) -> np.ndarray:
    """log of e^-v I_k(v) for v >= LARGE, by Debye's uniform expansion (DLMF 10.41.3) in 1 / sqrt(k^2 + v^2)."""
    wide = np.sqrt(magnitude**2 + variance**2)
    q = (magnitude / wide) ** 2
    first = (3 - 5 * q) / 24
    second = (81 - (462 - 385 * q) * q) / 1152
    third = (30375 - (369603 - (765765 - 425425 * q) * q) * q) / 414720
    fourth = (4465125 - (94121676 - (349922430 - (446185740 - 185910725 * q) * q) * q) * q) / 39813120
    series = (first + (second + (third + fourth / wide) / wide) / wide) / wide
    steep = magnitude**2 / (wide + variance) - magnitude * np.arcsinh(magnitude / variance)
    return steep - 0.5 * np.log(2 * math.pi * wide) + np.log1p(series)


def _poisson(words: Words, mean: float, size: int) -> np.ndarray:
    """(size,) int64, by rejection from a discrete Laplace law around the mode; as exact as `discrete_gaussian`."""
    if mean == 0:
        return np.zeros(size, dtype=np.int64)
    mode, scale = int(mean), math.isqrt(int(mean)) + 1

    def excess(value: np.ndarray) -> np.ndarray:
        return _log_poisson(value, mean) + np.abs(value - mode) / scale

    # the log-ratio is concave on either side of the mode, and turns where pmf(k + 1) / pmf(k) = mean / (k + 1) = e^(-+1/scale)
    turns = np.array([mean * math.exp(-1 / scale), mode, mean * math.exp(1 / scale)])
    near = np.unique(np.maximum(np.floor(turns).astype(np.int64)[:, None] + np.arange(-2, 3), 0))
    highest = float(excess(near).max()) + 1e-9

    def propose(number: int) -> np.ndarray:
        drawn = mode + _discrete_laplace(words, scale, number)
        drawn = drawn[drawn >= 0]
        return drawn[words.happens(highest - excess(drawn))]

    return _fill(size, propose)


def _log_poisson(value: np.ndarray, mean: float) -> np.ndarray:
    """log of mean^k e^-mean / k!, without cancellation (Loader 2000, Fast and Accurate Computation of Binomial Probabilities)."""
    count = np.maximum(value, 1).astype(np.float64)
    inverse = 1 / count**2
    series = (1 / 12 - (1 / 360 - (1 / 1260 - (1 / 1680 - inverse / 1188) * inverse) * inverse) * inverse) / count
    table = np.array([math.lgamma(k + 1) - (k + 0.5) * math.log(k) + k for k in range(1, 17)]) - 0.5 * math.log(
        2 * math.pi
    )
    stirling = np.where(count > 16, series, table[np.minimum(count, 16).astype(np.int64) - 1])
    result = -stirling - _deviance(count, mean) - 0.5 * np.log(2 * math.pi * count)
    return np.where(value == 0, -mean, result)


def _deviance(count: np.ndarray, mean: float) -> np.ndarray:
    """k log(k / mean) + mean - k, by its series where the two are close."""
    apart = count - mean
    ratio = apart / (count + mean)
    total = np.zeros_like(count)
    for power in range(21, 1, -2):
        total = (total + 2 * count / power) * ratio**2
    return np.where(np.abs(ratio) < 0.2, apart * ratio + total * ratio, count * np.log(count / mean) - apart)


def padded(size: int) -> int:
    """The power of two that the rotation works on."""
    return 1 << max(size - 1, 0).bit_length()


def rotate(vector: Tensor, signs: Tensor) -> Tensor:
    """(padded,) float64: signs, then the Walsh-Hadamard transform over sqrt(padded). Norms stay. signs: (padded,) of +-1."""
    filled = torch.zeros(len(signs), dtype=torch.float64)
    filled[: len(vector)] = vector.to(torch.float64)
    return _hadamard(filled * signs)


def rotate_back(vector: Tensor, signs: Tensor) -> Tensor:
    """(padded,) the inverse of `rotate`; what padding added comes last."""
    return _hadamard(vector.to(torch.float64)) * signs


def _hadamard(vector: Tensor) -> Tensor:
    """The transform over sqrt(length), which is its own inverse; length log length additions."""
    size, half = len(vector), 1
    while half < size:
        pairs = vector.view(-1, 2, half)
        vector = torch.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), dim=1).view(-1)
        half *= 2
    return vector / math.sqrt(size)


def rounded_norm(norm: float, dimension: int) -> float:
    """The L2 norm that a vector of `norm` may have after conditional rounding (arXiv 2102.06387, proposition 22 / theorem 1).

    min(norm + sqrt(d), sqrt(norm^2 + d/4 + sqrt(2 log(1/beta)) (norm + sqrt(d)/2))); with this beta the root is 1.
    """
    likely = norm**2 + dimension / 4 + math.sqrt(-2 * math.log(RETRIES)) * (norm + math.sqrt(dimension) / 2)
    return min(norm + math.sqrt(dimension), math.sqrt(likely))


def rounded_l1(l2: float, dimension: int) -> float:
    """The L1 norm of a vector of integers of this L2 norm: at most sqrt(d) times it, and at most its square."""
    return l2 * min(math.sqrt(dimension), l2)


def conditional_round(vector: Tensor, norm: float, words: Words) -> np.ndarray:
    """(d,) int64: each coordinate up or down with its mean kept, redrawn until the whole is within `rounded_norm(norm, d)`.

    vector: (d,) float64 of at most `norm`; what rounding errors put above it is scaled back first. The test is in integers,
    so the sensitivity that is accounted for holds whatever the floating-point numbers were.
    """
    given = vector.to(torch.float64).cpu().numpy()
    length = float(np.linalg.norm(given))
    if length > norm:
        given = given * (norm / length)
    bound = math.floor(rounded_norm(norm, len(given)) ** 2)
    low = np.floor(given)
    part = given - low
    while True:
        rounded = low.astype(np.int64) + (words.uniforms(len(given)) <= part)
        if int(np.dot(rounded, rounded)) <= bound:
            return rounded


def flatten(arrays: Mapping[str, Tensor]) -> Tensor:
    """All arrays as one vector, in their order, float64 on the CPU."""
    return torch.cat([array.detach().to("cpu", torch.float64).reshape(-1) for array in arrays.values()])


def unflatten(vector: Tensor, shapes: Mapping[str, torch.Size]) -> Params:
    """The inverse of `flatten`, as float32; what the vector holds beyond them is dropped."""
    sizes = [shape.numel() for shape in shapes.values()]
    pieces = vector[: sum(sizes)].to(torch.float32).split(sizes)
    return {name: piece.reshape(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}


def wrap(numbers: np.ndarray, bits: int) -> Tensor:
    """int64 numbers modulo 2^bits, as signed integers of `bits`."""
    return torch.from_numpy(numbers.astype({16: np.int16, 32: np.int32}[bits]))
