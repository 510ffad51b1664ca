"""The Flower ClientApp: it unpacks a message, calls the trainer, and packs the reply. Nothing is learnt here.

A real node is one client. A simulated node may hold any number: a message with a `cohort` record names the clients to
train, and says whether one weighted sum may stand for all of them (`fold`) or each must reply for itself. Under a privacy
mechanism what leaves is what the mechanism's device half lets out; where that is summed, a chunk sends the sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim import flower
from fedsim.compression.base import Compression
from fedsim.data.population import Population
from fedsim.judging import Judge, Judged, tally_record
from fedsim.privacy.base import Protection
from fedsim.replies import Reply, vectors
from fedsim.streams.notes import NOTES, as_state, from_state
from fedsim.streams.population import StreamedPopulation
from fedsim.training.trainer import Trainer
from fedsim.training.updates import ClientFailure, ClientUpdate, Folded
from fedsim.types import ClientData, FedsimError, Params

CODEC = "codec/"
"""Before the names of what a codec keeps on a device, beside what the algorithm keeps there."""


class ClientStates(Protocol):
    """What clients keep between rounds."""

    def get(self, client: int) -> Params:
        """The client's state; empty where it has none."""

    def put(self, client: int, state: Params) -> None:
        """Keep a client's state."""

    def memory(self, client: int) -> dict[str, Any]:
        """What a client keeps for the conversations of a round."""

    def remember(self, client: int, memory: dict[str, Any]) -> None:
        """Keep it."""


class ContextStates:
    """One client's state in the node's own Flower context: how a real device keeps it."""

    def __init__(self, context: Context) -> None:
        self.context, self.records = context, context.state.array_records

    def get(self, client: int) -> Params:
        """See ClientStates."""
        record = self.records.get(str(client))
        return {} if record is None else flower.from_record(record)

    def put(self, client: int, state: Params) -> None:
        """See ClientStates."""
        if state:
            self.records[str(client)] = flower.to_record(state)

    def memory(self, client: int) -> dict[str, Any]:
        """See ClientStates."""
        return dict(flower.record_of(self.context.state, f"{flower.PAYLOAD}/{client}"))

    def remember(self, client: int, memory: dict[str, Any]) -> None:
        """See ClientStates."""
        self.context.state[f"{flower.PAYLOAD}/{client}"] = ConfigRecord(memory)


@dataclass
class Devices:
    """What stands behind a node: the trainer, who holds what, what may leave, and (simulated) where states are kept."""

    trainer: Trainer
    population: Population
    eval_batch_size: int
    protection: Protection
    compression: Compression
    states: ClientStates | None = None

    @property
    def judge(self) -> Judge:
        """What models are judged by on a node."""
        return Judge(self.trainer.model, self.population, self.eval_batch_size)

    def states_of(self, context: Context) -> ClientStates:
        """The simulation's store, or the node's own context; both keep arrays on the CPU."""
        return self.states if self.states is not None else ContextStates(context)

    def state_of(self, states: ClientStates, client: int) -> Params:
        """A client's state on the device that trains, as its algorithm knows it."""
        held = states.get(client)
        return {name: a.to(self.population.device) for name, a in held.items() if not name.startswith((CODEC, NOTES))}

    def keep(self, states: ClientStates, update: ClientUpdate) -> None:
        """Keep what an update says that a client keeps, beside its notes."""
        if update.state:
            held = states.get(update.client)
            states.put(update.client, {n: a for n, a in held.items() if n.startswith(NOTES)} | update.state)

    def learning_data(self, states: ClientStates, client: int, round: int) -> tuple[ClientData, dict[str, int]]:
        """What a client trains on in this round, by what it wrote down of its stream; and counts of it to send."""
        population = self.population
        if not isinstance(population, StreamedPopulation) or not population.quality.acts:
            return population.training_data(client, round), {}
        return population.learning_data(client, round, from_state(states.get(client), len(population.dataset.classes)))

    def note(self, states: ClientStates, client: int, round: int, arrays: Params, factor: float) -> dict[str, int]:
        """Have a client write down what it makes of the rows that come in this round, by `arrays`; gives counts of it to send.

        factor: by which the budget of labels is raised for now.
        """
        population = self.population
        if not isinstance(population, StreamedPopulation) or not population.quality.acts:
            return {}
        held = states.get(client)
        before = from_state(held, len(population.dataset.classes))
        notes, counts = population.noted(client, round, before, partial(self.judge.answers, arrays), factor)
        states.put(client, held | as_state(notes))
        return counts


