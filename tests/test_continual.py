"""Learning on: EWC, LwF, online descent and clients' own step sizes, against what is computed by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from helpers import parts, play, same_bits, tiny
from torch import nn

from fedsim import flower
from fedsim.algorithms import adagrad_norm, ewc, fedavg, fedogd, lwf
from fedsim.algorithms.continual import ANCHOR, FISHER, fisher
from fedsim.algorithms.online import SQUARES
from fedsim.algorithms.state import load_strategy_state, strategy_state
from fedsim.build import build
from fedsim.training import OBJECTIVES, ClientHalf, ClientUpdate, LocalTraining, Trainer
from fedsim.training.arrays import model_arrays
from fedsim.training.execution import Execution
from fedsim.types import ClientData, FedsimError, Params

CLASSIFY = OBJECTIVES["classification"]
WHOLE = LocalTraining(epochs=3, batch_size=None, lr=0.2)


def network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def data(client: int, rows: int = 9) -> ClientData:
    draw = torch.Generator().manual_seed(client)
    x = torch.randn(rows, 4, generator=draw, dtype=torch.float64)
    return ClientData(client, x, torch.randint(3, (rows,), generator=draw))


def train(
    half: ClientHalf,
    clients: Sequence[int],
    states: dict[int, Params] | None = None,
    received: Params | None = None,
    settings: LocalTraining = WHOLE,
    execution: Execution | None = None,
) -> list[ClientUpdate]:
    """One round of the real trainer."""
    model = network()
    trainer = Trainer(model, CLASSIFY, settings, half, seed=0, execution=execution or Execution("one", 1))
    start = received or {name: array.clone() for name, array in model_arrays(model).items()}
    found = []
    for update in trainer.train(start, clients, data, lambda client: (states or {}).get(client, {}), 1):
        assert isinstance(update, ClientUpdate), update
        found.append(update._replace(arrays={name: array.clone() for name, array in update.arrays.items()}))
    return found


def close(left: Params, right: Params, tolerance: float = 1e-12) -> bool:
    return left.keys() == right.keys() and all(float((left[n] - right[n]).abs().max()) <= tolerance for n in left)


# EWC


def test_the_fisher_diagonal_is_the_mean_square_of_single_examples_gradients() -> None:
    model, (_, x, y) = network(), data(1)
    expected = [torch.zeros_like(weight) for weight in model.parameters()]
    for row in range(len(x)):
        gradients = torch.autograd.grad(
            F.cross_entropy(model(x[row : row + 1]), y[row : row + 1]), list(model.parameters())
        )
        for total, gradient in zip(expected, gradients, strict=True):
            total += gradient**2 / len(x)
    found = fisher(model, CLASSIFY, data(1))
    assert list(found) == [name for name, _ in model.named_parameters()]
    for array, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(array, other, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("execution", [Execution("one", 1), Execution("lockstep", 3)])
def test_ewc_follows_the_gradient_of_its_penalty_and_keeps_a_decayed_fisher(execution: Execution) -> None:
    strength, decay, clients = 40.0, 0.6, (1, 2, 3)
    half = ewc(strength, decay).client
    first = train(half, clients, execution=execution)
    plain = train(fedavg().client, clients, execution=execution)
    assert all(close(a.arrays, b.arrays) for a, b in zip(first, plain, strict=True))  # nobody holds on to anything yet
    states = {update.client: update.state for update in first}
    received = {name: array + 0.3 for name, array in first[0].arrays.items()}
    second = train(half, clients, states, received, execution=execution)
    for update in second:
        model, (_, x, y) = network(), data(update.client)
        model.load_state_dict(received)
        kept = states[update.client]
        for _ in range(WHOLE.epochs):
            penalty = sum(
                (kept[f"{FISHER}{name}"] * (weight - kept[f"{ANCHOR}{name}"]) ** 2).sum()
                for name, weight in model.named_parameters()
            )
            loss = F.cross_entropy(model(x), y) + strength / 2 * penalty
            for weight, gradient in zip(
                model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
            ):
                weight.data -= WHOLE.lr * gradient
        expected = {name: weight.detach() for name, weight in model.named_parameters()}
        assert close(update.arrays, expected, 1e-10)
        new = fisher(model, CLASSIFY, data(update.client))
        for name in new:
            expected_fisher = (1 - decay) * new[name] + decay * kept[f"{FISHER}{name}"]
            torch.testing.assert_close(update.state[f"{FISHER}{name}"], expected_fisher)
            torch.testing.assert_close(update.state[f"{ANCHOR}{name}"], expected[name])


def one_after_the_other(half: ClientHalf) -> tuple[float, float]:
    """One client learns task A and then B, in which the labels are others. Losses on A and B at the end."""
    model, old = network(), data(7, 40)
    trainer = Trainer(model, CLASSIFY, LocalTraining(10, None, 0.3), half, seed=0)
    arrays: Params = {name: array.clone() for name, array in model_arrays(model).items()}
    states: dict[int, Params] = {7: {}}
    tasks = old, old._replace(y=(old.y + (old.x[:, 0] > 0)) % 3)
    for task in tasks:
        held = {7: task}
        for round in range(1, 6):
            (update,) = trainer.train(arrays, [7], held.__getitem__, states.__getitem__, round)
            assert isinstance(update, ClientUpdate)
            arrays, states[7] = {name: array.clone() for name, array in update.arrays.items()}, update.state
    model.load_state_dict(arrays)
    model.requires_grad_(False)
    first, second = (float(F.cross_entropy(model(task.x), task.y)) for task in tasks)
    return first, second


def test_what_was_learnt_first_is_forgotten_less() -> None:
    plain, held, answered = (one_after_the_other(half) for half in (ClientHalf(), ewc(20.0).client, lwf(2.0).client))
    for old, new in (held, answered):
        assert old < plain[0] - 0.08 and new > plain[1]  # at the cost of what came last


# LwF


def by_hand(client: int, strength: float, temperature: float, settings: LocalTraining) -> Params:
    """The same steps, with the gradient by the outputs written out: softmax less target, and T (softmax less old softmax)."""
    model, (_, x, y) = network(), data(client)
    with torch.no_grad():
        old = torch.softmax(model(x) / temperature, 1)
    for _ in range(settings.epochs):
        outputs = model(x)
        with torch.no_grad():
            gradient = torch.softmax(outputs, 1) - F.one_hot(y, 3)
            gradient += strength * temperature * (torch.softmax(outputs / temperature, 1) - old)
        for weight, step in zip(
            model.parameters(), torch.autograd.grad(outputs, list(model.parameters()), gradient / len(x)), strict=True
        ):
            weight.data -= settings.lr * step
    return {name: weight.detach() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("execution", [Execution("one", 1), Execution("lockstep", 3), Execution("vmap", 2)])
def test_lwf_follows_the_gradient_by_hand_however_others_would_train(execution: Execution) -> None:
    for update in train(lwf(1.5, 3.0).client, (1, 2, 3, 4), execution=execution):
        assert close(update.arrays, by_hand(update.client, 1.5, 3.0, WHOLE), 1e-12)
        assert not close(update.arrays, by_hand(update.client, 0.0, 3.0, WHOLE), 1e-3)


def test_lwf_weighs_each_batchs_own_rows_and_only_targets_that_count() -> None:
    half = lwf(2.0, 1.0).client
    old, new = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    half.old, half.known = old.log_softmax(1), torch.tensor([1.0, 1, 0, 1, 1]).double()  # type: ignore[attr-defined]
    rows = torch.tensor([4, 2, 0])
    apart = (old.softmax(1) * (old.log_softmax(1) - new.log_softmax(1))).sum(1)
    torch.testing.assert_close(half.extra_loss(new[rows], rows), apart[[4, 0]].mean() * 2)


def test_the_loss_that_is_told_is_of_the_new_labels_alone() -> None:
    settings = LocalTraining(epochs=1, batch_size=4, lr=0.1)
    told = [train(half, (1,), settings=settings)[0].metrics for half in (lwf(50.0).client, fedavg().client)]
    assert told[0].keys() == told[1].keys() == {"train_loss"}
    assert told[0]["train_loss"] < told[1]["train_loss"] * 1.2


# Online descent


def ask() -> Message:
    flower.enter_runtime()
    asked = Message(RecordDict(), 0, "train")
    flower.stamp(asked, 1)
    return asked


class Nodes:
    def get_node_ids(self) -> list[int]:
        return [0]


def online_mean(lr: float, server_lr: float, values: Sequence[float], resume_at: int = 0) -> list[float]:
    """w after each round of f_t(w) = (w - z_t)^2 / 2, through the strategy; the client makes one step from what it is sent."""
    strategy, w, found = fedogd(server_lr).strategy, 0.0, []
    for round, z in enumerate(values, 1):
        if round == resume_at:
            kept = strategy_state(strategy)
            strategy = fedogd(server_lr).strategy
            load_strategy_state(strategy, kept)
        record = flower.to_record({"w": torch.tensor([w], dtype=torch.float64)})
        list(strategy.configure_train(round, record, ConfigRecord(), Nodes()))  # type: ignore[arg-type]
        sent = flower.to_record({"w": torch.tensor([w - lr * (w - z)], dtype=torch.float64)})
        content = RecordDict({"arrays": sent, "metrics": MetricRecord({"num-examples": 1})})
        arrays, _ = strategy.aggregate_train(round, [Message(content, reply_to=ask())])
        assert arrays is not None
        w = float(arrays["w"].numpy()[0])
        found.append(w)
    return found


def test_fedogd_steps_as_zinkevich_and_its_regret_is_bounded_as_his() -> None:
    lr, server_lr, draw = 0.5, 2.0, torch.Generator().manual_seed(0)
    values = (torch.rand(400, generator=draw).double() * 2 - 1).tolist()
    found = online_mean(lr, server_lr, values)
    w, played = 0.0, [0.0]
    for t, z in enumerate(values, 1):
        w -= 1 / math.sqrt(t) * (w - z)  # lr server_lr = 1
        played.append(w)
    assert found == pytest.approx(played[1:], abs=1e-12)
    best = sum(values) / len(values)
    for t in (50, 400):
        best = sum(values[:t]) / t
        regret = sum((w - z) ** 2 - (best - z) ** 2 for w, z in zip(played, values[:t], strict=False)) / 2
        assert 0 < regret <= 2**2 * math.sqrt(t) / 2 + (math.sqrt(t) - 0.5) * 2**2  # diameter 2, gradients of at most 2
        assert regret / t < 0.05
    assert online_mean(lr, server_lr, values[:20], resume_at=9) == found[:20]
    assert online_mean(lr, 1.0, values[:1])[0] == pytest.approx(lr * values[0])


# Clients' own step sizes


@pytest.mark.parametrize("execution", [Execution("one", 1), Execution("lockstep", 3)])
def test_adagrad_norm_divides_by_the_root_of_all_squares_so_far(execution: Execution) -> None:
    start, decay, clients = 0.3, 0.7, (1, 2, 3)
    half = adagrad_norm(start, decay).client
    first = train(half, clients, execution=execution)
    second = train(half, clients, {u.client: u.state for u in first}, execution=execution)
    for one, two in zip(first, second, strict=True):
        squares = 0.0
        for update in (one, two):
            model, (_, x, y) = network(), data(one.client)
            for _ in range(WHOLE.epochs):
                gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
                squares = decay * squares + sum(float((g**2).sum()) for g in gradients)
                for weight, gradient in zip(model.parameters(), gradients, strict=True):
                    weight.data -= WHOLE.lr * gradient / math.sqrt(start**2 + squares)
            assert close(update.arrays, {n: w.detach() for n, w in model.named_parameters()}, 1e-10)
            assert float(update.state[SQUARES]) == pytest.approx(squares)


# Whole runs


def test_states_are_the_same_bits_in_worker_processes() -> None:
    grids = ["grid=inprocess"], ["grid=processes", "grid.workers=2"]
    ends = [play(parts("strategy=ewc", *grid, "grid.chunk_size=2")) for grid in grids]
    assert same_bits(*ends) and not same_bits(ends[0], play(parts("grid.chunk_size=2")))


@pytest.mark.parametrize("strategy", ["ewc", "lwf"])
def test_example_privacy_is_refused_where_steps_follow_more_than_clipped_gradients(strategy: str) -> None:
    promise = ["privacy=example", "privacy.noise_multiplier=1", "privacy.delta=1e-3"]
    with pytest.raises(FedsimError, match=f"strategy={strategy} .* privacy=user"):
        build(tiny(f"strategy={strategy}", *promise))
    play(parts(f"strategy={strategy}", "privacy=user", *promise[1:]))


def test_a_regression_has_no_answers_to_keep() -> None:
    with pytest.raises(FedsimError, match="use strategy=ewc"):
        lwf().client.check(network(), OBJECTIVES["regression"], False)
