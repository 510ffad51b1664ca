"""The Flower ClientApp: it unpacks a message, calls the trainer, and packs the reply. Nothing is learnt here.

A real node is one client. A simulated node may hold any number: a message with a `cohort` record names the clients to
train, and says whether one weighted mean may stand for all of them (`fold`) or each must reply for itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from fedsim import flower
from fedsim.data.population import Population
from fedsim.training.evaluation import metrics_of, predict
from fedsim.training.trainer import ClientFailure, ClientUpdate, Trainer, load_arrays
from fedsim.types import ClientData, FedsimError, Params


class ClientStates(Protocol):
    """What clients keep between rounds."""

    def get(self, client: int) -> Params:
        """The client's state; empty where it has none."""

    def put(self, client: int, state: Params) -> None:
        """Keep a client's state."""


class ContextStates:
    """One client's state in the node's own Flower context: how a real device keeps it."""

    def __init__(self, context: Context) -> None:
        self.records = context.state.array_records

    def get(self, client: int) -> Params:
        """See ClientStates."""
        record = self.records.get(str(client))
        return {} if record is None else flower.from_record(record)

    def put(self, client: int, state: Params) -> None:
        """See ClientStates."""
        if state:
            self.records[str(client)] = flower.to_record(state)


@dataclass
class Devices:
    """What stands behind a node: the trainer, who holds what, and (in a simulation) where states are kept."""

    trainer: Trainer
    population: Population
    eval_batch_size: int
    states: ClientStates | None = None

    def states_of(self, context: Context) -> ClientStates:
        """The simulation's store, or the node's own context; both keep arrays on the CPU."""
        return self.states if self.states is not None else ContextStates(context)

    def state_of(self, states: ClientStates, client: int) -> Params:
        """A client's state on the device that trains."""
        return {name: array.to(self.population.device) for name, array in states.get(client).items()}


def make_client_app(devices: Callable[[], Devices]) -> ClientApp:
    """The app. `devices` is called when the first message comes, in the process that trains."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return _train(devices(), message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return _evaluate(devices(), message, context)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        """Which client this node is."""
        metrics = MetricRecord({"client": int(context.node_config["partition-id"])})
        return Message(RecordDict({flower.METRICS: metrics}), reply_to=message)

    return app


def _addressed(message: Message, context: Context) -> tuple[list[int], str, bool]:
    """The clients that a message is for, the weight to fold by ("" for none), and whether it came to a chunk."""
    cohort = flower.record_of(message.content, flower.COHORT)
    if not cohort:
        return [int(context.node_config["partition-id"])], "", False
    return flower.column(cohort, "clients"), str(cohort["fold"]), True


def _train(devices: Devices, message: Message, context: Context) -> Message:
    clients, fold, chunked = _addressed(message, context)
    config = flower.record_of(message.content, flower.CONFIG)
    states = devices.states_of(context)
    received = flower.from_record(message.content.array_records[flower.ARRAYS], devices.population.device)
    updates = devices.trainer.train(
        received,
        clients,
        devices.population.training_data,
        partial(devices.state_of, states),
        flower.column(config, "server-round")[0],
    )
    reply = Reply(fold)
    for update in updates:
        if isinstance(update, ClientFailure):
            if not chunked:
                raise FedsimError(update.reason)
            reply.fail(update)
        else:
            reply.add(update)
            states.put(update.client, update.state)
    return Message(reply.content(chunked), reply_to=message)


class Reply:
    """Gathers the updates of a chunk: into one weighted mean, or side by side."""

    def __init__(self, fold: str) -> None:
        self.fold = fold
        self.sum: dict[str, Tensor] = {}
        self.weight = 0.0
        self.records: dict[int, ArrayRecord] = {}
        self.metrics: dict[int, dict[str, float]] = {}
        self.failures: list[ClientFailure] = []

    def fail(self, failure: ClientFailure) -> None:
        """Count a client that raised."""
        self.failures.append(failure)

    def add(self, update: ClientUpdate) -> None:
        """Take in one client's update; its arrays are read now, and not kept unless each replies for itself."""
        metrics = {flower.NUM_EXAMPLES: update.num_examples, **update.metrics}
        self.metrics[update.client] = metrics
        if not self.fold:
            self.records[update.client] = flower.to_record(update.arrays)
            return
        if not self.sum:
            self.sum = {
                name: torch.zeros_like(a, dtype=flower.travels_as(a.dtype)) for name, a in update.arrays.items()
            }
        weight = float(metrics[self.fold])
        self.weight += weight
        for name, total in self.sum.items():
            total.add_(update.arrays[name], alpha=weight)

    def content(self, chunked: bool) -> RecordDict:
        """The reply's records: see the module's docstring."""
        if not chunked:
            (client,) = self.records
            return RecordDict(
                {flower.ARRAYS: self.records[client], flower.METRICS: MetricRecord(dict(self.metrics[client]))}
            )
        content = RecordDict({flower.CLIENTS: vectors(self.metrics, self.failures)})
        if self.fold and self.metrics:
            mean = {name: total / self.weight for name, total in self.sum.items()}
            content[flower.ARRAYS] = flower.to_record(mean)
            content[flower.METRICS] = MetricRecord({**self._mean_metrics()})
        for client, record in self.records.items():
            content[f"{flower.ARRAYS}/{client}"] = record
            content[f"{flower.METRICS}/{client}"] = MetricRecord(dict(self.metrics[client]))
        return content

    def _mean_metrics(self) -> dict[str, float]:
        """Weighted means of the clients' metrics; of the weight itself the sum, as one client of that weight would send."""
        rows = list(self.metrics.values())
        means = {name: sum(row[self.fold] * row[name] for row in rows) / self.weight for name in rows[0]}
        return {**means, self.fold: self.weight}


