"""Updates as they are: float32, one after another."""

from __future__ import annotations

import numpy as np

from fedsim.compression.base import Compression
from fedsim.compression.draws import Draws
from fedsim.compression.layout import Layout
from fedsim.compression.wire import Reader
from fedsim.types import Params


class Uncompressed(Compression):
    """No codec; the model may still be quantised on its way down."""

    compresses = False
    number = 0

    def __init__(self, down_bits: int | None = None) -> None:
        super().__init__(down_bits=down_bits)

    def pack(self, vector: np.ndarray, layout: Layout, state: Params, draws: Draws) -> tuple[bytes, Params]:
        """See Compression."""
        return vector.astype("<f4").tobytes(), {}

    def unpack(self, reader: Reader, layout: Layout) -> np.ndarray:
        """See Compression."""
        return reader.floats(layout.total).astype(np.float32)

    def payload_bytes(self, layout: Layout) -> int:
        """See Compression."""
        return 4 * layout.total
