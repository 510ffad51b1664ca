"""The life of a process that runs cells of a sweep together, in lockstep where they are alike (`pack.py`)."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from omegaconf import DictConfig, OmegaConf

from fedsim.build import build
from fedsim.data.dataset import Dataset
from fedsim.grids.allocator import keep_freed_memory
from fedsim.grids.forkserver import end_with_parent
from fedsim.grids.inprocess import InProcess
from fedsim.interrupts import Interrupts
from fedsim.make import make
from fedsim.parts import Parts
from fedsim.session import Session
from fedsim.sweeps.launched import launched
from fedsim.sweeps.pack import Pack
from fedsim.sweeps.together import CellRun, Ended
from fedsim.types import FedsimError

ONE_A_PROCESS = ("MLflowLogger", "WandbLogger")
"""Loggers that cannot follow several runs at once."""


class Alongside:
    """What a cell leaves to the process that it shares: see `experiment.Company`."""

    def __init__(self, pack: Pack, together: int) -> None:
        self.pack, self.together = pack, together
        self.interrupts: list[Interrupts] = []
        self._datasets: WeakValueDictionary[str, Any] = WeakValueDictionary()  # for as long as a cell has one
        self._newest: Any = None  # which the next cell probably wants too

    def build(self, cfg: DictConfig) -> Parts:
        """The run's parts, on this process's core, whose trainer trains with the others'."""
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
        key = OmegaConf.to_yaml(cfg)
        found = self._datasets.get(key)
        self._newest = make(cfg, "dataset") if found is None else found
        if isinstance(self._newest, Dataset):  # else the cell that asked for it will say so
            self._datasets[key] = self._newest
        return self._newest

    def begin(self, session: Session) -> None:
        """The session can be stopped from here, and leaves what is shown to the sweep."""
        session.quiet, session.closes = True, False
        self.interrupts.append(session.interrupts)
        if self.pack.stopping:  # looked at last: whoever stops them sets it first
            session.interrupts.pending = True

    def stop(self) -> None:
        """Have each session end where it may, and begin no other."""
        self.pack.stopping = True
        for one in self.interrupts:
            one.pending = True


def serve(connection: Connection, cells: Sequence[CellRun], most: int, place: int | None) -> None:
    """A worker's life; place: among those that share out GPUs. The threads that are left when it ends are daemons."""
    if place is not None:
        torch.cuda.set_device(place % torch.cuda.device_count())
    torch.set_num_threads(1)  # of this thread, which trains; a cell's own thread sets its own
    keep_freed_memory()
    threading.Thread(target=end_with_parent, daemon=True).start()
    company = Alongside(Pack(most), min(most, len(cells)))
    signal.signal(signal.SIGTERM, lambda number, frame: company.stop())

    def say(place: int, outcome: Any) -> None:
        if isinstance(outcome, BaseException):  # beyond what a cell tells of itself
            outcome = Ended("lost", f"it ended in {type(outcome).__name__}: {outcome}")
        with suppress(OSError):  # the main process is gone, and ends this one
            connection.send_bytes(json.dumps([place, *outcome], default=str).encode())

    company.pack.run([partial(_run, cell, company) for cell in cells], say)
    connection.close()


def _run(cell: CellRun, company: Alongside) -> Ended:
    cfg = OmegaConf.create(cell.config)
    outcome, values = launched(cfg, Path(cell.folder), cell.overrides, Path(cell.sweep_dir), company=company)
    # of a summary nothing is asked for: only what a sweeper wants travels
    return Ended(outcome.state, outcome.reason or "", values if isinstance(values, (int, float, list, tuple)) else None)
