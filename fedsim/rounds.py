"""What a round is made of: the state before and after it, what came back of it, and when it is judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Message, MetricRecord

from fedsim import flower
from fedsim.algorithms.state import State as StrategyState
from fedsim.checks import require_choice, require_int, require_number
from fedsim.training.arrays import all_finite
from fedsim.training.evaluation import finite_or_none
from fedsim.types import Params

Row = dict[str, Any]
"""A row of rounds.parquet."""

EVALUATION_COLUMNS = (
    *("accuracy", "loss", "macro_f1", "ece"),
    *("federated_accuracy", "federated_accuracy_std", "federated_accuracy_worst10", "federated_accuracy_best10"),
    *("federated_loss", "federated_clients"),
)

COMPARED = ("fixed", "offline")
"""What the losses on a stream may be held against, see `fedsim.comparators`."""


@dataclass
class ServerState:
    """All that changes as a run goes on. With the strategy's and the clients' state it is what a checkpoint holds.

    round: the last one that is finished. client_metrics: each client's newest held-out accuracy and loss, by client.
    strategy, privacy: what the strategy remembered at the end of that round, and the privacy mechanism, the audit, the devices and
    their schedule. versions: earlier models, as they were sent, that devices may still be at work on, by the number of the round.
    """

    arrays: Params
    round: int = 0
    rows: list[Row] = field(default_factory=list)
    participations: Counter[int] = field(default_factory=Counter)
    failures: Counter[int] = field(default_factory=Counter)
    first_failure: str | None = None
    client_metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    strategy: StrategyState = field(default_factory=dict)
    privacy: list[Any] = field(default_factory=lambda: ["dict", {}])
    versions: dict[int, Params] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationPlan:
    """The keys of `evaluation.*`: every so many rounds (and after the last), of so many clients (None: of all).

    batch_size: examples a forward pass; None: as many as suit the device. local_models: of how many clients' own models the
    central test accuracy is the mean, where no model is shared. target: an accuracy; the summary says what it took to get there.
    fading, window: of the prequential figures of streams, see `fedsim.streams.prequential`. regret, regret_*: what a stream's
    losses are held against, see `fedsim.comparators`. data_drift: rounds of a window of the data-drift report, see
    `fedsim.data_drift`; None: there is none.
    """

    every: int = 1
    clients: int | None = None
    batch_size: int | None = None
    local_models: int = 20
    target: float | None = None
    fading: float = 0.99
    window: int = 1000
    regret: Sequence[str] = ()
    regret_every: int = 10
    regret_epochs: int = 5
    regret_lr: float = 0.05
    regret_batch_size: int = 32
    data_drift: int | None = None

    def __post_init__(self) -> None:
        require_int("evaluation.every", self.every, low=1)
        if self.batch_size is not None:
            require_int("evaluation.batch_size", self.batch_size, low=1)
        require_int("evaluation.local_models", self.local_models, low=1)
        if self.clients is not None:
            require_int("evaluation.clients", self.clients, low=0)
        if self.target is not None:
            require_number("evaluation.target", self.target, above=0, high=1)
        for one in self.regret:
            require_choice("evaluation.regret", one, COMPARED)
        for key in ("regret_every", "regret_epochs", "regret_batch_size"):
            require_int(f"evaluation.{key}", getattr(self, key), low=1)
        require_number("evaluation.regret_lr", self.regret_lr, above=0)
        if self.data_drift is not None:
            require_int("evaluation.data_drift", self.data_drift, low=1)

    def batch_on(self, device: torch.device) -> int:
        """Examples a forward pass: on a CPU few enough for a layer's outputs to be reused from the heap."""
        return self.batch_size or (128 if device.type == "cpu" else 1024)

    def due(self, round: int, rounds: int) -> bool:
        """Whether this round is evaluated."""
        return round == rounds or round % self.every == 0


