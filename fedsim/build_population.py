"""Who holds what, and what comes to whom: the population of a run from its configuration."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from fedsim.algorithms import Algorithm
from fedsim.checks import require_int, require_number
from fedsim.comparators import Comparators
from fedsim.data.corruption import Corruption
from fedsim.data.dataset import Dataset
from fedsim.data.missing import with_indicators
from fedsim.data.partition import Columns, Partition
from fedsim.data.population import PooledPopulation, Population
from fedsim.data_drift import DataDrift
from fedsim.judging import Judge
from fedsim.make import make
from fedsim.online import Online
from fedsim.rounds import EvaluationPlan
from fedsim.streams.arrivals import Arrivals, Unstreamed
from fedsim.streams.detectors import Watch
from fedsim.streams.population import StreamedPopulation, check_streams
from fedsim.streams.prequential import Prequential
from fedsim.streams.quality import Quality
from fedsim.streams.responses import Response
from fedsim.streams.watching import Watcher
from fedsim.training import Trainer
from fedsim.types import FedsimError, Params


def build_population(cfg: DictConfig, dataset: Dataset, algorithm: Algorithm, device: torch.device) -> Population:
    """Who holds what: rows that are kept, divided among clients. dataset: as `prepared` gives it."""
    require_number("population.holdout", cfg.population.holdout, low=0, below=1)
    if cfg.population.num_clients is not None:
        require_int("population.num_clients", cfg.population.num_clients, low=1)
    corruption: Corruption = make(cfg.corruption, "corruption")
    columns, kept = columns_of(dataset), None
    if corruption.class_imbalance != 1:
        kept = corruption.keep_rows(np.asarray(columns.label), len(dataset.classes), cfg.seed)
        columns = columns.take(kept)
    partition: Partition = make(cfg.partition, "partition")(columns, cfg.population.num_clients, cfg.seed)
    if kept is not None:
        partition = Partition(partition.offsets, kept[np.asarray(partition.rows)])
    cache_mb = require_int("population.cache_mb", cfg.population.cache_mb, low=0)
    given = (dataset, partition, corruption, cfg.population.holdout, cfg.seed, device, cache_mb)
    arrivals, schedule = make(cfg.streams, "streams"), make_drift(cfg)
    check_streams(arrivals, schedule)
    quality = Quality(*(make(cfg[group], group) for group in ("labels", "unlabelled", "cleaning")))
    by_example = cfg.privacy._target_.endswith("ExamplePrivacy")
    _check_imputation(corruption, arrivals, by_example)
    quality.check(arrivals, dataset.task, by_example)
    if not arrivals.streamed:
        return (PooledPopulation if algorithm.pools_data else Population)(*given)
    if algorithm.pools_data or not algorithm.shares_model:
        raise FedsimError(
            "strategy=central and strategy=local_only have no streams; use streams=none drift=none with them, or another strategy"
        )
    if by_example:
        refuse_examples(cfg, arrivals)
    if not algorithm.client.sends_model and arrivals.memory != "once" and algorithm.strategy.forgetting > 0:  # type: ignore[attr-defined]
        raise FedsimError(
            f"streams.memory={arrivals.memory} would have this strategy add the same examples up in many rounds; set "
            "streams.memory=once, or strategy.forgetting=0"
        )
    return StreamedPopulation(*given, arrivals=arrivals, schedule=schedule, quality=quality)


def prepared(cfg: DictConfig, dataset: Dataset) -> Dataset:
    """The dataset as the model of this run takes it."""
    corruption: Corruption = make(cfg.corruption, "corruption")
    corruption.check(dataset.preprocess(dataset.one_row[0]).is_floating_point(), dataset.task)
    return with_indicators(dataset) if corruption.indicator else dataset


def _check_imputation(corruption: Corruption, arrivals: Arrivals | Unstreamed, by_example: bool) -> None:
    """Means over a client's rows are refused where not all of these are there, or must not tell of one another."""
    if corruption.imputation != "mean" or not corruption.missing:
        return
    if arrivals.streamed:
        raise FedsimError(
            "corruption.imputation=mean is a mean over all rows of a client, most of which have yet to come on a stream; set "
            "corruption.imputation=zero"
        )
    if by_example:
        raise FedsimError(
            "corruption.imputation=mean puts a mean over all rows of a client into each of them, which privacy=example does not "
            "cover; set corruption.imputation=zero, or use privacy=user"
        )


