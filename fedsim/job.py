"""What Hydra calls for a run, and for each cell of a sweep: in this process, or in one that a launcher started.

A launcher hands the function over by its name, so this module makes known what a configuration needs, and stays light.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fedsim import sweeps as sweeps  # its resolvers
from fedsim.command import CURRENT, Command
from fedsim.errors import Failure, interrupted, is_stop
from fedsim.grids.forkserver import cores, start_early
from fedsim.resume import refuse_run
from fedsim.types import FedsimError
from fedsim.undo import Place, undo_folder


def job(cfg: DictConfig) -> Any:
    """Run it; gives the summary, or of a cell what its sweeper wants of it."""
    place, command = Place.current(), CURRENT.get() or Command()
    return _single(cfg, place, command) if place.sweep_dir is None else _cell(cfg, place, place.sweep_dir, command)


def _single(cfg: DictConfig, place: Place, command: Command) -> dict[str, Any] | None:
    resumed = bool(cfg.get("resume"))
    try:
        if not resumed:
            refuse_run(place.run_dir, "hydra.run.dir")
        with undo_folder(place.run_dir, resumed=resumed, up=not place.named):
            _start(cfg)
            from fedsim.experiment import command_from, run  # a second or two, in which Ctrl-C must leave nothing

            collect_again()
            return run(cfg, place.run_dir, command_from(place.overrides))
    except (Exception, KeyboardInterrupt) as error:  # kept from Hydra, which would print a paragraph of its own
        if command.wants_traceback:
            raise
        command.failures.append(Failure(interrupted(error, place.run_dir)))
        if is_stop(error):
            raise KeyboardInterrupt from None
        return None


def _cell(cfg: DictConfig, place: Place, sweep_dir: Path, command: Command) -> Any:
    """What went wrong is in sweep.json, and told when the sweep ends; the next cell is run in any case, unless the user stops."""
    with sharing_cores():
        if not (place.run_dir / "summary.json").exists():
            _start(cfg)
        from fedsim.sweeps.launched import launched

        collect_again()
        outcome, values = launched(cfg, place.run_dir, place.overrides, sweep_dir, command.wants_traceback)
    if outcome.state == "stopped":
        raise KeyboardInterrupt
    if outcome.state == "failed" and _must_raise():
        raise FedsimError(outcome.reason)
    return values


@contextmanager
def sharing_cores() -> Iterator[None]:
    """Inside, `grid=auto` counts the cores that are this cell's where its launcher runs several side by side on a machine.

    Slurm says so itself, by what cores it lets a process use; joblib and Ray let everybody use them all.
    """
    from hydra.core.hydra_config import HydraConfig

    launcher: Any = HydraConfig.get().launcher
    kind, at_once = str(launcher.get("_target_")).rpartition(".")[2], 1
    if kind == "JoblibLauncher":
        at_once = int(launcher.n_jobs) if launcher.n_jobs > 0 else cores()
    elif kind in ("RayLauncher", "LocalLauncher"):  # the latter runs all cells at once
        at_once = cores()
    if at_once == 1 or "FEDSIM_CORES" in os.environ:
        yield
        return
    os.environ["FEDSIM_CORES"] = str(max(1, cores() // at_once))
    try:
        yield
    finally:
        del os.environ["FEDSIM_CORES"]


def _must_raise() -> bool:
    """Whether the sweeper learns of a failed cell no other way; Hydra's own would end the sweep."""
    from hydra.core.hydra_config import HydraConfig

    from fedsim.sweeps.callback import TOLERANT

    return not str(HydraConfig.get().sweeper.get("_target_")).endswith(TOLERANT)


def _start(cfg: DictConfig) -> None:
    if not cfg.get("dry_run"):
        start_early(str(cfg.grid.get("_target_")), cfg.grid.get("workers"), str(cfg.get("device")))


def collect_again() -> None:
    """From here on as usual, except that what the imports made stays and need not be looked through."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
