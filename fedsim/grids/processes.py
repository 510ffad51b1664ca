"""Devices in long-lived worker processes, one core or one GPU each (`grid=processes`).

Workers are started once, and read the data from shared memory; a round's parameters are placed there once, and a chunk's sum
comes back the same way (`wire.py`).
"""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import re
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from flwr.app import ArrayRecord

from fedsim import flower
from fedsim.checks import require_int
from fedsim.client import Devices
from fedsim.grids.allocator import keep_freed_memory
from fedsim.grids.base import SimulationGrid
from fedsim.grids.forkserver import cores, end_with_parent, ended, no_main_module, start_forkserver
from fedsim.grids.pool import DEPTH, Crew, Event, PoolGrid
from fedsim.grids.settings import GridSettings, MakeDevices
from fedsim.grids.wire import Parcel, Slots, UnexpectedObject, pack, receive, send
from fedsim.grids.worker import Answer, Task, Worker, move
from fedsim.types import FedsimError

log = logging.getLogger(__name__)

DEVICES, PLACE, FORGET, TASK, ANSWER, BROKEN = "devices", "place", "forget", "task", "answer", "broken"
"""What a message between the main process and a worker is."""


@dataclass(frozen=True)
class Processes(GridSettings):
    """The keys of `grid=processes`: those of GridSettings, and workers: how many (None: one a core, or one a GPU)."""

    workers: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers is not None:
            require_int("grid.workers", self.workers, low=1)

    def prepare(self, device: torch.device) -> None:
        """See GridSettings."""
        start_forkserver()

    def open(self, devices: MakeDevices, chunk_size: int, device: torch.device) -> SimulationGrid:
        """See GridSettings."""
        flower.enter_runtime()
        there = torch.cuda.device_count() if device.type == "cuda" else cores()
        workers = self.workers or there
        if workers > there:
            kind = ("GPU" if device.type == "cuda" else "core") + "s" * (there != 1)
            log.warning(
                "grid.workers=%d is more than the %d %s here: they will wait for each other", workers, there, kind
            )
        return PoolGrid(ProcessCrew(lambda: devices(None), workers, device), chunk_size)


@dataclass
class Seat:
    """A living worker. known: which of the placed arrays it has; generation: of which placing."""

    process: BaseProcess
    connection: Connection
    slots: Slots
    known: set[int] = field(default_factory=set)
    generation: int = 0


class ProcessCrew(Crew):
    """Worker processes. They are started when a task is there for them, and live until `close`.

    devices: what goes to each; asked for once, when the first is started. device: of the main process.
    """

    name = "processes"

    def __init__(self, devices: Callable[[], Devices], size: int, device: torch.device) -> None:
        self.size, self.device = size, device
        self._make_devices = devices
        self._devices: Parcel | None = None
        self._seats: dict[int, Seat] = {}
        self._records: list[ArrayRecord] = []
        self._parcels: dict[int, Parcel] = {}
        self._generation = 0

    def start(self, worker: int) -> None:
        """See Crew. Raises FedsimError where the run's parts cannot be pickled."""
        if worker in self._seats:
            return
        if self._devices is None:
            self._devices = pack_devices(self._make_devices())
        start_forkserver()
        context = multiprocessing.get_context("forkserver")
        mine, theirs = context.Pipe()
        device = f"cuda:{worker % torch.cuda.device_count()}" if self.device.type == "cuda" else "cpu"
        process = context.Process(target=serve, args=(theirs, device), name=f"fedsim worker {worker}", daemon=True)
        with no_main_module():
            process.start()
        theirs.close()
        self._seats[worker] = Seat(process, mine, Slots.lend(mine, DEPTH))
        self._send(worker, DEVICES, self._devices)

    def place(self, records: list[ArrayRecord]) -> None:
        """See Crew; each is written to shared memory when the first task needs it."""
        self._drop_placed()
        self._records = records
        self._generation += 1

    def give(self, worker: int, task: Task) -> None:
        """See Crew."""
        seat = self._seats[worker]
        if seat.generation != self._generation:
            self._send(worker, FORGET, pack(None))
            seat.known, seat.generation = set(), self._generation
        for number in set(task.arrays.values()) - seat.known:
            if number not in self._parcels:
                self._parcels[number] = pack((number, self._records[number]))
            self._send(worker, PLACE, self._parcels[number])
            seat.known.add(number)
        parcel = pack(task)
        self._send(worker, TASK, parcel)
        parcel.close()

    def wait(self) -> list[Event]:
        """See Crew."""
        of = {seat.connection: worker for worker, seat in self._seats.items()}
        return [self._read(of[connection]) for connection in wait(list(of))]  # type: ignore[index]

    def close(self) -> None:
        """See Crew. They keep nothing, so they are killed."""
        self.peak_mb = max(self.peak_mb, sum(peak_mb(seat.process.pid) for seat in self._seats.values()))
        for seat in self._seats.values():
            seat.process.kill()
        for worker in list(self._seats):
            self._leave(worker)
        self._drop_placed()
        if self._devices is not None:
            self._devices.close()
            self._devices = None

    def _read(self, worker: int) -> Event:
        seat = self._seats[worker]
        try:
            label, content = receive(seat.connection, seat.slots)
        except (EOFError, OSError, pickle.UnpicklingError):
            return Event(worker, None, self._leave(worker))
        except UnexpectedObject as error:
            raise not_taken(error) from None
        if label == BROKEN:
            own = (
                "move what your script defines into a module that it imports, or " if "__main__" in str(content) else ""
            )
            raise FedsimError(f"a worker process cannot be set up ({content}); {own}use grid=inprocess")
        assert isinstance(content, Answer)
        return Event(worker, content)

    def _send(self, worker: int, label: str, parcel: Parcel) -> None:
        with suppress(OSError):  # it died: `wait` will find that out
            send(self._seats[worker].connection, label, parcel)

    def _leave(self, worker: int) -> str:
        """A worker that is gone, or has lost its connection; gives the way it went in words."""
        seat = self._seats.pop(worker)
        seat.connection.close()
        seat.process.join(timeout=1)  # its socket closes a moment before it ends
        seat.process.kill()
        seat.process.join()
        code = seat.process.exitcode or 0
        seat.process.close()
        return ended(code)

    def _drop_placed(self) -> None:
        for parcel in self._parcels.values():
            parcel.close()
        self._parcels.clear()
        self._records = []


