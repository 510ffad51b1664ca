"""Aggregating many updates of 1.66 million parameters: as Flower does it, and as a chunk's sum in fedsim.

    python -m experiments.benchmarks.aggregation flower|fedsim NUMBER

Nothing is trained: a few updates are there from the start, and clients give them again and again. Flower's path is an
ArrayRecord of each update and `aggregate_arrayrecords` over all; fedsim's is a whole round, from the message that asks to the
aggregated model. Memory is what comes on top of the model and those updates.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from experiments.benchmarks.engines import run
from experiments.benchmarks.measure import (
    Laps,
    Spread,
    available_mb,
    forget_peak,
    peak_resident_mb,
    resident_mb,
)
from experiments.benchmarks.turn import MARK, fedsim_rounds
from experiments.benchmarks.workloads import EVERYWHERE, make_parts
from fedsim.parts import Parts
from fedsim.training.updates import ClientUpdate
from fedsim.types import Params

CLIENTS = 1_000
PREPARED = 4
"""Different updates; more would only fill memory."""

FLOWER_MB_EACH = 8.0
"""What Flower's path keeps of each update."""


def measure(repeats: int, number: int = CLIENTS, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """A row of each path: seconds and peak_mb as [median, low, high]. Fewer updates where memory would not hold Flower's."""
    number = min(number, int(0.8 * available_mb() / FLOWER_MB_EACH))
    found: dict[str, list[dict[str, Any]]] = {path: [] for path in PATHS}
    for turn in range(repeats):
        for path, results in found.items():
            say(f"aggregation of {number} updates: {path}, turn {turn + 1}")
            result, _ = run([sys.executable, "-m", __spec__.name, path, str(number)], memory=False)
            results.append(result)
    rows = []
    for path, results in found.items():
        if refused := next((result["refused"] for result in results if "refused" in result), None):
            rows.append({"path": path, "updates": number, "refused": refused})
            continue
        seconds, peaks = ([result[name] for result in results] for name in ("seconds", "peak_mb"))
        rows.append({"path": path, "updates": number, "seconds": seconds, "peak_mb": peaks})
    base = rows[0].get("seconds")
    for row in rows:
        if base and "seconds" in row:
            row["ratio"] = list(Spread.of([other / own for own, other in zip(row["seconds"], base, strict=True)]))
            row["seconds"], row["peak_mb"] = list(Spread.of(row["seconds"])), list(Spread.of(row["peak_mb"]))
    return rows


def flower_path(parts: Parts, updates: list[Params], number: int) -> float:
    """Seconds of a client's `ArrayRecord(state_dict)` for each update, and of the server's mean of all."""
    from flwr.app import ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    laps = Laps(torch.device("cpu"))
    records = []
    for client in range(number):
        metrics = MetricRecord({"num-examples": 10})
        records.append(RecordDict({"arrays": ArrayRecord(updates[client % PREPARED]), "metrics": metrics}))
    aggregate_arrayrecords(records, "num-examples")
    laps.lap()
    return laps.seconds[0]


def fedsim_path(parts: Parts, updates: list[Params], number: int) -> float:
    """Seconds of a round whose training is to give a prepared update."""
    parts.trainer = Prepared(updates)  # type: ignore[assignment]
    laps = Laps(parts.device)
    fedsim_rounds(parts, 1, laps)
    return laps.seconds[0]


class Prepared:
    """A trainer that does not train."""

    def __init__(self, updates: list[Params]) -> None:
        self.updates = updates
        self.model = torch.nn.Identity()

    def train_folded(self, received: Params, clients: Iterable[int], *rest: Any) -> Iterator[ClientUpdate]:
        """See Trainer."""
        for client in clients:
            yield ClientUpdate(client, self.updates[client % PREPARED], 10, 1, {}, {})


PATHS: dict[str, Callable[[Parts, list[Params], int], float]] = {"flower": flower_path, "fedsim": fedsim_path}


def one(path: str, number: int) -> dict[str, float]:
    """seconds, and peak_mb above what was there before."""
    data = ["dataset=custom", f"dataset._target_={pictures.__module__}.{pictures.__name__}", f"+dataset.rows={number}"]
    clients = [f"population.num_clients={number}", f"sampler.cohort_size={number}", "grid=inprocess", "device=cpu"]
    parts = make_parts([*EVERYWHERE, *data, *clients, "model=cnn", "grid.way=one"])
    start = parts.server.state.arrays
    updates = [{n: a + 0.01 * torch.randn_like(a) for n, a in start.items()} for _ in range(PREPARED)]
    before = resident_mb()
    forget_peak()
    seconds = PATHS[path](parts, updates, number)
    return {"seconds": seconds, "peak_mb": peak_resident_mb() - before}


def pictures(rows: int) -> Any:
    """Black pictures, one for each client."""
    from fedsim.data.dataset import Dataset, Examples, Normalize

    y = torch.arange(rows) % 10
    train = Examples(torch.zeros(rows, 1, 28, 28, dtype=torch.uint8), y)
    test = Examples(train.x[:10], y[:10])
    return Dataset("pictures", train, test, "classification", tuple("0123456789"), Normalize(0.0, 1.0))


if __name__ == "__main__":
    from experiments.benchmarks import aggregation

    print(MARK + json.dumps(aggregation.one(sys.argv[1], int(sys.argv[2]))), flush=True)
