"""`hydra/launcher=packed`: a sweep's cells in one process a core, and together in each (`together.py`)."""

from __future__ import annotations

import importlib
import sys
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
from fedsim.types import FedsimError


class PackedLauncher(Launcher):
    """The keys of `hydra/launcher=packed`.

    workers: processes; None for one a core, or one a GPU. together: cells that each has in hand at a time.
    """

    def __init__(self, workers: int | None = None, together: int = 24) -> None:
        self.workers, self.together = workers, together

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See Launcher; what is run is fedsim's own cell, not `task_function`."""
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the cells; one return each, in their order. Raises KeyboardInterrupt where the user stopped them."""
        if self.workers is not None:  # Hydra would word what a constructor raises in its own way
            require_int("hydra.launcher.workers", self.workers, low=1)
        require_int("hydra.launcher.together", self.together, low=1)
        from fedsim.sweeps.callback import is_basic
        from fedsim.sweeps.together import CellRun, run_together

        setup_globals()
        cells, returns = [], []
        for place, overrides in enumerate(job_overrides):
            cfg = self._composed(overrides, initial_job_idx + place)
            task, sweep_dir = (
                OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]),
                cfg.hydra.sweep.dir,
            )
            folder = Path(sweep_dir) / cfg.hydra.sweep.subdir
            given = list(cfg.hydra.overrides.task)
            cells.append(CellRun(OmegaConf.to_container(task, resolve=True), str(folder), given, sweep_dir))  # type: ignore[arg-type]
            returns.append(
                JobReturn(overrides=overrides, cfg=task, hydra_cfg=cfg, task_name="fedsim", working_dir=str(folder))
            )
        stopped = False
        for number, outcome in run_together(cells, self.workers, self.together):
            stopped |= outcome.state == "stopped"
            failed = outcome.state == "failed" and not is_basic(self.config)  # which would end at the first
            returns[number].status = JobStatus.FAILED if failed else JobStatus.COMPLETED
            returns[number].return_value = FedsimError(outcome.reason) if failed else outcome.values
        if stopped:
            raise KeyboardInterrupt
        return returns

    def _composed(self, overrides: Sequence[str], number: int) -> DictConfig:
        """A cell's configuration, as Hydra's own launchers make it."""
        cfg: Any = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(cfg):
            cfg.hydra.job.id = cfg.hydra.job.num = number
        HydraConfig.instance().set_config(cfg)
        return cfg


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
