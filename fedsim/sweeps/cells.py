"""One cell of a sweep: what its folder holds, and what that means: run it, go on with it, or leave it, since it is finished."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from omegaconf import DictConfig, ListConfig, OmegaConf

from fedsim.errors import is_stop, kept, sentence
from fedsim.experiment import chosen_baselines, command_from, digest, run
from fedsim.pairs import with_pairs
from fedsim.paths import whole
from fedsim.resolvers import cell_name as cell_name
from fedsim.results.files import read_json
from fedsim.results.run import RunFolder
from fedsim.sweeps.locks import locked
from fedsim.types import FedsimError
from fedsim.undo import forget_traces, undo_folder

Standing = Literal["new", "stopped", "finished"]
State = Literal["finished", "failed", "stopped", "planned"]
Play = Callable[[DictConfig, Path, str], dict[str, Any]]
"""(configuration, folder, command) -> summary, as `experiment.run`."""


class Outcome(NamedTuple):
    """What became of a cell in this command.

    state: finished, failed, stopped by the user, or planned (dry_run). summary: of a finished cell (the plan of a planned
    one). reason: the sentence of the others. seconds: what it took here. before: it was finished before this command.
    """

    state: State
    summary: dict[str, Any] | None
    reason: str | None
    seconds: float
    before: bool = False


def run_cell(cfg: DictConfig, folder: Path, overrides: Sequence[str], play: Play = run, debug: bool = False) -> Outcome:
    """Run a cell, or go on with it, or leave it where it is finished; whatever goes wrong is told in the outcome.

    cfg: composed, without its `hydra`. overrides: the cell's, as Hydra has them. debug: print tracebacks.
    """
    started = time.perf_counter()
    try:
        with opened(cfg, folder, overrides) as (found, own):
            if found == "finished":
                summary = read_json(folder / "summary.json", str(folder))
                return Outcome("finished", summary, None, 0.0, before=True)
            summary = play(own, folder, command_from(list(overrides)))
        state: State = "planned" if own.dry_run else "finished"
        return Outcome(state, summary, None, time.perf_counter() - started)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        state = "stopped" if is_stop(error) else "failed"
        return Outcome(state, None, " ".join(sentence(error).split()), time.perf_counter() - started)


@contextmanager
def opened(cfg: DictConfig, folder: Path, overrides: Sequence[str]) -> Iterator[tuple[Standing, DictConfig]]:
    """The cell's folder, ours alone inside the block: what it holds, and what to run (with `resume` where it was stopped).

    A new cell's configuration is in its .hydra/ by then; where the block fails before anything is worth keeping, the folder is
    taken away. Raises FedsimError where the folder is in use, or holds a run of another configuration.
    """
    own = with_pairs(cfg).copy()
    with locked(folder, f"another process is running this cell (in {folder})"):
        found = standing(own, folder)
        if own.dry_run and found != "new":
            raise FedsimError(f"{folder} holds a run already, which needs no plan; leave dry_run out")
        own.resume = str(folder) if found == "stopped" else None
        with undo_folder(folder, resumed=found != "new", up=False):
            if found == "new":
                forget_traces(folder)
                describe(own, folder, overrides)
            yield found, own


def standing(cfg: DictConfig, folder: Path) -> Standing:
    """What a cell's folder holds. Raises FedsimError where that is of another configuration than `cfg`."""
    if not kept(folder):
        return "new"
    there = read_config(folder)
    if identity(there) != identity(cfg):
        raise FedsimError(
            f"{folder} holds a run of another configuration ({difference(there, cfg)}); move it away, or give the sweep "
            "another folder with name=... or hydra.sweep.dir=..."
        )
    return "finished" if RunFolder(folder).holds(chosen_baselines(cfg)) else "stopped"


def identity(cfg: DictConfig) -> tuple[str, int]:
    """What two runs with the same bits have in common: their configuration, less what changes no bit, and their rounds."""
    own = with_pairs(cfg)
    return digest(own), own.rounds


def read_config(folder: Path) -> DictConfig:
    """The configuration of the run in a folder. Raises FedsimError where it cannot be read."""
    path = folder / ".hydra" / "config.yaml"
    try:
        cfg = OmegaConf.load(path)
        assert isinstance(cfg, DictConfig) and "rounds" in cfg
    except Exception as error:  # of the file, of YAML, of OmegaConf
        raise FedsimError(
            f"{path} cannot be read ({type(error).__name__}), so nobody knows what run {folder} holds; move that folder away"
        ) from error
    return cfg


def difference(there: DictConfig, here: DictConfig) -> str:
    """Up to three keys whose values differ, as `key was VALUE, is VALUE`."""
    old, new = (dict(_leaves(OmegaConf.to_container(with_pairs(cfg), resolve=True))) for cfg in (there, here))
    untold = ("resume", "resume_rounds", "dry_run", "name", "logger", "checkpoint", "objectives")
    differing = [
        f"{key} was {old.get(key, 'not there')}, is {new.get(key, 'not there')}"
        for key in sorted(old.keys() | new.keys())
        if key.split(".")[0] not in untold and old.get(key, ()) != new.get(key, ())
    ]
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    return "; ".join(differing[:3]) + more


def describe(cfg: DictConfig, folder: Path, overrides: Sequence[str]) -> None:
    """Write .hydra/ as Hydra does of a single run, but each file whole or not at all."""
    for name, value in (("config.yaml", cfg), ("overrides.yaml", ListConfig(list(overrides)))):
        with whole(folder / ".hydra" / name) as temporary:
            OmegaConf.save(value, temporary)


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
