"""Turns configuration into parts, each checked on its own and against the others, before any work starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from flwr.clientapp import ClientApp
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fedsim.algorithms import Algorithm, as_algorithm
from fedsim.build_field import check_sampler, make_compression, make_field, make_schedule
from fedsim.build_population import build_population, make_online, prepared
from fedsim.checks import did_you_mean, require_choice, require_int, require_name, require_number, shown
from fedsim.client import Devices, make_client_app
from fedsim.data.dataset import Dataset
from fedsim.data.population import Population
from fedsim.fleet.schedules import Schedule
from fedsim.grids.settings import GridSettings
from fedsim.judging import Judge
from fedsim.make import make, not_made
from fedsim.models.build import (
    build_model,
    load_initial_weights,
    made_up_batch,
    mixing_layers,
    moving_arrays,
    refuse_mixing,
)
from fedsim.parts import Parts
from fedsim.paths import conf_dir
from fedsim.privacy.base import Setting
from fedsim.resolvers import SIZES
from fedsim.rounds import EvaluationPlan, ServerState
from fedsim.samplers import AllSampler, FixedSampler, PoissonSampler, Sampler
from fedsim.server import Server
from fedsim.streams.population import StreamedPopulation
from fedsim.training import OBJECTIVES, LocalTraining, Trainer
from fedsim.training.arrays import model_arrays
from fedsim.training.choose import SHARES, choose_chunk_size, choose_execution
from fedsim.training.per_example import choose
from fedsim.types import FedsimError


def check_top_level(cfg: DictConfig) -> None:
    """Ranges of the keys that belong to no part, and keys that belong nowhere."""
    known = set(OmegaConf.load(conf_dir() / "config.yaml")) | {
        path.name for path in conf_dir().iterdir() if path.is_dir()
    }
    if "size" in cfg:  # of studies alone
        require_choice("size", cfg.size, SIZES)
    if unknown := sorted(set(cfg) - known - {"hydra", "size"}):
        close = did_you_mean(unknown[0], known)
        raise FedsimError(
            f"{unknown[0]} is not a key of fedsim{close}; take it away, or see --help for the keys there are"
        )
    for key, example in (("init", "init.weights"), ("checkpoint", "checkpoint.every")):
        if not isinstance(cfg[key], DictConfig):
            raise FedsimError(
                f"{key}={shown(cfg[key])} stands for several keys; set them one by one, as in {example}=..."
            )
    require_name(cfg.name)
    require_int("seed", cfg.seed, low=0)
    require_int("rounds", cfg.rounds, low=1)
    require_int("checkpoint.every", cfg.checkpoint.every, low=1)
    require_int("checkpoint.keep", cfg.checkpoint.keep, low=1)
    require_number("checkpoint.states_mb", cfg.checkpoint.states_mb, low=0)
    for key in ("dry_run", "init.partial"):
        if not isinstance(OmegaConf.select(cfg, key), bool):
            raise FedsimError(f"{key}={shown(OmegaConf.select(cfg, key))} is neither true nor false; give one of them")


def build(cfg: DictConfig, together: int = 1, dataset_of: Callable[[DictConfig], Any] | None = None) -> Parts:
    """All parts of the experiment, checked against each other; the data are read, nothing is trained.

    together: runs whose clients will be trained in one lockstep batch. dataset_of: gives what `cfg.dataset` describes, for
    runs that share it.
    """
    device = choose_device(cfg.device)
    if device.type == "cpu":
        torch.set_num_threads(1)  # one thread, so that bits depend neither on the machine's cores nor on the grid
    settings: LocalTraining = make(cfg.client, "client")
    algorithm = as_algorithm(make(cfg.strategy, "strategy"))
    sampler = AllSampler() if algorithm.pools_data else make(cfg.sampler, "sampler")
    evaluation: EvaluationPlan = make(cfg.evaluation, "evaluation")
    privacy, audit, logger = make_privacy(cfg), make(cfg.audit, "audit"), make(cfg.logger, "logger")
    grid: GridSettings = make(cfg.grid, "grid")
    schedule, compression = make_schedule(cfg, algorithm), make_compression(cfg, algorithm)
    check_sampler(schedule, sampler)
    if not cfg.dry_run:
        grid.prepare(device)
    dataset = make(cfg.dataset, "dataset") if dataset_of is None else dataset_of(cfg.dataset)
    if not isinstance(dataset, Dataset):
        raise FedsimError(f"dataset._target_ gives a {type(dataset).__name__}; give a fedsim.data.dataset.Dataset")
    dataset = prepared(cfg, dataset)
    population = build_population(cfg, dataset, algorithm, device)
    check_cohort(algorithm, sampler.expected_size(population.num_clients))
    model = make_model(cfg, dataset)
    mixing = mixing_layers(model)
    if algorithm.steps_buffers:
        refuse_mixing(model, f"strategy={strategy_name(cfg)}")
    if settings.batch_size == 1 and mixing:
        raise FedsimError(
            f"client.batch_size=1 cannot train BatchNorm ({mixing[0]}); raise it, or use torch.nn.GroupNorm"
        )
    if cfg.init.weights is not None:
        load_initial_weights(model, str(cfg.init.weights), cfg.init.partial)
    model.to(device)
    setting = setting_of(cfg, algorithm, sampler, population, settings, model, schedule)
    protection = privacy.protect(setting)
    if protection.unit is not None:
        refuse_mixing(model, f"privacy={privacy_name(cfg)}")
    if protection.local_steps is not None:
        x, y = (made_up.to(device) for made_up in made_up_batch(dataset, 3))
        choose(protection.local_steps.way, model, OBJECTIVES[dataset.task], x, y)  # refused here if at all
    protection.moving = moving_arrays(model)
    compression.check({name: model_arrays(model)[name].shape for name in dict.fromkeys(protection.moving.values())})
    audit.check(dataset.task, dataset.input_shape)
    audit.begin(setting, protection, model_arrays(model))
    protection.noise_removed = audit.remove_noise
    trainer = Trainer(
        model,
        OBJECTIVES[dataset.task],
        settings,
        algorithm.client,
        cfg.seed,
        smallest_batch=2 if mixing else 1,
        local_steps=protection.local_steps,
    )
    cohort = sampler.expected_size(population.num_clients)
    x, y = (made_up.to(device) for made_up in made_up_batch(dataset, 6))
    largest = max(1, int(setting.num_examples.max()))
    shared = cohort if together == 1 else SHARES * together * cohort  # one core has all of them
    trainer.execution = choose_execution(grid, trainer.alone(), x, y, shared, largest)
    field = make_field(cfg, algorithm, population, trainer, protection, compression)
    schedule.check(field, cohort)
    chunk_size = grid.chunk_size or choose_chunk_size(trainer.execution, cohort, device)
    start = {name: array.detach().cpu().clone() for name, array in model_arrays(model).items()}
    judge = Judge(model, population, evaluation.batch_on(device))
    server = Server(
        algorithm=algorithm,
        sampler=sampler,
        protection=protection,
        audit=audit,
        state=ServerState(start),
        seed=cfg.seed,
        rounds=cfg.rounds,
        num_clients=population.num_clients,
        holders=np.flatnonzero(population.holdout_sizes),
        plan=evaluation,
        judge=judge,
        field=field,
        schedule=schedule,
        compression=compression,
        online=make_online(cfg, population, algorithm, evaluation, start, judge, trainer),
    )
    return Parts(cfg.name, device, population, algorithm, settings, model, trainer, server, logger, grid, chunk_size)


def setting_of(
    cfg: DictConfig,
    algorithm: Algorithm,
    sampler: Sampler,
    population: Population,
    training: LocalTraining,
    model: nn.Module,
    schedule: Schedule,
) -> Setting:
    """What a privacy mechanism must know of the run."""
    drawn = type(sampler) in (AllSampler, FixedSampler, PoissonSampler) and schedule.secret
    examples = population.partition.sizes - population.holdout_sizes
    return Setting(
        seed=cfg.seed,
        rounds=cfg.rounds,
        num_clients=population.num_clients,
        sampling=sampler.kind if drawn else "unknown",
        cohort_size=schedule.needed(sampler.expected_size(population.num_clients)),
        num_examples=np.array([examples.sum()]) if algorithm.pools_data else examples,
        training=training,
        strategy=strategy_name(cfg),
        linear=algorithm.linear,
        one_vector=algorithm.one_vector,
        shapes={name: model_arrays(model)[name].shape for name in dict.fromkeys(moving_arrays(model).values())},
        deterministic=population.device.type == "cpu",
        resumed=bool(cfg.get("resume")),
        stream=population.stream if isinstance(population, StreamedPopulation) else None,
    )


def make_privacy(cfg: DictConfig) -> Any:
    """The keys of `privacy.*`. `privacy=none` beside a private experiment leaves that one's keys behind: they mean nothing."""
    none = privacy_name(cfg) == "no"
    if not none and strategy_name(cfg) == "local_only":
        raise FedsimError(
            f"strategy=local_only releases nothing of any client, which leaves privacy={privacy_name(cfg)} nothing to protect; "
            "use privacy=none"
        )
    return make({"_target_": cfg.privacy._target_} if none else cfg.privacy, "privacy")


