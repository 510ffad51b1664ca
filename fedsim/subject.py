"""A finished run as an audit may look at it: its model, examples that clients trained on, and others that nobody did."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedsim import rng
from fedsim.audit.base import Subject
from fedsim.parts import Parts
from fedsim.training.trainer import ClientFailure, model_arrays
from fedsim.types import ClientData, FedsimError, Params

MOST_EXAMPLES = 2000
"""Of each kind: attacks train on them many times over."""

SHADOW = -3
"""The `client` of models that an audit trains for itself."""


def subject_of(parts: Parts) -> Subject:
    """Members are drawn from the clients that took part; others are the test split's rows, with the clean pipeline."""
    dataset, population, server = parts.population.dataset, parts.population, parts.server
    draw = rng.numpy_generator(server.seed, 0, rng.SERVER, "audit subject")
    member_x, member_y = _members(parts, draw)
    rows = draw.permutation(len(dataset.test))[: len(member_x)]
    with torch.no_grad():
        other_x = population.preprocess(dataset.test.x[rows].to(population.device))
    return Subject(
        arrays=server.state.arrays,
        model=parts.model,
        objective=parts.trainer.objective,
        task=dataset.task,
        member_x=member_x,
        member_y=member_y,
        other_x=other_x,
        other_y=dataset.test.y[rows].to(population.device),
        train=lambda x, y, seed: train_in_one_place(parts, x, y, seed),
        lr=parts.settings.lr,
    )


def _members(parts: Parts, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    clients = np.array(sorted(parts.server.state.participations), dtype=np.int64)
    if len(clients) == 0:
        raise FedsimError(
            "no client took part in this run, so that there is nothing to audit; raise rounds or sampler.*"
        )
    xs, ys, count = [], [], 0
    for client in draw.permutation(clients).tolist():
        data = parts.population.training_data(client)
        xs.append(data.x)
        ys.append(data.y)
        count += len(data.x)
        if count >= MOST_EXAMPLES:
            break
    x, y = torch.cat(xs), torch.cat(ys)
    order = torch.from_numpy(draw.permutation(len(x))[:MOST_EXAMPLES]).to(x.device)
    return x[order], y[order]


def train_in_one_place(parts: Parts, x: Tensor, y: Tensor, seed: int) -> Params:
    """A model of fresh weights, trained by the run's own local steps for as many passes as an example saw in the run."""
    server, model = parts.server, parts.model
    rate = min(1.0, server.sampler.expected_size(server.num_clients) / server.num_clients)
    with rng.seeded_globally(seed, 0, SHADOW, "shadow weights"):
        for module in model.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    arrays = {name: array.clone() for name, array in model_arrays(model).items()}
    data = ClientData(SHADOW, x, y)
    for round in range(1, max(1, round_up(server.state.round * rate)) + 1):
        (update,) = parts.trainer.train(arrays, [SHADOW], lambda _: data, lambda _: {}, round)
        if isinstance(update, ClientFailure):
            raise FedsimError(f"the audit's own model could not be trained: {update.reason}")
        arrays = {name: array.clone() for name, array in update.arrays.items()}
    return arrays


def round_up(value: float) -> int:
    """To the next whole number."""
    return int(np.ceil(value))
