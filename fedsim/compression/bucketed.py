"""Codecs that turn each coordinate into a symbol by a few numbers that its bucket shares: all quantisers are one of these.

A payload is [the seed of the rotation, 8 bytes] [`numbers` float32 of each bucket] [symbols, a few bits each].
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fedsim.checks import require_bool, require_choice, require_int
from fedsim.compression.base import Compression
from fedsim.compression.draws import Draws
from fedsim.compression.entropy import CODERS, constriction, pack_symbols, read_symbols, symbols_bytes
from fedsim.compression.hadamard import rotate, rotate_back
from fedsim.compression.layout import Buckets, Layout
from fedsim.compression.wire import Reader
from fedsim.types import Params


class Bucketed(Compression):
    """alphabet: how many symbols. numbers: float32 that each bucket sends. bucket: most coordinates of one (None: an array's).

    rotate: the whole update is rotated at random first, as one vector; buckets are then of that.
    """

    numbers: ClassVar[int]
    agreed_keys = ("alphabet", "bucket", "rotate", "entropy")

    def __init__(
        self,
        alphabet: int,
        bucket: int | None,
        rotate: bool = False,
        entropy: str = "none",
        error_feedback: bool = False,
        down_bits: int | None = None,
    ) -> None:
        super().__init__(error_feedback, down_bits)
        if bucket is not None:
            require_int("compression.bucket", bucket, low=1)
        require_bool("compression.rotate", rotate)
        require_choice("compression.entropy", entropy, CODERS)
        if entropy == "ans":
            constriction()
        self.alphabet, self.bucket, self.rotate, self.entropy = alphabet, bucket, rotate, entropy

    def summarise(self, vector: np.ndarray, buckets: Buckets) -> np.ndarray:
        """(numbers, buckets): what is sent of each bucket."""
        raise NotImplementedError

    def symbols(self, vector: np.ndarray, numbers: list[np.ndarray], draws: Draws) -> np.ndarray:
        """(d,) unsigned integers below `alphabet`. numbers: `numbers` arrays (d,), each coordinate's own."""
        raise NotImplementedError

    def values(self, symbols: np.ndarray, numbers: list[np.ndarray]) -> np.ndarray:
        """(d,) float32 that the symbols stand for."""
        raise NotImplementedError

    def pack(self, vector: np.ndarray, layout: Layout, state: Params, draws: Draws) -> tuple[bytes, Params]:
        """See Compression."""
        head = b""
        if self.rotate:
            seed = draws.public("rotation")
            head, vector = seed.to_bytes(8, "little"), rotate(vector, seed)
        buckets = self._buckets(layout)
        numbers = self.summarise(vector, buckets).astype("<f4")
        symbols = self.symbols(vector, [buckets.spread(row) for row in numbers], draws)
        return head + numbers.tobytes() + pack_symbols(symbols, self.alphabet, self.entropy), {}

    def unpack(self, reader: Reader, layout: Layout) -> np.ndarray:
        """See Compression."""
        seed = reader.word() if self.rotate else 0
        buckets = self._buckets(layout)
        numbers = reader.floats(self.numbers * len(buckets)).astype(np.float32).reshape(self.numbers, -1)
        symbols = read_symbols(reader, layout.total, self.alphabet, self.entropy)
        vector = self.values(symbols, [buckets.spread(row) for row in numbers])
        return rotate_back(vector, seed) if self.rotate else vector

    def payload_bytes(self, layout: Layout) -> int:
        """See Compression."""
        numbers = 4 * self.numbers * len(self._buckets(layout))
        return 8 * self.rotate + numbers + symbols_bytes(layout.total, self.alphabet, self.entropy)

    def _buckets(self, layout: Layout) -> Buckets:
        return Buckets([layout.total] if self.rotate else layout.sizes, self.bucket)
