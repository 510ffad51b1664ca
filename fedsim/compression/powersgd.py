"""PowerSGD: each matrix as a product of two thin ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from fedsim.checks import require_int
from fedsim.compression.base import Compression, kept_array
from fedsim.compression.draws import Draws
from fedsim.compression.layout import Layout
from fedsim.compression.wire import Reader
from fedsim.types import FedsimError, Params

FACTOR = "compression.factor/"
"""Before an array's name in a client's state: (m, rank), where the power iteration of its last round ended."""


class PowerSGD(Compression):
    """One step of subspace iteration for each matrix M (n, m): P = orthogonal(M Q), Q = M^T P, and P Q^T is what arrives.

    Vogels et al. 2019 (arXiv 1905.13727, algorithm 1), at each client by itself: P is not averaged between the two halves, for
    which clients would have to be asked twice a round. Q starts where the client's last round left it, and at random in its
    first. Arrays of more than two dimensions are matrices of their first by the others; vectors, and matrices for which
    rank (n + m) >= n m, are sent as they are. A projection, so that error feedback converges.
    """

    number = 7
    agreed_keys = ("rank",)

    def __init__(self, rank: int = 4, error_feedback: bool = True, down_bits: int | None = None) -> None:
        super().__init__(error_feedback, down_bits)
        self.rank = require_int("compression.rank", rank, low=1)

    def check(self, shapes: Mapping[str, torch.Size]) -> None:
        """See Compression."""
        super().check(shapes)
        if not any(self._is_factored(shape) for shape in shapes.values()):
            raise FedsimError(
                f"compression.rank={self.rank} shortens none of the model's arrays, which are vectors or matrices too small for "
                "it; lower compression.rank or choose another compression"
            )

    def notes(self, shapes: Mapping[str, torch.Size]) -> list[str]:
        """See Compression."""
        whole = [shape.numel() for shape in shapes.values() if not self._is_factored(shape)]
        if not whole:
            return super().notes(shapes)
        return [
            *super().notes(shapes),
            f"{len(whole)} of {len(shapes)} arrays, {sum(whole):,} coordinates in all, are vectors or too small for "
            f"compression.rank={self.rank} and are sent as they are",
        ]

    def pack(self, vector: np.ndarray, layout: Layout, state: Params, draws: Draws) -> tuple[bytes, Params]:
        """Of each array in turn: P and Q, or its coordinates. The state is the factors Q that the next round starts with."""
        sent: list[np.ndarray] = []
        kept: Params = {}
        generator = draws.private("factor")
        for name, shape, start in self._arrays(layout):
            piece = vector[start : start + shape.numel()]
            if not self._is_factored(shape):
                sent.append(piece)
                continue
            matrix = torch.from_numpy(piece).reshape(shape[0], -1)
            wanted = (matrix.shape[1], self.rank)
            start_at = kept_array(state, FACTOR + name, wanted) if FACTOR + name in state else None
            if start_at is None:
                start_at = generator.standard_normal(wanted, dtype=np.float32)
            left, right, kept[FACTOR + name] = power_step(matrix, torch.from_numpy(start_at))
            sent += [left.numpy().reshape(-1), right.numpy().reshape(-1)]
        return b"".join(array.astype("<f4").tobytes() for array in sent), kept

    def unpack(self, reader: Reader, layout: Layout) -> np.ndarray:
        """See Compression."""
        vector = np.empty(layout.total, dtype=np.float32)
        for _, shape, start in self._arrays(layout):
            size, piece = shape.numel(), vector[start : start + shape.numel()]
            if not self._is_factored(shape):
                piece[:] = reader.floats(size)
                continue
            rows, columns = shape[0], size // shape[0]
            left = torch.from_numpy(reader.floats(rows * self.rank).astype(np.float32)).reshape(rows, -1)
            right = torch.from_numpy(reader.floats(columns * self.rank).astype(np.float32)).reshape(columns, -1)
            piece[:] = (left @ right.T).reshape(-1).numpy()
        return vector

    def payload_bytes(self, layout: Layout) -> int:
        """See Compression."""
        return 4 * sum(
            self.rank * (shape[0] + shape.numel() // shape[0]) if self._is_factored(shape) else shape.numel()
            for shape in layout.shapes
        )

    def _is_factored(self, shape: torch.Size) -> bool:
        if len(shape) < 2 or not shape.numel():
            return False
        return self.rank * (shape[0] + shape.numel() // shape[0]) < shape.numel()

    @staticmethod
    def _arrays(layout: Layout) -> Iterator[tuple[str, torch.Size, int]]:
        """(name, shape, first coordinate) of each."""
        start = 0
        for name, shape in zip(layout.names, layout.shapes, strict=True):
            yield name, shape, start
            start += shape.numel()


def power_step(matrix: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """matrix (n, m), start (m, rank) -> P (n, rank) of orthonormal columns, Q (m, rank), and Q to start with next.

    The matrix is brought to a largest magnitude of one meanwhile and what is kept to a norm of one, so that no size of update
    overflows. Householder's QR gives orthonormal columns for a P of any rank: a start of zeros would only cost a round.
    """
    scale = matrix.abs().max()
    unit = matrix / scale if scale > 0 else matrix
    left = torch.linalg.qr(unit @ start).Q
    right = unit.T @ left
    norm = torch.linalg.vector_norm(right)
    return left, right * scale, right / norm if norm > 0 else start
