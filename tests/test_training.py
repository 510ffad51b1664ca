"""Local training against torch.optim and against loops written by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import assert_close, parts, play, same_bits, tiny_dataset
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from fedsim import rng
from fedsim.algorithms.fedprox import Proximal
from fedsim.algorithms.qfedavg import ReportsReceivedLoss
from fedsim.training import OBJECTIVES, ClientFailure, ClientHalf, ClientUpdate, LocalTraining, Trainer
from fedsim.training.arrays import model_arrays
from fedsim.training.evaluation import predict
from fedsim.training.steps import SGD, clip_gradients
from fedsim.training.updates import batches
from fedsim.types import ClientData, Params


def snapshot(model: nn.Module) -> Params:
    return {name: array.clone() for name, array in model_arrays(model).items()}


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Dropout(dropout), nn.Linear(9, 3))


def client_data(client: int = 5, rows: int = 37) -> ClientData:
    train = tiny_dataset().train
    return ClientData(client, train.x[:rows], train.y[:rows])


def train_one(
    model: nn.Module, settings: LocalTraining, data: ClientData, half: ClientHalf | None = None, round: int = 1
) -> tuple[ClientUpdate, Params]:
    """One client's update through the Trainer, with a copy of its arrays."""
    trainer = Trainer(copy.deepcopy(model), OBJECTIVES["classification"], settings, half or ClientHalf(), seed=11)
    updates = trainer.train(snapshot(model), [data.client], lambda client: data, lambda client: {}, round)
    update = next(iter(updates))
    assert isinstance(update, ClientUpdate), update
    return update, {name: array.clone() for name, array in update.arrays.items()}


def batches_by_hand(rows: int, size: int, epochs: int, seed: int, round: int, client: int) -> list[torch.Tensor]:
    draw = rng.generator(seed, round, client, "batches")
    return [chunk for _ in range(epochs) for chunk in torch.randperm(rows, generator=draw).split(size)]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_a_step_is_torch_optim_sgds(momentum: float, weight_decay: float) -> None:
    ours, theirs = ([torch.ones(4, 3), torch.full((5,), -2.0)] for _ in range(2))
    optimizer = torch.optim.SGD(theirs, lr=0.05, momentum=momentum, weight_decay=weight_decay)
    step = SGD(0.05, momentum, weight_decay)
    draw = torch.Generator().manual_seed(0)
    for _ in range(200):
        gradients = [torch.randn(weight.shape, generator=draw) for weight in ours]
        for weight, gradient in zip(theirs, gradients, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()
        step(ours, gradients)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipping_is_torchs(max_norm: float) -> None:
    ours = [torch.arange(6.0).reshape(2, 3), torch.tensor([-4.0])]
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in ours]
    for parameter, gradient in zip(parameters, ours, strict=True):
        parameter.grad = gradient.clone()
    nn.utils.clip_grad_norm_(parameters, max_norm)
    clip_gradients(ours, max_norm)
    for mine, parameter in zip(ours, parameters, strict=True):
        torch.testing.assert_close(mine, parameter.grad, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "optimizer"),
    [
        (LocalTraining(2, 8, 0.1), lambda w: torch.optim.SGD(w, 0.1)),
        (
            LocalTraining(2, 8, 0.1, momentum=0.9, weight_decay=0.01),
            lambda w: torch.optim.SGD(w, 0.1, 0.9, weight_decay=0.01),
        ),
        (LocalTraining(2, 8, 0.01, optimizer=torch.optim.AdamW), lambda w: torch.optim.AdamW(w, 0.01)),
    ],
    ids=["sgd", "momentum and weight decay", "adamw"],
)
def test_local_training_is_the_plain_torch_loop(settings: LocalTraining, optimizer) -> None:
    data, by_hand = client_data(), network()
    update, arrays = train_one(by_hand, settings, data, round=4)
    optimiser, losses = optimizer(by_hand.parameters()), []
    for rows in batches_by_hand(37, 8, 2, seed=11, round=4, client=5):
        optimiser.zero_grad()
        loss = cross_entropy(by_hand(data.x[rows]), data.y[rows])
        loss.backward()
        optimiser.step()
        losses += [loss.item()] * len(rows)
    assert_close(arrays, snapshot(by_hand), 1e-6)
    assert (update.num_examples, update.num_steps) == (37, 10)
    assert update.metrics["train_loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_fedavg_with_one_client_is_plain_sgd() -> None:
    made = parts(
        "population.num_clients=1", "population.holdout=0", "rounds=3", "client.momentum=0.5", "client.batch_size=7"
    )
    by_hand, train = copy.deepcopy(made.model), made.population.dataset.train
    arrays = play(made)
    for round in (1, 2, 3):
        optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.5)  # momentum starts anew in each round
        for rows in batches_by_hand(len(train), 7, 1, seed=0, round=round, client=0):
            optimizer.zero_grad()
            cross_entropy(by_hand(train.x[rows]), train.y[rows]).backward()
            optimizer.step()
    assert_close(arrays, snapshot(by_hand), 1e-6)


