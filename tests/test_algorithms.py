"""Our server path against Flower's own strategies, folding against not folding, and every strategy whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flwr
from helpers import assert_close, parts, play, same_bits, tiny, yaml_files
from hypothesis import given
from hypothesis import strategies as st

from fedsim import algorithms, flower, rng
from fedsim.algorithms import Algorithm
from fedsim.audit import NoAudit
from fedsim.build import build
from fedsim.client import Devices, make_client_app
from fedsim.compression import Uncompressed
from fedsim.fleet.field import ideal_field
from fedsim.fleet.schedules import Synchronous
from fedsim.grids.inprocess import InProcessGrid
from fedsim.privacy import Protection
from fedsim.replies import Reply, Total
from fedsim.rounds import EvaluationPlan, ServerState
from fedsim.samplers import AllSampler
from fedsim.server import Server
from fedsim.training import ClientUpdate
from fedsim.training.evaluation import Tally
from fedsim.types import Params

CLIENTS, ROUNDS = 13, 3
TAKE_ALL: dict[str, Any] = {"fraction_train": 1.0, "min_train_nodes": 0, "min_available_nodes": 0}

PAIRS: dict[str, tuple[Callable[[], Algorithm], Callable[[], flwr.Strategy]]] = {
    "fedavg": (algorithms.fedavg, lambda: flwr.FedAvg(**TAKE_ALL)),
    "fedavgm": (
        lambda: algorithms.fedavgm(0.7, 0.9),
        lambda: flwr.FedAvgM(**TAKE_ALL, server_learning_rate=0.7, server_momentum=0.9),
    ),
    "fedadam": (
        lambda: algorithms.fedadam(0.02, 0.8, 0.95, 0.01),
        lambda: flwr.FedAdam(**TAKE_ALL, eta=0.02, beta_1=0.8, beta_2=0.95, tau=0.01),
    ),
    "fedyogi": (
        lambda: algorithms.fedyogi(0.02, 0.8, 0.95, 0.01),
        lambda: flwr.FedYogi(**TAKE_ALL, eta=0.02, beta_1=0.8, beta_2=0.95, tau=0.01),
    ),
    "fedadagrad": (lambda: algorithms.fedadagrad(0.05, 0.01), lambda: flwr.FedAdagrad(**TAKE_ALL, eta=0.05, tau=0.01)),
    "fedprox": (lambda: algorithms.fedprox(0.1), lambda: flwr.FedProx(**TAKE_ALL, proximal_mu=0.1)),
    "fedmedian": (algorithms.fedmedian, lambda: flwr.FedMedian(**TAKE_ALL)),
    "fedtrimmedavg": (lambda: algorithms.fedtrimmedavg(0.2), lambda: flwr.FedTrimmedAvg(**TAKE_ALL, beta=0.2)),
    "krum": (lambda: algorithms.krum(2), lambda: flwr.Krum(**TAKE_ALL, num_malicious_nodes=2)),
    "multikrum": (
        lambda: algorithms.multikrum(2, 4),
        lambda: flwr.MultiKrum(**TAKE_ALL, num_malicious_nodes=2, num_nodes_to_select=4),
    ),
    "bulyan": (lambda: algorithms.bulyan(2), lambda: flwr.Bulyan(**TAKE_ALL, num_malicious_nodes=2)),
    "qfedavg": (
        lambda: algorithms.qfedavg(0.5, 0.1),
        lambda: flwr.QFedAvg(0.1, 0.5, "received_loss", **TAKE_ALL),
    ),
}


def start() -> Params:
    draw = torch.Generator().manual_seed(1)
    return {"weight": torch.randn(4, 3, generator=draw), "bias": torch.randn(3, generator=draw)}


def random_update(received: Params, client: int, round: int) -> ClientUpdate:
    """What a client says: the received arrays plus noise, a random number of examples, and a random loss."""
    draw = rng.generator(99, round, client, "test")
    arrays = {name: array + 0.3 * torch.randn(array.shape, generator=draw) for name, array in received.items()}
    count = int(torch.randint(1, 200, (), generator=draw))
    metrics = {name: float(torch.rand((), generator=draw)) for name in ("train_loss", "received_loss")}
    return ClientUpdate(client, arrays, count, 1, metrics, {})


class SaysRandomThings:
    """In the Trainer's place."""

    def train(self, received: Params, clients, data_of, state_of, round: int) -> Iterator[ClientUpdate]:
        return (random_update(received, client, round) for client in clients)

    def train_folded(self, received: Params, clients, data_of, state_of, round: int, weigh) -> Iterator[ClientUpdate]:
        return self.train(received, clients, data_of, state_of, round)