@dataclass
class Outcome:
    """What came back of a round. A folded reply speaks for many clients, so metrics are kept client by client.

    first: the first message that was sent, which a reply made here can answer. versions: by client, of the model that it was sent;
    starts: by reply.
    """

    bytes_down: int = 0
    bytes_up: int = 0
    replies: list[Message] = field(default_factory=list)
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    missing: set[int] = field(default_factory=set)
    first: Message | None = None
    versions: dict[int, int] = field(default_factory=dict)
    starts: list[int] = field(default_factory=list)

    def take(self, reply: Message, client: int, refuse: Callable[[Message], str | None] | None = None) -> None:
        """Sort a reply; `client` is its sender. One from a real node that `refuse` finds fault with counts as a failure."""
        if reply.has_error():
            self.failed[client] = reply.error.reason or "no reason given"
            return
        # only a simulated node speaks for many clients; what a real one says of others is not heard
        record = flower.record_of(reply.content, flower.CLIENTS) if refuse is None else ConfigRecord()
        if refuse is not None and (reason := refuse(reply)):
            self.failed[client] = reason
            return
        own = next(record for record in reply.content.values() if isinstance(record, MetricRecord))
        ids = flower.column(record, "id") or [client]
        names = [name for name in record if name not in ("id", "failed", "reasons", flower.BYTES_UP)] or list(own)
        for position, one in enumerate(ids):
            self.metrics[int(one)] = {n: float(record[n][position] if record else own[n]) for n in names}  # type: ignore
        if flower.BYTES_UP in record:
            self.bytes_up += int(sum(flower.column(record, flower.BYTES_UP)))
        else:
            for arrays in flower.arrays_of(reply.content).values():
                self.bytes_up += flower.encoded_bytes(arrays) * len(ids)
        self.replies.append(reply)
        self.starts.append(self.versions.get(int(ids[0]), 0))

    def total(self, like: Params, scale: Callable[[int], float] = lambda version: 1.0) -> Params:
        """The sum of what was sent, where each reply is a sum already; zeros in the shapes of `like` where none came.

        scale: by which the updates of a version's model count, at most 1.
        """
        total = {name: torch.zeros_like(array) for name, array in like.items()}
        for reply, version in zip(self.replies, self.starts, strict=True):
            (record,), factor = flower.arrays_of(reply.content).values(), scale(version)
            for name, array in flower.from_record(record).items():
                total[name] += array if factor == 1 else array * factor
        return total

    def columns(self, counted: bool = True) -> Row:
        """The training columns of a row. counted: False where clients do not say how many examples they hold."""
        weights = [metrics[flower.NUM_EXAMPLES] for metrics in self.metrics.values()]
        losses = [metrics["train_loss"] for metrics in self.metrics.values() if "train_loss" in metrics]
        known = bool(losses) and len(losses) == len(weights)
        return {
            "num_failed": len(self.failed) + len(self.missing),
            "num_examples": int(sum(weights)) if counted else None,
            "train_loss": finite_or_none(float(np.average(losses, weights=weights))) if known else None,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
        }


def fault(reply: Message, expected: Params) -> str | None:
    """What is wrong with the arrays and metrics of a reply from outside; None where nothing is."""
    records, metrics = list(flower.arrays_of(reply.content).values()), list(reply.content.metric_records.values())
    if len(records) != 1 or len(metrics) != 1:
        return "its reply does not hold one record of arrays and one of metrics"
    try:
        arrays = flower.from_record(records[0])
        numbers = [float(value) for value in metrics[0].values() if not isinstance(value, list)]
    except Exception as error:  # whatever bytes from outside raise when they are read as arrays
        return f"its reply cannot be read ({type(error).__name__})"
    if {n: a.shape for n, a in arrays.items()} != {n: a.shape for n, a in expected.items()}:
        return "its arrays are not those of the model"
    if not all_finite(arrays.values()) or not np.isfinite(numbers).all():
        return "its reply holds NaN or Inf"
    if float(metrics[0].get(flower.NUM_EXAMPLES, 0)) <= 0:  # type: ignore[arg-type]
        return f"its reply gives no {flower.NUM_EXAMPLES} above 0"
    return None
