"""The Flower ServerApp and THE loop: sample, send, aggregate, evaluate, record. The only loop in the project.

The strategy is a Flower Strategy and is used through its own hooks; which clients take part is decided here.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedsim import flower, rng
from fedsim.algorithms import Algorithm
from fedsim.algorithms.state import State as StrategyState
from fedsim.algorithms.state import strategy_state
from fedsim.checks import require_int
from fedsim.flower import Run
from fedsim.grids.base import SimulationGrid
from fedsim.samplers import Sampler
from fedsim.training.evaluation import across_clients, finite_or_none
from fedsim.training.trainer import all_finite
from fedsim.types import FedsimError, Params

Row = dict[str, Any]
"""A row of rounds.parquet."""

EVALUATION_COLUMNS = (
    *("accuracy", "loss", "macro_f1", "ece"),
    *("federated_accuracy", "federated_accuracy_std", "federated_accuracy_worst10", "federated_accuracy_best10"),
    *("federated_loss", "federated_clients"),
)


@dataclass
class ServerState:
    """All that changes as a run goes on. With the strategy's and the clients' state it is what a checkpoint holds.

    round: the last one that is finished. client_metrics: each client's newest held-out accuracy and loss, by client.
    strategy: what the strategy remembered at the end of that round.
    """

    arrays: Params
    round: int = 0
    rows: list[Row] = field(default_factory=list)
    participations: Counter[int] = field(default_factory=Counter)
    failures: Counter[int] = field(default_factory=Counter)
    first_failure: str | None = None
    client_metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    strategy: StrategyState = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationPlan:
    """The keys of `evaluation.*`: every so many rounds (and after the last), of so many clients (None: of all).

    local_models: of how many clients' own models the central test accuracy is the mean, where no model is shared.
    """

    every: int = 1
    clients: int | None = None
    batch_size: int = 512
    local_models: int = 20

    def __post_init__(self) -> None:
        require_int("evaluation.every", self.every, low=1)
        require_int("evaluation.batch_size", self.batch_size, low=1)
        require_int("evaluation.local_models", self.local_models, low=1)
        if self.clients is not None:
            require_int("evaluation.clients", self.clients, low=0)

    def due(self, round: int, rounds: int) -> bool:
        """Whether this round is evaluated."""
        return round == rounds or round % self.every == 0


class Cohort(Grid):
    """The grid as a strategy sees it: it holds the round's cohort and nobody else. Everything else passes through."""

    def __init__(self, grid: Grid, node_ids: list[int]) -> None:
        self._grid, self._node_ids = grid, node_ids

    def get_node_ids(self) -> Iterable[int]:
        """The cohort's."""
        return list(self._node_ids)

    def set_run(self, run: Run) -> None:
        """See Grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """See Grid."""
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """See Grid."""
        return self._grid.create_message(*args, **kwargs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See Grid."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See Grid."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """See Grid."""
        return self._grid.send_and_receive(messages, timeout=timeout)


@dataclass
class Server:
    """The server of one run.

    holders: clients that have held-out data. evaluate: arrays -> central metrics. on_round: called after each round,
    when `state` is whole. interruptible: the parts of a round in which Ctrl-C may break off; they change no state.
    """

    algorithm: Algorithm
    sampler: Sampler
    state: ServerState
    seed: int
    rounds: int
    num_clients: int
    holders: np.ndarray
    plan: EvaluationPlan
    evaluate: Callable[[Params], dict[str, float | None]]
    on_round: Callable[[Row], None] = lambda row: None
    interruptible: Callable[[], AbstractContextManager[None]] = nullcontext
    timeout: float = 3600.0

    def run(self, grid: Grid) -> None:
        """Play all rounds that are left."""
        nodes = node_ids(grid, max(self.num_clients, len(self.holders)), self.timeout)
        with flower.cheap_collections():
            while self.state.round < self.rounds:
                self.on_round(self.play_round(grid, nodes, self.state.round + 1))

    def play_round(self, grid: Grid, nodes: Nodes, round: int) -> Row:
        """One round; `state` is the last round's until it is over, and this one's after."""
        start = time.perf_counter()
        cohort = self.sampler.cohort(self.seed, round, self.num_clients)
        outcome = self._train(grid, nodes, round, cohort)
        arrays = self._aggregate(round, outcome)
        row: Row = {"round": round, "cohort_size": len(cohort), **outcome.columns()}
        row |= dict.fromkeys(EVALUATION_COLUMNS)
        client_metrics: dict[int, dict[str, float]] = {}
        if self.plan.due(round, self.rounds):
            row |= self._central(grid, nodes, round, arrays)
            columns, client_metrics = self._federated(grid, nodes, round, arrays)
            row |= columns
        row["seconds"] = time.perf_counter() - start
        self._commit(grid, round, arrays, row, outcome, client_metrics)
        return row

    def _train(self, grid: Grid, nodes: Nodes, round: int, cohort: np.ndarray) -> Outcome:
        record = flower.to_record(self.state.arrays)
        outcome = Outcome(bytes_down=flower.encoded_bytes(record) * len(cohort))
        if len(cohort) == 0:  # Flower's strategies wait for ever on no one, and an empty round is a round all the same
            return outcome
        fold = getattr(self.algorithm.strategy, "weighted_by_key", "") if self.algorithm.linear else ""
        view = Cohort(grid, nodes.of(cohort))
        messages = self.algorithm.strategy.configure_train(round, record, ConfigRecord({"fold": fold}), view)
        with self.interruptible():
            for reply in grid.send_and_receive(list(messages), timeout=self.timeout):
                outcome.take(reply, nodes.client(reply.metadata.src_node_id))
        outcome.missing = set(cohort.tolist()) - set(outcome.metrics) - set(outcome.failed)
        if not outcome.replies:
            client, reason = next(iter(outcome.failed.items()), (int(cohort[0]), "it did not answer"))
            raise FedsimError(f"all {len(cohort)} clients of round {round} failed; the first, client {client}, said: {reason}")
        return outcome

    def _aggregate(self, round: int, outcome: Outcome) -> Params:
        if len(outcome.metrics) < self.algorithm.min_cohort:
            return self.state.arrays
        record, _ = self.algorithm.strategy.aggregate_train(round, outcome.replies)
        if record is None:
            return self.state.arrays
        given = flower.from_record(record)
        arrays = {name: given[name].to(own.dtype).reshape(own.shape) for name, own in self.state.arrays.items()}
        if not all_finite(arrays.values()):
            raise FedsimError(
                f"round {round} gave a model with NaN or Inf, which is refused; lower client.lr or the strategy's step size"
            )
        return arrays

    def _central(self, grid: Grid, nodes: Nodes, round: int, arrays: Params) -> Row:
        if self.algorithm.shares_model:
            return self.evaluate(arrays)
        chosen = self._choose(np.arange(self.num_clients), self.plan.local_models, round)
        found = self._ask(grid, nodes, round, arrays, chosen, "test")
        return {name: _mean(found, name) for name in ("accuracy", "loss")}

    def _federated(self, grid: Grid, nodes: Nodes, round: int, arrays: Params) -> tuple[Row, dict[int, dict[str, float]]]:
        chosen = self._choose(self.holders, self.plan.clients, round)
        found = self._ask(grid, nodes, round, arrays, chosen, "holdout") if len(chosen) else {}
        row: Row = {"federated_loss": _mean(found, "loss"), "federated_clients": len(found)}
        if accuracies := [metrics["accuracy"] for metrics in found.values() if "accuracy" in metrics]:
            spread = across_clients(accuracies)
            row["federated_accuracy"] = spread.pop("mean")
            row |= {f"federated_accuracy_{name}": value for name, value in spread.items()}
        return row, found

    def _choose(self, clients: np.ndarray, number: int | None, round: int) -> np.ndarray:
        if number is None or number >= len(clients):
            return clients
        draw = rng.numpy_generator(self.seed, round, rng.SERVER, "evaluation")
        return np.sort(draw.choice(clients, size=number, replace=False))

    def _ask(
        self, grid: Grid, nodes: Nodes, round: int, arrays: Params, clients: np.ndarray, split: str
    ) -> dict[int, dict[str, float]]:
        """Clients' metrics on their held-out data or on the central test set, by client."""
        record, config = flower.to_record(arrays), ConfigRecord({"split": split})
        view = Cohort(grid, nodes.of(clients))
        messages = self.algorithm.strategy.configure_evaluate(round, record, config, view)
        outcome = Outcome()
        with self.interruptible():
            for reply in grid.send_and_receive(list(messages), timeout=self.timeout):
                outcome.take(reply, nodes.client(reply.metadata.src_node_id))
        if outcome.replies:
            self.algorithm.strategy.aggregate_evaluate(round, outcome.replies)
        return outcome.metrics

    def _commit(
        self, grid: Grid, round: int, arrays: Params, row: Row, outcome: Outcome, client_metrics: dict[int, dict[str, float]]
    ) -> None:
        state = self.state
        state.arrays, state.round = arrays, round
        state.rows.append(row)
        state.participations.update(list(outcome.metrics))
        state.failures.update([*outcome.failed, *outcome.missing])
        if state.first_failure is None and outcome.failed:
            client, reason = next(iter(outcome.failed.items()))
            state.first_failure = f"client {client} in round {round}: {reason}"
        state.client_metrics.update(client_metrics)
        state.strategy = strategy_state(self.algorithm.strategy)
        if isinstance(grid, SimulationGrid):
            grid.states.commit()