NOTHING = Tally(*(np.zeros(shape) for shape in (1, 1, 1, (1, 1), (3, 1))))
"""The metrics of no example."""


def through_our_server(algorithm: Algorithm, chunk_size: int) -> list[Params]:
    """The server's arrays after each round."""
    population = SimpleNamespace(device=torch.device("cpu"), training_data=lambda client, round: None)

    def client_app(states):
        return make_client_app(lambda: Devices(SaysRandomThings(), population, 1, Protection(), Uncompressed(), states))  # type: ignore[arg-type]

    history: list[Params] = []
    server = Server(
        algorithm=algorithm,
        sampler=AllSampler(),
        protection=Protection(),
        audit=NoAudit(),
        state=ServerState(start()),
        seed=0,
        rounds=ROUNDS,
        num_clients=CLIENTS,
        holders=np.arange(0),
        plan=EvaluationPlan(every=10),
        field=ideal_field(CLIENTS),
        schedule=Synchronous(),
        compression=Uncompressed(),
        judge=SimpleNamespace(shards=lambda number: [(0, 0)], shard=lambda arrays, start, stop: NOTHING),  # type: ignore[arg-type]
    )
    server.on_round = lambda row: history.append(server.state.arrays)
    server.run(InProcessGrid(client_app, chunk_size))
    return history


class AllNodes:
    """As much of a grid as a strategy looks at."""

    def get_node_ids(self) -> list[int]:
        return list(range(CLIENTS))


def through_flower(strategy: flwr.Strategy) -> list[Params]:
    """The same clients' replies handed to Flower's strategy, with nothing of ours in between but records."""
    flower.enter_runtime()
    arrays, history = start(), []
    for round in range(1, ROUNDS + 1):
        record = ArrayRecord({name: Array(array.numpy()) for name, array in arrays.items()})
        messages = strategy.configure_train(round, record, ConfigRecord(), AllNodes())  # type: ignore[arg-type]
        replies = []
        for message in sorted(messages, key=lambda message: message.metadata.dst_node_id):
            flower.stamp(message, len(replies) + 1)
            update = random_update(arrays, message.metadata.dst_node_id, round)
            metrics = MetricRecord({"num-examples": update.num_examples, **update.metrics})
            own = ArrayRecord({name: Array(array.numpy()) for name, array in update.arrays.items()})
            replies.append(Message(RecordDict({"arrays": own, "metrics": metrics}), reply_to=message))
        with flower.cheap_collections():
            aggregated, _ = strategy.aggregate_train(round, replies)
        assert aggregated is not None
        arrays = {name: torch.from_numpy(array.numpy()).float() for name, array in aggregated.items()}
        history.append(arrays)
    return history


