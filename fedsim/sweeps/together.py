"""Cells of a sweep in worker processes, one core each: the side of the process that the user started.

What goes to a process is configuration; what comes back is JSON: a cell's number and its summary, or the sentence that says
what went wrong. Nothing heavy is imported here: the processes (`alongside.py`) have it, and the first wait for nothing else.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from fedsim.grids.forkserver import OF_CELLS, cores, ended, may_have_gpu, no_main_module, start_forkserver


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
    gpus = _gpus(cells)
    workers = workers or gpus or cores()
    start_forkserver(OF_CELLS)
    context = multiprocessing.get_context("forkserver")
    seats: dict[Connection, Seat] = {}
    for place in range(min(workers, len(cells))):
        own = range(place, len(cells), workers)
        mine, theirs = context.Pipe()
        handed = theirs, [cells[one] for one in own], most, place if gpus else None
        process = context.Process(target=_serve, args=handed, name=f"fedsim cells {place}", daemon=True)
        with no_main_module():
            process.start()
        theirs.close()
        seats[mine] = Seat(process, list(own), set(own))
    try:
        with _stopping([seat.process for seat in seats.values()]) as stopping:
            with suppress(
                ImportError
            ):  # the sweep's end needs it, and will say what is missing; nobody waits for it now
                import_module("fedsim.studies.report")
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


def _serve(connection: Connection, cells: Sequence[CellRun], most: int, place: int | None) -> None:
    """A process's life."""
    from fedsim.sweeps.alongside import serve

    serve(connection, cells, most, place)


def _gpus(cells: Sequence[CellRun]) -> int:
    """GPUs that the cells may use."""
    if all(cell.config["device"] == "cpu" for cell in cells) or not may_have_gpu():
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


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
