"""Learners by sums: federated recursive least squares and streaming logistic regression against one machine that has it all."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch
from helpers import parts, play, same_bits, tiny
from torch import nn

from fedsim import flower
from fedsim.algorithms import logistic, rls
from fedsim.algorithms.recursive import SECOND, Recursive
from fedsim.algorithms.state import load_strategy_state, strategy_state
from fedsim.build import build
from fedsim.data.dataset import Dataset, Examples
from fedsim.models import Linear
from fedsim.nodes import node_ids
from fedsim.parts import Parts
from fedsim.replies import Reply
from fedsim.samplers import AllSampler
from fedsim.training import OBJECTIVES, ClientUpdate
from fedsim.types import ClientData, FedsimError, Params

DataOf = Callable[[int, int], ClientData | None]
"""(client, round) -> what comes to it in that round; None where nothing does."""

CLIENTS, ROUNDS, FEATURES = 50, 8, 5


class WhoHasSomething(AllSampler):
    """All clients to which something came."""

    def __init__(self, data_of: DataOf) -> None:
        self.data_of = data_of

    def cohort(self, seed: int, round: int, num_clients: int, eligible: np.ndarray | None = None) -> np.ndarray:
        return np.array([client for client in range(num_clients) if self.data_of(client, round) is not None], dtype=int)


def values_dataset() -> Dataset:
    """What the streams are built on; its rows are never trained on."""
    x, y = torch.zeros(200, FEATURES), torch.zeros(200)
    return Dataset("values", Examples(x, y), Examples(x, y), "regression", ())


def classes_dataset() -> Dataset:
    """Of three classes; its rows are never trained on."""
    x, y = torch.zeros(200, FEATURES), torch.arange(200) % 3
    return Dataset("classes", Examples(x, y), Examples(x, y), "classification", ("a", "b", "c"))


def on_a_stream(
    strategy: str, data_of: DataOf, *overrides: str, clients: int = CLIENTS
) -> tuple[Parts, Callable[[int], Params]]:
    """The real run over a stream, in float64; and what plays its rounds up to a number and gives the server's arrays."""
    kind = "values" if strategy == "rls" else "classes"
    names = [
        "grid.chunk_size=16",
        f"dataset._target_=test_recursive.{kind}_dataset",
        f"population.num_clients={clients}",
    ]
    made = parts(*names, f"strategy={strategy}", "evaluation.every=1000000", "rounds=1000000", *overrides)
    made.model.double()
    made.server.state.arrays = {name: array.double() for name, array in made.server.state.arrays.items()}
    made.server.sampler = WhoHasSomething(data_of)
    made.population.training_data = lambda client, round=1: data_of(client, round)  # type: ignore
    grid = made.grid()
    nodes = node_ids(grid, clients, 10.0)

    def play_until(round: int) -> Params:
        with flower.cheap_collections():
            while made.server.state.round < round:
                made.server.play_round(grid, nodes, made.server.state.round + 1, 1_000_000)
        return made.server.state.arrays

    return made, play_until


def values_of(client: int, round: int) -> ClientData | None:
    """A regression whose truth turns with time. Client c joins in round 1 + c // 10, and misses every third round of its own."""
    if round < 1 + client // 10 or (client + round) % 3 == 0:
        return None
    draw = np.random.default_rng([client, round])
    x = draw.normal(0, 2, (1 + (client + round) % 7, FEATURES))
    truth = np.arange(1, FEATURES + 1) * np.cos(round / 4)
    y = x @ truth + 3 + draw.normal(0, 0.5, len(x))
    return ClientData(client, torch.from_numpy(x), torch.from_numpy(y))


def classes_of(client: int, round: int) -> ClientData:
    """Three overlapping blobs, the same in every round."""
    draw = np.random.default_rng(client)
    y = draw.integers(0, 3, 20)
    x = draw.normal(0, 1, (20, FEATURES)) + np.eye(3, FEATURES)[y] * 1.5
    return ClientData(client, torch.from_numpy(x), torch.from_numpy(y))