def make_client_app(devices: Callable[[], Devices]) -> ClientApp:
    """The app. `devices` is called when the first message comes, in the process that trains."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return _train(devices(), message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return _evaluate(devices(), message, context)

    @app.evaluate(flower.SHARD)
    def evaluate_shard(message: Message, context: Context) -> Message:
        return _evaluate_shard(devices(), message)

    @app.evaluate(flower.STREAM)
    def evaluate_stream(message: Message, context: Context) -> Message:
        return _evaluate_stream(devices(), message, context)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        """A privacy protocol's conversation; or, without one, which client this node is."""
        if flower.PAYLOAD in message.content:
            return _answer(devices(), message, context)
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
    states, protection = devices.states_of(context), devices.protection
    protection.heed(config)
    received = flower.from_record(flower.arrays_of(message.content)[flower.ARRAYS], devices.population.device)
    round = flower.column(config, "server-round")[0]
    counts: dict[int, dict[str, int]] = {}
    # of a secret draw on a stream, which must not rest on who has data: no failures, they send an update of zeros like any other
    idle: set[int] = set()

    def data_of(client: int) -> ClientData:
        data, counts[client] = devices.learning_data(states, client, round)
        if len(data.x) == 0 and protection.sums and isinstance(devices.population, StreamedPopulation):
            idle.add(client)
        return data

    def counted(update: ClientUpdate) -> ClientUpdate:
        more = counts.get(update.client)
        return update._replace(metrics=update.metrics | more) if more else update

    reply = Reply(fold, protection.sums)
    asked = received, clients, data_of, partial(devices.state_of, states), round
    plain = fold and not (protection.transforms or devices.compression.compresses)
    for update in devices.trainer.train_folded(*asked, reply.weigh) if plain else devices.trainer.train(*asked):
        if isinstance(update, Folded):
            reply.add_folded(update._replace(updates=[*map(counted, update.updates)]))
            for one in update.updates:
                devices.keep(states, one)
            continue
        if isinstance(update, ClientFailure) and (protection.hides_failures or update.client in idle):
            if chunked and update.client not in idle:
                reply.fail(update)  # the simulation's own count; the server is sent an update like any other
            update = ClientUpdate(update.client, received, 1, 0, {}, devices.state_of(states, update.client))
        if isinstance(update, ClientUpdate) and not protection.transforms:  # under a mechanism no number goes beside it
            update = counted(update)
        leaving: ClientUpdate | ClientFailure = update
        if isinstance(update, ClientUpdate) and (protection.transforms or devices.compression.compresses):
            memory = states.memory(update.client)
            leaving = what_leaves(devices, update, received, round, memory, states.get(update.client))
            states.remember(update.client, memory)
        if isinstance(leaving, ClientFailure):
            if not chunked:
                raise FedsimError(leaving.reason)
            reply.fail(leaving)
            continue
        reply.add(leaving)
        devices.keep(states, leaving)
    return Message(reply.content(chunked), reply_to=message)


def what_leaves(
    devices: Devices, update: ClientUpdate, received: Params, round: int, memory: dict[str, Any], held: Params
) -> ClientUpdate | ClientFailure:
    """The update as it comes out of the codec and the mechanism's device half.

    Where a trusted server clips what it decoded, the codec comes first: decoding may lengthen an update. Noise that the device adds
    comes before it. What training does not change is not sent, and a weight that two layers share is sent once. Under a mechanism
    an update is of weight 1 like every other, and no number goes beside it; where updates are summed it is the update itself that
    leaves, else the model that it leads to. held: what the client keeps, a codec's part of it too.
    """
    protection, compression = devices.protection, devices.compression
    names = dict.fromkeys(protection.moving.values())
    moved = {name: update.arrays[name].float() - received[name].float() for name in names}
    length: dict[str, float] = {}
    state = dict(update.state)

    def through(sent: Params) -> Params:
        if not compression.compresses:
            return sent
        kept = {name.removeprefix(CODEC): array for name, array in held.items() if name.startswith(CODEC)}
        message, kept = compression.encode(sent, kept, devices.trainer.seed, round, update.client)
        state.update({f"{CODEC}{name}": array for name, array in kept.items()})
        length[flower.BYTES_UP] = float(len(message))
        found = compression.decode(message, {name: array.shape for name, array in sent.items()})
        return {name: array.to(sent[name].device) for name, array in found.items()}

    try:
        if protection.sums:
            sent = protection.on_device(through(moved), update.client, round, memory)
            return update._replace(arrays=sent, num_examples=1, metrics=length, state=state)
        sent = through(protection.on_device(moved, update.client, round, memory))
    except FedsimError as error:
        return ClientFailure(update.client, str(error))
    own = received if protection.transforms else update.arrays  # buffers, which a mechanism does not let out
    arrays = own | {alias: received[name].float() + sent[name] for alias, name in protection.moving.items()}
    if protection.transforms:
        return update._replace(arrays=arrays, num_examples=1, metrics=length, state=state)
    if compression.compresses:
        buffers = {name: update.arrays[name] for name, _ in devices.trainer.model.named_buffers()}
        length[flower.BYTES_UP] += float(flower.encoded_bytes(flower.to_record(buffers)))
    return update._replace(arrays=arrays, metrics=update.metrics | length, state=state)


