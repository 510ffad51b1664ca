"""The parts of one experiment, made and ready: what `experiment.py` builds from configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from flwr.clientapp import ClientApp
from torch import nn

from fedsim.algorithms import Algorithm
from fedsim.client import ClientStates, Devices, make_client_app
from fedsim.data.population import Population
from fedsim.grids.base import SimulationGrid
from fedsim.results.loggers import Logger
from fedsim.server import Server
from fedsim.training import LocalTraining, Trainer


@dataclass
class Parts:
    """name: the experiment's. make_grid: takes a factory of client apps and gives the grid they run on."""

    name: str
    device: torch.device
    population: Population
    algorithm: Algorithm
    settings: LocalTraining
    model: nn.Module
    trainer: Trainer
    server: Server
    logger: Logger
    make_grid: Callable[[Callable[[ClientStates], ClientApp]], SimulationGrid]

    @property
    def num_parameters(self) -> int:
        """Trainable and not."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def devices(self, states: ClientStates | None = None) -> Devices:
        """What stands behind a node that trains in this process; without `states`, each node's context keeps its own."""
        server = self.server
        return Devices(self.trainer, self.population, server.plan.batch_size, server.protection, states)

    def grid(self) -> SimulationGrid:
        """The grid, with this experiment's client app on its nodes."""
        return self.make_grid(lambda states: make_client_app(lambda: self.devices(states)))