def merged(data_of: DataOf, round: int, clients: int = CLIENTS) -> tuple[np.ndarray, np.ndarray]:
    """x (n, d + 1) with a column of ones, and y (n,): what came to everybody."""
    came = [data for client in range(clients) if (data := data_of(client, round)) is not None]
    x, y = (torch.cat(column).numpy() for column in zip(*((data.x, data.y) for data in came), strict=True))
    return np.column_stack([x, np.ones(len(x))]), y


def solved(arrays: Params) -> np.ndarray:
    """(d + 1, outputs) of a linear model's arrays."""
    weight, bias = (array.numpy() for array in arrays.values())
    return np.concatenate([weight.T, bias[None]])


def central_rls(rounds: int, ridge: float, forgetting: float) -> np.ndarray:
    """(rounds, d + 1, 1) by rank updates of an inverse (Sherman, Morrison, Woodbury), which solves nothing but (n, n).

    What forgetting takes of the ridge is put back as d + 1 made-up rows of value 0.
    """
    inverse, weights, found = np.eye(FEATURES + 1) / ridge, np.zeros((FEATURES + 1, 1)), []
    for round in range(1, rounds + 1):
        x, y = merged(values_of, round)
        if round > 1:
            inverse = inverse / forgetting
            x = np.concatenate([x, np.sqrt((1 - forgetting) * ridge) * np.eye(FEATURES + 1)])
            y = np.concatenate([y, np.zeros(FEATURES + 1)])
        gain = inverse @ x.T @ np.linalg.inv(np.eye(len(x)) + x @ inverse @ x.T)
        weights = weights + gain @ (y[:, None] - x @ weights)
        inverse = inverse - gain @ x @ inverse
        found.append(weights)
    return np.array(found)


@pytest.mark.parametrize("forgetting", [1.0, 0.8])
def test_federated_least_squares_is_central_recursive_least_squares(forgetting: float) -> None:
    ridge = 0.01
    central = central_rls(ROUNDS, ridge, forgetting)
    made, play_until = on_a_stream("rls", values_of, f"strategy.ridge={ridge}", f"strategy.forgetting={forgetting}")
    for round in range(1, ROUNDS + 1):
        assert np.abs(solved(play_until(round)) - central[round - 1]).max() < 1e-8
    assert all(row["num_failed"] == 0 for row in made.server.state.rows)
    assert [row["cohort_size"] for row in made.server.state.rows[:5]] == [
        7,
        13,
        20,
        27,
        33,
    ]  # they join as time goes on
    other = central_rls(ROUNDS, ridge, 0.9)
    assert np.abs(solved(made.server.state.arrays) - other[-1]).max() > 1e-3


@pytest.mark.parametrize("chunk_size", [1, 7, 100])
def test_without_forgetting_online_is_batch_least_squares_at_the_end(chunk_size: int) -> None:
    rows = [merged(values_of, round) for round in range(1, ROUNDS + 1)]
    x, y = (np.concatenate(column) for column in zip(*rows, strict=True))
    batch = scipy.linalg.lstsq(x, y)[0]
    _, play_until = on_a_stream("rls", values_of, "strategy.ridge=0", f"grid.chunk_size={chunk_size}")
    assert np.abs(solved(play_until(ROUNDS))[:, 0] - batch).max() < 1e-8


def test_a_line_through_two_points_by_hand() -> None:
    points = {0: (0.0, 1.0), 1: (2.0, 5.0)}  # y = 2 x + 1

    def point(client: int, round: int) -> ClientData:
        x, y = points[client]
        return ClientData(client, torch.tensor([[x] + [0.0] * (FEATURES - 1)]).double(), torch.tensor([y]).double())

    made, play_until = on_a_stream("rls", point, "strategy.ridge=0", clients=2)
    np.testing.assert_allclose(solved(play_until(1))[:, 0], [2, 0, 0, 0, 0, 1], atol=1e-12)
    strategy = made.algorithm.strategy
    assert isinstance(strategy, Recursive) and strategy.second is not None
    assert strategy.second[0, 0] == 4 and strategy.second[0, -1] == 2 and strategy.second[-1, -1] == 2
    play_until(2)
    assert strategy.second[-1, -1] == 4  # the same two have come again
    np.testing.assert_array_equal(strategy.solution(), solved(made.server.state.arrays))


