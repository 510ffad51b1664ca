"""What a chunk of clients says in one message (a sum, or each client's own reply side by side), and the sum of all chunks."""

from __future__ import annotations

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor, dtype

from fedsim import flower
from fedsim.training.updates import ClientFailure, ClientUpdate, Folded
from fedsim.types import FedsimError, Params


class Reply:
    """Gathers the updates of a chunk: into one sum, weighted by the metric `fold` or (`sums`) of equal weight, or side by side."""

    def __init__(self, fold: str, sums: bool = False) -> None:
        self.fold, self.sums = fold, sums
        self.sum: dict[str, Tensor] = {}
        self.records: dict[int, ArrayRecord] = {}
        self.metrics: dict[int, dict[str, float]] = {}
        self.failures: list[ClientFailure] = []

    def fail(self, failure: ClientFailure) -> None:
        """Count a client that raised."""
        self.failures.append(failure)

    def add(self, update: ClientUpdate) -> None:
        """Take in one client's update; its arrays are read now, and not kept unless each replies for itself."""
        self.metrics[update.client] = said(update)
        if self.sums:
            add_to(self.sum, update.arrays)
        elif self.fold:
            add_to(self.sum, update.arrays, self.weigh(update))
        else:
            self.records[update.client] = flower.to_record({n: array.clone() for n, array in update.arrays.items()})

    def add_folded(self, folded: Folded) -> None:
        """Take in clients whose arrays were weighed (`weigh`) and summed where they were trained."""
        self.metrics |= {update.client: said(update) for update in folded.updates}
        add_to(self.sum, folded.arrays)

    def weigh(self, update: ClientUpdate) -> float:
        """Of an update in the sum."""
        return float(said(update)[self.fold])

    def content(self, chunked: bool) -> RecordDict:
        """The reply's records: a real node's as Flower's own; a chunk's with lists, one element a client, beside the arrays."""
        if not chunked:
            ((client, row),) = self.metrics.items()
            record = flower.exact_record(self.sum) if self.sums else self.records[client]
            return RecordDict({flower.ARRAYS: record, flower.METRICS: MetricRecord(dict(row))})
        content = RecordDict({flower.CLIENTS: vectors(self.metrics, self.failures)})
        if self.sum:
            content[flower.ARRAYS] = flower.exact_record(self.sum)
        for client, record in self.records.items():
            content[f"{flower.ARRAYS}/{client}"] = record
            content[f"{flower.METRICS}/{client}"] = MetricRecord(dict(self.metrics[client]))
        return content


def said(update: ClientUpdate) -> dict[str, float]:
    """What an update says beside its arrays."""
    return {flower.NUM_EXAMPLES: update.num_examples, **update.metrics}


class Total:
    """The sum of chunks' sums, in place: the memory of one model in float64 however many chunks there are. Integers stay exact.

    fold: the metric by which clients were weighted; "" where the sum itself is asked for. asked: the message to reply to.
    """

    def __init__(self, fold: str, asked: Message) -> None:
        self.fold, self.asked = fold, asked
        self.sum: dict[str, Tensor] = {}
        self.types: dict[str, dtype] = {}
        self.rows: dict[str, list[float]] = {}

    def add(self, content: RecordDict) -> None:
        """Take in a chunk's reply."""
        arrays = flower.from_record(flower.arrays_of(content)[flower.ARRAYS])
        self.types = {name: array.dtype for name, array in arrays.items()}
        if not self.sum:
            self.sum = {n: a.double() if a.is_floating_point() else a.clone() for n, a in arrays.items()}
        else:
            for name, total in self.sum.items():
                own, more = total.numpy(), arrays[name].numpy()
                np.add(own, more, out=own)  # torch would first make a float64 copy of all of it
        record = flower.record_of(content, flower.CLIENTS)
        for name in record:
            if name not in ("failed", "reasons"):
                self.rows.setdefault(name, []).extend(flower.column(record, name))

    def reply(self) -> Message:
        """One reply for all clients: the weighted mean of their arrays and metrics, or the sum; and each client's metrics."""
        metrics = {flower.NUM_EXAMPLES: float(len(self.rows["id"]))}
        if self.fold:
            metrics = self._mean_metrics()
            for array in self.sum.values():
                array /= metrics[self.fold]
        record = flower.exact_record({name: array.to(self.types[name]) for name, array in self.sum.items()})
        clients = ConfigRecord({**self.rows, "failed": [], "reasons": []})
        content = RecordDict(
            {flower.ARRAYS: record, flower.METRICS: MetricRecord({**metrics}), flower.CLIENTS: clients}
        )
        return Message(content, reply_to=self.asked)

    def _mean_metrics(self) -> dict[str, float]:
        """Weighted means of the clients' metrics; of the weight itself the sum, as one client of that weight would send."""
        weights = self.rows[self.fold]
        if not (total := sum(weights)) > 0:
            raise FedsimError(
                f"the clients' weights ({self.fold}) add up to {total:g}, so their updates have no mean; "
                "let the strategy weight them by a metric above 0 (strategy._target_)"
            )
        names = [name for name in self.rows if name != "id"]
        means = {n: sum(w * v for w, v in zip(weights, self.rows[n], strict=True)) / total for n in names}
        return {**means, self.fold: total}


def add_to(total: dict[str, Tensor], arrays: Params, weight: float | None = None) -> None:
    """Add `arrays`, times a weight where there is one, to a sum in place, or begin it.

    A weighted sum is in types that its mean can be told in; another keeps the arrays' own.
    """
    for name, array in arrays.items():
        if name in total:
            total[name].add_(array, alpha=1 if weight is None else weight)
        else:
            total[name] = array.clone() if weight is None else array.to(flower.travels_as(array.dtype)) * weight


def vectors(metrics: dict[int, dict[str, float]], failures: list[ClientFailure]) -> ConfigRecord:
    """Per-client metrics as one list a metric, beside the list of ids; and the clients that raised, with their reasons."""
    record = ConfigRecord({"id": list(metrics)})
    names = next(iter(metrics.values())) if metrics else {}
    for name in names:
        record[name] = [float(row[name]) for row in metrics.values()]
    record["failed"] = [failure.client for failure in failures]
    record["reasons"] = [failure.reason for failure in failures]
    return record
