"""The devices of a run from its configuration: the fleet, when it is there, whose work counts, and what messages become."""

from __future__ import annotations

import math

import numpy as np
from omegaconf import DictConfig

from fedsim.algorithms import Algorithm
from fedsim.compression.base import Compression
from fedsim.compression.none import Uncompressed
from fedsim.data.population import Population
from fedsim.fleet.asynchronous import Asynchronous
from fedsim.fleet.availability import Availability, World
from fedsim.fleet.field import Field, Load, ideal_field
from fedsim.fleet.fleet import Fleet
from fedsim.fleet.schedules import Schedule, Synchronous
from fedsim.fleet.work import count_work
from fedsim.make import make
from fedsim.models.build import made_up_batch
from fedsim.privacy.base import Protection
from fedsim.samplers import Sampler
from fedsim.streams.population import StreamedPopulation
from fedsim.traffic import message_bytes
from fedsim.training import LocalTraining, Trainer
from fedsim.types import FedsimError


def make_schedule(cfg: DictConfig, algorithm: Algorithm) -> Schedule:
    """The keys of `schedule.*`, checked against the algorithm. A baseline has no devices, so nothing is scheduled."""
    schedule: Schedule = make(cfg.schedule, "schedule")
    if not has_devices(algorithm):
        return Synchronous()
    if schedule.mixes and not algorithm.client.sends_model:
        raise FedsimError(
            "this strategy adds up what clients send in one round, so nothing of it can be stale; use schedule=synchronous with "
            "schedule.stragglers=drop"
        )
    if schedule.mixes and not algorithm.linear:
        raise FedsimError(
            "schedule=fedbuff, fedasync and schedule.stragglers=use need a strategy that takes the mean of the updates; "
            "use strategy=fedavg (or fedavgm, fedadam, fedprox ...)"
        )
    private = cfg.privacy._target_.rsplit(".", 1)[-1]
    if schedule.mixes and private == "DistributedPrivacy":
        raise FedsimError(
            "privacy=distributed masks the updates of one cohort, which must all come in its round; use schedule=synchronous "
            "with schedule.stragglers=drop"
        )
    if schedule.mixes_models and private == "UserPrivacy":
        raise FedsimError(
            "schedule=fedasync releases one client's model at a time; use schedule=fedbuff with privacy=user"
        )
    if isinstance(schedule, Asynchronous) and not cfg.sampler._target_.endswith("FixedSampler"):
        raise FedsimError(
            "an asynchronous schedule has sampler.cohort_size clients at work at any time; use sampler=fixed"
        )
    if isinstance(schedule, Asynchronous) and schedule.buffer < algorithm.min_cohort:
        raise FedsimError(
            f"schedule.buffer={schedule.buffer} is too small for this strategy, which needs {algorithm.min_cohort}; raise it"
        )
    return schedule


def check_sampler(schedule: Schedule, sampler: Sampler) -> None:
    """Refuse a sampler of one's own that cannot ask more clients than are waited for, where that is wanted."""
    if schedule.over_selection > 1 and not hasattr(sampler, "larger"):
        raise FedsimError(
            f"schedule.over_selection={schedule.over_selection:g} needs a sampler that can ask for more clients; use sampler=fixed "
            "or poisson, or give yours a method larger(factor, num_clients)"
        )


def make_compression(cfg: DictConfig, algorithm: Algorithm) -> Compression:
    """The keys of `compression.*`, checked against the algorithm and the mechanism."""
    compression: Compression = make(cfg.compression, "compression")
    if not has_devices(algorithm):
        return Uncompressed()
    if (compression.compresses or compression.down is not None) and not algorithm.client.sends_model:
        raise FedsimError(
            "this strategy adds up exact sums of the examples, which a codec would spoil; use compression=none"
        )
    if compression.compresses and cfg.privacy._target_.endswith("DistributedPrivacy"):
        raise FedsimError(
            "privacy=distributed sends masked integers, which no codec makes smaller (privacy.bits does); use compression=none"
        )
    if compression.down is not None and not algorithm.linear:
        raise FedsimError(
            "compression.down_bits needs a strategy that takes the mean of the updates; use strategy=fedavg, or leave it null"
        )
    return compression


def has_devices(algorithm: Algorithm) -> bool:
    """Whether clients exchange models at all: the baselines central and local_only do not."""
    return algorithm.shares_model and not algorithm.pools_data


def make_field(
    cfg: DictConfig,
    algorithm: Algorithm,
    population: Population,
    trainer: Trainer,
    protection: Protection,
    compression: Compression,
) -> Field:
    """The devices on their clock, with what a trip takes counted."""
    fleet: Fleet = make(cfg.fleet, "fleet")
    availability: Availability = make(cfg.availability, "availability")
    if not has_devices(algorithm):
        return ideal_field(population.num_clients)
    if not fleet.modelled:
        if availability.always:
            return ideal_field(population.num_clients)
        raise FedsimError(
            "fleet=ideal takes no time, so nobody comes or goes; choose fleet=phones (or iot, silos, mixed, table), or "
            "availability=always"
        )
    fleet.check(population.num_clients)
    if not availability.always:
        availability.begin(World(cfg.seed, population.num_clients, lambda: ranks(population)))
    load = load_of(population, trainer, protection, compression)
    field = Field(fleet, availability, load, cfg.seed, population.num_clients)
    field.require_able()
    return field


def load_of(population: Population, trainer: Trainer, protection: Protection, compression: Compression) -> Load:
    """What a trip takes, counted."""
    settings: LocalTraining = trainer.settings
    private = trainer.local_steps is not None
    x, y = made_up_batch(population.dataset, 6)
    work = count_work(trainer.model, trainer.objective, settings, x, y, private)
    sizes = population.partition.sizes - population.holdout_sizes
    if isinstance(population, StreamedPopulation):  # a device's memory, when it is full
        sizes = np.minimum(sizes, population.stream.arrivals.most_held)

    def passes(clients: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(n,) batch, steps, and examples gone through, each as often as it is used."""
        held = sizes[clients]
        batch = held if settings.batch_size is None else np.minimum(settings.batch_size, held)
        steps = settings.epochs * -(-held // np.maximum(batch, 1))
        most = math.inf if settings.max_steps is None else settings.max_steps
        return batch, np.minimum(steps, most), np.minimum(settings.epochs * held, most * batch)

    def flops(clients: np.ndarray) -> np.ndarray:
        _, steps, examples = passes(clients)
        return work.flops(examples, steps)

    down, up = message_bytes(trainer.model, protection, compression)
    return Load(flops, lambda clients: work.memory(passes(clients)[0]), down, up)


def ranks(population: Population) -> np.ndarray:
    """(clients,) in [0, 1): each client's place when they are ordered by the mean label of what they hold, ties by number."""
    counts = population.class_counts
    if counts is None or len(counts) < population.num_clients:
        raise FedsimError(
            "availability.by_data orders clients by their labels, which this dataset has none of or makes when asked for; "
            "set it to false"
        )
    mean = counts @ np.arange(counts.shape[1]) / np.maximum(counts.sum(axis=1), 1)
    places = np.empty(len(mean))
    places[np.argsort(mean, kind="stable")] = np.arange(len(mean)) / len(mean)
    return places