def test_a_round_that_brings_nothing_forgets_nothing() -> None:
    def data_of(client: int, round: int) -> ClientData | None:
        return None if round == 2 else values_of(client, max(1, round))

    made, play_until = on_a_stream("rls", data_of, "strategy.forgetting=0.5")
    first = {name: array.clone() for name, array in play_until(1).items()}
    before = strategy_state(made.algorithm.strategy)
    assert same_bits(first, play_until(2)) and made.server.state.rows[-1]["aggregated"] == 0
    assert np.array_equal(before["second"][1], strategy_state(made.algorithm.strategy)["second"][1])


def test_classes_are_least_squares_of_ones_and_zeros_and_rows_without_a_label_count_for_nothing() -> None:
    def half_known(client: int, round: int) -> ClientData:
        data = classes_of(client, round)
        return data._replace(y=torch.where(torch.arange(20) < 10, data.y, -100))

    x, y = merged(half_known, 1)
    expected = scipy.linalg.lstsq(x[y >= 0], np.eye(3)[y[y >= 0]])[0]
    classes = "dataset._target_=test_recursive.classes_dataset"
    _, play_until = on_a_stream("rls", half_known, "strategy.ridge=0", classes)
    assert np.abs(solved(play_until(1)) - expected).max() < 1e-10


def test_a_kept_state_goes_on_alike_and_replies_need_not_be_folded() -> None:
    made, play_until = on_a_stream("rls", values_of, "strategy.ridge=0.1", "strategy.forgetting=0.7")
    arrays = play_until(3)
    kept = strategy_state(made.algorithm.strategy)
    other = Recursive(0.1, 0.7)
    load_strategy_state(other, kept)
    replies, half = [], made.algorithm.client
    for client in range(CLIENTS):
        if (data := values_of(client, 4)) is None:
            continue
        model = Linear([FEATURES], 1).double()
        sent = half.statistics(SimpleNamespace(model=model, data=data))  # type: ignore[arg-type]
        reply = Reply("")
        reply.add(ClientUpdate(client, sent, len(data.x), 0, {"train_loss": 0.0}, {}))
        content = reply.content(chunked=False)
        replies.append(SimpleNamespace(content=content, has_error=lambda: False, has_content=lambda: True))
    assert len(replies) == 27
    alone, _ = other.aggregate_train(4, replies)  # type: ignore[arg-type]
    assert alone is not None and not same_bits(arrays, play_until(4))
    for name, array in flower.from_record(alone).items():
        np.testing.assert_allclose(array.numpy(), made.server.state.arrays[name].numpy(), rtol=1e-11)


def test_worker_processes_give_the_same_bits() -> None:
    runs = []
    for grid in (["grid=inprocess"], ["grid=processes", "grid.workers=2"]):
        made = parts("strategy=logistic", *grid, "grid.chunk_size=2", "rounds=2")
        runs.append((play(made), strategy_state(made.algorithm.strategy)["second"][1]))
    assert same_bits(runs[0][0], runs[1][0]) and np.array_equal(runs[0][1], runs[1][1])


# Logistic regression


def penalised(weights: np.ndarray, x: np.ndarray, y: np.ndarray, ridge: float) -> float:
    """Sum of cross-entropies and the penalty. weights: (d + 1, classes)."""
    logits = x @ weights
    losses = scipy.special.logsumexp(logits, axis=1) - logits[np.arange(len(y)), y]
    return float(losses.sum() + ridge / 2 * np.square(weights).sum())


