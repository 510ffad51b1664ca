"""A finished run as its folder tells it: the configuration that it was started with, and its summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedsim.experiment import command_from
from fedsim.pairs import with_pairs
from fedsim.results.checkpoint import checkpoints
from fedsim.results.files import read_json
from fedsim.types import FedsimError

KEYS = {"dataset", "model", "partition", "privacy", "rounds", "sampler", "strategy"}
"""Of a configuration that a run can be built from again."""


def read_finished(folder: Path) -> tuple[DictConfig, dict[str, Any]]:
    """The saved configuration and the summary. Raises FedsimError where the folder is not that of one finished run."""
    if not folder.is_dir():
        raise FedsimError(f"{folder} is not there; give the folder of a finished run, as in runs/quickstart/...")
    if not (folder / "summary.json").is_file():
        raise _not_finished(folder)
    summary, path = read_json(folder / "summary.json", str(folder)), folder / ".hydra" / "config.yaml"
    told = summary.get("dataset") if isinstance(summary, dict) else None
    if not isinstance(told, dict) or not {"name", "fingerprint"} <= set(told):
        raise FedsimError(f"{folder / 'summary.json'} is not the summary of a run of fedsim; restore that file")
    if not path.is_file():
        raise FedsimError(f"{folder} has no .hydra/config.yaml, so it cannot be built again; restore that file")
    try:
        cfg = OmegaConf.load(path)
    except Exception as error:  # YAML's errors, OmegaConf's and those of decoding have no base in common
        raise FedsimError(f"{folder}: {path} is corrupt ({type(error).__name__}); restore that file") from error
    if not isinstance(cfg, DictConfig) or not set(cfg) >= KEYS:
        raise FedsimError(f"{folder}: {path} is not the configuration of a run of fedsim; restore that file")
    return with_pairs(cfg), summary


def _not_finished(folder: Path) -> FedsimError:
    below = sorted(folder.glob("*/summary.json"))
    if below or (folder / "multirun.yaml").is_file():
        one = below[0].parent if below else folder / "0"
        return FedsimError(f"{folder} is the folder of a sweep; name one of its runs, as in {one}")
    if checkpoints(folder / "checkpoints"):
        again = command_from([f"resume={folder}"])
        return FedsimError(f"{folder} holds a run that was stopped; finish it first, with: {again}")
    return FedsimError(f"{folder} has no summary.json, so it is not a finished run; name the folder of one")
