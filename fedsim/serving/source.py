"""A finished run whose model is to be used: its configuration, its data as devices see them, and the model that it ended with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from fedsim import resolvers as resolvers  # what a configuration may hold
from fedsim.algorithms import as_algorithm
from fedsim.build import check_top_level, make_model, privacy_name, strategy_name
from fedsim.build_population import build_population
from fedsim.data.dataset import Dataset
from fedsim.data.population import Population
from fedsim.finished import read_finished
from fedsim.make import make
from fedsim.results.files import read_arrays, read_json
from fedsim.training.arrays import all_finite, load_arrays, model_arrays
from fedsim.training.evaluation import mixes_rows
from fedsim.types import FedsimError


@dataclass(frozen=True)
class Trained:
    """folder, cfg, summary: the run's. privacy: what privacy.json holds. model: on the CPU, in evaluation mode, with the final
    arrays. private: whether the run promised privacy to anyone, kept or not.
    """

    folder: Path
    cfg: DictConfig
    summary: dict[str, Any]
    privacy: dict[str, Any]
    private: bool
    population: Population
    model: nn.Module

    @property
    def dataset(self) -> Dataset:
        """The run's."""
        return self.population.dataset

    @property
    def seed(self) -> int:
        """The run's."""
        return int(self.cfg.seed)

    def raw(self, rows: int) -> Tensor:
        """(rows, ...) zeros in the shape and type of raw inputs: a trace keeps the inputs that it is made by, so no row is one."""
        return torch.zeros((rows, *self.dataset.one_row[0].shape[1:]), dtype=self.dataset.one_row[0].dtype)

    def prepared(self, rows: int) -> Tensor:
        """`raw` after preprocessing."""
        with torch.no_grad():
            return self.population.preprocess(self.raw(rows))


def open_run(folder: Path) -> Trained:
    """Read a finished run back from its folder. Raises FedsimError where it is none, or its model cannot be had."""
    cfg, summary = read_finished(folder)
    torch.set_num_threads(1)  # as in every run: what is measured here does not depend on the machine's cores
    check_top_level(cfg)
    privacy = read_json(folder / "privacy.json", str(folder))
    if not isinstance(privacy, dict):
        raise FedsimError(f"{folder / 'privacy.json'} does not say what the run promised; restore that file")
    algorithm = as_algorithm(make(cfg.strategy, "strategy"))
    if not algorithm.shares_model:
        raise FedsimError(
            f"{folder} has no model that its clients share (strategy={strategy_name(cfg)}); name a run that has one"
        )
    dataset = make(cfg.dataset, "dataset")
    if not isinstance(dataset, Dataset) or dataset.fingerprint != summary["dataset"]["fingerprint"]:
        raise FedsimError(
            f"{folder}: the data of dataset {summary['dataset']['name']} have changed since; restore them"
        )
    population = build_population(cfg, dataset, algorithm, torch.device("cpu"))
    private = privacy_name(cfg) != "no" or privacy.get("mechanism") != "none"
    return Trained(folder, cfg, summary, privacy, private, population, _model(folder, cfg, dataset))


def _model(folder: Path, cfg: DictConfig, dataset: Dataset) -> nn.Module:
    path = folder / "model.safetensors"
    arrays, model = read_arrays(path, str(folder)), make_model(cfg, dataset)
    own = model_arrays(model)
    wrong = [name for name in sorted(own.keys() | arrays.keys()) if not _fits(own.get(name), arrays.get(name))]
    if wrong:
        raise FedsimError(
            f"{path} does not fit model={cfg.model._target_} of the run's configuration at {', '.join(wrong[:3])}"
            f"{' ...' if len(wrong) > 3 else ''}; restore model.safetensors or .hydra/config.yaml"
        )
    if not all_finite(arrays.values()):
        raise FedsimError(f"{path} holds NaN or Inf: the run has diverged; train it anew with a smaller client.lr")
    load_arrays(model, arrays)
    if mixes_rows(model):
        raise FedsimError(
            "a BatchNorm that keeps no statistics answers one example by the others of its batch, and a device has one; "
            "train with torch.nn.GroupNorm in its place"
        )
    return model.eval()


def _fits(own: Tensor | None, given: Tensor | None) -> bool:
    return own is not None and given is not None and own.shape == given.shape
