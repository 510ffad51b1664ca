"""Chunks dealt out to workers, in order: shared by grids whose workers are processes here or actors elsewhere.

A free worker takes the next chunk; answers are handed on in the order of chunks, so that sums do not depend on who was
faster. A worker that dies is replaced and its chunks are done again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

from flwr.app import ArrayRecord, Message

from fedsim import flower
from fedsim.grids.base import SimulationGrid
from fedsim.grids.worker import Answer, Task, settle, task_of
from fedsim.types import FedsimError

ATTEMPTS = 3
"""How often a chunk is begun before the run gives up."""

DEPTH = 2
"""Tasks that a worker has at most: one, and another so that it need not wait for us."""

AHEAD = 4
"""Chunks per worker that may be done before their turn has come: it bounds the answers that wait in memory."""


class Event(NamedTuple):
    """A worker's oldest task was answered; or the worker and all its tasks are lost.

    died: of what, in words; "" where the worker could not be had at all, which is not its task's fault.
    """

    worker: int
    answer: Answer | None
    died: str = ""


class Crew(ABC):
    """The workers of a grid, numbered from 0 to `size`. One does the tasks that it is given in their order. name: the grid's."""

    name: str
    size: int
    peak_mb: float = 0.0
    """Memory of the workers that were closed, at their largest; 0 where it is not known."""

    @abstractmethod
    def start(self, worker: int) -> None:
        """Have this worker: start it where there is none, or where it died, and leave one that lives."""

    @abstractmethod
    def place(self, records: list[ArrayRecord]) -> None:
        """Arrays that the tasks to come name by their place in the list, instead of those placed before.

        They are put once where all workers read them, those too that are started later.
        """

    @abstractmethod
    def give(self, worker: int, task: Task) -> None:
        """A task for a worker that was started, the DEPTHth at most that it has. That it is dead is told by `wait`, not here."""

    @abstractmethod
    def wait(self) -> list[Event]:
        """At least one event; blocks until there is one."""

    @abstractmethod
    def close(self) -> None:
        """End all workers, whatever they are doing; `start` begins anew."""


class PoolGrid(SimulationGrid):
    """A grid whose chunks are trained by a crew."""

    def __init__(self, crew: Crew, chunk_size: int) -> None:
        super().__init__(chunk_size)
        self.crew, self.name = crew, crew.name

    @property
    def workers(self) -> int:
        """See SimulationGrid."""
        return self.crew.size

    @property
    def shards(self) -> int:
        """See SimulationGrid; more than there are workers, so that a slow one keeps the others waiting for less."""
        return 2 * self.crew.size

    def run_chunks(self, chunks: list[Message]) -> Generator[Message, None, None]:
        """See SimulationGrid. What is broken off in the middle leaves no worker behind."""
        records = {id(r): r for message in chunks for r in flower.arrays_of(message.content).values()}
        self.crew.place(list(records.values()))
        numbers = {key: number for number, key in enumerate(records)}
        tasks = Tasks(len(chunks), lambda index: task_of(chunks[index], self.states, numbers))
        answers = in_order(self.crew, tasks)
        try:
            for message in chunks:
                yield settle(next(answers), message, self.states)
        except BaseException:
            self.crew.close()
            raise

    def close(self) -> None:
        """See SimulationGrid."""
        self.crew.close()

    @property
    def peak_mb(self) -> float:
        """See SimulationGrid."""
        return self.crew.peak_mb


class Tasks(NamedTuple):
    """make: gives the task of an index; it is asked when a worker is to get it, so that not all states are in flight at once."""

    number: int
    make: Callable[[int], Task]


def in_order(crew: Crew, tasks: Tasks) -> Iterator[Answer]:
    """The answers in the order of tasks. Raises FedsimError where a chunk's worker died ATTEMPTS times."""
    size = min(crew.size, tasks.number)
    waiting = deque(range(tasks.number))
    given: list[deque[int]] = [deque() for _ in range(size)]  # a worker's tasks, the one under way first
    done: dict[int, Answer] = {}
    deaths: Counter[int] = Counter()
    for turn in range(tasks.number):
        while turn not in done:
            _deal(crew, tasks, waiting, given, turn)
            for event in crew.wait():
                if event.answer is not None:
                    done[given[event.worker].popleft()] = event.answer
                    continue
                lost = given[event.worker]
                if lost and event.died:
                    deaths[lost[0]] += 1
                    if deaths[lost[0]] == ATTEMPTS:
                        raise given_up(event.died)
                waiting.extendleft(reversed(lost))
                lost.clear()
        yield done.pop(turn)


def _deal(crew: Crew, tasks: Tasks, waiting: deque[int], given: list[deque[int]], turn: int) -> None:
    """Keep every worker busy: one task each and, while there are enough for all, DEPTH."""
    for depth in range(1, DEPTH + 1):
        for worker, own in enumerate(given):
            enough = depth == 1 or len(waiting) >= len(given)
            if len(own) < depth and enough and waiting and waiting[0] < turn + AHEAD * len(given):
                index = waiting.popleft()
                own.append(index)
                crew.start(worker)
                crew.give(worker, tasks.make(index))


def given_up(died: str) -> FedsimError:
    """The error for a chunk that no worker survives."""
    return FedsimError(
        f"a worker {died}, for the {ATTEMPTS}rd time with the same clients; begin anew with a lower grid.workers, grid.width or "
        "grid.chunk_size or, once there is more memory, go on from the run's last checkpoint, if it has one, with resume=..."
    )
