"""Count sketch: every coordinate is added, with a random sign, to one cell of each row."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch

from fedsim.checks import require_int, require_number
from fedsim.compression.base import Compression
from fedsim.compression.draws import Draws
from fedsim.compression.layout import Layout
from fedsim.compression.sparse import largest, scattered
from fedsim.compression.wire import Reader
from fedsim.types import FedsimError, Params


class Sketch(Compression):
    """Charikar, Chen and Farach-Colton 2002 (doi 10.1016/S0304-3975(03)00400-6), as FetchSGD sends it (arXiv 2007.07682).

    size: cells of all rows over coordinates. Cells and signs are drawn anew in each round and are the same for all its clients,
    so that sketches add up to the sketch of the sum. recover: null is the mean over rows of what each says of a coordinate: linear
    and unbiased, with a squared error of about ||v||^2 / size. A share of the coordinates: the median over rows, of which
    the largest are kept and the others zero, as FetchSGD's server finds what stands out. Its momentum and its error
    accumulator at the server are not here, and error feedback at the client is not either: it need not converge.
    """

    number = 8
    agreed_keys = ("rows", "size", "recover")

    def __init__(
        self, rows: int = 5, size: float = 0.25, recover: float | None = None, down_bits: int | None = None
    ) -> None:
        super().__init__(down_bits=down_bits)
        self.rows = require_int("compression.rows", rows, low=1, high=99)
        self.size = require_number("compression.size", size, above=0, high=1)
        self.recover = None if recover is None else require_number("compression.recover", recover, above=0, high=1)

    def check(self, shapes: Mapping[str, torch.Size]) -> None:
        """See Compression."""
        super().check(shapes)
        total = Layout.of(shapes).total
        if round(self.size * total) < self.rows:
            raise FedsimError(
                f"compression.size={self.size:g} of {total:,} coordinates is less than a cell for each of compression.rows="
                f"{self.rows}; raise compression.size"
            )

    def columns(self, total: int) -> int:
        """Cells of a row."""
        return max(1, round(self.size * total / self.rows))

    def pack(self, vector: np.ndarray, layout: Layout, state: Params, draws: Draws) -> tuple[bytes, Params]:
        """The seed of the hashes, then the rows."""
        seed, columns = draws.shared("sketch"), self.columns(layout.total)
        cells, signs = hashes(seed, self.rows, columns, layout.total)
        table = [np.bincount(c, vector * s, columns) for c, s in zip(cells, signs, strict=True)]
        return seed.to_bytes(8, "little") + np.stack(table).astype("<f4").tobytes(), {}

    def unpack(self, reader: Reader, layout: Layout) -> np.ndarray:
        """See Compression."""
        seed, columns = reader.word(), self.columns(layout.total)
        table = reader.floats(self.rows * columns).reshape(self.rows, columns)
        cells, signs = hashes(seed, self.rows, columns, layout.total)
        said = [row[c] * s for row, c, s in zip(table, cells, signs, strict=True)]
        if self.recover is None:
            return np.stack(said).mean(axis=0)
        estimates = median(said)
        found = largest(estimates, min(layout.total, max(1, round(self.recover * layout.total))))
        return scattered(found, estimates[found], layout.total)

    def payload_bytes(self, layout: Layout) -> int:
        """See Compression."""
        return 8 + 4 * self.rows * self.columns(layout.total)


@lru_cache(maxsize=1)
def hashes(seed: int, rows: int, columns: int, total: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, total) int32 the cell of each coordinate, and (rows, total) int8 its sign, all independent. Kept for a round."""
    bits = np.random.default_rng(seed).integers(0, 2**32, (rows, total), dtype=np.uint32)
    cells = ((bits >> np.uint32(1)).astype(np.uint64) * np.uint64(columns)) >> np.uint64(31)
    return cells.astype(np.int32), 1 - 2 * (bits & np.uint32(1)).astype(np.int8)


def median(rows: list[np.ndarray]) -> np.ndarray:
    """(total,) the median over rows, each (total,): sorted by transposing neighbours, which numpy does for all columns at once."""
    rows = list(rows)
    for step in range(len(rows)):
        for i in range(step % 2, len(rows) - 1, 2):
            rows[i], rows[i + 1] = np.minimum(rows[i], rows[i + 1]), np.maximum(rows[i], rows[i + 1])
    middle = len(rows) // 2
    return rows[middle] if len(rows) % 2 else (rows[middle - 1] + rows[middle]) / np.float32(2)