def test_one_full_step_of_all_clients_is_central_gradient_descent() -> None:
    made = parts("partition=quantity", "population.holdout=0", "client.batch_size=null", "rounds=4")
    sizes = made.population.partition.sizes
    assert sizes.max() > 2 * sizes.min() and sizes.sum() == len(made.population.dataset.train)
    by_hand, train = copy.deepcopy(made.model), made.population.dataset.train
    arrays = play(made)
    for _ in range(4):
        gradients = torch.autograd.grad(cross_entropy(by_hand(train.x), train.y), list(by_hand.parameters()))
        with torch.no_grad():
            for weight, gradient in zip(by_hand.parameters(), gradients, strict=True):
                weight -= 0.1 * gradient
    assert_close(arrays, snapshot(by_hand), 1e-5)


def test_lr_decay_counts_rounds_from_the_first() -> None:
    data, model = client_data(), network()
    _, second = train_one(model, LocalTraining(1, None, 0.4, lr_decay=0.5), data, round=2)
    _, plain = train_one(model, LocalTraining(1, None, 0.2), data)
    assert same_bits(second, plain)
    assert LocalTraining(lr=0.4, lr_decay=0.5).lr_in(1) == 0.4


def test_fedprox_follows_the_gradient_of_the_proximal_loss() -> None:
    data, by_hand = client_data(), network()
    received = [p.detach().clone() for p in by_hand.parameters()]
    _, arrays = train_one(by_hand, LocalTraining(2, 8, 0.1), data, Proximal(0.7))
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    for rows in batches_by_hand(37, 8, 2, seed=11, round=1, client=5):
        optimizer.zero_grad()
        distance = sum((w - w0).square().sum() for w, w0 in zip(by_hand.parameters(), received, strict=True))
        (cross_entropy(by_hand(data.x[rows]), data.y[rows]) + 0.7 / 2 * distance).backward()
        optimizer.step()
    assert_close(arrays, snapshot(by_hand), 1e-6)


def test_qfedavg_reports_the_loss_of_the_received_arrays_over_all_examples() -> None:
    data, model = client_data(), network(dropout=0.5)
    update, _ = train_one(model, LocalTraining(3, 8, 0.1), data, ReportsReceivedLoss())
    expected = predict(model, data.x, data.y, "classification", 5).loss.mean()  # in evaluation mode: no dropout
    assert update.metrics["received_loss"] == pytest.approx(float(expected), abs=1e-6)
    assert abs(update.metrics["received_loss"] - update.metrics["train_loss"]) > 1e-3


def test_an_update_does_not_depend_on_who_trained_before() -> None:
    model, settings = network(dropout=0.5), LocalTraining(1, 8, 0.1)
    trainer = Trainer(copy.deepcopy(model), OBJECTIVES["classification"], settings, ClientHalf(), seed=11)
    data = {1: client_data(1, 30), 2: client_data(2, 20)}

    def arrays_of(clients: list[int]) -> dict[int, Params]:
        torch.rand(len(clients))  # the global generator's state must not matter
        updates = trainer.train(snapshot(model), clients, data.__getitem__, lambda client: {}, 1)
        return {u.client: {n: a.clone() for n, a in u.arrays.items()} for u in updates}  # type: ignore[union-attr]

    both, alone = arrays_of([1, 2]), arrays_of([2])
    assert same_bits(both[2], alone[2]) and not same_bits(both[1], both[2])


def test_a_client_without_examples_fails_and_the_next_one_trains() -> None:
    data = {1: client_data(1, 0), 2: client_data(2)}
    trainer = Trainer(network(), OBJECTIVES["classification"], LocalTraining(), ClientHalf(), seed=11)
    first, second = trainer.train(snapshot(trainer.model), [1, 2], data.__getitem__, lambda client: {}, 1)
    assert isinstance(first, ClientFailure) and "no training examples" in first.reason and first.client == 1
    assert isinstance(second, ClientUpdate)


@given(
    rows=st.integers(1, 40),
    size=st.none() | st.integers(1, 50),
    epochs=st.integers(1, 3),
    most=st.none() | st.integers(1, 20),
)
def test_each_epoch_sees_each_row_once(rows: int, size: int | None, epochs: int, most: int | None) -> None:
    settings = LocalTraining(epochs, size, max_steps=most)
    given_rows = list(batches(rows, settings, torch.Generator().manual_seed(0)))
    assert len(given_rows) == settings.steps(rows)
    seen = torch.cat([torch.arange(rows) if chunk is None else chunk for chunk in given_rows]).bincount(minlength=rows)
    if most is None:
        assert (seen == epochs).all()
    else:
        assert (seen <= epochs).all() and len(given_rows) <= most
    assert all(chunk is None or len(chunk) <= (size or rows) for chunk in given_rows)
