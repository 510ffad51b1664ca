"""Takes away what a command left that came to nothing: nothing may stay that reads as a run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.errors import is_stop, kept
from fedsim.resume import refuse_run

OWN_TRACES = (
    "checkpoints",
    ".client_states",
    "baselines",
    "plots",
    "tensorboard",
    "wandb",
    ".mlflow_run",
    ".wandb_run",
)
HYDRA_FILES = ("config.yaml", "hydra.yaml", "overrides.yaml")


@dataclass(frozen=True)
class Place:
    """Where one job of a command writes.

    named: a user named the folder; Hydra made it up otherwise. resumed: it held the run before. overrides: the job's.
    sweep_dir, cell: of a sweep, None and "" otherwise.
    """

    run_dir: Path
    overrides: list[str]
    named: bool
    resumed: bool
    sweep_dir: Path | None
    cell: str

    @classmethod
    def current(cls, *, resumed: bool) -> Place:
        """Of the job that Hydra is running."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode
        from omegaconf import OmegaConf

        config = HydraConfig.get()
        hydra_overrides: Any = OmegaConf.to_container(config.overrides.hydra, resolve=False)
        key = "hydra.sweep" if config.mode == RunMode.MULTIRUN else "hydra.run"
        return cls(
            run_dir=Path(config.runtime.output_dir),
            overrides=OmegaConf.to_container(config.overrides.task, resolve=False),  # type: ignore[arg-type]
            named=any(override.lstrip("+").startswith(key) for override in hydra_overrides),
            resumed=resumed,
            sweep_dir=Path(config.sweep.dir) if config.mode == RunMode.MULTIRUN else None,
            cell=f"cell {config.job.num}" if config.mode == RunMode.MULTIRUN else "",
        )


@contextmanager
def undo_folder(place: Place) -> Iterator[None]:
    """Where the block fails before anything worth keeping was written, take away what it put into the run's folder.

    Refuses a folder that holds a run, unless it is resumed. What lay in the folder before is left alone, but for Hydra's
    own three files, which Hydra has overwritten by then.
    """
    if not place.resumed:
        refuse_run(place.run_dir, "hydra.sweep.dir" if place.sweep_dir else "hydra.run.dir")
    before = {path.name for path in place.run_dir.iterdir()}
    try:
        yield
    except BaseException as error:
        baseline = is_stop(error) and any(place.run_dir.glob("baselines/*/checkpoints/round_*"))
        if not place.resumed and not kept(place.run_dir) and not baseline:
            _undo(place.run_dir, before, up=not place.named)
        raise


def _undo(run_dir: Path, before: set[str], *, up: bool) -> None:
    for name in set(OWN_TRACES) - before:
        _remove(run_dir / name)
    for name in HYDRA_FILES:
        (run_dir / ".hydra" / name).unlink(missing_ok=True)
    _remove_empty(run_dir / ".hydra", run_dir, up=up)


def undo_sweep(places: Sequence[Place]) -> None:
    """Take a sweep's folder away where none of its cells has left anything."""
    if not places or (sweep_dir := places[0].sweep_dir) is None or not sweep_dir.is_dir():
        return
    if {path.name for path in sweep_dir.iterdir()} <= {"multirun.yaml"}:
        (sweep_dir / "multirun.yaml").unlink(missing_ok=True)
        _remove_empty(sweep_dir, up=not places[0].named)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_empty(*folders: Path, up: bool) -> None:
    """Remove these folders, and with `up` those above the last, as far as they are empty and below the working folder."""
    here = Path.cwd()
    above = [folder for folder in folders[-1].absolute().parents if here in folder.parents] if up else []
    for folder in [*folders, *above]:
        if folder.is_dir() and folder.resolve() != here and not any(folder.iterdir()):
            folder.rmdir()
