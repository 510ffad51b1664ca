"""Takes away what a command left that came to nothing: nothing may stay that reads as a run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.errors import is_stop, kept

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
SWEEP_FILES = ("multirun.yaml", "sweep.json", ".sweep.json.lock")


@dataclass(frozen=True)
class Place:
    """Where one job of a command writes.

    named: a user named the folder; Hydra made it up otherwise. overrides: the job's. sweep_dir: None where it is no sweep's.
    """

    run_dir: Path
    overrides: list[str]
    named: bool
    sweep_dir: Path | None

    @classmethod
    def current(cls) -> Place:
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
            sweep_dir=Path(config.sweep.dir) if config.mode == RunMode.MULTIRUN else None,
        )


@contextmanager
def undo_folder(run_dir: Path, *, resumed: bool, up: bool) -> Iterator[None]:
    """Where the block fails before anything worth keeping was written, take away what it put into the run's folder.

    What lay in the folder before is left alone, but for Hydra's own three files, which are written anew by then.
    resumed: it held the run before, and keeps it. up: folders above are taken away too where they are left empty.
    """
    before = {path.name for path in run_dir.iterdir()} if run_dir.is_dir() else set()
    try:
        yield
    except BaseException as error:
        baseline = is_stop(error) and any(run_dir.glob("baselines/*/checkpoints/round_*"))
        if not resumed and not kept(run_dir) and not baseline:
            _undo(run_dir, before, up=up)
        raise


def forget_traces(run_dir: Path) -> None:
    """Take away what a run left that was killed before anything was worth keeping."""
    for name in (*OWN_TRACES, "privacy_journal.jsonl"):
        _remove(run_dir / name)


def _undo(run_dir: Path, before: set[str], *, up: bool) -> None:
    for name in set(OWN_TRACES) - before:
        _remove(run_dir / name)
    for name in HYDRA_FILES:
        (run_dir / ".hydra" / name).unlink(missing_ok=True)
    _remove_empty(run_dir / ".hydra", run_dir, up=up)


def undo_sweep(sweep_dir: Path, *, up: bool) -> None:
    """Take a sweep's folder away where none of its cells has left anything."""
    if not sweep_dir.is_dir():
        return
    _remove_empty(*[path for path in sweep_dir.iterdir() if path.is_dir()], up=False)
    if {path.name for path in sweep_dir.iterdir()} - set(SWEEP_FILES):
        return
    for name in SWEEP_FILES:
        (sweep_dir / name).unlink(missing_ok=True)
    _remove_empty(sweep_dir, up=up)


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
