"""Turns configuration into parts, runs them, and writes the run. The only importer of hydra beside the commands."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.clientapp import ClientApp
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from fedsim.algorithms import Algorithm, as_algorithm
from fedsim.checks import did_you_mean, require_choice, require_int, require_name, require_number, shown
from fedsim.client import Devices, make_client_app
from fedsim.data.corruption import Corruption
from fedsim.data.dataset import Dataset
from fedsim.data.partition import Columns, Partition
from fedsim.data.population import PooledPopulation, Population
from fedsim.make import make, not_made
from fedsim.models.build import build_model, load_initial_weights, mixing_layers
from fedsim.parts import Parts
from fedsim.paths import conf_dir
from fedsim.plan import make_plan, print_plan
from fedsim.results.files import write_json
from fedsim.rounds import EvaluationPlan, ServerState
from fedsim.samplers import AllSampler
from fedsim.server import Server
from fedsim.session import Session
from fedsim.training import OBJECTIVES, LocalTraining, Trainer
from fedsim.training.evaluation import metrics_of, predict
from fedsim.training.trainer import load_arrays, model_arrays
from fedsim.types import FedsimError, Params

BASELINES = ("central", "local_only")
MAY_CHANGE = ("rounds", "resume", "dry_run", "baselines", "logger", "checkpoint", "name")
"""Keys that change no bit of the rounds that have been run."""


def run(cfg: DictConfig, run_dir: Path, command: str = "") -> dict[str, Any]:
    """Run one experiment into `run_dir` and give its summary; with `dry_run`, give its plan and train nothing.

    Raises FedsimError, one sentence, for anything a user can mend.
    """
    if cfg.get("resume"):
        run_dir = Path(cfg.resume)
        cfg = saved_config(run_dir, cfg)
        command = command_of(run_dir)
    check_top_level(cfg)
    parts = build(cfg)
    if cfg.dry_run:
        plan = make_plan(parts)
        print_plan(plan)
        write_json(run_dir / "plan.json", plan)
        return plan
    session = Session(parts, run_dir, digest(cfg), cfg.checkpoint.every, cfg.checkpoint.keep)
    if cfg.get("resume"):
        session.resume()
    baselines = {name: run_baseline(cfg, name, run_dir / "baselines" / name) for name in chosen_baselines(cfg)}
    return session.run(
        config=OmegaConf.to_container(cfg, resolve=True),  # type: ignore[arg-type]
        facts={
            "command": command,
            "strategy": strategy_name(cfg),
            "model": cfg.model._target_.rsplit(".", 1)[-1],
            "partition": cfg.partition._target_.rsplit(".", 1)[-1],
            "baselines": baselines,
        },
    )


def build(cfg: DictConfig) -> Parts:
    """All parts of the experiment, checked against each other; the data are read, nothing is trained."""
    device = choose_device(cfg.device)
    if device.type == "cpu":
        torch.set_num_threads(1)  # one thread, so that bits depend neither on the machine's cores nor on the grid
    settings: LocalTraining = make(cfg.client, "client")
    algorithm = as_algorithm(make(cfg.strategy, "strategy"))
    sampler = AllSampler() if algorithm.pools_data else make(cfg.sampler, "sampler")
    evaluation: EvaluationPlan = make(cfg.evaluation, "evaluation")
    privacy, logger = make(cfg.privacy, "privacy"), make(cfg.logger, "logger")
    grid = make(cfg.grid, "grid")
    dataset = make(cfg.dataset, "dataset")
    if not isinstance(dataset, Dataset):
        raise FedsimError(f"dataset._target_ gives a {type(dataset).__name__}; give a fedsim.data.dataset.Dataset")
    population = build_population(cfg, dataset, algorithm, device)
    check_cohort(algorithm, sampler.expected_size(population.num_clients))
    model = make_model(cfg, dataset)
    if settings.batch_size == 1 and (mixing := mixing_layers(model)):
        raise FedsimError(
            f"client.batch_size=1 cannot train BatchNorm ({mixing[0]}); raise it, or use torch.nn.GroupNorm"
        )
    if cfg.init.weights is not None:
        load_initial_weights(model, str(cfg.init.weights), cfg.init.partial)
    model.to(device)
    trainer = Trainer(model, OBJECTIVES[dataset.task], settings, algorithm.client, cfg.seed)
    server = Server(
        algorithm=algorithm,
        sampler=sampler,
        state=ServerState({name: array.detach().cpu().clone() for name, array in model_arrays(model).items()}),
        seed=cfg.seed,
        rounds=cfg.rounds,
        num_clients=population.num_clients,
        holders=np.flatnonzero(population.holdout_sizes),
        plan=evaluation,
        evaluate=central_evaluation(model, population, evaluation.batch_size),
    )
    return Parts(cfg.name, device, population, algorithm, settings, model, trainer, server, privacy, logger, grid)


def make_model(cfg: DictConfig, dataset: Dataset) -> nn.Module:
    """The model, as initialised; it may be a user's own class, which may raise anything."""
    try:
        return build_model(make({**cfg.model, "_partial_": True}, "model"), dataset, cfg.seed)
    except FedsimError:
        raise
    except Exception as error:
        raise not_made("model", str(cfg.model._target_), error) from error


