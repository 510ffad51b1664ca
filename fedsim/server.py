"""The Flower ServerApp and THE loop: sample, charge, send, aggregate, evaluate, record. The only loop in the project.

The strategy is a Flower Strategy and is used through its own hooks; which clients take part is decided here. Under a privacy
mechanism that sums updates the strategy is shown one reply a round: the noisy mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from fedsim import flower
from fedsim.algorithms import Algorithm
from fedsim.algorithms.state import pack, strategy_state
from fedsim.audit.base import Audit
from fedsim.compression.base import Compression
from fedsim.evaluating import Evaluator
from fedsim.fleet.field import Field
from fedsim.fleet.schedules import Choice, Schedule, Turn
from fedsim.fleet.trips import FAILED, USED
from fedsim.grids.base import SimulationGrid
from fedsim.judging import Judge
from fedsim.merging import as_one_reply, merged
from fedsim.nodes import Cohort, Nodes, converse, node_ids
from fedsim.online import Online
from fedsim.privacy.base import Protection, RoundAborted
from fedsim.rounds import EVALUATION_COLUMNS, EvaluationPlan, Outcome, Row, ServerState, fault
from fedsim.samplers import Sampler, round_half_up
from fedsim.streams.verdict import CONCEPTS
from fedsim.training.arrays import all_finite
from fedsim.types import FedsimError, Params


@dataclass
class Server:
    """The server of one run.

    holders: clients that have held-out data. judge: of the central test split. field: the devices on their clock. schedule: whose
    work counts for a round. compression: of what devices are sent and send. online: of a run whose clients see streams. on_round:
    called after each round, when `state` is whole. interruptible: the parts of a round in which Ctrl-C may break off, which
    change no state.
    """

    algorithm: Algorithm
    sampler: Sampler
    protection: Protection
    audit: Audit
    state: ServerState
    seed: int
    rounds: int
    num_clients: int
    holders: np.ndarray
    plan: EvaluationPlan
    judge: Judge
    field: Field
    schedule: Schedule
    compression: Compression
    online: Online | None = None
    on_round: Callable[[Row], None] = lambda row: None
    interruptible: Callable[[], AbstractContextManager[None]] = nullcontext
    timeout: float = 3600.0

    def run(self, grid: Grid) -> None:
        """Play all rounds that are left."""
        nodes = node_ids(grid, max(self.num_clients, len(self.holders)), self.timeout)
        with flower.cheap_collections():
            while self.state.round < (last := self.last_round):
                self.on_round(self.play_round(grid, nodes, self.state.round + 1, last))

    @property
    def evaluator(self) -> Evaluator:
        """Who judges its models."""
        concept = None if self.online is None or not self.online.drifts else self.online.concept
        return Evaluator(self.algorithm.strategy, self.plan, self.judge, self.holders, self.seed, self.timeout, concept)

    @property
    def last_round(self) -> int:
        """The last round that there will be: the one asked for, or the last that the privacy budget pays for."""
        return self.state.round + self.protection.rounds_left(self.rounds - self.state.round)

    def play_round(self, grid: Grid, nodes: Nodes, round: int, last: int) -> Row:
        """One round of `last`; `state` is the last round's until it is over, and this one's after."""
        start = time.perf_counter()
        seen = self._ahead(grid, nodes, round)
        turn = self.schedule.turn(round, self.field, self._choice(round))
        self.protection.charge(round, turn.cohort)
        if self.online is not None:
            self.online.fetch(round, turn.cohort)
        outcome, arrays = self._learn(grid, nodes, round, turn)
        if self.online is not None:
            arrays = self.online.answered(round, self.state.arrays, arrays)
        row: Row = {"round": round, "cohort_size": len(turn.cohort), "aggregated": int(arrays is not self.state.arrays)}
        row |= outcome.columns(counted=not self.protection.transforms) | dict.fromkeys(EVALUATION_COLUMNS)
        row |= self._field_columns(turn, outcome) | seen
        if self.online is not None:
            row |= self.online.counted(None if self.protection.transforms else outcome.metrics)
            outcome.failed |= self.online.failed
        due = self.plan.due(round, last) or (round < last and not self.protection.rounds_left(last - round))
        row |= self.protection.columns(due)
        row["train_seconds"] = time.perf_counter() - start
        judged = Outcome()
        if due:
            columns, judged = self.evaluator.row(grid, nodes, round, arrays, self._trained(outcome), self.interruptible)
            row |= columns
            outcome.failed |= judged.failed
        row["seconds"] = time.perf_counter() - start
        self._commit(grid, round, arrays, row, outcome, judged.metrics)
        return row

    def _ahead(self, grid: Grid, nodes: Nodes, round: int) -> Row:
        """Test, then train: the columns of what comes in this round under the model that there is before it."""
        if self.online is None:
            return {}
        row = self.online.judge(grid, nodes, round, self.state.arrays, self.timeout, self.interruptible)
        return row | (dict.fromkeys(CONCEPTS) if self.online.drifts else {})

    def _choice(self, round: int) -> Choice:
        """Who may be asked in this round."""
        seed, eligible = self.protection.cohort_seed(self.seed), self.protection.eligible(round)
        clients = np.arange(self.num_clients) if eligible is None else eligible
        if self.online is not None and not self.protection.sums:  # a secret draw must not rest on who has data
            clients = clients[self.online.can_train(round, self.protection.hides_failures)[clients]]
        more = self.schedule.over_selection
        drawn = self.sampler if more == 1 else self.sampler.larger(more, self.num_clients)
        return Choice(
            draw=lambda among: drawn.cohort(seed, round, self.num_clients, among),
            clients=clients,
            blind=self.protection.sums,
            size=max(1, round_half_up(self.sampler.expected_size(self.num_clients))),
            seed=seed,
        )

    def _field_columns(self, turn: Turn, outcome: Outcome) -> Row:
        """What the round cost in the field, and how old the models were whose updates it used."""
        ended, used = turn.ended, turn.used
        ended["outcome"][(ended["outcome"] == USED) & np.isin(ended["client"], list(outcome.failed))] = FAILED
        self.field.record(ended)
        row: Row = dict(self.field.costs(ended, turn.seconds))
        if not self.field.modelled:
            return row | {"num_dropped": None, "mean_staleness": None}
        lost = ended["outcome"] != USED
        row["bytes_down"] = round_half_up(ended["bytes_down"].sum())
        row["bytes_up"] = outcome.bytes_up + round_half_up(ended["bytes_up"][lost].sum())
        # under a mechanism the lengths of messages, which follow clients' data, must not decide who is in time
        if outcome.metrics and self.protection.unit is None:
            self.field.load.bytes_up = outcome.bytes_up / len(outcome.metrics)
        version = self.state.round
        row["num_dropped"] = int(lost.sum())
        row["mean_staleness"] = float(np.mean(version - used["version"])) if len(used) else None
        return row

    def _trained(self, outcome: Outcome) -> np.ndarray | None:
        """Clients that have a model of their own by now; None where all share one."""
        if self.algorithm.shares_model:
            return None
        return np.array(sorted(self.state.participations.keys() | outcome.metrics.keys()), dtype=np.int64)

    def _learn(self, grid: Grid, nodes: Nodes, round: int, turn: Turn) -> tuple[Outcome, Params]:
        """What came back of the cohort, and the server's arrays after it: those before it where nothing could be released."""
        ask = partial(converse, grid, nodes, self.timeout)
        outcome, cohort = Outcome(), turn.cohort
        try:
            self.protection.open_round(round, turn.present, ask)
            outcome = self._train(grid, nodes, round, turn)
            self.protection.close_round(round, np.array(sorted(outcome.metrics), dtype=np.int64), ask)
        except RoundAborted as error:
            outcome.failed |= dict.fromkeys(cohort.tolist(), f"the round was given up: {error}")
            outcome.metrics.clear()
            return outcome, self.state.arrays
        return outcome, self._aggregate(round, outcome)

    def _train(self, grid: Grid, nodes: Nodes, round: int, turn: Turn) -> Outcome:
        """Train the clients whose work the round uses, each from the model that it was sent."""
        sent, length = self._broadcast(round)
        outcome = Outcome(bytes_down=length * turn.asked)
        self.state.versions |= {self.state.round: sent}
        used = turn.used
        outcome.versions = dict(zip(used["client"].tolist(), used["version"].tolist(), strict=True))
        if len(used) == 0 and not self.protection.sums:  # an empty round is a round all the same
            return outcome
        messages = []
        for version in sorted(set(outcome.versions.values())) or [self.state.round]:
            messages += self._messages(grid, nodes, version, used["client"][used["version"] == version])
        outcome.first = messages[0]
        if len(used) == 0:
            return outcome
        asked = {nodes.client(message.metadata.dst_node_id) for message in messages}
        refuse = (
            None if isinstance(grid, SimulationGrid) else self._refusal
        )  # simulated nodes look at their own updates
        with self.interruptible():
            for reply in grid.send_and_receive(messages, timeout=self.timeout):
                outcome.take(reply, nodes.client(reply.metadata.src_node_id), refuse)
        outcome.missing = asked - set(outcome.metrics) - set(outcome.failed)
        # under a mechanism one client's failure must not end the run, which would tell of it: noise alone is released
        if not outcome.replies and not (self.protection.sums and self.state.participations):
            client, reason = next(iter(outcome.failed.items()), (int(used["client"][0]), "it did not answer"))
            raise FedsimError(
                f"all {len(used)} clients of round {round} failed; the first, client {client}, said: {reason}"
            )
        return outcome

    def _broadcast(self, round: int) -> tuple[Params, int]:
        """The model as devices see it, and the bytes of it that each is sent."""
        own, codec = self.state.arrays, self.compression
        if codec.down is None:
            return own, flower.encoded_bytes(flower.to_record(own))
        message = codec.encode_model(own, self.seed, round)
        return codec.decode_model(message, own), len(message)

    def _messages(self, grid: Grid, nodes: Nodes, version: int, clients: np.ndarray) -> list[Message]:
        """The strategy's messages to these clients, with the model that they were sent after round `version`."""
        config = ConfigRecord({"fold": self._fold, "server-round": version + 1, **self.protection.broadcast()})
        # Flower's strategies wait for ever on no one: an empty cohort is shown as one node, which is sent nothing
        view = Cohort(grid, nodes.of(clients) or [0])
        record = flower.to_record(self.state.versions[version])
        messages = list(self.algorithm.strategy.configure_train(version + 1, record, config, view))
        if not messages:
            raise FedsimError(
                f"the strategy's configure_train asked none of the {len(clients)} clients of round {version + 1}; let it send a "
                "message to each that the grid shows (strategy._target_)"
            )
        return messages

    @property
    def _fold(self) -> str:
        """The metric by which updates are weighted as they are summed; "" where they are not."""
        weighted = self.algorithm.linear and not self.protection.sums
        return str(getattr(self.algorithm.strategy, "weighted_by_key", "")) if weighted else ""

    def _scale(self, version: int) -> float:
        """By which updates of that version's model count now."""
        return self.schedule.weight(self.state.round - version)

    def _refusal(self, reply: Message) -> str | None:
        """What is wrong with a real node's reply; None where nothing is."""
        if reason := fault(reply, self.sent()):
            return reason
        (record,) = flower.arrays_of(reply.content).values()
        return self.protection.refusal(flower.from_record(record))

    def sent(self) -> Params:
        """Arrays in the shapes and types of what one client sends."""
        names = self.protection.moving.values() if self.protection.sums else self.state.arrays
        return self.protection.sent({name: self.state.arrays[name] for name in names})

    def _released(self, round: int, outcome: Outcome) -> Message:
        """The round as one reply: the server's arrays moved by the mean update that the mechanism lets out."""
        mean = self._audited(outcome.total(self.sent(), self._scale), round)
        own = self.state.arrays
        moved = {alias: own[name].double() + mean[name].double() for alias, name in self.protection.moving.items()}
        assert outcome.first is not None
        return as_one_reply(own, moved, outcome.first, flower.NUM_EXAMPLES)

    def _merged(self, outcome: Outcome) -> Message:
        """The round as one reply, where devices did not all begin at the server's own arrays."""
        own, replies = self.state.arrays, zip(outcome.replies, outcome.starts, strict=True)

        def bases(version: int) -> Params:
            return own if self.schedule.mixes_models else self.state.versions[version]

        assert outcome.first is not None
        return as_one_reply(own, merged(own, replies, bases, self._scale, self._fold), outcome.first, self._fold)

    def _audited(self, total: Params, round: int) -> Params:
        """The mechanism's release, with the audit's canaries in the sum, where there are any, and its eyes on the result."""
        known = {name: array.clone() for name, array in total.items()}
        for update in self.audit.join(round):
            for name, array in self.protection.canary(update, round).items():
                total[name] += array
        mean = self.protection.release(total, round)
        denominator = self.protection.denominator
        if known.keys() >= mean.keys():  # a masked sum says nothing before its server half
            self.audit.observe(round, {name: array * denominator - known[name] for name, array in mean.items()})
        return mean

    def _aggregate(self, round: int, outcome: Outcome) -> Params:
        if self.protection.sums:
            outcome.replies = [self._released(round, outcome)]
        elif len(outcome.metrics) < self.algorithm.min_cohort:
            return self.state.arrays
        elif self.schedule.mixes or self.compression.down is not None:
            outcome.replies = [self._merged(outcome)]
        record, _ = self.algorithm.strategy.aggregate_train(round, outcome.replies)
        if record is None:
            return self.state.arrays
        given = flower.from_record(record)
        if {name: a.numel() for name, a in given.items()} != {n: a.numel() for n, a in self.state.arrays.items()}:
            raise FedsimError(
                "the strategy's aggregate_train gave other arrays than the model's; "
                "return every array that it was given, in its shape (strategy._target_)"
            )
        arrays = {name: _as(given[name], own) for name, own in self.state.arrays.items()}
        if not all_finite(arrays.values()):
            raise FedsimError(
                f"round {round} gave a model with NaN or Inf, which is refused; lower client.lr or the strategy's step size"
            )
        return arrays

    def _commit(
        self,
        grid: Grid,
        round: int,
        arrays: Params,
        row: Row,
        outcome: Outcome,
        client_metrics: dict[int, dict[str, float]],
    ) -> None:
        state = self.state
        state.arrays, state.round = arrays, round
        state.rows.append(row)
        state.participations.update(list(outcome.metrics))
        state.failures.update([*outcome.failed, *outcome.missing])
        if state.first_failure is None and outcome.failed:
            client, reason = next(iter(outcome.failed.items()))
            who = "a client" if self.protection.transforms else f"client {client}"  # who took part is not to be told
            state.first_failure = f"{who} in round {round}: {reason}"
        state.client_metrics.update(client_metrics)
        state.strategy = strategy_state(self.algorithm.strategy)
        state.versions = {version: state.versions[version] for version in sorted(self.schedule.out())}
        state.privacy = pack("privacy", self._remembered())
        if isinstance(grid, SimulationGrid):
            grid.states.commit()

    def _remembered(self) -> dict[str, Any]:
        """What the parts beside the strategy keep for the rounds to come."""
        return {
            "protection": self.protection.state(),
            "audit": self.audit.state(),
            "field": self.field.state(),
            "schedule": self.schedule.state(),
            "online": {} if self.online is None else self.online.state(),
        }

    def remember(self, remembered: dict[str, Any]) -> None:
        """Put back what a checkpoint kept of them."""
        self.protection.load_state(remembered["protection"])
        self.audit.load_state(remembered["audit"])
        self.field.load_state(remembered["field"])
        self.schedule.load_state(remembered["schedule"])
        if self.online is not None:
            self.online.load_state(remembered["online"])


def make_server_app(server: Server) -> ServerApp:
    """The app that plays the server's rounds on whatever grid it is given."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        server.run(grid)

    return app


def _as(given: Tensor, own: Tensor) -> Tensor:
    """In the model's own type and shape. Whole numbers are rounded: a mean of equal ones may be a hair below them."""
    return (given if own.dtype.is_floating_point else given.round()).to(own.dtype).reshape(own.shape)