def peak_mb(pid: int | None) -> float:
    """The largest resident memory of a process so far, in MB, less what others hold of it now; 0 where the system does not say."""
    try:
        lines = [Path(f"/proc/{pid}/{name}").read_text() for name in ("status", "smaps_rollup")]
    except OSError:
        return 0.0
    kilobytes = {key: int(value) for key, value in re.findall(r"^(\w+):\s+(\d+) kB", "\n".join(lines), re.MULTILINE)}
    return max(0, kilobytes["VmHWM"] - (kilobytes["Rss"] - kilobytes["Pss"])) * 1024 / 1e6


def not_taken(error: UnexpectedObject) -> FedsimError:
    """The error for an answer that holds more than records and arrays."""
    return FedsimError(
        f"a client's reply or state holds a {error}, which is not taken from another process; keep tensors alone in it, or use "
        "grid=inprocess"
    )


def pack_devices(devices: Devices) -> Parcel:
    """Raises FedsimError that names the part which cannot be pickled."""
    try:
        return pack(devices)
    except Exception as error:  # pickle raises what the objects raise
        trainer, population = devices.trainer, devices.population
        parts = {
            "model": trainer.model,
            "strategy": trainer.client_half,
            "privacy": devices.protection,
            "dataset": population.dataset,
            "corruption": population.corruption,
        }
        key, part = next(((key, part) for key, part in parts.items() if not _packs(part)), ("grid", devices))
        raise FedsimError(
            f"{key}={type(part).__name__} cannot be sent to worker processes ({type(error).__name__}: {error}); define what it is "
            "made of at the top level of a module, or use grid=inprocess"
        ) from error


def _packs(part: object) -> bool:
    try:
        pack(part).close()
    except Exception:
        return False
    return True


def serve(connection: Connection, device: str) -> None:
    """A worker's life: until the connection closes, or the main process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's business
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    keep_freed_memory()
    worker: Worker | None = None
    slots: Slots | None = None
    while True:
        try:
            slots = slots or Slots.borrow(connection, DEPTH)
            label, content = receive(connection, anything=True)
        except (EOFError, ConnectionError):
            return
        except Exception as error:  # whatever is raised by what is imported
            _answer(connection, slots, BROKEN, f"{type(error).__name__}: {error}")
            return
        if label == DEVICES:
            worker = Worker(move(content, torch.device(device)))
            continue
        assert worker is not None
        if label == FORGET:
            worker.forget()
        elif label == PLACE:
            worker.place(*content)
        else:
            _answer(connection, slots, ANSWER, worker.run(content))


def _answer(connection: Connection, slots: Slots | None, label: str, content: Answer | str) -> None:
    try:
        parcel = pack(content, slots)
    except Exception as error:  # a state or a metric of a user's own kind
        parcel = pack(Answer(None, f"its reply cannot be pickled ({type(error).__name__}: {error})", {}, {}))
    try:
        send(connection, label, parcel)
    finally:
        parcel.close()
