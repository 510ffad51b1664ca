"""Next-character prediction."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fedsim.types import FedsimError


class CharLSTM(nn.Module):
    """Embedding, LSTM, linear: the symbol after each symbol. layers=2, hidden=256 is the model of arXiv 1602.05629.

    Input: (b, length) int64 symbols. Output: (b, length, num_outputs).
    """

    def __init__(
        self, input_shape: Sequence[int], num_outputs: int, embedding: int = 8, hidden: int = 256, layers: int = 2
    ) -> None:
        super().__init__()
        if len(input_shape) != 1:
            raise FedsimError(
                f"model=lstm takes sequences of symbols, not inputs of shape {tuple(input_shape)}; try model=cnn"
            )
        self.embedding = nn.Embedding(num_outputs, embedding)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, length) -> (b, length, num_outputs)."""
        y, _ = self.lstm(self.embedding(x))  # (b, length, hidden)
        return self.head(y)
