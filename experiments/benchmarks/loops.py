"""What people write by hand: a loop over clients in plain PyTorch, and the same with Opacus's own classes for DP-SGD.

They get the same clients, batches and steps as fedsim, and all clients' data as tensors before the clock starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from experiments.benchmarks.measure import Laps
from fedsim.parts import Parts
from fedsim.training.dpsgd import DPSGD, expected_batch
from fedsim.training.updates import batches
from fedsim.types import ClientData, Params

Fit = Callable[[ClientData, int], None]
"""Trains the loaded model on one client's data, in this round."""


def raw_loop(parts: Parts, rounds: int, laps: Laps) -> Params:
    """Plain SGD; gives the arrays after the last round."""
    return average(parts, rounds, laps, parts.model, plain_fit(parts, parts.model))


def grad_sample_loop(parts: Parts, rounds: int, laps: Laps) -> Params:
    """DP-SGD by Opacus's GradSampleModule and DPOptimizer, both made once and used for every client."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    rule, model = _rule(parts), for_opacus(parts.model)
    wrapped = GradSampleModule(model)
    optimizer = DPOptimizer(_sgd(parts, model), **_noise(parts, rule))

    def fit(data: ClientData, round: int) -> None:
        for rows in poisson_batches(parts, rule, data, round):
            optimizer.zero_grad()
            parts.trainer.objective(wrapped(data.x[rows]), data.y[rows]).backward()
            optimizer.step()

    return average(parts, rounds, laps, model, fit)


def ghost_loop(parts: Parts, rounds: int, laps: Laps) -> Params:
    """DP-SGD by Opacus's ghost clipping, which writes out no example's gradient where a layer allows it."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    rule, model = _rule(parts), for_opacus(parts.model)
    wrapped = GradSampleModuleFastGradientClipping(model, max_grad_norm=rule.clip_norm)
    optimizer = DPOptimizerFastGradientClipping(_sgd(parts, model), **_noise(parts, rule))
    criterion = DPLossFastGradientClipping(wrapped, optimizer, nn.CrossEntropyLoss())

    def fit(data: ClientData, round: int) -> None:
        for rows in poisson_batches(parts, rule, data, round):
            given = wrapped(data.x[rows])  # (b, classes), or of a text (b, length, classes)
            if given.ndim == 3:
                loss = criterion(given.flatten(0, 1), data.y[rows].flatten(), shape=given.shape)
            else:
                loss = criterion(given, data.y[rows])
            loss.backward()
            optimizer.step()

    return average(parts, rounds, laps, model, fit)


def average(parts: Parts, rounds: int, laps: Laps, model: nn.Module, fit: Fit) -> Params:
    """Federated averaging: load, train, add to the mean, for one client after the other; a lap a round."""
    server, population = parts.server, parts.population
    data = {client: population.training_data(client) for client in range(server.num_clients)}
    arrays = {name: array.clone() for name, array in model.train().state_dict().items()}
    for round in range(1, rounds + 1):
        total: Params = {name: torch.zeros_like(array) for name, array in arrays.items()}
        examples = 0
        for client in server.sampler.cohort(server.seed, round, server.num_clients).tolist():
            model.load_state_dict(arrays)
            fit(data[client], round)
            examples += len(data[client].x)
            for name, array in model.state_dict().items():
                total[name].add_(array, alpha=len(data[client].x))
        arrays = {name: array / examples for name, array in total.items()}
        laps.lap()
    return arrays


def plain_fit(parts: Parts, model: nn.Module) -> Fit:
    """A torch optimiser for each client, and a step for each of fedsim's own batches."""

    def fit(data: ClientData, round: int) -> None:
        optimizer = _sgd(parts, model)
        for rows in plain_batches(parts, data, round):
            optimizer.zero_grad()
            parts.trainer.objective(model(data.x[rows]), data.y[rows]).backward()
            optimizer.step()

    return fit


def plain_batches(parts: Parts, data: ClientData, round: int) -> Iterator[Tensor | slice]:
    """fedsim's shuffled batches of this client."""
    from fedsim import rng

    generator = rng.generator(parts.server.seed, round, data.client, "batches")
    for rows in batches(len(data.x), parts.settings, generator):
        yield slice(None) if rows is None else rows


def poisson_batches(parts: Parts, rule: DPSGD, data: ClientData, round: int) -> Iterator[Tensor]:
    """fedsim's Poisson batches of this client."""
    examples = len(data.x)
    rate = expected_batch(parts.settings, examples) / examples
    for step in range(parts.settings.steps(examples)):
        yield (rule.chances(examples, round, data.client, f"dp-sgd batch {step}") < rate).nonzero().flatten()


def for_opacus(model: nn.Module) -> nn.Module:
    """The model with Opacus's own layers in the place of those that it does not take (LSTM)."""
    from opacus.validators import ModuleValidator

    return ModuleValidator.fix(model) if ModuleValidator.validate(model) else model


def _rule(parts: Parts) -> DPSGD:
    rule = parts.trainer.local_steps
    assert rule is not None, "a private workload"
    return rule


def _sgd(parts: Parts, model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), parts.settings.lr)


def _noise(parts: Parts, rule: DPSGD) -> dict[str, Any]:
    """The keywords of Opacus's optimisers; all clients have as many examples as the first."""
    batch = expected_batch(parts.settings, len(parts.population.training_data(0).x))
    return {
        "noise_multiplier": rule.noise_multiplier(0),
        "max_grad_norm": rule.clip_norm,
        "expected_batch_size": batch,
    }