def vectors(metrics: dict[int, dict[str, float]], failures: list[ClientFailure]) -> ConfigRecord:
    """Per-client metrics as one list a metric, beside the list of ids; and the clients that raised, with their reasons."""
    record = ConfigRecord({"id": list(metrics)})
    names = next(iter(metrics.values())) if metrics else {}
    for name in names:
        record[name] = [float(row[name]) for row in metrics.values()]
    record["failed"] = [failure.client for failure in failures]
    record["reasons"] = [failure.reason for failure in failures]
    return record


def _evaluate(devices: Devices, message: Message, context: Context) -> Message:
    clients, _, chunked = _addressed(message, context)
    config = flower.record_of(message.content, flower.CONFIG)
    received = flower.from_record(message.content.array_records[flower.ARRAYS], devices.population.device)
    split, states = str(config.get("split", "holdout")), devices.states_of(context)
    rows: dict[int, dict[str, float]] = {}
    failures: list[ClientFailure] = []
    loaded: Params | None = None
    for client in clients:
        try:
            arrays = devices.trainer.client_half.initial(received, devices.state_of(states, client))
            if arrays is not loaded:  # where all share one model, it is loaded once a chunk
                load_arrays(devices.trainer.model, arrays)
                loaded = arrays
            if row := _evaluate_one(devices, client, split):
                rows[client] = row
        except Exception as error:  # as in training: what one client's data raise must not silence the others
            if not chunked:
                raise
            failures.append(ClientFailure(client, f"in evaluation, {type(error).__name__}: {error}"))
    if not rows and not failures:
        raise FedsimError("it holds no examples to be evaluated on; raise population.holdout")
    content = RecordDict()
    if rows:
        weight = sum(row[flower.NUM_EXAMPLES] for row in rows.values())
        names = next(iter(rows.values()))
        means = {name: sum(r[flower.NUM_EXAMPLES] * r[name] for r in rows.values()) / weight for name in names}
        content[flower.METRICS] = MetricRecord({**means, flower.NUM_EXAMPLES: weight})
    if chunked:
        content[flower.CLIENTS] = vectors(rows, failures)
    return Message(content, reply_to=message)


def _evaluate_one(devices: Devices, client: int, split: str) -> dict[str, float] | None:
    """The loaded model's loss and accuracy (by example or position) for a client; None where it has no examples."""
    population, dataset = devices.population, devices.population.dataset
    if split == "test":
        data, preprocess = ClientData(client, dataset.test.x, dataset.test.y), population.preprocess
    else:
        data, preprocess = population.holdout_data(client), None
    if len(data.x) == 0:
        return None
    found = predict(devices.trainer.model, data.x, data.y, dataset.task, devices.eval_batch_size, preprocess)
    if len(found.loss) == 0:
        return None
    metrics = metrics_of(found, dataset.num_outputs)
    values = {name: metrics[name] for name in (("loss",) if dataset.task == "regression" else ("loss", "accuracy"))}
    known = {name: math.nan if value is None else value for name, value in values.items()}  # NaN: it has diverged
    return {flower.NUM_EXAMPLES: len(found.loss), **known}
