"""Several runs in one process, whose clients train in one lockstep batch.

A run is a thread, and one thread runs at a time. A run that wants clients trained hands them in and waits; when all wait, as
many clients as train well together are trained at once, whichever runs they are of. So a run goes the way that it goes alone:
its rounds, its sums, its draws. Only the width at which its clients train is another, which changes rounding and nothing else.
"""

from __future__ import annotations

import logging
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from fedsim.training.arrays import model_arrays
from fedsim.training.execution import Execution, is_out_of_memory, set_precision
from fedsim.training.group import Job, Recipe, alike
from fedsim.training.lockstep import Lockstep
from fedsim.training.stack import make_copies
from fedsim.training.trainer import Trainer
from fedsim.training.updates import ClientFailure, ClientUpdate, Folded, Weigh
from fedsim.types import ClientData, Params

log = logging.getLogger(__name__)

Result = ClientUpdate | ClientFailure | Folded | Job
"""Of a job, or of several as one; the job itself where its group could not be trained as one, and the run trains the client."""


@dataclass
class Handed:
    """What a run has handed in. jobs: not trained yet. results: of those that were, in their order, and not taken yet.

    A result that stands for several jobs is in the place of the first.
    """

    jobs: deque[Job]
    results: deque[Result] = field(default_factory=deque)


@dataclass
class Cell:
    """A run and its thread. trainer: its own, and kind: with whom that trains; None for no one. handed: while it waits."""

    task: Callable[[], Any]
    number: int
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    trainer: Trainer | None = None
    kind: Kind | None = None
    handed: Handed | None = None
    begun: bool = False
    done: bool = False
    outcome: Any = None

    @property
    def waits(self) -> bool:
        """Whether it can do nothing before its next client is trained."""
        return self.handed is not None and not self.handed.results

    @property
    def jobs(self) -> deque[Job]:
        """Those that it waits for."""
        return deque() if self.handed is None else self.handed.jobs

    @property
    def wants_a_sum(self) -> bool:
        """Of the clients that it waits for, and not each by itself."""
        return bool(self.jobs) and self.jobs[0].weigh is not None


