"""What a process (or an actor) that trains runs: the real ClientApp, chunk after chunk, on states that come and go with the chunk.

The one store of clients' states is the main process's. A task brings those of its clients along and its answer takes what
changed back, so that a chunk gives the same whichever worker does it, and gives it again after a worker died.

How a grid uses this:

    devices = parts.devices()                       # without states; it travels once, by whatever carries objects
    worker = Worker(move(devices, device))          # in the process that trains
    worker.place(number, record)                    # arrays of a message, once a round, before the tasks that name them
    answer = worker.run(task)                       # Task from `task_of(message, states, numbers)`, in the main process
    reply = settle(answer, message, states)         # in the main process, in the order of chunks
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from flwr.app import ArrayRecord, Message, MessageType, RecordDict

from fedsim import flower
from fedsim.client import ClientStates, Devices, make_client_app
from fedsim.types import Params


class Task(NamedTuple):
    """One chunk. message: as it came to the grid, less its arrays. arrays: their numbers, by the record's name."""

    message: Message
    arrays: dict[str, int]
    states: dict[int, Params]
    memories: dict[int, dict[str, Any]]


class Answer(NamedTuple):
    """What became of it: the reply's content, or in words what the node raised; and what the clients keep that is new."""

    content: RecordDict | None
    error: str
    states: dict[int, Params]
    memories: dict[int, dict[str, Any]]


class TaskStates:
    """The states of a task's clients, and which of them changed."""

    def __init__(self) -> None:
        self.load({}, {})

    def load(self, states: dict[int, Params], memories: dict[int, dict[str, Any]]) -> None:
        """Those of the next task."""
        self._states, self._memories = dict(states), dict(memories)
        self.changed: dict[int, Params] = {}
        self.remembered: dict[int, dict[str, Any]] = {}

    def get(self, client: int) -> Params:
        """See ClientStates."""
        return self._states.get(client, {})

    def put(self, client: int, state: Params) -> None:
        """See ClientStates."""
        if state:
            self._states[client] = self.changed[client] = {n: array.cpu().contiguous() for n, array in state.items()}

    def memory(self, client: int) -> dict[str, Any]:
        """See ClientStates."""
        return self._memories.setdefault(client, {})

    def remember(self, client: int, memory: dict[str, Any]) -> None:
        """See ClientStates."""
        self._memories[client] = self.remembered[client] = memory


class Worker:
    """One node with any number of clients."""

    def __init__(self, devices: Devices) -> None:
        flower.enter_runtime()
        self.states = TaskStates()
        own = replace(devices, states=self.states)
        self._app, self._context = make_client_app(lambda: own), flower.node_context(0)
        self._placed: dict[int, ArrayRecord] = {}

    def place(self, number: int, record: ArrayRecord) -> None:
        """Keep arrays that tasks will name."""
        self._placed[number] = record

    def forget(self) -> None:
        """Let go of all that was placed."""
        self._placed.clear()

    def run(self, task: Task) -> Answer:
        """Do a chunk. What the app itself raises is an answer too, as in Flower's engines."""
        self.states.load(task.states, task.memories)
        for name, number in task.arrays.items():
            task.message.content[name] = self._placed[number]
        try:
            content, error = self._app(task.message, self._context).content, ""
        except Exception as raised:  # the app reports its clients' errors itself: this one is the node's
            content, error = None, f"{type(raised).__name__}: {raised}"
        return Answer(content, error, self.states.changed, self.states.remembered)


def move(devices: Devices, device: torch.device) -> Devices:
    """Devices that came from another process, where they train here. They travel on the CPU."""
    if device.type != "cpu":
        devices.trainer.model.to(device)
        devices.population.device = device
        devices.population.preprocess.to(device)
    return devices


def task_of(message: Message, states: ClientStates, numbers: Mapping[int, int]) -> Task:
    """The task of a chunk's message. numbers: of array records that were placed, by `id(record)`."""
    content = message.content
    arrays = {name: numbers[id(record)] for name, record in flower.arrays_of(content).items()}
    light = Message(
        RecordDict({name: record for name, record in content.items() if name not in arrays}),
        message.metadata.dst_node_id,
        message.metadata.message_type,
    )
    flower.stamp(light, 1)  # a reply must name a message
    clients = flower.column(flower.record_of(content, flower.COHORT), "clients")
    talks = message.metadata.message_type == MessageType.QUERY
    kept = {} if talks else {client: state for client in clients if (state := states.get(client))}
    return Task(light, arrays, kept, {client: memory for client in clients if (memory := states.memory(client))})


def settle(answer: Answer, message: Message, states: ClientStates) -> Message:
    """Keep what the chunk's clients keep; gives the reply."""
    for client, state in answer.states.items():
        states.put(client, state)
    for client, memory in answer.memories.items():
        states.remember(client, memory)
    if answer.content is None:
        return flower.failure_reply(message, answer.error)
    return Message(answer.content, reply_to=message)
