"""Few coordinates of many: the largest, or random ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch

from fedsim.checks import require_choice, require_number
from fedsim.compression.base import Compression
from fedsim.compression.bits import pack_positions, positions_bytes, read_positions
from fedsim.compression.draws import Draws
from fedsim.compression.layout import Layout
from fedsim.compression.wire import Reader, refusal
from fedsim.types import FedsimError, Params


class Sparse(Compression):
    """keep: the share of all coordinates that is sent, k = max(1, round(keep d)) of them.

    values: float32; or float16, as parts of the largest magnitude, which is sent in float32: off by 2^-11 of a value, and by
    2^-25 of the largest at least.
    """

    agreed_keys: ClassVar[tuple[str, ...]] = ("keep", "values")

    def __init__(self, keep: float, values: str, error_feedback: bool, down_bits: int | None) -> None:
        super().__init__(error_feedback, down_bits)
        self.keep = require_number("compression.keep", keep, above=0, high=1)
        self.values = require_choice("compression.values", values, ("float32", "float16"))

    def check(self, shapes: Mapping[str, torch.Size]) -> None:
        """See Compression."""
        super().check(shapes)
        total = Layout.of(shapes).total
        if round(self.keep * total) < 1:
            raise FedsimError(
                f"compression.keep={self.keep:g} of {total:,} coordinates is less than one of them; give at least "
                f"{1 / max(total, 1):.2g}"
            )

    def count(self, total: int) -> int:
        """k of d coordinates."""
        return min(total, max(1, round(self.keep * total)))

    def pack_values(self, values: np.ndarray) -> bytes:
        """(k,) float32."""
        if self.values == "float32":
            return values.astype("<f4").tobytes()
        scale = np.abs(values).max(initial=np.float32(0))
        parts = values / scale if scale > 0 else values
        return scale.astype("<f4").tobytes() + parts.astype("<f2").tobytes()

    def read_values(self, reader: Reader, count: int) -> np.ndarray:
        """The inverse."""
        if self.values == "float32":
            return reader.floats(count)
        scale = reader.floats(1)
        parts = np.frombuffer(reader.take(2 * count), dtype="<f2").astype(np.float32)
        if not (np.abs(parts) <= 1).all():
            raise refusal("it holds a value above its largest")
        return parts * scale

    def values_bytes(self, count: int) -> int:
        """Length of `pack_values`."""
        return 4 * count if self.values == "float32" else 4 + 2 * count


def scattered(positions: np.ndarray, values: np.ndarray, total: int) -> np.ndarray:
    """(total,) float32, zero but for the values at the positions."""
    vector = np.zeros(total, dtype=np.float32)
    vector[positions] = values
    return vector


class TopK(Sparse):
    """The k largest magnitudes of the whole update (Stich et al. 2018, arXiv 1809.07599; Lin et al. 2018, arXiv 1712.01887).

    A contraction, ||v - C(v)||^2 <= (1 - k/d) ||v||^2, and biased: error feedback is what makes it converge. Positions are sent
    as a bitmap or as gaps, whichever is shorter for k and d.
    """

    number = 5

    def __init__(
        self, keep: float = 0.01, values: str = "float32", error_feedback: bool = True, down_bits: int | None = None
    ) -> None:
        super().__init__(keep, values, error_feedback, down_bits)

    def pack(self, vector: np.ndarray, layout: Layout, state: Params, draws: Draws) -> tuple[bytes, Params]:
        """Positions in order, then values."""
        positions = largest(vector, self.count(layout.total))
        return pack_positions(positions, layout.total) + self.pack_values(vector[positions]), {}

    def unpack(self, reader: Reader, layout: Layout) -> np.ndarray:
        """See Compression."""
        count = self.count(layout.total)
        positions = read_positions(reader, layout.total, count)
        return scattered(positions, self.read_values(reader, count), layout.total)

    def payload_bytes(self, layout: Layout) -> int:
        """See Compression."""
        count = self.count(layout.total)
        return positions_bytes(layout.total, count) + self.values_bytes(count)


def largest(vector: np.ndarray, count: int) -> np.ndarray:
    """(count,) positions of the largest magnitudes, in increasing order."""
    if count == len(vector):
        return np.arange(count)
    return np.sort(torch.from_numpy(np.abs(vector)).topk(count, sorted=False).indices.numpy())


class RandomK(Sparse):
    """k random coordinates: the random mask of Konecny et al. 2016 (arXiv 1610.05492, sections 2 and 3), whose seed is sent.

    Without error feedback values are multiplied by d/k, which makes it unbiased with a squared error of (d/k - 1) ||v||^2.
    With it they are sent as they are: a contraction by 1 - k/d in the mean.
    """

    number = 6
    agreed_keys = ("keep", "values", "error_feedback")

    def __init__(
        self, keep: float = 0.1, values: str = "float32", error_feedback: bool = False, down_bits: int | None = None
    ) -> None:
        super().__init__(keep, values, error_feedback, down_bits)

    def pack(self, vector: np.ndarray, layout: Layout, state: Params, draws: Draws) -> tuple[bytes, Params]:
        """The seed of the mask, then values."""
        seed = draws.public("mask")
        return seed.to_bytes(8, "little") + self.pack_values(vector[self._mask(seed, layout.total)]), {}

    def unpack(self, reader: Reader, layout: Layout) -> np.ndarray:
        """See Compression."""
        positions = self._mask(reader.word(), layout.total)
        values = self.read_values(reader, len(positions))
        factor = 1 if self.error_feedback else layout.total / max(len(positions), 1)
        return scattered(positions, values * np.float32(factor), layout.total)

    def payload_bytes(self, layout: Layout) -> int:
        """See Compression."""
        return 8 + self.values_bytes(self.count(layout.total))

    def _mask(self, seed: int, total: int) -> np.ndarray:
        """(k,) different positions, every set of k as likely."""
        return np.random.default_rng(seed).choice(total, self.count(total), replace=False, shuffle=False)
