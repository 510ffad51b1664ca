"""Devices in this process, on the CPU or a GPU: the default for one device."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from flwr.app import Message
from flwr.clientapp import ClientApp

from fedsim import flower
from fedsim.client import ClientStates, make_client_app
from fedsim.grids.base import SimulationGrid
from fedsim.grids.settings import GridSettings, MakeDevices


@dataclass(frozen=True)
class InProcess(GridSettings):
    """The keys of `grid=inprocess`: see GridSettings."""

    def open(self, devices: MakeDevices, chunk_size: int, device: torch.device) -> SimulationGrid:
        """See GridSettings."""
        return InProcessGrid(lambda states: make_client_app(lambda: devices(states)), chunk_size)


class InProcessGrid(SimulationGrid):
    """One node in this process; it runs the real ClientApp, chunk after chunk.

    make_client_app: called once with the grid's store of client states.
    """

    def __init__(self, make_client_app: Callable[[ClientStates], ClientApp], chunk_size: int = 8) -> None:
        flower.enter_runtime()
        super().__init__(chunk_size)
        self._app = make_client_app(self.states)
        self._context = flower.node_context(0)

    def run_chunks(self, chunks: list[Message]) -> Generator[Message, None, None]:
        """One after the other; a node that raises answers with an error, as in Flower's engines."""
        for message in chunks:
            try:
                yield self._app(message, self._context)
            except Exception as error:  # the app reports its clients' errors itself: this one is the node's
                yield flower.failure_reply(message, f"{type(error).__name__}: {error}")