def _answer(devices: Devices, message: Message, context: Context) -> Message:
    """Each client's side of a conversation."""
    clients, _, chunked = _addressed(message, context)
    phase, states = str(flower.record_of(message.content, flower.CONFIG)["phase"]), devices.states_of(context)
    said = dict(flower.record_of(message.content, flower.PAYLOAD))
    answers: dict[int, ConfigRecord] = {}
    failures: list[ClientFailure] = []
    for client in clients:
        memory = states.memory(client)
        try:
            answers[client] = ConfigRecord(devices.protection.answer(client, phase, said, memory))
        except FedsimError as error:
            if not chunked:
                raise
            failures.append(ClientFailure(client, str(error)))
        states.remember(client, memory)
    if not chunked:
        return Message(RecordDict({flower.PAYLOAD: answers[clients[0]]}), reply_to=message)
    content = RecordDict({flower.CLIENTS: vectors({client: {} for client in answers}, failures)})
    for client, answer in answers.items():
        content[f"{flower.PAYLOAD}/{client}"] = answer
    return Message(content, reply_to=message)


def _evaluate(devices: Devices, message: Message, context: Context) -> Message:
    clients, _, chunked = _addressed(message, context)
    config = flower.record_of(message.content, flower.CONFIG)
    received = flower.from_record(flower.arrays_of(message.content)[flower.ARRAYS], devices.population.device)
    split, states = str(config.get("split", "holdout")), devices.states_of(context)

    def arrays_of(client: int) -> Params:
        return devices.trainer.client_half.initial(received, devices.state_of(states, client))

    rows, failures = devices.judge.clients(clients, received, arrays_of, split)
    if failures and not chunked:
        raise FedsimError(failures[0].reason)
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


def _evaluate_shard(devices: Devices, message: Message) -> Message:
    """The sums of the central test split's rows from `start` to `stop`: work of the server's that a simulated node does."""
    rows = flower.record_of(message.content, flower.CONFIG)
    received = flower.from_record(flower.arrays_of(message.content)[flower.ARRAYS], devices.population.device)
    tally = devices.judge.shard(received, flower.column(rows, "start")[0], flower.column(rows, "stop")[0])
    metrics = MetricRecord({flower.NUM_EXAMPLES: float(tally.size.sum())})
    return Message(RecordDict({flower.TALLY: tally_record(tally), flower.METRICS: metrics}), reply_to=message)


def _evaluate_stream(devices: Devices, message: Message, context: Context) -> Message:
    """What comes to each client in a round, target by target, under its model before it trains; the client takes notes of it."""
    clients, _, chunked = _addressed(message, context)
    config = flower.record_of(message.content, flower.CONFIG)
    round, predictions = flower.column(config, "server-round")[0], bool(config.get("predictions", False))
    factor = float(config.get(flower.BUDGET, 1.0))  # type: ignore[arg-type]
    received = flower.from_record(flower.arrays_of(message.content)[flower.ARRAYS], devices.population.device)
    judge, states = devices.judge, devices.states_of(context)
    rows: dict[int, dict[str, float]] = {}
    failures: list[ClientFailure] = []
    found: list[Judged] = []
    for client in clients:
        try:
            arrays = devices.trainer.client_half.initial(received, devices.state_of(states, client))
            judged = judge.arriving(client, round, arrays)
            counts = devices.note(states, client, round, arrays, factor)
        except Exception as error:  # what one client's data raise must not silence the others
            if not chunked:
                raise
            failures.append(ClientFailure.of(client, error))
            continue
        found.append(judged)
        rows[client] = {flower.NUM_EXAMPLES: len(judged.losses), **counts}
    empty = Judged(np.empty(0), np.empty(0), np.empty(0, np.int64))
    joined = Judged(*(np.concatenate(column) for column in zip(empty, *found, strict=True)))
    told = {name: torch.from_numpy(column) for name, column in joined._asdict().items()}
    if not predictions:
        del told["predicted"]
    targets = flower.exact_record(told)
    own: dict[str, float] = {} if chunked else rows[clients[0]]
    metrics = MetricRecord({**own, flower.NUM_EXAMPLES: float(len(joined.losses))})
    content = RecordDict({flower.TALLY: targets, flower.METRICS: metrics})
    if chunked:
        content[flower.CLIENTS] = vectors(rows, failures)
    return Message(content, reply_to=message)
