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

import numpy as np
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from fedsim import flower, rng
from fedsim.algorithms import Algorithm
from fedsim.algorithms.state import pack, strategy_state
from fedsim.audit.base import Audit
from fedsim.grids.base import SimulationGrid
from fedsim.judging import Judge, tally_from
from fedsim.nodes import Cohort, Nodes, converse, node_ids
from fedsim.privacy.base import Protection, RoundAborted
from fedsim.rounds import EVALUATION_COLUMNS, EvaluationPlan, Outcome, Row, ServerState, fault
from fedsim.samplers import Sampler
from fedsim.training.arrays import all_finite
from fedsim.training.evaluation import across_clients, finite_or_none, join, metrics_of_tally
from fedsim.types import FedsimError, Params


@dataclass
class Server:
    """The server of one run.

    holders: clients that have held-out data. judge: of the central test split. on_round: called after each round,
    when `state` is whole. interruptible: the parts of a round in which Ctrl-C may break off; they change no state.
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
    def last_round(self) -> int:
        """The last round that there will be: the one asked for, or the last that the privacy budget pays for."""
        return self.state.round + self.protection.rounds_left(self.rounds - self.state.round)

    def play_round(self, grid: Grid, nodes: Nodes, round: int, last: int) -> Row:
        """One round of `last`; `state` is the last round's until it is over, and this one's after."""
        start = time.perf_counter()
        seed, eligible = self.protection.cohort_seed(self.seed), self.protection.eligible(round)
        cohort = self.sampler.cohort(seed, round, self.num_clients, eligible)
        self.protection.charge(round, cohort)
        outcome, arrays = self._learn(grid, nodes, round, cohort)
        row: Row = {"round": round, "cohort_size": len(cohort), "aggregated": int(arrays is not self.state.arrays)}
        row |= outcome.columns(counted=not self.protection.transforms) | dict.fromkeys(EVALUATION_COLUMNS)
        due = self.plan.due(round, last) or (round < last and not self.protection.rounds_left(last - round))
        row |= self.protection.columns(due)
        row["train_seconds"] = time.perf_counter() - start
        judged = Outcome()
        if due:
            central, trained = Outcome(), self._trained(outcome)
            row |= self._central(grid, nodes, round, arrays, trained, central)
            row |= self._federated(grid, nodes, round, arrays, trained, judged)
            outcome.failed |= central.failed | judged.failed
        row["seconds"] = time.perf_counter() - start
        self._commit(grid, round, arrays, row, outcome, judged.metrics)
        return row

    def _trained(self, outcome: Outcome) -> np.ndarray | None:
        """Clients that have a model of their own by now; None where all share one."""
        if self.algorithm.shares_model:
            return None
        return np.array(sorted(self.state.participations.keys() | outcome.metrics.keys()), dtype=np.int64)

    def _learn(self, grid: Grid, nodes: Nodes, round: int, cohort: np.ndarray) -> tuple[Outcome, Params]:
        """What came back of the cohort, and the server's arrays after it: those before it where nothing could be released."""
        ask = partial(converse, grid, nodes, self.timeout)
        outcome = Outcome()
        try:
            self.protection.open_round(round, cohort, ask)
            outcome = self._train(grid, nodes, round, cohort)
            self.protection.close_round(round, np.array(sorted(outcome.metrics), dtype=np.int64), ask)
        except RoundAborted as error:
            outcome.failed |= dict.fromkeys(cohort.tolist(), f"the round was given up: {error}")
            outcome.metrics.clear()
            return outcome, self.state.arrays
        return outcome, self._aggregate(round, outcome)

    def _train(self, grid: Grid, nodes: Nodes, round: int, cohort: np.ndarray) -> Outcome:
        record = flower.to_record(self.state.arrays)
        outcome = Outcome(bytes_down=flower.encoded_bytes(record) * len(cohort))
        if len(cohort) == 0 and not self.protection.sums:  # an empty round is a round all the same
            return outcome
        weighted = self.algorithm.linear and not self.protection.sums
        fold = getattr(self.algorithm.strategy, "weighted_by_key", "") if weighted else ""
        config = ConfigRecord({"fold": fold, "server-round": round, **self.protection.broadcast()})
        # Flower's strategies wait for ever on no one: an empty cohort is shown as one node, which is sent nothing
        view = Cohort(grid, nodes.of(cohort) or [0])
        messages = list(self.algorithm.strategy.configure_train(round, record, config, view))
        if not messages:
            raise FedsimError(
                f"the strategy's configure_train asked none of the {len(cohort)} clients of round {round}; let it send a message "
                "to each that the grid shows (strategy._target_)"
            )
        outcome.first = messages[0]
        if len(cohort) == 0:
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
            client, reason = next(iter(outcome.failed.items()), (int(cohort[0]), "it did not answer"))
            raise FedsimError(
                f"all {len(cohort)} clients of round {round} failed; the first, client {client}, said: {reason}"
            )
        return outcome

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
        mean = self._audited(outcome.total(self.sent()), round)
        own = self.state.arrays
        moved = {
            alias: (own[name].double() + mean[name].double()).to(flower.travels_as(own[name].dtype))
            for alias, name in self.protection.moving.items()
        }
        record = flower.to_record(own | moved)
        content = RecordDict({flower.ARRAYS: record, flower.METRICS: MetricRecord({flower.NUM_EXAMPLES: 1.0})})
        assert outcome.first is not None
        return Message(content, reply_to=outcome.first)

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

    def _central(
        self, grid: Grid, nodes: Nodes, round: int, arrays: Params, trained: np.ndarray | None, judged: Outcome
    ) -> Row:
        if trained is None:
            return self._on_test_split(grid, arrays)
        chosen = self._choose(trained, self.plan.local_models, round)
        self._ask(grid, nodes, round, arrays, chosen, "test", judged)
        return {name: _mean(judged.metrics, name) for name in ("accuracy", "loss")}

    def _on_test_split(self, grid: Grid, arrays: Params) -> Row:
        """Metrics on the central test split, by the nodes of a simulated grid in shards of it; the same bits in any number."""
        if not isinstance(grid, SimulationGrid):
            return self.judge.central(arrays)
        record, shards = flower.to_record(arrays), self.judge.shards(grid.shards)
        messages = [
            Message(
                RecordDict({flower.ARRAYS: record, flower.CONFIG: ConfigRecord({"start": start, "stop": stop})}),
                number,
                flower.EVALUATE_SHARD,
            )
            for number, (start, stop) in enumerate(shards)
        ]
        with self.interruptible():
            replies = [
                reply for reply in grid.send_and_receive(messages, timeout=self.timeout) if not reply.has_error()
            ]
        done = {r.metadata.src_node_id: tally_from(flower.arrays_of(r.content)[flower.TALLY]) for r in replies}
        # what a node could not do is done here: it succeeds, or raises what is wrong
        tallies = [done.get(number) or self.judge.shard(arrays, *rows) for number, rows in enumerate(shards)]
        return metrics_of_tally(join(tallies))

    def _federated(
        self, grid: Grid, nodes: Nodes, round: int, arrays: Params, trained: np.ndarray | None, judged: Outcome
    ) -> Row:
        holders = self.holders if trained is None else np.intersect1d(self.holders, trained)
        self._ask(grid, nodes, round, arrays, self._choose(holders, self.plan.clients, round), "holdout", judged)
        found = judged.metrics
        row: Row = {"federated_loss": _mean(found, "loss"), "federated_clients": len(found)}
        if accuracies := [metrics["accuracy"] for metrics in found.values() if "accuracy" in metrics]:
            spread = across_clients(accuracies)
            row["federated_accuracy"] = spread.pop("mean")
            row |= {f"federated_accuracy_{name}": value for name, value in spread.items()}
        return row

    def _choose(self, clients: np.ndarray, number: int | None, round: int) -> np.ndarray:
        if number is None or number >= len(clients):
            return clients
        draw = rng.numpy_generator(self.seed, round, rng.SERVER, "evaluation")
        return np.sort(draw.choice(clients, size=number, replace=False))

    def _ask(
        self, grid: Grid, nodes: Nodes, round: int, arrays: Params, clients: np.ndarray, split: str, judged: Outcome
    ) -> None:
        """Gather clients' metrics on their held-out data or on the central test set."""
        if len(clients) == 0:
            return
        record, config = flower.to_record(arrays), ConfigRecord({"split": split, "server-round": round})
        view = Cohort(grid, nodes.of(clients))
        messages = self.algorithm.strategy.configure_evaluate(round, record, config, view)
        with self.interruptible():
            for reply in grid.send_and_receive(list(messages), timeout=self.timeout):
                judged.take(reply, nodes.client(reply.metadata.src_node_id))
        if judged.replies:
            self.algorithm.strategy.aggregate_evaluate(round, judged.replies)

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
        state.privacy = pack("privacy", {"protection": self.protection.state(), "audit": self.audit.state()})
        if isinstance(grid, SimulationGrid):
            grid.states.commit()


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


def _as(given: Tensor, own: Tensor) -> Tensor:
    """In the model's own type and shape. Whole numbers are rounded: a mean of equal ones may be a hair below them."""
    return (given if own.dtype.is_floating_point else given.round()).to(own.dtype).reshape(own.shape)
