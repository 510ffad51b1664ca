"""Approximate forgetting: gradient ascent on the clients' examples, then a few rounds without them (arXiv 2207.05521)."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import OmegaConf

from fedsim import rng
from fedsim.build import build, make_model
from fedsim.experiment import digest, save_config
from fedsim.forgetting.exact import without
from fedsim.forgetting.source import Source
from fedsim.results.files import read_arrays
from fedsim.session import Session
from fedsim.training.arrays import model_arrays
from fedsim.training.ascent import Ascent, Climbed, climb, distance, reference_model, trainable
from fedsim.training.updates import ClientFailure
from fedsim.types import ClientData, FedsimError, Params

RANDOM_MODELS = 10
"""The paper's: the radius is a share of the mean distance to so many freshly initialised models."""

FEWEST_ROUNDS = 3
"""Of federated training after the ascent, where a tenth of the run's rounds is fewer."""


class Erased(NamedTuple):
    """summary: of the rounds without the clients. radius: of the ball. climbed: where the ascent ended."""

    summary: dict[str, Any]
    radius: float
    climbed: Climbed
    rounds: int
    client_rounds: int
    seconds: float


def erase(source: Source, folder: Path, name: str, settings: Ascent) -> Erased:
    """Unlearn, then train on without the clients, into `folder`, which is a run of its own then.

    In the paper every client takes part in every round, so that the final model is the mean of the last round's local
    models. Where cohorts are sampled it is not quite: here a client's local model is what it makes of the final one in a
    round more, and its share is its share of all training examples. Of many clients the ascent takes all examples together.
    The server's optimiser and the clients' states start anew, since they remember the clients.
    """
    started = time.perf_counter()
    radius, climbed = _unlearn(source, settings)
    rounds = settings.rounds or max(FEWEST_ROUNDS, math.ceil(source.rounds / 10))
    summary = _train_on(source, folder, name, climbed.arrays, rounds)
    trained = _client_rounds(folder) + 2 * len(source.clients)  # a round more of each, and the ascent
    return Erased(summary, radius, climbed, rounds, trained, time.perf_counter() - started)


def forgotten_data(source: Source) -> ClientData:
    """The training examples of all the clients, as they were trained on."""
    held = [source.parts.population.training_data(client) for client in source.clients]
    return ClientData(rng.SERVER, torch.cat([one.x for one in held]), torch.cat([one.y for one in held]))


def final_arrays(folder: Path, device: torch.device) -> Params:
    """The model that a run ended with."""
    return {name: a.to(device) for name, a in read_arrays(folder / "model.safetensors", str(folder)).items()}


def _unlearn(source: Source, settings: Ascent) -> tuple[float, Climbed]:
    """The radius, and the model after the ascent."""
    parts = source.parts
    arrays = final_arrays(source.folder, parts.device)
    shares = _shares(source)
    reference = reference_model(parts.model, arrays, zip(shares, _local_models(source, arrays), strict=True))
    radius = settings.radius * _distance_to_random(source, reference)
    objective, task, held = parts.trainer.objective, parts.population.dataset.task, forgotten_data(source)
    draw = rng.generator(source.cfg.seed, source.rounds, rng.SERVER, "ascent")
    with rng.seeded_globally(source.cfg.seed, source.rounds, rng.SERVER, "ascent/model"):
        return radius, climb(parts.model, objective, task, held, reference, radius, settings, draw)


def _local_models(source: Source, arrays: Params) -> Iterator[Params]:
    """What each of the clients makes of the final model in one more round."""
    data_of = source.parts.population.training_data
    for update in source.parts.trainer.train(arrays, source.clients, data_of, lambda client: {}, source.rounds + 1):
        if isinstance(update, ClientFailure):
            raise FedsimError(
                f"client {update.client} cannot train on the final model ({update.reason}); use method=exact"
            )
        yield update.arrays


def _shares(source: Source) -> list[float]:
    """Of all training examples, what each of the clients held."""
    population = source.parts.population
    examples = population.partition.sizes - population.holdout_sizes
    return [float(examples[client] / examples.sum()) for client in source.clients]


def _distance_to_random(source: Source, reference: Params) -> float:
    """Mean L2 distance from the reference to freshly initialised models."""
    found = []
    for number in range(1, RANDOM_MODELS + 1):
        cfg = source.cfg.copy()
        cfg.seed = rng.derive_seed(source.cfg.seed, number, rng.SERVER, "random model") >> 32
        fresh = make_model(cfg, source.parts.population.dataset).to(source.parts.device)
        weights = trainable(fresh)
        found.append(distance([weight for _, weight in weights], [reference[name] for name, _ in weights]))
    return float(np.mean(found))


def _train_on(source: Source, folder: Path, name: str, arrays: Params, rounds: int) -> dict[str, Any]:
    """So many rounds more, from these arrays, by the run's own loop."""
    cfg = without(source.cfg, source.clients, name)
    cfg.rounds = source.rounds + rounds
    save_config(cfg, folder)
    parts = build(cfg)
    own = model_arrays(parts.model)
    arrays = {n: arrays[n].detach().cpu().to(own[n].dtype) for n in own}
    parts.server.state = dataclasses.replace(parts.server.state, arrays=arrays, round=source.rounds)
    session = Session(parts, folder, digest(cfg), cfg.checkpoint.every, cfg.checkpoint.keep, cfg.checkpoint.states_mb)
    facts = {key: source.summary[key] for key in ("command", "strategy", "model", "partition")}
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return session.run(config, facts | {"baselines": {}})


def _client_rounds(folder: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_table(folder / "rounds.parquet", columns=["cohort_size"])["cohort_size"].to_numpy().sum())
