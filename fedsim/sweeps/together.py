"""Cells of a sweep in worker processes, one core each, and in each process in lockstep (`pack.py`).

What goes to a process is configuration; what comes back is JSON: a cell's number and its summary, or the sentence that says
what went wrong.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf

from fedsim.grids.allocator import keep_freed_memory
from fedsim.grids.forkserver import cores, no_main_module, start_forkserver
from fedsim.grids.processes import end_with_parent, ended
from fedsim.sweeps.pack import Pack
from fedsim.types import FedsimError


class CellRun(NamedTuple):
    """A cell to run, or to go on with. config: all of it, resolved. overrides: as Hydra has them."""

    config: dict[str, Any]
    folder: str
    overrides: list[str]
    sweep_dir: str


@dataclass
class Seat:
    """A process. places: of its cells, in the order in which it has them; left: those that have not ended."""

    process: BaseProcess
    places: list[int]
    left: set[int]


class Ended(NamedTuple):
    """How a cell ended: see `cells.Outcome`. values: what the sweeper is told of a finished one."""

    state: str
    reason: str = ""
    values: Any = None


def run_together(cells: Sequence[CellRun], workers: int | None, most: int) -> Iterator[tuple[int, Ended]]:
    """Run cells; gives (place, how it ended) as each ends. A Ctrl-C lets each keep what it has learnt.

    workers: processes, None for one a core or one a GPU. most: cells at a time in each.

    A process that dies takes its cells with it: each is told as failed, and the same sweep goes on with them from their
    checkpoints.
    """
    on_gpu = torch.cuda.is_available() and any(cell.config["device"] != "cpu" for cell in cells)
    workers = workers or (torch.cuda.device_count() if on_gpu else cores())
    start_forkserver()
    context = multiprocessing.get_context("forkserver")
    seats: dict[Connection, Seat] = {}
    for place in range(min(workers, len(cells))):
        own = range(place, len(cells), workers)
        mine, theirs = context.Pipe()
        handed = theirs, [cells[one] for one in own], most, place if on_gpu else None
        process = context.Process(target=_serve, args=handed, name=f"fedsim cells {place}", daemon=True)
        with no_main_module():
            process.start()
        theirs.close()
        seats[mine] = Seat(process, list(own), set(own))
    try:
        with _stopping([seat.process for seat in seats.values()]) as stopping:
            while seats:
                for connection in wait(list(seats)):
                    for place, ended in _heard(connection, seats, stopping):  # type: ignore[arg-type]
                        if ended.state == "lost":
                            ended = ended._replace(state="failed")
                            _tell(cells[place], ended)
                        yield place, ended
    finally:
        for seat in seats.values():
            seat.process.kill()


def _heard(connection: Connection, seats: dict[Connection, Seat], stopping: list[int]) -> Iterator[tuple[int, Ended]]:
    """What a process says, or that it ended; its cells that were not begun when the user stopped them are not told."""
    seat = seats[connection]
    try:
        place, state, reason, values = json.loads(connection.recv_bytes())
        seat.left.discard(seat.places[place])
        yield seat.places[place], Ended(state, reason, values)
    except (EOFError, OSError):
        del seats[connection]
        seat.process.join()
        for number in sorted(seat.left):
            if stopping:
                yield number, Ended("stopped")
            else:
                yield (
                    number,
                    Ended("lost", f"its process {ended(seat.process.exitcode or 0)}; give the same command again"),
                )


def _tell(cell: CellRun, ended: Ended) -> None:
    """Of a cell whose process could not tell it."""
    from fedsim.sweeps.cells import Outcome
    from fedsim.sweeps.launched import tell

    tell(Outcome("failed", None, ended.reason, 0.0), Path(cell.folder), cell.overrides, Path(cell.sweep_dir))


@contextmanager
def _stopping(processes: Sequence[BaseProcess]) -> Iterator[list[int]]:
    """Inside, Ctrl-C asks the processes to keep what they have and end; a second one ends them. Gives the signals that came."""
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    came: list[int] = []

    def handle(number: int, frame: object) -> None:
        for process in processes:
            (process.kill if came else process.terminate)()
        came.append(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


ONE_A_PROCESS = ("MLflowLogger", "WandbLogger")
"""Loggers that cannot follow several runs at once."""


class Alongside:
    """What a cell leaves to the process that it shares: see `experiment.Company`."""

    def __init__(self, pack: Pack, together: int, datasets: dict[str, Any], sessions: list[Any]) -> None:
        self.pack, self.together, self.datasets, self.sessions = pack, together, datasets, sessions

    def build(self, cfg: DictConfig) -> Any:
        """The run's parts, on this process's core, whose trainer trains with the others'."""
        from fedsim.build import build
        from fedsim.grids.inprocess import InProcess

        if (logger := str(cfg.logger.get("_target_")).rpartition(".")[2]) in ONE_A_PROCESS:
            name = logger.removesuffix("Logger").lower()
            raise FedsimError(
                f"logger={name} follows one run a process; use hydra/launcher=basic, or logger=tensorboard"
            )
        keys = {field.name for field in fields(InProcess)}
        own = cfg.copy()
        own.grid = {"_target_": f"{InProcess.__module__}.InProcess"} | {k: v for k, v in cfg.grid.items() if k in keys}
        parts = build(own, self.together, self._dataset)
        self.pack.adopt(
            parts.trainer, OmegaConf.to_yaml(OmegaConf.create({"model": cfg.model, "task": str(cfg.dataset)}))
        )
        return parts

    def _dataset(self, cfg: DictConfig) -> Any:
        from fedsim.make import make

        key = OmegaConf.to_yaml(cfg)
        if key not in self.datasets:
            self.datasets[key] = make(cfg, "dataset")
        return self.datasets[key]

    def begin(self, session: Any) -> None:
        """The session can be stopped from here, and leaves what is shown to the sweep."""
        session.quiet, session.closes = True, False
        session.interrupts.pending = self.pack.stopping
        self.sessions.append(session)


def _serve(connection: Connection, cells: Sequence[CellRun], most: int, place: int | None) -> None:
    """A worker's life; place: among those that share out GPUs. The threads that are left when it ends are daemons."""
    if place is not None:
        torch.cuda.set_device(place % torch.cuda.device_count())
    torch.set_num_threads(1)  # of this thread, which trains; a cell's own thread sets its own
    keep_freed_memory()
    threading.Thread(target=end_with_parent, daemon=True).start()
    pack, sessions, datasets = Pack(most), list[Any](), dict[str, Any]()

    def stop(number: int, frame: object) -> None:
        pack.stopping = True
        for session in sessions:
            session.interrupts.pending = True

    signal.signal(signal.SIGTERM, stop)
    company = Alongside(pack, min(most, len(cells)), datasets, sessions)

    def say(place: int, outcome: Any) -> None:
        if isinstance(outcome, BaseException):  # beyond what a cell tells of itself
            outcome = Ended("lost", f"it ended in {type(outcome).__name__}: {outcome}")
        with suppress(OSError):  # the main process is gone, and ends this one
            connection.send_bytes(json.dumps([place, *outcome], default=str).encode())

    pack.run([partial(_run, cell, company) for cell in cells], say)
    connection.close()


def _run(cell: CellRun, company: Alongside) -> Ended:
    from fedsim.sweeps.launched import launched

    cfg = OmegaConf.create(cell.config)
    outcome, values = launched(cfg, Path(cell.folder), cell.overrides, Path(cell.sweep_dir), company=company)
    # of a summary nothing is asked for: only what a sweeper wants travels
    return Ended(outcome.state, outcome.reason or "", values if isinstance(values, (int, float, list, tuple)) else None)
