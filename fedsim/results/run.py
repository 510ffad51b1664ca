"""The run's folder: what a finished run leaves, each file whole or not at all, summary.json last."""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.data.population import PACK, Population
from fedsim.fleet.trips import OUTCOMES
from fedsim.results.files import read_json, write_arrays, write_batches, write_json, write_table
from fedsim.types import Params

if TYPE_CHECKING:
    import pyarrow as pa

VERSIONED = ("torch", "flwr", "numpy", "opacus", "dp-accounting", "hydra-core", "safetensors")


class RunFolder:
    """A folder that is a finished run if and only if it holds summary.json."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def summary(self) -> Path:
        """The file that makes the folder a run."""
        return self.path / "summary.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def holds(self, baselines: Collection[str]) -> bool:
        """Whether it is a finished run, with these baselines."""
        if not self.summary.exists():
            return False
        return set(baselines) <= set(read_json(self.summary, f"resume={self.path}").get("baselines", {}))

    def write(
        self,
        summary: dict[str, Any],
        rounds: list[dict[str, Any]],
        clients: dict[str, Any],
        privacy: dict[str, Any],
        arrays: Params,
        population: Population,
        audit: dict[str, Any] | None = None,
        trips: np.ndarray | None = None,
        moved: dict[str, Any] | None = None,
    ) -> None:
        """Write everything, the pictures and the report too; an older summary (of fewer rounds) goes first.

        trips: of devices that take time (`fleet.trips.TRIP`). moved: columns of data_drift.parquet, where there is a report of it.
        """
        self.summary.unlink(missing_ok=True)
        fingerprint = population.dataset.fingerprint
        write_arrays(self.path / "model.safetensors", arrays, {"dataset": fingerprint})
        write_table(self.path / "rounds.parquet", columns_of(rounds))
        write_table(self.path / "clients.parquet", clients)
        asked = np.array(clients["client"])[_asked(clients)]
        write_batches(
            self.path / "lineage.parquet",
            lineage(population, asked),
            {"dataset": population.dataset.name, "fingerprint": fingerprint, "holdout": holdout_rule(population)},
        )
        if trips is not None:
            write_table(self.path / "dispatches.parquet", trip_columns(trips))
        if moved is not None:
            write_table(self.path / "data_drift.parquet", moved)
        write_json(self.path / "privacy.json", privacy)
        (self.path / "audit.json").unlink(missing_ok=True)  # of fewer rounds
        if audit:
            write_json(self.path / "audit.json", audit)
        self.describe(summary)

    def describe(self, summary: dict[str, Any]) -> None:
        """Write what is drawn and told from the summary and the other files, and the summary itself last."""
        from fedsim.results.plots import write_plots
        from fedsim.results.report import write_report

        self.summary.unlink(missing_ok=True)
        write_plots(self.path, summary)
        write_report(self.path, summary)
        write_json(self.summary, summary)


def columns_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows as columns of fixed types: a column that is null everywhere stays a column of numbers."""
    import pyarrow as pa

    columns = {}
    for name in rows[0] if rows else ():
        values = [row.get(name) for row in rows]
        whole = all(isinstance(value, int) for value in values)
        columns[name] = pa.array(values, pa.int64() if whole else pa.float64())
    return columns


def trip_columns(trips: np.ndarray) -> dict[str, Any]:
    """dispatches.parquet: what became of each model that was sent; null where a lost device did not come so far."""
    import pyarrow as pa

    columns = {name: pa.array(np.ascontiguousarray(trips[name]), from_pandas=True) for name in trips.dtype.names or ()}
    return columns | {"outcome": pa.array(np.array(OUTCOMES)[trips["outcome"]])}


def client_columns(
    population: Population,
    participations: Mapping[int, int],
    failures: Mapping[int, int],
    metrics: Mapping[int, Mapping[str, float]],
    epsilons: np.ndarray | None = None,
) -> dict[str, Any]:
    """clients.parquet: what each client held, how often it took part, how the model does on its held-out rows, its epsilon."""
    import pyarrow as pa

    clients, held = population.num_holders, population.holdout_sizes
    return {
        "client": pa.array(np.arange(clients, dtype=np.int32)),
        "user": _users(population),
        "num_examples": pa.array(population.partition.sizes - held, pa.int64()),
        "num_holdout": pa.array(held, pa.int64()),
        "class_counts": _class_counts(population),
        "participations": pa.array(_spread(participations, np.zeros(clients, np.int32))),
        "failures": pa.array(_spread(failures, np.zeros(clients, np.int32))),
        **{name: _metric_column(metrics, name, clients) for name in ("accuracy", "loss")},
        "epsilon": pa.nulls(clients, pa.float64()) if epsilons is None else pa.array(epsilons, pa.float64()),
    }