@dataclass
class Kind:
    """Runs whose clients can be trained together. like: what their models and objectives have in common. trainer: the first's."""

    like: tuple[Any, ...]
    trainer: Trainer
    execution: Execution
    engine: Lockstep = field(init=False)

    def __post_init__(self) -> None:
        self.engine = Lockstep(make_copies(self.trainer.model, self.execution), *self.trainer.parts)

    def enter(self) -> None:
        """Have this process compute as these runs do."""
        if next(self.trainer.model.parameters()).device.type == "cuda":
            set_precision(self.execution.precision)

    def halve(self) -> None:
        """Train half as many clients at a time."""
        self.execution = replace(self.execution, width=self.execution.width // 2)
        del self.engine  # before the next one takes memory
        self.__post_init__()


class Pack:
    """Runs tasks as cells, at most `most` at a time. One that raises gives what it raised as its outcome."""

    def __init__(self, most: int) -> None:
        self.most, self.stopping = most, False
        self._was_told = False
        self._kinds: list[Kind] = []
        self._cells: list[Cell] = []
        self._back = threading.Semaphore(0)
        self._own = threading.local()

    def run(self, tasks: Sequence[Callable[[], Any]], on_done: Callable[[int, Any], None]) -> None:
        """Run all; on_done: told (number, what the task gave or raised) as each ends. Once `stopping`, none is begun."""
        waiting = deque(Cell(task, number) for number, task in enumerate(tasks))
        while True:
            if self.stopping:
                waiting.clear()
                self._cells = [cell for cell in self._cells if cell.begun]
            while waiting and len(self._cells) < self.most:
                self._cells.append(waiting.popleft())
            if not self._cells:
                return
            ready = next((cell for cell in self._cells if not cell.waits), None)
            if ready is None:
                self._train_group()
                continue
            self._let_run(ready)
            if ready.done:
                self._cells.remove(ready)
                self._forget_kinds()
                on_done(ready.number, ready.outcome)

    def adopt(self, trainer: Trainer, model_key: str) -> None:
        """Let the trainer's clients be trained with others', where it trains in lockstep at all. Called by its cell.

        model_key: how the model was configured; models of two keys never train together.
        """
        if trainer.execution.width == 1 or trainer.execution.way == "one":
            return
        cell: Cell = self._own.cell
        cell.trainer, cell.kind = trainer, None  # it may have trained something else before
        self._forget_kinds()
        recipe, like = _recipe(trainer), (model_key, *_like(trainer))
        for kind in self._kinds:
            if kind.like == like and alike(_recipe(kind.trainer), recipe):
                break
        else:
            kind = Kind(like, trainer, trainer.execution)
            self._kinds.append(kind)
        cell.kind, trainer.pack = kind, self

    def train(
        self,
        trainer: Trainer,
        received: Params,
        clients: Sequence[int],
        data_of: Callable[[int], ClientData],
        state_of: Callable[[int], Params],
        round: int,
        weigh: Weigh | None,
    ) -> Iterator[ClientUpdate | ClientFailure | Folded]:
        """See `Together`: with clients of other cells. Called by a cell, with the trainer that it let adopt or one like it."""
        cell: Cell = self._own.cell
        recipe = _recipe(trainer)
        if cell.trainer is None or not _interchangeable(cell.trainer, trainer):
            yield from trainer.train_here(received, clients, data_of, state_of, round, weigh)
            return
        handed = Handed(deque(Job(recipe, received, client, data_of, state_of, round, weigh) for client in clients))
        while handed.jobs or handed.results:
            if not handed.results:
                self._park(cell, handed)
            result = handed.results.popleft()
            if isinstance(result, Job):
                yield from trainer.train_here(received, [result.client], data_of, state_of, round, weigh)
            else:
                yield result

    def _let_run(self, cell: Cell) -> None:
        """Until it wants something trained, or is done."""
        if not cell.begun:
            cell.begun = True
            threading.Thread(target=self._live, args=(cell,), name=f"cell {cell.number}", daemon=True).start()
        if cell.kind is not None:
            cell.kind.enter()
        cell.go.release()
        self._back.acquire()

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

    def _park(self, cell: Cell, handed: Handed) -> None:
        """Let others run until there is a result. What a run broke off, or left lying, is handed in no more."""
        cell.handed = handed
        self._back.release()
        cell.go.acquire()
        cell.handed = None

    def _forget_kinds(self) -> None:
        """Let go of the copies that no cell trains on any more."""
        self._kinds = [kind for kind in self._kinds if any(cell.kind is kind for cell in self._cells)]

    def _train_group(self) -> None:
        """Train as many clients as make one batch; all cells wait, and have used what they got before."""
        kinds = {id(cell.kind): cell.kind for cell in self._cells}
        kind = max(kinds.values(), key=lambda kind: sum(len(c.jobs) for c in self._cells if c.kind is kind))
        assert kind is not None
        kind.enter()
        taken = self._taken(kind)
        results: Sequence[Result | None]
        try:
            results = kind.engine.train_jobs([job for _, job in taken])
        except Exception as error:  # whose it is shows when each run trains its own
            self._tell(error, kind, len(taken))
            if is_out_of_memory(error) and kind.execution.width > 1:
                for cell, job in reversed(taken):
                    cell.jobs.appendleft(job)
                kind.halve()
                return
            results = [job for _, job in taken]
        for (cell, _), result in zip(taken, results, strict=True):
            if result is not None:  # else it is in another's
                assert cell.handed is not None
                cell.handed.results.append(result)

    def _taken(self, kind: Kind) -> list[tuple[Cell, Job]]:
        """The next clients of this kind, and whose they are; handed in no more.

        Clients that are wanted as one sum are left for the next group where they would fit into one, but not into what is left of
        this: two sums are more work than one, and so are two groups that both multiply by their model.
        """
        taken: list[tuple[Cell, Job]] = []
        rate: float | None = None
        for cell in self._cells:
            if cell.wants_a_sum and kind.execution.width - len(taken) < len(cell.jobs) <= kind.execution.width:
                continue
            while cell.kind is kind and cell.jobs and len(taken) < kind.execution.width:
                job = cell.jobs[0]
                own = job.recipe.settings.lr_in(job.round)
                if not job.recipe.takes_any_rate and own != (rate := own if rate is None else rate):
                    break
                taken.append((cell, cell.jobs.popleft()))
        return taken

    def _tell(self, error: Exception, kind: Kind, clients: int) -> None:
        """Say that a group is trained in another way, which takes its time: once, and whenever memory ran out."""
        if is_out_of_memory(error) and kind.execution.width > 1:
            log.warning(
                "memory ran out with up to %d clients of several cells in lockstep; going on with %d; set grid.width=%d or "
                "hydra.launcher.workers to have it so from the start",
                *(kind.execution.width, kind.execution.width // 2, kind.execution.width // 2),
            )
        elif clients > 1 and not self._was_told:
            self._was_told = True
            reason = ClientFailure.of(0, error).reason.splitlines()[0]
            log.warning(
                "%d clients of several cells could not be trained together (%s); each cell trains its own",
                clients,
                reason,
            )


def _recipe(trainer: Trainer) -> Recipe:
    return Recipe(trainer.settings, trainer.client_half, trainer.seed, trainer.local_steps)


def _interchangeable(one: Trainer, other: Trainer) -> bool:
    """Whether they have the same model, and clients of both can be trained together."""
    same = one.model is other.model and one.objective is other.objective and one.smallest_batch == other.smallest_batch
    return same and alike(_recipe(one), _recipe(other))


def _like(trainer: Trainer) -> tuple[Any, ...]:
    """What two trainers whose models were configured alike must have in common, beside what `alike` looks at."""
    shapes = tuple((name, array.shape, array.dtype) for name, array in model_arrays(trainer.model).items())
    execution = trainer.execution
    return (
        *(shapes, trainer.objective, trainer.smallest_batch, _beside_arrays(trainer.model)),
        *(execution.way, execution.width, execution.compile, execution.precision),
    )


def _beside_arrays(model: nn.Module) -> Any:
    """What a model holds that is neither parameter nor buffer: two of one configuration may have drawn it each for itself."""
    own = [
        (
            name,
            type(module),
            {k: v for k, v in vars(module).items() if k not in ("_parameters", "_buffers", "_modules")},
        )
        for name, module in model.named_modules()
    ]
    try:
        return pickle.dumps(own)
    except Exception:  # of somebody's own: no other model counts as the same
        return object()
