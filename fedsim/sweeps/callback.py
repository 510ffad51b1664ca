"""What happens before a sweep's first cell, whatever sweeper and launcher it has: its folder is settled, its cells are counted."""

from __future__ import annotations

import logging
import re
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from fedsim.command import CURRENT, Command, Refused
from fedsim.resume import quoted
from fedsim.types import FedsimError

TOLERANT = ("BasicSweeper", "OptunaSweeper")
"""Sweepers that take nothing for the result of a cell that failed; for others it has to raise."""


class BeginSweep(Callback):
    """Hydra calls it once for a command with -m, in the process that the user started."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Write sweep.json and hold to the folder. Raises Refused where the sweep has no cells, or its folder is in use."""
        if not is_basic(config):
            _quieten()
        try:
            sweep_dir = _settle(config)
            if (command := CURRENT.get()) is not None:
                _begin(config, command, sweep_dir)
        except Exception as error:
            raise Refused(error) from error


def _quieten() -> None:
    """Optuna warns, twenty times, that its plugin still uses names of Optuna 3; and what fails is told by the sweep's end."""
    warnings.filterwarnings("ignore", r".*has been deprecated in v[34]\.", FutureWarning)
    with suppress(ImportError):
        from optuna.logging import WARNING, set_verbosity

        set_verbosity(WARNING)
    logging.getLogger("hydra_plugins").setLevel(logging.CRITICAL)


def _settle(config: DictConfig) -> Path:
    """Give all cells the same folder above them, and keep Hydra from writing into theirs, which may hold runs already."""
    sweep_dir = Path(str(config.hydra.sweep.dir)).absolute()
    with read_write(config), open_dict(config):  # a cell would resolve the folder by its own name, where that is swept
        config.hydra.overrides.hydra += [f"hydra.sweep.dir={quoted(str(sweep_dir))}", "hydra.output_subdir=null"]
    return sweep_dir


def _begin(config: DictConfig, command: Command, sweep_dir: Path) -> None:
    cells = planned_cells(config)
    if cells == []:
        raise FedsimError(
            "the sweep has no cells, since one of its keys has no value; give it some, as in -m seed=0,1,2"
        )
    if config.hydra.sweeper.get("n_trials") == 0:
        raise FedsimError(
            "the number of trials was drawn as 0, so nothing is tried and nothing chosen; that is its answer"
        )
    if config.get("dry_run"):
        return
    command.named = any(key.partition("=")[0].lstrip("+").startswith("hydra.sweep") for key in command.arguments)
    command.enter(sweep_dir)
    from fedsim.sweeps.state import begin

    axes = [one.key_or_group for one in given_overrides(config) if one.is_sweep_override()]
    trials = config.hydra.sweeper.get("n_trials")
    begin(sweep_dir, command.line, cells, int(trials) if trials is not None else None, axes, drawn_trials(config))


def given_overrides(config: DictConfig) -> list[Override]:
    """What the sweeper makes cells of: its `params`, then the command's overrides."""
    from hydra.core.global_hydra import GlobalHydra

    given = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    task: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    return OverridesParser.create(config_loader=GlobalHydra.instance().config_loader()).parse_overrides([*given, *task])


def planned_cells(config: DictConfig) -> list[list[str]] | None:
    """The overrides of every cell, as Hydra's own sweeper makes them; None for a sweeper that thinks of them as it goes."""
    if not is_basic(config):
        return None
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    (cells,) = BasicSweeper.split_arguments(given_overrides(config), None)
    return [list(cell) for cell in cells]


def drawn_trials(config: DictConfig) -> dict[str, Any] | None:
    """How a tuner's number of trials was drawn, where each trial is drawn by itself too (not by what others gave)."""
    sampler = config.hydra.sweeper.get("sampler")
    number = OmegaConf.to_container(config.hydra.sweeper, resolve=False).get("n_trials")  # type: ignore[union-attr]
    if sampler is None or not str(sampler.get("_target_")).endswith(".RandomSampler"):
        return None
    found = re.fullmatch(r"\$\{trials:\s*(\w+)\s*,\s*([\d.]+)\s*(?:,\s*(-?[\d.]+)\s*)?\}", str(number))
    if found is None:
        return None
    return {"distribution": found[1], "mean": float(found[2]), "shape": float(found[3] or 1)}


def is_basic(config: DictConfig) -> bool:
    """Whether the sweeper is Hydra's own, which ends at the first cell that raises."""
    return str(config.hydra.sweeper.get("_target_")).endswith("BasicSweeper")
