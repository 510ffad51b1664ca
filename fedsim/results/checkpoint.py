"""Checkpoints: everything that a run needs to go on with the same bits, as arrays and JSON. Nothing in one can run.

The generators need no state of their own: every draw is named by (seed, round, client, purpose), see `rng.py`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch

from fedsim.paths import sync_folder
from fedsim.results.files import read_arrays, read_json, write_arrays, write_json
from fedsim.results.state_files import StateFiles, open_states
from fedsim.types import FedsimError, Params

FORMAT = 4


class Checkpoint(NamedTuple):
    """arrays: the server's. clients: state by client. strategy, privacy: see `algorithms/state.py`. progress: the rest, as JSON.
    versions: earlier arrays that devices are still at work on, by round.

    Clients' states that are in files already are not copied, but linked; those of a checkpoint are read when asked for.
    """

    arrays: Params
    clients: Mapping[int, Params]
    strategy: dict[str, Any]
    privacy: list[Any]
    progress: dict[str, Any]
    versions: Mapping[int, Params] = MappingProxyType({})


def save_checkpoint(folder: Path, round: int, checkpoint: Checkpoint, keep: int) -> Path:
    """Write `folder/round_N` whole or not at all, and drop all but the newest `keep`."""
    path = folder / f"round_{round:06d}"
    temporary = folder / f".round_{round:06d}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    remembered: Params = {}
    write_arrays(temporary / "arrays.safetensors", checkpoint.arrays)
    strategy, privacy = (_take_arrays(part, remembered) for part in (checkpoint.strategy, checkpoint.privacy))
    write_arrays(temporary / "remembered.safetensors", remembered)
    earlier = {f"{version}/{name}": a for version, held in checkpoint.versions.items() for name, a in held.items()}
    write_arrays(temporary / "versions.safetensors", earlier)
    _write_states(temporary, checkpoint.clients)
    parts = {"format": FORMAT, "strategy": strategy, "privacy": privacy}
    write_json(temporary / "state.json", parts | checkpoint.progress)
    shutil.rmtree(path, ignore_errors=True)
    temporary.rename(path)
    sync_folder(folder)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def _write_states(folder: Path, states: Mapping[int, Params]) -> None:
    if isinstance(states, StateFiles):
        states.link_into(folder)
        return
    files = StateFiles(folder)
    files.write(states)
    files.write_index()


def checkpoints(folder: Path) -> list[Path]:
    """All whole checkpoints, oldest first."""
    return sorted(path for path in folder.glob("round_*") if path.is_dir())


def load_checkpoint(folder: Path) -> Checkpoint:
    """The newest. Raises FedsimError where there is none, or it is corrupt or of another format."""
    found = checkpoints(folder)
    if not found:
        raise FedsimError(
            f"resume={folder.parent}: there is no checkpoint in {folder}; start the experiment anew without resume"
        )
    path, what = found[-1], f"resume={folder.parent}"
    progress = read_json(path / "state.json", what)
    if not isinstance(progress, dict) or progress.get("format") != FORMAT:
        raise FedsimError(
            f"{what}: {path} is not a checkpoint of this fedsim's format {FORMAT}; start the experiment anew"
        )
    arrays, remembered, earlier = (
        read_arrays(path / f"{name}.safetensors", what) for name in ("arrays", "remembered", "versions")
    )
    versions: dict[int, Params] = {}
    for key, array in earlier.items():
        version, _, name = key.partition("/")
        versions.setdefault(int(version) if version.isdigit() else -1, {})[name] = array
    clients = open_states(path, what)
    try:
        strategy, privacy = (_give_arrays(progress.pop(part), remembered) for part in ("strategy", "privacy"))
    except (KeyError, ValueError) as error:
        raise FedsimError(f"{what}: {path} is corrupt (its files do not fit each other); it cannot be used") from error
    return Checkpoint(arrays, clients, strategy, privacy, progress, versions)


def _take_arrays(value: Any, into: Params) -> Any:
    """JSON with each numpy array replaced by its number in `into`."""
    if isinstance(value, np.ndarray):
        key = str(len(into))
        into[key] = torch.from_numpy(np.ascontiguousarray(value)).reshape(value.shape)
        return {"$array": key}
    if isinstance(value, dict):
        return {name: _take_arrays(item, into) for name, item in value.items()}
    if isinstance(value, list):
        return [_take_arrays(item, into) for item in value]
    return value


def _give_arrays(value: Any, arrays: Params) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"$array"}:
            return arrays[value["$array"]].numpy()
        return {name: _give_arrays(item, arrays) for name, item in value.items()}
    if isinstance(value, list):
        return [_give_arrays(item, arrays) for item in value]
    return value
