"""The keys of `grid.*` that all grids share, and what a grid is opened with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fedsim.checks import require_int
from fedsim.client import ClientStates, Devices
from fedsim.grids.base import SimulationGrid
from fedsim.training.choose import Asked

MakeDevices = Callable[[ClientStates | None], Devices]
"""Gives what stands behind a node, with the store of its clients' states."""


@dataclass(frozen=True)
class GridSettings(Asked):
    """The keys of `grid.*` that all grids have: how devices train (`Asked`), wherever they run, and in what portions.

    chunk_size: clients that one node trains before it replies (None: by rule).
    """

    chunk_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk_size is not None:
            require_int("grid.chunk_size", self.chunk_size, low=1)

    def prepare(self, device: torch.device) -> None:
        """Begin what takes long, before the other parts are made."""

    def open(self, devices: MakeDevices, chunk_size: int, device: torch.device) -> SimulationGrid:
        """The grid. chunk_size: as resolved by the rule where it is None here."""
        raise NotImplementedError
