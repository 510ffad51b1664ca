"""Every YAML part composes, is what its target takes, and tells the same defaults."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import config, yaml_files
from omegaconf import OmegaConf

from fedsim.data.dataset import Dataset
from fedsim.make import make
from fedsim.paths import conf_dir

GROUPS = sorted(
    path.name for path in conf_dir().iterdir() if path.is_dir() and path.name not in ("experiment", "hydra", "size")
)
FILES = [path for group in GROUPS for path in yaml_files(group)]
GIVEN_BY_FEDSIM = {
    "partition": {"columns", "num_clients", "seed"},
    "model": {"input_shape", "num_outputs"},
}
"""What a part that is made later (`_partial_`) is handed then, and what a model is given by name."""

NO_TARGET = {"population"}
PRESETS = {("client", "adamw"), ("model", "small_cnn"), ("dataset", "femnist")}
"""A second file over one target: the same keys, other values."""


def target_of(path: str) -> Any:
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def test_every_group_is_in_the_defaults() -> None:
    defaults = yaml.safe_load((conf_dir() / "config.yaml").read_text())["defaults"]
    listed = {key for item in defaults if isinstance(item, dict) for key in item if not key.startswith("override")}
    assert listed == set(GROUPS) and len(FILES) > 60


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_parts_keys_are_its_targets_arguments(path: Path) -> None:
    group, keys = path.parent.name, yaml.safe_load(path.read_text()) or {}
    if group in NO_TARGET:
        assert "_target_" not in keys
        return
    target = keys.pop("_target_")
    keys.pop("_partial_", None)
    if target == "???":
        assert path.stem == "custom" and keys == {}
        return
    parameters = inspect.signature(target_of(target)).parameters
    wanted = {n: p for n, p in parameters.items() if n not in GIVEN_BY_FEDSIM.get(group, ())}
    assert keys.keys() == wanted.keys()
    for name, parameter in wanted.items():
        same_kind = (group, path.stem) not in PRESETS and group != "corruption"
        if parameter.default is not parameter.empty and same_kind:
            default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            value = keys[name] if keys[name] != {} else None  # a map to be filled in: Hydra cannot add keys to null
            assert value == default, f"{name} is {keys[name]!r} in the file and {default!r} in the code"


def test_no_corruption_is_the_codes_default() -> None:
    keys = yaml.safe_load((conf_dir() / "corruption" / "none.yaml").read_text())
    parameters = inspect.signature(target_of(keys.pop("_target_"))).parameters
    assert keys == {name: parameter.default for name, parameter in parameters.items()}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_option_composes(path: Path) -> None:
    cfg = config(f"{path.parent.name}={path.stem}")
    expected = OmegaConf.load(path)
    assert set(cfg[path.parent.name]) == set(expected)


WITHOUT_DATA = ("client", "sampler", "strategy", "grid", "evaluation", "privacy", "corruption")


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name in WITHOUT_DATA], ids=name_of)
def test_every_part_without_data_is_made(path: Path) -> None:
    if path.stem != "custom":
        needed = ["privacy.noise_multiplier=1"] if path.parent.name == "privacy" and path.stem != "none" else []
        cfg = config(f"{path.parent.name}={path.stem}", *needed)
        assert make(cfg[path.parent.name], path.parent.name) is not None


@pytest.mark.parametrize("path", FILES + list(yaml_files("experiment")), ids=name_of)
def test_every_file_says_what_it_is_or_explains_its_keys(path: Path) -> None:
    assert "#" in path.read_text()


def test_the_default_dataset_is_made() -> None:
    assert isinstance(make(config().dataset, "dataset"), Dataset)


def test_the_contracts_keys_are_there() -> None:
    cfg = config()
    for key in (
        *("seed", "rounds", "device", "dry_run", "resume", "population.num_clients", "partition.alpha", "dataset.root"),
        *(
            "sampler.cohort_size",
            "sampler.fraction",
            "client.epochs",
            "client.batch_size",
            "client.lr",
            "client.momentum",
        ),
        *("grid.chunk_size", "init.weights", "checkpoint.every", "evaluation.every"),
    ):
        node = OmegaConf.select(cfg, key, default="missing")
        assert node != "missing", key
    assert cfg.strategy._target_ == "fedsim.algorithms.fedavg" and cfg.seed == 0 and cfg.rounds == 50
