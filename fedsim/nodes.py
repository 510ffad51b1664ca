"""Which nodes a round sees: the client behind each, and the grid with nobody but the cohort in it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedsim import flower
from fedsim.flower import Run
from fedsim.grids.base import SimulationGrid
from fedsim.privacy.base import Payload
from fedsim.types import FedsimError


class Cohort(Grid):
    """The grid as a strategy sees it: it holds the round's cohort and nobody else. Everything else passes through."""

    def __init__(self, grid: Grid, node_ids: list[int]) -> None:
        self._grid, self._node_ids = grid, node_ids

    def get_node_ids(self) -> Iterable[int]:
        """The cohort's."""
        return list(self._node_ids)

    def set_run(self, run: Run) -> None:
        """See Grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """See Grid."""
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """See Grid."""
        return self._grid.create_message(*args, **kwargs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See Grid."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See Grid."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """See Grid."""
        return self._grid.send_and_receive(messages, timeout=timeout)


class Nodes:
    """Which node stands for which client: the same number in a simulation, asked for in a deployment."""

    def __init__(self, node_of: dict[int, int] | None = None) -> None:
        self._node_of = node_of
        self._client_of = None if node_of is None else {node: client for client, node in node_of.items()}

    def of(self, clients: np.ndarray) -> list[int]:
        """Node ids of these clients."""
        if self._node_of is None:
            return clients.tolist()
        absent = [client for client in clients.tolist() if client not in self._node_of]
        if absent:
            raise FedsimError(
                f"no node stands for client {absent[0]}; connect {len(absent)} more, or lower population.num_clients"
            )
        return [self._node_of[client] for client in clients.tolist()]

    def client(self, node_id: int) -> int:
        """The client behind a node."""
        return node_id if self._client_of is None else self._client_of[node_id]


def node_ids(grid: Grid, needed: int, patience: float) -> Nodes:
    """Ask every node of a real grid which client it is, once `needed` are there; simulated nodes are their clients.

    patience: seconds to wait for nodes to connect. Raises FedsimError where too few have.
    """
    if isinstance(grid, SimulationGrid):
        return Nodes()
    deadline = time.monotonic() + patience
    while len(connected := list(grid.get_node_ids())) < needed:
        if time.monotonic() > deadline:
            raise FedsimError(
                f"{len(connected)} of {needed} nodes are connected; connect more, or lower population.num_clients"
            )
        time.sleep(0.1)
    messages = [Message(RecordDict(), node_id, MessageType.QUERY) for node_id in connected]
    node_of = {}
    for reply in grid.send_and_receive(messages):
        if not reply.has_error():
            client = reply.content.metric_records[flower.METRICS]["client"]
            node_of[int(client)] = reply.metadata.src_node_id  # type: ignore[arg-type]
    return Nodes(node_of)


def converse(grid: Grid, nodes: Nodes, timeout: float, phase: str, said: Mapping[int, Payload]) -> dict[int, Payload]:
    """Say something to each of these clients beside training, and gather the answers of those that answered."""
    config = ConfigRecord({"phase": phase})
    messages = [
        Message(
            RecordDict({flower.CONFIG: config, flower.PAYLOAD: ConfigRecord(payload)}),
            nodes.of(np.array([client]))[0],
            MessageType.QUERY,
        )
        for client, payload in said.items()
    ]
    replies = [reply for reply in grid.send_and_receive(messages, timeout=timeout) if not reply.has_error()]
    return {nodes.client(r.metadata.src_node_id): dict(flower.record_of(r.content, flower.PAYLOAD)) for r in replies}
