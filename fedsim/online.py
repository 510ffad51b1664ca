"""A run on streams: models are judged on what comes next before they learn from it, watched for drift, and answered for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedsim import flower
from fedsim.nodes import Nodes
from fedsim.rounds import Row
from fedsim.streams.labelled import Labelled
from fedsim.streams.population import COUNTS, StreamedPopulation
from fedsim.streams.prequential import Prequential
from fedsim.streams.responses import Response
from fedsim.streams.watching import Watcher
from fedsim.types import FedsimError, Params


@dataclass
class Online:
    """What a server does of its own on streams, beside its rounds.

    prequential: the figures of test, then train. watcher: raises alarms. response: what follows from one. start: the arrays that
    the run began with. labelled: what is heard of labels. failed: clients that could not judge what came in the newest round.
    """

    population: StreamedPopulation
    prequential: Prequential
    watcher: Watcher
    response: Response
    start: Params
    labelled: Labelled = field(init=False)
    failed: dict[int, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
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
            record, config = flower.to_record(arrays), ConfigRecord(said)  # type: ignore[arg-type]
            content = RecordDict({flower.ARRAYS: record, flower.CONFIG: config})
            messages = [Message(content, node, flower.EVALUATE_STREAM) for node in nodes.of(clients)]
            with interruptible():
                replies = [r for r in grid.send_and_receive(messages, timeout=timeout) if not r.has_error()]
            for reply in replies:
                targets = flower.from_record(flower.arrays_of(reply.content)[flower.TALLY])
                losses.append(targets["losses"].numpy())
                hits.append(targets["hits"].numpy())
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
        return self._take(round, np.array(judged, np.int64), np.array(counts, np.int64), losses, hits)

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
        return {**self.prequential.columns(), "drift": amount, "detected": int(alarm)}

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

    def describe(self, rounds: int) -> dict[str, Any]:
        """What summary.json says of the streams and of the drift that there was."""
        came = self.population.describe(rounds)
        labels = self.labelled.describe(came["examples_arrived"])
        return {**came, **labels, "drift": self.population.drift.truth(rounds)}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "prequential": self.prequential.state(),
            "watcher": self.watcher.state(),
            "response": self.response.state(),
            "labelled": self.labelled.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        self.prequential.load_state(state["prequential"])
        self.watcher.load_state(state["watcher"])
        self.response.load_state(state["response"])
        self.labelled.load_state(state["labelled"])
