"""How a round's model is judged: on the central test split, and on the clients' held-out data, by the nodes of the grid."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedsim import flower, rng
from fedsim.grids.base import SimulationGrid
from fedsim.judging import Judge, tally_from
from fedsim.nodes import Cohort, Nodes
from fedsim.rounds import EvaluationPlan, Outcome, Row
from fedsim.streams.verdict import CONCEPTS
from fedsim.training.evaluation import across_clients, finite_or_none, join, metrics_of_tally
from fedsim.types import Params


@dataclass
class Evaluator:
    """Judges models by `plan`.

    judge: of the central test split. holders: clients that have held-out data. seed: the run's. concept: of a round, how far data
    have drifted by then; None where they do not. The test split is then that of the concept that holds, and the accuracies
    in both are told beside it: what was forgotten of them.
    """

    strategy: Strategy
    plan: EvaluationPlan
    judge: Judge
    holders: np.ndarray
    seed: int
    timeout: float
    concept: Callable[[int], float] | None = None

    def row(
        self,
        grid: Grid,
        nodes: Nodes,
        round: int,
        arrays: Params,
        trained: np.ndarray | None,
        interruptible: Callable[[], AbstractContextManager[None]],
    ) -> tuple[Row, Outcome]:
        """The columns of a round that is evaluated, and what clients said of their held-out data.

        trained: clients that have a model of their own by now; None where all share `arrays`.
        """
        asked = _Asked(self, grid, nodes, round, arrays, interruptible)
        central, judged = Outcome(), Outcome()
        row = asked.central(trained, central) | asked.federated(trained, judged)
        judged.failed |= central.failed
        return row, judged

    def on_test_split(
        self, grid: Grid, arrays: Params, interruptible: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> Row:
        """These arrays' metrics on the test split, by a simulated grid's nodes in shards of it; the same bits in any number."""
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
        with interruptible():
            answers = grid.send_and_receive(messages, timeout=self.timeout)
            replies = [reply for reply in answers if not reply.has_error()]
        done = {r.metadata.src_node_id: tally_from(flower.arrays_of(r.content)[flower.TALLY]) for r in replies}
        # what a node could not do is done here: it succeeds, or raises what is wrong
        tallies = [done.get(number) or self.judge.shard(arrays, *rows) for number, rows in enumerate(shards)]
        return metrics_of_tally(join(tallies))

    def choose(self, clients: np.ndarray, number: int | None, round: int) -> np.ndarray:
        """So many of the clients (n,) by chance, ascending; all where there are no more (None: all)."""
        if number is None or number >= len(clients):
            return clients
        draw = rng.numpy_generator(self.seed, round, rng.SERVER, "evaluation")
        return np.sort(draw.choice(clients, size=number, replace=False))


@dataclass
class _Asked:
    """One evaluation."""

    evaluator: Evaluator
    grid: Grid
    nodes: Nodes
    round: int
    arrays: Params
    interruptible: Callable[[], AbstractContextManager[None]]

    def central(self, trained: np.ndarray | None, judged: Outcome) -> Row:
        """On the test split: of the shared model, or the mean over some clients' own."""
        if trained is None and self.evaluator.concept is not None:
            return self._in_concepts(self.evaluator.concept(self.round))
        if trained is None:
            return self.evaluator.on_test_split(self.grid, self.arrays, self.interruptible)
        self._ask(self.evaluator.choose(trained, self.evaluator.plan.local_models, self.round), "test", judged)
        return {name: _mean(judged.metrics, name) for name in ("accuracy", "loss")}

    def _in_concepts(self, amount: float) -> Row:
        judge = self.evaluator.judge
        found = {concept: judge.in_concept(self.arrays, concept) for concept in (0.0, 1.0)}
        accuracies = (found[concept]["accuracy"] for concept in found)
        return {**found[amount], **dict(zip(CONCEPTS, accuracies, strict=True))}

    def federated(self, trained: np.ndarray | None, judged: Outcome) -> Row:
        """On the clients' held-out data."""
        holders, plan = self.evaluator.holders, self.evaluator.plan
        holders = holders if trained is None else np.intersect1d(holders, trained)
        self._ask(self.evaluator.choose(holders, plan.clients, self.round), "holdout", judged)
        found = judged.metrics
        row: Row = {"federated_loss": _mean(found, "loss"), "federated_clients": len(found)}
        if accuracies := [metrics["accuracy"] for metrics in found.values() if "accuracy" in metrics]:
            spread = across_clients(accuracies)
            row["federated_accuracy"] = spread.pop("mean")
            row |= {f"federated_accuracy_{name}": value for name, value in spread.items()}
        return row

    def _ask(self, clients: np.ndarray, split: str, judged: Outcome) -> None:
        """Gather clients' metrics on their held-out data or on the central test set."""
        if len(clients) == 0:
            return
        strategy = self.evaluator.strategy
        record, config = flower.to_record(self.arrays), ConfigRecord({"split": split, "server-round": self.round})
        view = Cohort(self.grid, self.nodes.of(clients))
        messages = strategy.configure_evaluate(self.round, record, config, view)
        with self.interruptible():
            for reply in self.grid.send_and_receive(list(messages), timeout=self.evaluator.timeout):
                judged.take(reply, self.nodes.client(reply.metadata.src_node_id))
        if judged.replies:
            strategy.aggregate_evaluate(self.round, judged.replies)


def _mean(found: dict[int, dict[str, float]], name: str) -> float | None:
    values = [metrics[name] for metrics in found.values() if name in metrics]
    return finite_or_none(float(np.mean(values))) if values else None
