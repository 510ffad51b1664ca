"""The run's folder: what a finished run leaves, each file whole or not at all, summary.json last."""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Collection, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data.population import Population
from fedsim.results.files import read_json, write_arrays, write_json, write_table
from fedsim.types import Params

VERSIONED = ("torch", "flwr", "numpy", "opacus", "dp-accounting", "hydra-core", "flwr-datasets", "safetensors")


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
    ) -> None:
        """Write everything, the pictures and the report too; an older summary (of fewer rounds) goes first."""
        self.summary.unlink(missing_ok=True)
        fingerprint = population.dataset.fingerprint
        write_arrays(self.path / "model.safetensors", arrays, {"dataset": fingerprint})
        write_table(self.path / "rounds.parquet", columns_of(rounds))
        write_table(self.path / "clients.parquet", clients)
        write_table(
            self.path / "lineage.parquet",
            lineage(population),
            {"dataset": population.dataset.name, "fingerprint": fingerprint},
        )
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


def client_columns(
    population: Population,
    participations: Mapping[int, int],
    failures: Mapping[int, int],
    metrics: Mapping[int, Mapping[str, float]],
    epsilons: np.ndarray | None = None,
) -> dict[str, Any]:
    """clients.parquet: what each client held, how often it took part, how the model does on its held-out rows, its epsilon."""
    import pyarrow as pa

    ids = range(population.num_holders)
    held = population.holdout_sizes
    counts = population.class_counts
    return {
        "client": pa.array(ids, pa.int32()),
        "user": pa.array(_users(population), pa.string()),
        "num_examples": pa.array(population.partition.sizes - held, pa.int64()),
        "num_holdout": pa.array(held, pa.int64()),
        "class_counts": pa.array(
            list(counts.astype(np.int32)) if counts is not None else [None] * len(ids), pa.list_(pa.int32())
        ),
        "participations": pa.array([participations.get(client, 0) for client in ids], pa.int32()),
        "failures": pa.array([failures.get(client, 0) for client in ids], pa.int32()),
        "accuracy": pa.array([_metric(metrics, client, "accuracy") for client in ids], pa.float64()),
        "loss": pa.array([_metric(metrics, client, "loss") for client in ids], pa.float64()),
        "epsilon": pa.nulls(len(ids), pa.float64()) if epsilons is None else pa.array(epsilons, pa.float64()),
    }


def _metric(metrics: Mapping[int, Mapping[str, float]], client: int, name: str) -> float | None:
    value = metrics.get(client, {}).get(name)
    return value if value is not None and np.isfinite(value) else None


def _users(population: Population) -> list[str | None]:
    """The natural user behind a client where all of its rows are one user's."""
    dataset, partition = population.dataset, population.partition
    if dataset.train.user is None:
        return [None] * partition.num_clients
    holds = partition.sizes > 0  # a forgotten client holds nothing
    user, starts = dataset.train.user[partition.rows], partition.offsets[:-1][holds]
    first, last = np.full(len(holds), -1), np.full(len(holds), -2)
    first[holds], last[holds] = np.minimum.reduceat(user, starts), np.maximum.reduceat(user, starts)
    return [dataset.users[low] if low == high else None for low, high in zip(first, last, strict=True)]


def lineage(population: Population) -> dict[str, Any]:
    """Which rows of the dataset's training split each client trained on and held out."""
    import pyarrow as pa

    holders = np.flatnonzero(population.partition.sizes).tolist()
    split = [population.rows(client) for client in holders]
    return {
        "client": pa.array(holders, pa.int32()),
        "rows": pa.array([rows for rows, _ in split], pa.list_(pa.int32())),
        "holdout_rows": pa.array([rows for _, rows in split], pa.list_(pa.int32())),
    }


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