@dataclass
class Outcome:
    """What came back of a round. A folded reply speaks for many clients, so metrics are kept client by client."""

    bytes_down: int = 0
    bytes_up: int = 0
    replies: list[Message] = field(default_factory=list)
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    missing: set[int] = field(default_factory=set)

    def take(self, reply: Message, client: int) -> None:
        """Sort a reply; `client` is its sender."""
        if reply.has_error():
            self.failed[client] = reply.error.reason or "no reason given"
            return
        record = flower.record_of(reply.content, flower.CLIENTS)
        own = next(iter(reply.content.metric_records.values()))
        ids = flower.column(record, "id") or [client]
        names = [name for name in record if name not in ("id", "failed", "reasons")] or list(own)
        for position, one in enumerate(ids):
            self.metrics[int(one)] = {n: float(record[n][position] if record else own[n]) for n in names}  # type: ignore
        for arrays in reply.content.array_records.values():
            self.bytes_up += flower.encoded_bytes(arrays) * len(ids)
        self.replies.append(reply)

    def columns(self) -> Row:
        """The training columns of a row."""
        weights = [metrics[flower.NUM_EXAMPLES] for metrics in self.metrics.values()]
        losses = [metrics["train_loss"] for metrics in self.metrics.values() if "train_loss" in metrics]
        known = bool(losses) and len(losses) == len(weights)
        return {
            "num_failed": len(self.failed) + len(self.missing),
            "num_examples": int(sum(weights)),
            "train_loss": finite_or_none(float(np.average(losses, weights=weights))) if known else None,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
        }