def client_app_from(config: dict[str, Any]) -> ClientApp:
    """The experiment's client app for a node elsewhere: a Ray worker or a SuperNode.

    config: the plain values of a run's configuration. They alone travel; the node reads the data itself, when the first
    message comes, and keeps the state of its client in its own Flower context.
    """
    return make_client_app(partial(_devices_from, json.dumps(config)))


@lru_cache(maxsize=1)
def _devices_from(config: str) -> Devices:
    """One set of devices a process, however many messages it gets."""
    return build(OmegaConf.create(json.loads(config))).devices()


def build_population(cfg: DictConfig, dataset: Dataset, algorithm: Algorithm, device: torch.device) -> Population:
    """Who holds what: rows that are kept, divided among clients."""
    require_number("population.holdout", cfg.population.holdout, low=0, below=1)
    if cfg.population.num_clients is not None:
        require_int("population.num_clients", cfg.population.num_clients, low=1)
    corruption: Corruption = make(cfg.corruption, "corruption")
    corruption.check(dataset.preprocess(dataset.train.x[:1]).is_floating_point(), dataset.task)
    columns = columns_of(dataset)
    kept = np.arange(len(dataset.train))
    if dataset.task == "classification":
        kept = corruption.keep_rows(columns.label, len(dataset.classes), cfg.seed)
    columns = columns.take(kept)
    partition: Partition = make(cfg.partition, "partition")(columns, cfg.population.num_clients, cfg.seed)
    partition = Partition(partition.offsets, kept[partition.rows])
    kind = PooledPopulation if algorithm.pools_data else Population
    return kind(dataset, partition, corruption, cfg.population.holdout, cfg.seed, device)


def columns_of(dataset: Dataset) -> Columns:
    """What a partition may look at; lines of text have no label but their speaker."""
    train = dataset.train
    label = train.y.numpy()
    if dataset.task == "next_token":
        label = train.user if train.user is not None else np.zeros(len(train), dtype=np.int64)
    return Columns(label, train.user, train.time)


def check_cohort(algorithm: Algorithm, cohort: float) -> None:
    """Refuse a cohort that the algorithm could never aggregate; Poisson's may be less than one on average."""
    if algorithm.min_cohort > 1 and cohort < algorithm.min_cohort:
        raise FedsimError(
            f"a cohort of {cohort:g} is too small for this strategy, which needs at least {algorithm.min_cohort} clients a round; "
            "raise sampler.cohort_size or lower strategy.num_malicious"
        )