@pytest.mark.parametrize("name", PAIRS)
def test_a_strategy_gives_what_flowers_own_gives(name: str) -> None:
    ours, theirs = PAIRS[name]
    expected = through_flower(theirs())
    moved = {n: (a - start()[n]).abs().max() for n, a in expected[-1].items()}
    assert min(moved.values()) > 1e-3  # else agreement would say nothing
    for chunk_size in (1, 3, 100):
        given_arrays = through_our_server(ours(), chunk_size)
        assert len(given_arrays) == ROUNDS
        for mine, other in zip(given_arrays, expected, strict=True):
            assert_close(mine, other, 1e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_the_same_chunks_give_the_same_bits(name: str) -> None:
    first, second = (through_our_server(PAIRS[name][0](), 3)[-1] for _ in range(2))
    assert same_bits(first, second)


def test_only_linear_strategies_fold() -> None:
    folds = {name for name, (ours, _) in PAIRS.items() if ours().linear}
    assert folds == {"fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedprox"}


def folded(updates: list[ClientUpdate], chunk_size: int) -> RecordDict:
    """What the server is shown of these updates, which came in chunks of so many."""
    flower.enter_runtime()
    asked = Message(RecordDict(), 0, "train")
    flower.stamp(asked, 1)
    total = Total("num-examples", asked)
    reused = {name: torch.empty_like(array) for name, array in updates[0].arrays.items()}
    for first in range(0, len(updates), chunk_size):
        reply = Reply("num-examples")
        for update in updates[first : first + chunk_size]:
            for name, array in update.arrays.items():  # the trainer's own arrays change with every client
                reused[name].copy_(array)
            reply.add(update._replace(arrays=reused))
        total.add(reply.content(chunked=True))
    return total.reply().content


@given(
    weights=st.lists(st.integers(1, 10_000), min_size=1, max_size=8),
    seed=st.integers(0, 2**32),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    chunk_size=st.integers(1, 8),
)
def test_a_fold_is_the_weighted_mean(weights: list[int], seed: int, scale: float, chunk_size: int) -> None:
    draw = np.random.default_rng(seed)
    values = [draw.normal(0, scale, (3, 2)).astype(np.float32) for _ in weights]
    losses = [float(loss) for loss in draw.random(len(weights))]
    updates = [
        ClientUpdate(client, {"w": torch.from_numpy(value)}, weight, 1, {"train_loss": loss}, {})
        for client, (weight, value, loss) in enumerate(zip(weights, values, losses, strict=True))
    ]
    content = folded(updates, chunk_size)
    mean = np.average(np.array(values, dtype=np.float64), axis=0, weights=weights)
    np.testing.assert_allclose(content.array_records["arrays"]["w"].numpy(), mean, atol=1e-6 * scale, rtol=1e-5)
    assert content.metric_records["metrics"]["num-examples"] == sum(weights)
    assert content.metric_records["metrics"]["train_loss"] == pytest.approx(np.average(losses, weights=weights))
    assert content.config_records["clients"]["train_loss"] == losses  # what must not be averaged away


def test_counters_are_averaged_and_stay_whole_numbers() -> None:
    updates = [ClientUpdate(client, {"n": torch.tensor(n)}, 1, 1, {}, {}) for client, n in enumerate((2, 5))]
    for chunk_size in (1, 2):
        assert folded(updates, chunk_size).array_records["arrays"]["n"].numpy() == pytest.approx(3.5)


@pytest.mark.parametrize("path", [p for p in yaml_files("strategy") if p.stem != "custom"], ids=lambda path: path.stem)
def test_every_strategy_trains_two_rounds(path: Path) -> None:
    made = build(tiny(f"strategy={path.stem}", "population.num_clients=12", "client.lr=0.05"))
    before = {name: array.clone() for name, array in made.server.state.arrays.items()}
    arrays = play(made)
    rows = made.server.state.rows
    assert [row["round"] for row in rows] == [1, 2] and all(row["num_failed"] == 0 for row in rows)
    assert all(row["accuracy"] is not None and row["train_loss"] is not None for row in rows)
    assert rows[1]["train_loss"] < rows[0]["train_loss"] or path.stem in ("fedadagrad", "krum")
    changed = not same_bits(before, arrays)
    assert changed == made.algorithm.shares_model


def test_a_strategy_of_ones_own_is_not_folded_unless_it_says_so() -> None:
    overrides = ["strategy=custom", "strategy._target_=flwr.serverapp.strategy.FedAvg"]
    made = parts(*overrides)
    assert not made.algorithm.linear
    assert_close(play(made), play(parts()), 1e-6)


def test_a_cohort_too_small_for_a_strategy_is_refused_or_changes_nothing() -> None:
    from fedsim.types import FedsimError

    with pytest.raises(FedsimError, match="at least 7 clients"):
        parts("strategy=bulyan", "sampler=fixed", "sampler.cohort_size=6")
    made = parts("strategy=krum", "sampler=poisson", "sampler.cohort_size=5", "rounds=12")
    history = [{name: array.clone() for name, array in made.server.state.arrays.items()}]
    made.server.on_round = lambda row: history.append({n: a.clone() for n, a in made.server.state.arrays.items()})
    play(made)
    kept = [same_bits(before, after) for before, after in pairwise(history)]
    assert kept == [row["cohort_size"] < 5 for row in made.server.state.rows] and True in kept and False in kept
