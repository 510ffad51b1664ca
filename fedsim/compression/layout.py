"""Several arrays as one vector, and its buckets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from fedsim.types import FedsimError, Params

LARGEST = 2.0**90
"""The largest magnitude that is encoded: what is beyond has diverged, and sums of 2^30 of them still fit in float32."""


@dataclass(frozen=True)
class Layout:
    """names and shapes of the arrays in the order of a message, which is that of their names."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, shapes: Mapping[str, torch.Size]) -> Layout:
        """Of arrays of these shapes, in whichever order they are given."""
        names = tuple(sorted(shapes))
        return cls(names, tuple(torch.Size(shapes[name]) for name in names))

    @property
    def sizes(self) -> list[int]:
        """Coordinates of each array."""
        return [shape.numel() for shape in self.shapes]

    @property
    def total(self) -> int:
        """Coordinates of all: d."""
        return sum(self.sizes)

    def flatten(self, arrays: Params) -> np.ndarray:
        """(d,) float32 on the CPU, a copy."""
        if not self.total:
            return np.zeros(0, dtype=np.float32)
        pieces = [arrays[name].detach().reshape(-1).float() for name in self.names]
        return torch.cat(pieces).cpu().numpy()

    def unflatten(self, vector: np.ndarray) -> Params:
        """The inverse of `flatten`, for a vector (d,) that nobody else holds."""
        pieces = torch.from_numpy(vector).split(self.sizes)
        return {n: piece.reshape(s) for n, s, piece in zip(self.names, self.shapes, pieces, strict=True)}


def require_plausible(vector: np.ndarray) -> None:
    """Refuse an update with NaN, Inf or a magnitude above LARGEST: each of them makes the one comparison fail."""
    if not np.abs(vector).max(initial=0) <= LARGEST:
        raise FedsimError("its update holds NaN, Inf or numbers beyond 1e27, which cannot be encoded; lower client.lr")


class Buckets:
    """Consecutive coordinates that share numbers, such as a scale: at most `size` of one array (None: all of them).

    starts: (buckets,) the first coordinate of each. A bucket holds at least one coordinate.
    """

    def __init__(self, sizes: list[int], size: int | None) -> None:
        ends = np.cumsum([0, *sizes])
        starts = [np.arange(start, end, size or max(end - start, 1)) for start, end in pairwise(ends)]
        self.starts = np.concatenate([np.zeros(0, dtype=np.int64), *starts])
        self.lengths = np.diff(self.starts, append=ends[-1])

    def __len__(self) -> int:
        return len(self.starts)

    def reduce(self, ufunc: np.ufunc, vector: np.ndarray) -> np.ndarray:
        """(buckets,) `ufunc` over the coordinates of each bucket, vector (d,)."""
        return ufunc.reduceat(vector, self.starts) if len(self) else vector[:0]

    def spread(self, numbers: np.ndarray) -> np.ndarray:
        """(buckets,) -> (d,): each coordinate's own."""
        return np.repeat(numbers, self.lengths)