def central_evaluation(
    model: nn.Module, population: Population, batch_size: int
) -> Callable[[Params], dict[str, float | None]]:
    """Metrics of given arrays on the central test set."""
    dataset = population.dataset

    def evaluate(arrays: Params) -> dict[str, float | None]:
        load_arrays(model, arrays)
        found = predict(model, dataset.test.x, dataset.test.y, dataset.task, batch_size, population.preprocess)
        return metrics_of(found, dataset.num_outputs)

    return evaluate


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one."""
    require_choice("device", name, ("auto", "cpu", "cuda"))
    if name == "cuda" and not torch.cuda.is_available():
        raise FedsimError("device=cuda, but torch sees no CUDA device here; use device=cpu or device=auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def check_top_level(cfg: DictConfig) -> None:
    """Ranges of the keys that belong to no part, and keys that belong nowhere."""
    known = set(OmegaConf.load(conf_dir() / "config.yaml")) | {
        path.name for path in conf_dir().iterdir() if path.is_dir()
    }
    if unknown := sorted(set(cfg) - known - {"hydra"}):
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
    for key in ("dry_run", "init.partial"):
        if not isinstance(OmegaConf.select(cfg, key), bool):
            raise FedsimError(f"{key}={shown(OmegaConf.select(cfg, key))} is neither true nor false; give one of them")


def chosen_baselines(cfg: DictConfig) -> list[str]:
    """`baselines=true` means both; a list names them."""
    if isinstance(cfg.baselines, bool):
        return list(BASELINES) if cfg.baselines else []
    names = list(cfg.baselines) if isinstance(cfg.baselines, ListConfig) else [cfg.baselines]
    return [require_choice("baselines", name, BASELINES) for name in names]


def run_baseline(cfg: DictConfig, name: str, run_dir: Path) -> dict[str, Any]:
    """The same experiment with another strategy, as a run of its own inside the run's folder; gives its main figures."""
    own = cfg.copy()
    own.strategy = OmegaConf.load(conf_dir() / "strategy" / f"{name}.yaml")
    own.logger = OmegaConf.load(conf_dir() / "logger" / "none.yaml")
    own.baselines, own.name, own.resume = False, f"{cfg.name}/{name}", None
    OmegaConf.save(own, ensure(run_dir / ".hydra") / "config.yaml")
    summary = run(own, run_dir)
    spread = summary["federated"] or {}
    return {
        **{key: summary[key] for key in ("accuracy", "loss", "best_accuracy", "seconds")},
        **{key: spread.get(key) for key in ("accuracy_mean", "accuracy_worst10")},
    }


def ensure(folder: Path) -> Path:
    """The folder, made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def strategy_name(cfg: DictConfig) -> str:
    """The algorithm's own name."""
    return cfg.strategy._target_.rsplit(".", 1)[-1]


def digest(cfg: DictConfig) -> str:
    """SHA-256 of the configuration, less the keys that change no bit of the rounds that have been run."""
    values: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    kept = {key: value for key, value in values.items() if key not in MAY_CHANGE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def saved_config(run_dir: Path, cfg: DictConfig) -> DictConfig:
    """The configuration that the run in `run_dir` was started with; only `rounds` may differ, and only grow."""
    path = run_dir / ".hydra" / "config.yaml"
    if not path.is_file():
        raise FedsimError(
            f"resume={run_dir} is not the folder of a run (it has no .hydra/config.yaml); give one that is"
        )
    try:
        saved = OmegaConf.load(path)
    except Exception as error:  # YAML's errors, OmegaConf's and those of decoding have no base in common
        raise FedsimError(
            f"resume={run_dir}: {path} is corrupt ({type(error).__name__}); it cannot be resumed"
        ) from error
    if not isinstance(saved, DictConfig) or not {"rounds", "checkpoint", "dataset"} <= set(saved):
        raise FedsimError(
            f"resume={run_dir}: {path} is not the configuration of a run of fedsim; give the folder of one"
        )
    if cfg.resume_rounds is not None:
        if require_int("rounds", cfg.resume_rounds, low=1) < saved.rounds:
            raise FedsimError(
                f"rounds={cfg.resume_rounds} is fewer than the run's {saved.rounds}; a resumed run can only grow"
            )
        saved.rounds = cfg.resume_rounds
        OmegaConf.save(saved, path)
    saved.resume = str(run_dir)
    return saved


def command_of(run_dir: Path) -> str:
    """The command that started the run, as Hydra saved it."""
    path = run_dir / ".hydra" / "overrides.yaml"
    overrides = OmegaConf.to_container(OmegaConf.load(path), resolve=False) if path.is_file() else []
    return command_from([str(one) for one in overrides])  # type: ignore[union-attr]


def command_from(overrides: list[str]) -> str:
    """The command line that repeats a run."""
    import shlex

    return shlex.join(["python", "-m", "fedsim", *overrides])