def test_streaming_logistic_regression_is_the_central_recursion() -> None:
    def data_of(client: int, round: int) -> ClientData | None:
        data = classes_of(1000 * round + client, round)  # other rows in every round
        return None if round < 1 + client // 10 else data._replace(client=client)

    ridge, forgetting = 0.5, 0.8
    keys = f"strategy.ridge={ridge}", f"strategy.forgetting={forgetting}"
    made, play_until = on_a_stream("logistic", data_of, *keys)
    weights, a, b = solved(made.server.state.arrays), np.zeros((FEATURES + 1,) * 2), np.zeros((FEATURES + 1, 3))
    weights -= weights.mean(1, keepdims=True)  # which changes no chance
    for round in range(1, ROUNDS + 1):
        x, y = merged(data_of, round)
        chances = scipy.special.softmax(x @ weights, axis=1)
        a = forgetting * a + x.T @ x / 2
        b = forgetting * b + x.T @ x @ weights / 2 - x.T @ (chances - np.eye(3)[y])
        weights = np.linalg.solve(a + ridge * np.eye(FEATURES + 1), b)
        assert np.abs(solved(play_until(round)) - weights).max() < 1e-8


def test_each_round_on_the_same_data_descends_to_scikit_learns_optimum() -> None:
    from sklearn.linear_model import LogisticRegression

    ridge, clients = 5.0, 6
    x, y = merged(classes_of, 1, clients)
    optimum = LogisticRegression(C=1 / ridge, fit_intercept=False, tol=1e-12, solver="newton-cg").fit(x, y)
    best = optimum.coef_.T
    keys = f"strategy.ridge={ridge}", "strategy.forgetting=0"
    made, play_until = on_a_stream("logistic", classes_of, *keys, clients=clients)
    values = [penalised(solved(play_until(round)), x, y, ridge) for round in range(61)]
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(values))
    assert np.abs(solved(made.server.state.arrays) - best).max() < 1e-5
    assert values[0] - values[-1] > 10 and values[-1] - penalised(best, x, y, ridge) < 1e-8


# What is refused


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["strategy=rls", "model=mlp"], "strategy=rls .* use model=linear"),
        (["strategy=logistic", "model=mlp"], "strategy=logistic .* use model=linear"),
        (["strategy=rls", "privacy=user", "privacy.noise_multiplier=1"], "strategy=rls makes clients send numbers"),
        (["strategy=rls", "strategy.forgetting=1.1"], "strategy.forgetting=1.1 is out of range"),
        (["strategy=logistic", "strategy.ridge=-1"], "strategy.ridge=-1 is out of range"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(overrides: list[str], words: str) -> None:
    with pytest.raises(FedsimError, match=words):
        build(tiny(*overrides))


def test_a_linear_layer_inside_something_else_is_no_linear_model() -> None:
    class Bent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.line(x).tanh()

    for model in (Bent(), nn.Linear(3, 2, bias=False), nn.Sequential(nn.Linear(3, 2), nn.Tanh())):
        with pytest.raises(FedsimError, match="use model=linear"):
            rls().client.check(model, OBJECTIVES["classification"], False)
    rls().client.check(nn.Linear(3, 2), OBJECTIVES["classification"], False)
    with pytest.raises(FedsimError, match="choose a dataset of classes"):
        logistic().client.check(nn.Linear(3, 2), OBJECTIVES["regression"], False)
    with pytest.raises(FedsimError, match="not for the next token"):
        rls().client.check(nn.Linear(3, 2), OBJECTIVES["next_token"], False)
    with pytest.raises(FedsimError, match="no example has come"):
        Recursive(0.0, 1.0).solution()


def test_statistics_go_in_the_names_of_the_model() -> None:
    data = classes_of(0, 1)
    sent = rls().client.statistics(SimpleNamespace(model=Linear([FEATURES], 3), data=data))  # type: ignore[arg-type]
    shapes = {name: tuple(array.shape) for name, array in sent.items()}
    assert shapes == {"1.weight": (3, FEATURES), "1.bias": (3,), SECOND: (FEATURES + 1, FEATURES + 1)}
    assert all(array.dtype is torch.float64 for array in sent.values())
