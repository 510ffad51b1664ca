"""Training rows on the device that trains: lying there already where a GPU has room for all, else copied as they are asked for."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedsim.data.dataset import Examples
from fedsim.data.made import MadeExamples

SHARE = 0.25
"""Of a GPU's free memory, what rows may take; the rest is for clients that train together."""


class Resident:
    """The rows of `examples` on `device`. most_bytes: that may lie there (None: SHARE of what is free; on a CPU they do anyway)."""

    def __init__(self, examples: Examples, device: torch.device, most_bytes: int | None = None) -> None:
        self.examples, self.device = examples, device
        self._there: tuple[Tensor, Tensor] | None = None
        if most_bytes is None:
            most_bytes = int(SHARE * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0
        if not isinstance(examples, MadeExamples) and examples.nbytes <= most_bytes:
            self._there = examples.x.to(device), examples.y.to(device)

    def take(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """x (k, ...) and y (k, ...) of these row numbers (k,), on the device."""
        if self._there is not None:
            x, y = self._there
            index = torch.from_numpy(rows).to(self.device)
            return x[index], y[index]
        x, y = self.examples.take(rows)
        if self.device.type == "cuda":  # from page-locked memory a copy does not hold up the work that is under way
            x, y = x.pin_memory(), y.pin_memory()
        return x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