def privacy_name(cfg: DictConfig) -> str:
    """As a user types it."""
    return cfg.privacy._target_.rsplit(".", 1)[-1].removesuffix("Privacy").lower()


def make_model(cfg: DictConfig, dataset: Dataset) -> nn.Module:
    """The model, as initialised; it may be a user's own class, which may raise anything."""
    try:
        return build_model(make({**cfg.model, "_partial_": True}, "model"), dataset, cfg.seed)
    except FedsimError:
        raise
    except Exception as error:
        raise not_made("model", str(cfg.model._target_), error) from error


def check_cohort(algorithm: Algorithm, cohort: float) -> None:
    """Refuse a cohort that the algorithm could never aggregate; Poisson's may be less than one on average."""
    if algorithm.min_cohort > 1 and cohort < algorithm.min_cohort:
        raise FedsimError(
            f"a cohort of {cohort:g} is too small for this strategy, which as configured needs at least {algorithm.min_cohort} "
            "clients a round; raise sampler.cohort_size, or make less of strategy.num_malicious or strategy.num_selected"
        )


def strategy_name(cfg: DictConfig) -> str:
    """The algorithm's own name."""
    return cfg.strategy._target_.rsplit(".", 1)[-1]


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one."""
    require_choice("device", name, ("auto", "cpu", "cuda"))
    if name == "cuda" and not torch.cuda.is_available():
        raise FedsimError("device=cuda, but torch sees no CUDA device here; use device=cpu or device=auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def client_app_from(config: dict[str, Any]) -> ClientApp:
    """The experiment's client app for a node elsewhere: a Ray worker or a SuperNode.

    config: the plain values of a run's configuration. They alone travel; the node reads the data itself, when the first
    message comes, and keeps the state of its client in its own Flower context.
    """
    return make_client_app(partial(_devices_from, json.dumps(config)))


@lru_cache(maxsize=1)
def _devices_from(config: str) -> Devices:
    """One set of devices a process, however many messages it gets."""
    alone = {
        "grid": {"_target_": "fedsim.grids.inprocess.InProcess"}
    }  # the node itself trains, whatever the server's grid is
    return build(OmegaConf.create(json.loads(config) | alone)).devices()
