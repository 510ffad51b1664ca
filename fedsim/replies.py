"""What a chunk of clients says in one message: a weighted mean, a sum, or each client's own reply side by side."""

from __future__ import annotations

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor, zeros_like

from fedsim import flower
from fedsim.training.trainer import ClientFailure, ClientUpdate


class Reply:
    """Gathers the updates of a chunk: into one weighted mean, into one sum, or side by side."""

    def __init__(self, fold: str, sums: bool = False) -> None:
        self.fold, self.sums = fold, sums
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
        if self.sums:
            for name, array in update.arrays.items():
                self.sum[name] = self.sum[name] + array if name in self.sum else array.clone()
            return
        if not self.fold:
            self.records[update.client] = flower.to_record(update.arrays)
            return
        if not self.sum:
            self.sum = {name: zeros_like(a, dtype=flower.travels_as(a.dtype)) for name, a in update.arrays.items()}
        weight = float(metrics[self.fold])
        self.weight += weight
        for name, total in self.sum.items():
            total.add_(update.arrays[name], alpha=weight)

    def content(self, chunked: bool) -> RecordDict:
        """The reply's records: see the module's docstring."""
        if not chunked and self.sums:
            (row,) = self.metrics.values()
            return RecordDict({flower.ARRAYS: flower.exact_record(self.sum), flower.METRICS: MetricRecord(dict(row))})
        if not chunked:
            (client,) = self.records
            return RecordDict(
                {flower.ARRAYS: self.records[client], flower.METRICS: MetricRecord(dict(self.metrics[client]))}
            )
        content = RecordDict({flower.CLIENTS: vectors(self.metrics, self.failures)})
        if self.sums and self.metrics:
            content[flower.ARRAYS] = flower.exact_record(self.sum)
            content[flower.METRICS] = MetricRecord({flower.NUM_EXAMPLES: float(len(self.metrics))})
        elif self.fold and self.metrics:
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
