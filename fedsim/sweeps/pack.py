"""Several runs in one process, whose clients train in one lockstep batch.

A run is a thread, and one thread runs at a time. A run that wants clients trained hands them in and waits; when all wait, as
many clients as train well together are trained at once, whichever runs they are of. So a run goes the way that it goes alone:
its rounds, its sums, its draws. Only the width at which its clients train is another, which changes rounding and nothing else.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedsim.training.arrays import model_arrays
from fedsim.training.execution import Execution
from fedsim.training.group import Job, Recipe, alike
from fedsim.training.lockstep import Lockstep
from fedsim.training.stack import make_copies
from fedsim.training.trainer import Trainer
from fedsim.training.updates import ClientFailure, ClientUpdate
from fedsim.types import ClientData, Params

Result = ClientUpdate | ClientFailure | None
"""Of a job; None where its group could not be trained as one, and the run trains the client itself."""


@dataclass
class Cell:
    """A run and its thread. kind: with whom its clients train; None for no one. results: in the order of its jobs."""

    task: Callable[[], Any]
    number: int
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    kind: Kind | None = None
    jobs: deque[Job] = field(default_factory=deque)
    results: deque[Result] = field(default_factory=deque)
    done: bool = False
    outcome: Any = None

    @property
    def waits(self) -> bool:
        """Whether it can do nothing before its next client is trained."""
        return bool(self.jobs) and not self.results


@dataclass
class Kind:
    """Runs whose clients can be trained together. like: what their models and objectives have in common."""

    like: tuple[Any, ...]
    recipe: Recipe
    engine: Lockstep


class Pack:
    """Runs tasks as cells, at most `most` at a time. One that raises gives what it raised as its outcome."""

    def __init__(self, most: int) -> None:
        self.most, self.stopping = most, False
        self._kinds: list[Kind] = []
        self._cells: list[Cell] = []
        self._back = threading.Semaphore(0)
        self._own = threading.local()

    def run(self, tasks: Sequence[Callable[[], Any]], on_done: Callable[[int, Any], None]) -> None:
        """Run all; on_done: told (number, what the task gave or raised) as each ends. Once `stopping`, none is begun."""
        waiting = deque(Cell(task, number) for number, task in enumerate(tasks))
        while True:
            while waiting and len(self._cells) < self.most and not self.stopping:
                self._cells.append(cell := waiting.popleft())
                threading.Thread(target=self._live, args=(cell,), name=f"cell {cell.number}", daemon=True).start()
            if not self._cells:
                return
            ready = next((cell for cell in self._cells if not cell.waits), None)
            if ready is None:
                self._train_group()
                continue
            ready.go.release()
            self._back.acquire()
            if ready.done:
                self._cells.remove(ready)
                on_done(ready.number, ready.outcome)

    def adopt(self, trainer: Trainer, model_key: str) -> None:
        """Let the trainer's clients be trained with others', where it trains in lockstep at all. Called by its cell.

        model_key: how the model was configured; models of two keys never train together.
        """
        if trainer.execution.width == 1 or trainer.execution.way == "one":
            return
        recipe = Recipe(trainer.settings, trainer.client_half, trainer.seed, trainer.local_steps)
        shapes = tuple((name, array.shape, array.dtype) for name, array in model_arrays(trainer.model).items())
        like = (model_key, shapes, trainer.objective, trainer.smallest_batch, _bare(trainer.execution))
        for kind in self._kinds:
            if kind.like == like and alike(kind.recipe, recipe):
                break
        else:
            kind = Kind(like, recipe, Lockstep(make_copies(trainer.model, trainer.execution), *trainer.parts))
            self._kinds.append(kind)
        self._own.cell.kind = kind
        trainer.pack = self

    def train(
        self,
        trainer: Trainer,
        received: Params,
        clients: Sequence[int],
        data_of: Callable[[int], ClientData],
        state_of: Callable[[int], Params],
        round: int,
    ) -> Iterator[ClientUpdate | ClientFailure]:
        """As `Trainer.train`, with clients of other cells. Called by a cell."""
        cell: Cell = self._own.cell
        recipe = Recipe(trainer.settings, trainer.client_half, trainer.seed, trainer.local_steps)
        cell.jobs.extend(Job(recipe, received, client, data_of, state_of, round) for client in clients)
        try:
            for client in clients:
                if not cell.results:
                    self._park(cell)
                result = cell.results.popleft()
                if result is None:
                    yield from trainer.train_here(received, [client], data_of, state_of, round)
                else:
                    yield result
        finally:  # a run that broke off leaves nothing to be trained
            cell.jobs.clear()
            cell.results.clear()

    def _live(self, cell: Cell) -> None:
        """The life of a cell's thread."""
        self._own.cell = cell
        cell.go.acquire()
        try:
            cell.outcome = cell.task()
        except BaseException as error:
            cell.outcome = error
        cell.done = True
        self._back.release()

    def _park(self, cell: Cell) -> None:
        """Let others run until there is a result."""
        self._back.release()
        cell.go.acquire()

    def _train_group(self) -> None:
        """Train as many clients as make one batch; all cells wait, and have used what they got before."""
        kinds = {id(cell.kind): cell.kind for cell in self._cells}
        kind = max(kinds.values(), key=lambda kind: sum(len(c.jobs) for c in self._cells if c.kind is kind))
        assert kind is not None
        width = kind.engine.copies.width
        taken: list[tuple[Cell, Job]] = []
        rate: float | None = None
        for cell in self._cells:
            while cell.kind is kind and cell.jobs and len(taken) < width:
                job = cell.jobs[0]
                own = job.recipe.settings.lr_in(job.round)
                if not job.recipe.takes_any_rate and own != (rate := own if rate is None else rate):
                    break
                taken.append((cell, cell.jobs.popleft()))
        results: Sequence[Result]
        try:
            results = kind.engine.train_jobs([job for _, job in taken])
        except Exception:  # whose it is shows when each run trains its own
            results = [None] * len(taken)
        for (cell, _), result in zip(taken, results, strict=True):
            cell.results.append(result)


def _bare(execution: Execution) -> tuple[Any, ...]:
    return execution.way, execution.width, execution.compile, execution.precision
