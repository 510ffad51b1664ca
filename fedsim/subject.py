"""A finished run as an audit may look at it: its model, examples that clients trained on, and others that nobody did."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fedsim import rng
from fedsim.audit.base import Subject, Train
from fedsim.audit.lira import shadow_training
from fedsim.parts import Parts
from fedsim.types import FedsimError

MOST_EXAMPLES = 2000
"""Of each kind: attacks train on them many times over."""


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
        train=training_of(parts),
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


def training_of(parts: Parts) -> Train:
    """How the run trains, for as many passes as an example saw in it, as the client that took part most often."""
    server = parts.server
    rate = min(1.0, server.sampler.expected_size(server.num_clients) / server.num_clients)
    taken = server.state.participations
    client = max(taken, key=lambda one: (taken[one], -one))
    return shadow_training(parts.trainer, max(1, math.ceil(server.state.round * rate)), client)
