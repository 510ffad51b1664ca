"""A run on streams: models are judged on what comes next before they learn from it, watched for drift, and answered for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedsim import flower
from fedsim.comparators import Comparators
from fedsim.data_drift import DataDrift
from fedsim.grids.base import SimulationGrid
from fedsim.nodes import Nodes
from fedsim.rounds import Row
from fedsim.streams.labelled import Labelled
from fedsim.streams.population import COUNTS, StreamedPopulation
from fedsim.streams.prequential import Prequential
from fedsim.streams.responses import Response
from fedsim.streams.verdict import verdict
from fedsim.streams.watching import Watcher
from fedsim.training.evaluation import across_clients
from fedsim.types import FedsimError, Params


@dataclass
class Online:
    """What a server does of its own on streams, beside its rounds.

    prequential: the figures of test, then train. watcher: raises alarms. response: what follows from one. start: the arrays that
    the run began with. comparators: what its losses are held against. data_drift: how far data moved. fetched:
    (clients,) in how many rounds something came to each that did not train, and so needed the model for predictions alone.
    labelled: what is heard of labels. failed: clients that could not judge what came in the newest round.
    """

    population: StreamedPopulation
    prequential: Prequential
    watcher: Watcher
    response: Response
    start: Params
    comparators: Comparators | None = None
    data_drift: DataDrift | None = None
    fetched: np.ndarray = field(init=False)
    labelled: Labelled = field(init=False)
    failed: dict[int, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.fetched = np.zeros(self.population.num_clients, np.int64)
        self.labelled = Labelled(self.population)

    def judge(
        self,
        grid: Grid,
        nodes: Nodes,
        round: int,
        arrays: Params,
        timeout: float,
        interruptible: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Row:
        """Judge `arrays`, the model before this round, on all that comes in it; the round's columns."""
        clients, self.failed = np.flatnonzero(self.population.arrived(round)), {}
        losses, hits = [np.empty(0)], [np.empty(0)]
        judged: list[int] = []
        counts: list[int] = []
        labels: dict[str, list[float]] = {name: [] for name in COUNTS}
        if len(clients):
            said = {"server-round": round, flower.BUDGET: self.response.budget(round)}
            said["predictions"] = self.data_drift is not None
            record, config = flower.to_record(arrays), ConfigRecord(said)  # type: ignore[arg-type]
            content = RecordDict({flower.ARRAYS: record, flower.CONFIG: config})
            messages = [Message(content, node, flower.EVALUATE_STREAM) for node in nodes.of(clients)]
            with interruptible():
                replies = [r for r in grid.send_and_receive(messages, timeout=timeout) if not r.has_error()]
            for reply in replies:
                targets = flower.from_record(flower.arrays_of(reply.content)[flower.TALLY])
                losses.append(targets["losses"].numpy())
                hits.append(targets["hits"].numpy())
                if self.data_drift is not None:
                    self.data_drift.take(round, targets["predicted"].numpy())
                of = flower.record_of(reply.content, flower.CLIENTS)
                chunked, own = "id" in of, reply.content[flower.METRICS]
                judged += flower.column(of, "id") if chunked else [nodes.client(reply.metadata.src_node_id)]
                counts += flower.column(of, flower.NUM_EXAMPLES) if chunked else [len(losses[-1])]
                for name, so_far in labels.items():
                    so_far += flower.column(of, name) if chunked else [float(own.get(name, 0))]  # type: ignore[arg-type]
                self.failed |= dict(zip(flower.column(of, "failed"), flower.column(of, "reasons"), strict=True))
        if self.failed and not judged:
            client, reason = next(iter(self.failed.items()))
            raise FedsimError(
                f"all clients to whom anything came in round {round} failed; the first, client {client}, said: {reason}"
            )
        self.labelled.hear(judged, labels)
        row = self._take(round, np.array(judged, np.int64), np.array(counts, np.int64), losses, hits)
        return row | self._compared(grid, round, np.array(judged, np.int64), row, interruptible)

    def _compared(
        self,
        grid: Grid,
        round: int,
        clients: np.ndarray,
        row: Row,
        interruptible: Callable[[], AbstractContextManager[None]],
    ) -> Row:
        """The columns of what the model is held against; none where nothing is."""
        if self.comparators is None:
            return {}
        if not isinstance(grid, SimulationGrid):
            raise FedsimError(
                "evaluation.regret trains on all clients' data in one place, which a simulation alone has; set evaluation.regret=[]"
            )
        played = row["round_loss"] * row["arrived"] if row["arrived"] else None
        return self.comparators.row(round, clients, played, interruptible)

    def fetch(self, round: int, sent: np.ndarray) -> None:
        """Count who needs the model of a round, to predict what comes, and is not among those that it is sent to (k,)."""
        needs = self.population.arrived(round) > 0
        needs[sent] = False
        self.fetched += needs

    def in_hindsight(self, rows: Sequence[Row], last: Params) -> None:
        """Fill in what is only known at the end, in the rows of all rounds. last: the arrays after them."""
        if self.comparators is not None:
            self.comparators.in_hindsight(rows, last)

    def _take(
        self, round: int, clients: np.ndarray, counts: np.ndarray, losses: list[np.ndarray], hits: list[np.ndarray]
    ) -> Row:
        loss, hit = np.concatenate(losses), np.concatenate(hits)
        regression = bool(np.isnan(hit).any())
        self.prequential.update(clients, counts, loss, None if regression else hit)
        values = loss if regression or self.watcher.watch.watch == "losses" else 1.0 - hit
        alarm = self.watcher.update(round, clients, counts, values)
        self.response.hear(round, alarm)
        everyone = np.arange(self.population.num_clients)
        amount = float(self.population.drift.amount(everyone, round).mean()) if self.population.drift.drifts else 0.0
        concept = {"concept": self.concept(round)} if self.drifts else {}
        return {**self.prequential.columns(), "drift": amount, **concept, "detected": int(alarm)}

    def can_train(self, round: int, hidden: bool = False) -> np.ndarray:
        """(num_clients,) bool: who has anything to train on in this round, which was judged already. hidden: see Labelled."""
        return self.labelled.can_train(round, hidden)

    def counted(self, trained: Mapping[int, Mapping[str, float]] | None) -> Row:
        """The columns of a round that tell of labels. trained: what clients sent beside their updates, if they may."""
        return dict(self.labelled.columns(trained))

    @property
    def drifts(self) -> bool:
        """Whether there is more than one concept to judge a model in."""
        return self.population.drift.drifts

    def concept(self, round: int) -> float:
        """How far most clients are in the new concept, as one of the drift's amounts."""
        drift = self.population.drift
        amount = float(np.median(drift.amount(np.arange(self.population.num_clients), round)))
        return min(drift.concepts, key=lambda concept: abs(concept - amount))

    def answered(self, round: int, before: Params, after: Params) -> Params:
        """The arrays after this round, as the response to an alarm has them."""
        return self.response.arrays(round, self.start, before, after)

    def describe(self, rows: Sequence[Row]) -> dict[str, Any]:
        """What summary.json says of the streams and of the drift that there was, and what the rows of all rounds say of it."""
        rounds, truth = len(rows), self.population.drift.truth(len(rows))
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: np.array([row.get(name) for row in rows], dtype=np.float64) for name in names}
        found = verdict(columns, truth)
        noticed = [delay for delay in found.delays if delay is not None]
        watched = self.watcher.watch.kind != "none"
        came = self.population.describe(rounds)
        return {
            **came,
            **self.labelled.describe(came["examples_arrived"]),
            "drift": truth,
            "recovery_rounds": found.recovery_rounds(rounds),
            "drifts_unrecovered": sum(one.rounds is None for one in found.recoveries),
            "detection_delay": float(np.mean(noticed)) if noticed else None,
            "drifts_missed": len(found.drifts) - len(noticed) if watched else None,
            "false_alarms": found.false_alarms if watched else None,
            "forgetting": found.forgetting,
            **_regrets(rows),
            "best_fixed": None if self.comparators is None else self.comparators.best,
            "offline_accuracy": None if self.comparators is None else self.comparators.offline_accuracy,
            "clients_worst10": self._worst_tenth(),
        }

    def _worst_tenth(self) -> float | None:
        """Mean of the lowest tenth of the clients' own prequential accuracies; None where there are none."""
        accuracy = self.prequential.client_columns()["prequential_accuracy"]
        known = accuracy[~np.isnan(accuracy)]
        return across_clients(known.tolist())["worst10"] if len(known) else None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "prequential": self.prequential.state(),
            "watcher": self.watcher.state(),
            "response": self.response.state(),
            "fetched": self.fetched.copy(),
            "comparators": {} if self.comparators is None else self.comparators.state(),
            "data_drift": {} if self.data_drift is None else self.data_drift.state(),
            "labelled": self.labelled.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        self.prequential.load_state(state["prequential"])
        self.watcher.load_state(state["watcher"])
        self.response.load_state(state["response"])
        self.labelled.load_state(state["labelled"])
        self.fetched = np.array(state["fetched"], np.int64)
        if self.comparators is not None:
            self.comparators.load_state(state["comparators"])
        if self.data_drift is not None:
            self.data_drift.load_state(state["data_drift"])


def _regrets(rows: Sequence[Row]) -> dict[str, float | None]:
    """The last regrets, null without, and those for each target that was judged."""
    judged = sum(row["arrived"] for row in rows)
    found: dict[str, float | None] = {}
    for name in ("regret_fixed", "regret_offline"):
        total = rows[-1].get(name)
        found |= {name: total, f"{name}_each": total / judged if judged and total is not None else None}
    return found


CLIENT_COLUMNS = ("judged", "prequential_accuracy", "prequential_loss", "cumulative_accuracy", "cumulative_loss")
"""Columns of clients.parquet that streams fill in."""


def client_columns(online: Online | None, clients: int) -> dict[str, Any]:
    """Those columns, (clients,) each: null where nothing of a client's was judged, or where no data come as streams."""
    import pyarrow as pa

    found = {} if online is None else online.prequential.client_columns()
    columns = {}
    for name in CLIENT_COLUMNS:
        values = np.full(clients, np.nan)
        if found:
            values[found["client"]] = found[name]
        kind = pa.int64() if name == "judged" else pa.float64()
        columns[name] = pa.array(values, mask=~np.isfinite(values)).cast(kind)
    return columns