def refuse_examples(cfg: DictConfig, arrivals: Arrivals) -> None:
    """What privacy=example cannot promise the examples of a stream."""
    if arrivals.repeat:
        raise FedsimError(
            "streams.repeat=true lets a row come again and again, and privacy=example accounts for each example as coming once; "
            "set streams.repeat=false, or use privacy=user, which promises a client's whole stream"
        )
    if make(cfg.schedule, "schedule").mixes:
        raise FedsimError(
            "schedule=fedbuff, fedasync and schedule.stragglers=use release what was trained on an earlier round's memory, which "
            "privacy=example does not account on a stream; use schedule=synchronous with schedule.stragglers=drop"
        )
    if not cfg.audit._target_.endswith("NoAudit"):
        raise FedsimError(
            "an audit plays examples that stay for every round, which those of a stream do not; use audit=none with "
            "privacy=example on streams, or streams=none"
        )


def make_drift(cfg: DictConfig) -> Any:
    """The keys of `drift.*`. `drift=none` beside an experiment that drifts leaves that one's keys behind: they mean nothing."""
    none = cfg.drift._target_.endswith(".Undrifted")
    return make({"_target_": cfg.drift._target_} if none else cfg.drift, "drift")


def columns_of(dataset: Dataset) -> Columns:
    """What a partition may look at; lines of text have no label but their speaker."""
    train = dataset.train
    label = train.label
    if dataset.task == "next_token":
        label = train.owner if train.owner is not None else np.zeros(len(train), dtype=np.int64)
    return Columns(label, train.owner, train.time)


def make_online(
    cfg: DictConfig,
    population: Population,
    algorithm: Algorithm,
    plan: EvaluationPlan,
    start: Params,
    judge: Judge,
    trainer: Trainer,
) -> Online | None:
    """What the server does on streams; None without any. start: the arrays that the run begins with."""
    watch: Watch = make(cfg.detector, "detector")
    response: Response = make(cfg.response, "response")
    if not isinstance(population, StreamedPopulation):
        if watch.kind != "none" or response.kind != "none":
            raise FedsimError(
                "detector and response are of runs whose data come as streams; set streams=steady (or poisson, bursts, day_night), "
                "or detector=none response=none"
            )
        if plan.regret or plan.data_drift is not None:
            raise FedsimError(
                "evaluation.regret and evaluation.data_drift are of runs whose data come as streams; set streams=steady (or "
                "poisson, bursts, day_night), or evaluation.regret=[] evaluation.data_drift=null"
            )
        return None
    if response.kind != "none" and not cfg.privacy._target_.endswith("NoPrivacy"):
        raise FedsimError(
            f"response={response.kind} would have the model follow clients' errors, to which no mechanism adds noise, so "
            "its epsilon would not hold; use response=none, or privacy=none"
        )
    if response.kind == "ask_for_labels" and not population.quality.labels.asks:
        raise FedsimError(
            "response=ask_for_labels raises the budget of labels, and with labels=all there is none; set labels=uncertainty, or "
            "labels=random"
        )
    if response.moves and _keeps_arrays(algorithm):
        raise FedsimError(
            f"response={response.kind} changes the server's arrays, of which this strategy keeps a copy of its own that would "
            "undo it; use strategy=fedavg, or response=none"
        )
    if watch.kind != "none" and watch.watch == "errors" and population.dataset.task == "regression":
        raise FedsimError(
            "detector.watch=errors needs classes to be wrong about; set detector.watch=losses for a regression"
        )
    if watch.watch not in ("none", "errors", "losses"):
        raise FedsimError(
            f"detector.watch={watch.watch} is not seen by the server of a run, who hears of errors and losses; set one of these"
        )
    prequential = Prequential(plan.fading, plan.window)
    if plan.regret and population.quality.labels.asks:
        raise FedsimError(
            "evaluation.regret trains on every label that comes, and with labels=random or uncertainty few are bought; set "
            "evaluation.regret=[], or labels=all"
        )
    comparators = Comparators(plan, population, judge, trainer, start) if plan.regret else None
    data_drift = None if plan.data_drift is None else DataDrift(population, plan.data_drift)
    return Online(population, prequential, Watcher(watch, cfg.seed), response, start, comparators, data_drift)


def _keeps_arrays(algorithm: Algorithm) -> bool:
    """Whether the strategy goes on from arrays of its own rather than from those that it is given."""
    return not algorithm.client.sends_model or hasattr(algorithm.strategy, "current_arrays")
