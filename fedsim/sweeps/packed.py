"""`hydra/launcher=packed`: a sweep's cells in one process a core, and together in each (`together.py`)."""

from __future__ import annotations

import importlib
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from fedsim.checks import require_int
from fedsim.grids.forkserver import OF_CELLS, start_forkserver
from fedsim.sweeps.callback import is_basic
from fedsim.types import FedsimError


class PackedLauncher(Launcher):
    """The keys of `hydra/launcher=packed`.

    workers: processes; None for one a core, or one a GPU. together: cells that each has in hand at a time.
    """

    def __init__(self, workers: int | None = None, together: int = 24) -> None:
        self.workers, self.together = workers, together

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See Launcher; what is run is fedsim's own cell, not `task_function`."""
        start_forkserver(OF_CELLS)  # which imports while the cells are composed
        self.hydra_context, self.config = hydra_context, config
        # Hydra's own sweeper composes each cell before, to see whether it can be done, which takes a tenth of a second
        self._composed = remember(hydra_context.config_loader)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the cells; one return each, in their order. Raises KeyboardInterrupt where the user stopped them."""
        if self.workers is not None:  # Hydra would word what a constructor raises in its own way
            require_int("hydra.launcher.workers", self.workers, low=1)
        require_int("hydra.launcher.together", self.together, low=1)
        from fedsim.sweeps.together import CellRun, run_together

        setup_globals()
        cells: list[CellRun] = []
        returns: list[JobReturn] = []
        jobs: dict[str, list[int]] = {}  # by folder: a tuner may ask for the very same cell twice
        for place, overrides in enumerate(job_overrides):
            cfg = self._compose(overrides, initial_job_idx + place)
            task = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
            folder, given = str(Path(cfg.hydra.sweep.dir) / cfg.hydra.sweep.subdir), list(cfg.hydra.overrides.task)
            if folder not in jobs:
                config: Any = OmegaConf.to_container(task, resolve=True)
                cells.append(CellRun(config, folder, given, cfg.hydra.sweep.dir))
            jobs.setdefault(folder, []).append(place)
            returns.append(
                JobReturn(overrides=overrides, cfg=task, hydra_cfg=cfg, task_name="fedsim", working_dir=folder)
            )
        stopped = False
        for number, outcome in run_together(cells, self.workers, self.together):
            stopped |= outcome.state == "stopped"
            failed = outcome.state == "failed" and not is_basic(self.config)  # which would end at the first
            for place in jobs[cells[number].folder]:
                returns[place].status = JobStatus.FAILED if failed else JobStatus.COMPLETED
                returns[place].return_value = FedsimError(outcome.reason) if failed else outcome.values
        if stopped:
            raise KeyboardInterrupt
        return returns

    def _compose(self, overrides: Sequence[str], number: int) -> DictConfig:
        """A cell's configuration, as Hydra's own launchers make it."""
        key = tuple(overrides)
        if not self._composed[key]:
            self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        cfg: Any = self._composed[key].pop()
        with open_dict(cfg):
            cfg.hydra.job.id = cfg.hydra.job.num = number
        HydraConfig.instance().set_config(cfg)
        return cfg


def remember(loader: Any) -> dict[tuple[str, ...], list[DictConfig]]:
    """What Hydra's config loader composes from now on, by a cell's overrides."""
    compose, composed = loader.load_sweep_config, defaultdict[tuple[str, ...], list[DictConfig]](list)

    def load_sweep_config(master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        composed[tuple(sweep_overrides)].append(compose(master_config, sweep_overrides))
        return composed[tuple(sweep_overrides)][-1]

    loader.load_sweep_config = load_sweep_config
    return composed


PLUGINS, OURS = "hydra_plugins", "hydra_plugins.fedsim"
"""The one package in which Hydra takes plugins, and where it is shown ours; no folder on the disk is theirs."""


def register() -> None:
    """Tell Hydra of the launcher."""
    with suppress(ImportError):
        importlib.import_module(PLUGINS)  # where others have installed some
    package: Any = sys.modules.setdefault(PLUGINS, ModuleType(PLUGINS))
    package.__path__ = getattr(package, "__path__", [])  # Hydra looks into it
    shown = ModuleType(OURS)
    shown.PackedLauncher = PackedLauncher  # type: ignore[attr-defined]
    PackedLauncher.__module__ = OURS
    sys.modules[OURS] = package.fedsim = shown
    Plugins.instance().register(PackedLauncher)
