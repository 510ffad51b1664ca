"""The process that worker processes are forked from. Only the standard library is imported here: it is to be started early.

Why not a fork of this process: by then it has threads (Arrow's, gRPC's, a progress display's, CUDA's), whose locks a fork may
copy in the middle of an action, and a worker that is replaced is forked in the middle of a run. Why not a new interpreter for
each worker: each would spend seconds on importing torch. The fork server imports while this process imports, has one thread
and no CUDA, and then gives a worker in some milliseconds whose modules it shares.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

OF_GRIDS, OF_CELLS = "fedsim.grids.preloaded", "fedsim.sweeps.preloaded"
"""What every worker of a grid imports, and every process that runs cells of a sweep."""


def start_forkserver(preloaded: str = OF_GRIDS) -> None:
    """Start it where it does not run yet; returns at once, while it imports. It ends with this process, however that ends.

    preloaded: the module that imports what its children need, by `preload`.
    """
    from multiprocessing import forkserver, resource_tracker

    forkserver.set_forkserver_preload([preloaded])
    with _short_temporary_folder():
        resource_tracker.ensure_running()  # by itself first: as it starts, it lets signals through again
        with _without_ctrl_c():
            forkserver.ensure_running()


def preload(*modules: str) -> None:
    """Import what the children share, in the fork server.

    Imports make no garbage; and what they made is not to be looked through for any, ever: in a child that would copy its pages,
    and at the fork server's end it took a second, for which whoever reads the command's output had to wait.
    """
    gc.disable()
    try:
        for module in modules:
            import_module(module)
    finally:
        gc.freeze()
        gc.enable()


def start_early(grid: str, workers: int | None, device: str) -> None:
    """Start it before anything heavy is imported, where worker processes will probably be wanted.

    grid: `grid._target_`, workers: `grid.workers`, device: `device`, all as configured.
    """
    kind = grid.rpartition(".")[2]
    on_cpu = device == "cpu" or not may_have_gpu()
    if kind == "Processes" or (kind == "Auto" and (workers is not None or (on_cpu and cores() > 1))):
        start_forkserver()


def may_have_gpu() -> bool:
    """Whether there is anything that torch could take for a CUDA device; asking torch itself takes a second of imports."""
    return any(any(Path("/dev").glob(name)) for name in ("nvidia*", "nvhost*", "dxg", "kfd"))


def cores() -> int:
    """Cores that this process may use: of those it is given, at most $FEDSIM_CORES, which cells that run side by side are given."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = os.environ.get("FEDSIM_CORES", "")
    return max(1, min(found, int(most))) if most.isdigit() else found


def ended(code: int) -> str:
    """An exit code in words."""
    if code == -signal.SIGKILL:
        return "was killed by SIGKILL, which often means that memory ran out"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit status {code}"


def end_with_parent() -> None:
    """Wait for the process that started this one to end, and end."""
    from multiprocessing import parent_process
    from multiprocessing.connection import wait

    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


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