def _spread(values: Mapping[int, float], over: np.ndarray) -> np.ndarray:
    """Values by client, in their places of `over` (clients,)."""
    over[np.fromiter(values, np.int64, len(values))] = np.fromiter(values.values(), over.dtype, len(values))
    return over


def _metric_column(metrics: Mapping[int, Mapping[str, float]], name: str, clients: int) -> pa.Array:
    """(clients,) null where a client was not judged, or its figure is not finite."""
    import pyarrow as pa

    found = {client: one[name] for client, one in metrics.items() if one.get(name) is not None}
    values = _spread(found, np.full(clients, np.nan))
    return pa.array(values, mask=~np.isfinite(values))


def _class_counts(population: Population) -> pa.Array:
    """(clients,) lists of one number a class; null where they were not counted."""
    import pyarrow as pa

    clients, counts = population.num_holders, population.class_counts
    if counts is None:
        return pa.nulls(clients, pa.list_(pa.int32()))
    lengths = np.zeros(clients, np.int64)
    lengths[population.counted] = counts.shape[1]
    return _lists(counts.ravel(), lengths, lengths == 0)


def _lists(values: np.ndarray, lengths: np.ndarray, missing: np.ndarray | None = None) -> pa.Array:
    """Consecutive values as lists of these lengths (n,), null where `missing` (n,) bool."""
    import pyarrow as pa

    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    mask = None if missing is None else pa.array(missing)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.astype(np.int32, copy=False)), mask=mask)


def _users(population: Population) -> pa.Array:
    """(clients,) the natural user behind a client where all of its rows are one user's."""
    import pyarrow as pa

    dataset, partition = population.dataset, population.partition
    if dataset.train.user is None:
        return pa.nulls(partition.num_clients, pa.string())
    holds = partition.sizes > 0  # a forgotten client holds nothing
    user, starts = dataset.train.user[np.asarray(partition.rows)], partition.offsets[:-1][holds]
    first, last = np.full(len(holds), -1), np.full(len(holds), -2)
    first[holds], last[holds] = np.minimum.reduceat(user, starts), np.maximum.reduceat(user, starts)
    return pa.array(dataset.users, pa.string()).take(pa.array(first, mask=first != last))


MANY = 100_000
"""Clients above which the held-out rows are drawn, and told in lineage.parquet, of those alone that were asked for them."""


def _asked(clients: Mapping[str, Any]) -> np.ndarray:
    """(clients,) bool: who took part, or failed to, or was judged, by the columns of clients.parquet."""
    loss = clients["loss"].is_valid().to_numpy(zero_copy_only=False)
    return loss | (np.asarray(clients["participations"]) > 0) | (np.asarray(clients["failures"]) > 0)


def holdout_rule(population: Population) -> str:
    """How held-out rows are drawn, for a lineage.parquet that does not tell them of everyone."""
    return (
        f"share {population.holdout} of each client's rows, rounded down: the first of permutation(rows) by "
        f"fedsim.rng.numpy_generator(seed={population.seed}, 0, client, 'holdout')"
    )


def lineage(population: Population, asked: np.ndarray) -> Iterator[dict[str, Any]]:
    """Which rows of the dataset's training split each client trained on and held out; some clients at a time.

    asked: clients that trained or were judged. Of more than MANY clients they alone have had rows held out: of another,
    `rows` is all that it holds and `holdout_rows` is null.
    """
    import pyarrow as pa

    partition = population.partition
    for start in range(0, partition.num_clients, PACK):
        clients = np.arange(start, min(start + PACK, partition.num_clients))
        split = population.holdout_sizes[clients] > 0
        if partition.num_clients > MANY:
            split &= np.isin(clients, asked)
        first, last = partition.offsets[start], partition.offsets[clients[-1] + 1]
        held = np.zeros(last - first, dtype=bool)
        for client in clients[split].tolist():
            mine = slice(*(partition.offsets[client : client + 2] - first))
            held[mine] = np.isin(partition.client(client), population.rows(client)[1], assume_unique=True)
        rows, sizes = np.asarray(partition.rows[first:last]), partition.sizes[clients]
        out = np.where(split, population.holdout_sizes[clients], 0)
        untold = (population.holdout_sizes[clients] > 0) & ~split
        there = pa.array(sizes > 0)
        columns = {
            "client": pa.array(clients.astype(np.int32)),
            "rows": _lists(rows[~held], sizes - out),
            "holdout_rows": _lists(rows[held], out, untold),
        }
        yield {name: column.filter(there) for name, column in columns.items()}


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MB (ru_maxrss counts kilobytes on Linux, bytes on macOS)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def versions() -> dict[str, str]:
    """Versions of what computed the run."""
    found = {"python": platform.python_version()}
    for package in ("fedsim-flower", *VERSIONED):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that is not installed
            found[package] = "not installed"
    return found


def host() -> dict[str, Any]:
    """The machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