class Nodes:
    """Which node stands for which client: the same number in a simulation, asked for in a deployment."""

    def __init__(self, node_of: dict[int, int] | None = None) -> None:
        self._node_of = node_of
        self._client_of = None if node_of is None else {node: client for client, node in node_of.items()}

    def of(self, clients: np.ndarray) -> list[int]:
        """Node ids of these clients."""
        if self._node_of is None:
            return clients.tolist()
        absent = [client for client in clients.tolist() if client not in self._node_of]
        if absent:
            raise FedsimError(f"no node stands for client {absent[0]}; connect {len(absent)} more, or lower population.num_clients")
        return [self._node_of[client] for client in clients.tolist()]

    def client(self, node_id: int) -> int:
        """The client behind a node."""
        return node_id if self._client_of is None else self._client_of[node_id]


def node_ids(grid: Grid, needed: int, patience: float) -> Nodes:
    """Ask every node of a real grid which client it is, once `needed` are there; simulated nodes are their clients.

    patience: seconds to wait for nodes to connect. Raises FedsimError where too few have.
    """
    if isinstance(grid, SimulationGrid):
        return Nodes()
    deadline = time.monotonic() + patience
    while len(connected := list(grid.get_node_ids())) < needed:
        if time.monotonic() > deadline:
            raise FedsimError(
                f"{len(connected)} of {needed} nodes are connected; connect more, or lower population.num_clients"
            )
        time.sleep(0.1)
    messages = [Message(RecordDict(), node_id, MessageType.QUERY) for node_id in connected]
    node_of = {}
    for reply in grid.send_and_receive(messages):
        if not reply.has_error():
            client = reply.content.metric_records[flower.METRICS]["client"]
            node_of[int(client)] = reply.metadata.src_node_id  # type: ignore[arg-type]
    return Nodes(node_of)


def make_server_app(server: Server) -> ServerApp:
    """The app that plays the server's rounds on whatever grid it is given."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        server.run(grid)

    return app


def _mean(found: dict[int, dict[str, float]], name: str) -> float | None:
    values = [metrics[name] for metrics in found.values() if name in metrics]
    return finite_or_none(float(np.mean(values))) if values else None


__all__ = ["EvaluationPlan", "Nodes", "Row", "Server", "ServerState", "make_server_app", "node_ids"]
