"""The process that worker processes are forked from. Only the standard library is imported here: it is to be started early.

Why not a fork of this process: by then it has threads (Arrow's, gRPC's, a progress display's, CUDA's), whose locks a fork may
copy in the middle of an action, and a worker that is replaced is forked in the middle of a run. Why not a new interpreter for
each worker: each would spend seconds on importing torch. The fork server imports while this process imports, has one thread
and no CUDA, and then gives a worker in some milliseconds whose modules it shares.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

PRELOADED = ("fedsim.grids.processes", "fedsim.data.population", "fedsim.training.lockstep")
"""What every worker imports."""


def start_forkserver() -> None:
    """Start it where it does not run yet; returns at once, while it imports. It ends with this process, however that ends."""
    from multiprocessing import forkserver, resource_tracker

    forkserver.set_forkserver_preload(list(PRELOADED))
    with _short_temporary_folder():
        resource_tracker.ensure_running()  # by itself first: as it starts, it lets signals through again
        with _without_ctrl_c():
            forkserver.ensure_running()


def start_early(grid: str, workers: int | None, device: str) -> None:
    """Start it before anything heavy is imported, where worker processes will probably be wanted.

    grid: `grid._target_`, workers: `grid.workers`, device: `device`, all as configured.
    """
    kind = grid.rpartition(".")[2]
    on_cpu = device == "cpu" or not Path("/dev/nvidia0").exists()
    if kind == "Processes" or (kind == "Auto" and (workers is not None or (on_cpu and cores() > 1))):
        start_forkserver()


def cores() -> int:
    """Cores that this process may use: of those it is given, at most $FEDSIM_CORES, which cells that run side by side are given."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = os.environ.get("FEDSIM_CORES", "")
    return max(1, min(found, int(most))) if most.isdigit() else found


@contextmanager
def no_main_module() -> Iterator[None]:
    """Keep multiprocessing from importing the main module anew in each worker, which would run a script without a guard again."""
    own = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = own


@contextmanager
def _short_temporary_folder() -> Iterator[None]:
    """The fork server's socket lies in the folder for temporary files, and the paths of sockets have 107 characters at most."""
    before, folder = tempfile.tempdir, tempfile.gettempdir()
    if len(folder) > 60 and os.path.isdir("/tmp"):
        tempfile.tempdir = "/tmp"
    try:
        yield
    finally:
        tempfile.tempdir = before


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes started inside, and those that they start, never see Ctrl-C: the terminal sends it to them as well."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
