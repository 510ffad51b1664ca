"""Where devices run if nobody says (`grid=auto`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from fedsim.grids.base import SimulationGrid
from fedsim.grids.forkserver import cores
from fedsim.grids.inprocess import InProcess
from fedsim.grids.processes import Processes
from fedsim.grids.settings import GridSettings, MakeDevices


@dataclass(frozen=True)
class Auto(Processes):
    """The keys of `grid=auto`: those of `grid=processes`, which it is, but for one core or one GPU and no workers asked for."""

    def chosen(self, device: torch.device) -> GridSettings:
        """In this process where there is nothing to be shared out."""
        keys = asdict(self)
        places = torch.cuda.device_count() if device.type == "cuda" else cores()
        if self.workers is None and places == 1:
            del keys["workers"]
            return InProcess(**keys)
        return Processes(**keys)

    def prepare(self, device: torch.device) -> None:
        """See GridSettings."""
        self.chosen(device).prepare(device)

    def open(self, devices: MakeDevices, chunk_size: int, device: torch.device) -> SimulationGrid:
        """See GridSettings."""
        return self.chosen(device).open(devices, chunk_size, device)
