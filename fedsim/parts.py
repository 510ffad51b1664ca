"""The parts of one experiment, made and ready: what `experiment.py` builds from configuration."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from fedsim.algorithms import Algorithm
from fedsim.checks import require_int
from fedsim.client import ClientStates, Devices
from fedsim.data.population import Population
from fedsim.grids.base import SimulationGrid
from fedsim.grids.settings import GridSettings
from fedsim.results.loggers import Logger
from fedsim.server import Server
from fedsim.training import LocalTraining, Trainer
from fedsim.training.execution import Execution
from fedsim.types import FedsimError


@dataclass
class Parts:
    """name: the experiment's. grid_settings: where devices run. chunk_size: clients that a node trains before it replies."""

    name: str
    device: torch.device
    population: Population
    algorithm: Algorithm
    settings: LocalTraining
    model: nn.Module
    trainer: Trainer
    server: Server
    logger: Logger
    grid_settings: GridSettings
    chunk_size: int

    @property
    def num_parameters(self) -> int:
        """Trainable and not."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def devices(self, states: ClientStates | None = None) -> Devices:
        """What stands behind a node that trains in this process; without `states`, each node's context keeps its own."""
        server = self.server
        return Devices(
            self.trainer, self.population, server.judge.batch_size, server.protection, server.compression, states
        )

    def grid(self) -> SimulationGrid:
        """The grid, with this experiment's client app on its nodes."""
        return self.grid_settings.open(self.devices, self.chunk_size, self.device)

    @property
    def execution(self) -> dict[str, Any]:
        """How devices train, which bits depend on: what a checkpoint keeps and a resumed run goes on with."""
        return {**asdict(self.trainer.execution), "chunk_size": self.chunk_size}

    def go_on_with(self, execution: dict[str, Any]) -> None:
        """Train as a checkpoint's run did. Raises FedsimError where it does not read as `execution` gave it."""
        try:
            self.chunk_size = require_int("execution.chunk_size", execution["chunk_size"], low=1)
            self.trainer.execution = Execution(**{key: execution[key] for key in asdict(self.trainer.execution)})
        except KeyError as error:
            raise FedsimError(
                f"the checkpoint does not say {error} of how devices train, so it is corrupt; start anew"
            ) from error
