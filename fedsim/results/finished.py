"""A finished run, read back from its folder, for the pictures and the report."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.results.files import read_json
from fedsim.types import FedsimError

if TYPE_CHECKING:
    import pyarrow as pa

FILES = ("summary.json", "privacy.json", "rounds.parquet", "clients.parquet")


@dataclass(frozen=True)
class Run:
    """A finished run as its folder tells it.

    summary, privacy: what summary.json and privacy.json hold.
    rounds, clients: numeric columns by name, each (rows,) float64 with NaN where the file has null or is not finite.
    users: (clients,) the natural user behind each client, None where there is no single one.
    class_counts: (counted, classes) examples of each class that a client holds, or None (regression): of all clients, or of
        some that were drawn by chance where there are very many.
    audit: what audit.json holds, empty where the run was not audited.
    """

    folder: Path
    summary: dict[str, Any]
    privacy: dict[str, Any]
    rounds: dict[str, np.ndarray]
    clients: dict[str, np.ndarray]
    users: list[str | None]
    class_counts: np.ndarray | None
    audit: dict[str, Any] = field(default_factory=dict)

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Rounds in which the column `name` has a number, and those numbers."""
        values = self.rounds.get(name, np.full(len(self.rounds["round"]), np.nan))
        known = np.isfinite(values)
        return self.rounds["round"][known], values[known]

    def client(self, name: str) -> np.ndarray:
        """The column `name` of the clients (clients,), all NaN where the file does not have it."""
        return self.clients.get(name, np.full(len(self.clients["client"]), np.nan))


def read_run(run_dir: Path, summary: dict[str, Any] | None = None) -> Run:
    """Read the files of a finished run. Raises FedsimError where one is missing or corrupt.

    summary: of a run that is being written, whose summary.json comes last.
    """
    import pyarrow.parquet as pq

    for name in FILES if summary is None else FILES[1:]:
        if not (run_dir / name).is_file():
            raise FedsimError(
                f"{run_dir} has no {name}, so it is not a finished run; name the folder of a finished run"
            )
    privacy = read_json(run_dir / "privacy.json", "the run")
    summary = read_json(run_dir / "summary.json", "the run") if summary is None else summary
    rounds, clients = pq.read_table(run_dir / "rounds.parquet"), pq.read_table(run_dir / "clients.parquet")
    audited = run_dir / "audit.json"
    return Run(
        run_dir,
        summary,
        privacy,
        _numbers(rounds),
        _numbers(clients),
        clients.column("user").to_pylist(),
        _class_counts(clients),
        read_json(audited, "the audit") if audited.is_file() else {},
    )


def _numbers(table: pa.Table) -> dict[str, np.ndarray]:
    import pyarrow as pa

    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind):
            values = column.cast(pa.float64()).to_numpy().copy()
            values[~np.isfinite(values)] = np.nan
            columns[name] = values
    return columns


def _class_counts(clients: pa.Table) -> np.ndarray | None:
    import pyarrow as pa

    if "class_counts" not in clients.column_names:
        return None
    column = clients.column("class_counts").combine_chunks()
    if pa.types.is_null(column.type) or len(column := column.drop_null()) == 0:
        return None
    counts = column.flatten().to_numpy(zero_copy_only=False)
    return counts.reshape(len(column), -1) if len(counts) else None


def tenth_of(clients: int) -> int:
    """How many clients are a tenth of so many: at least one, rounded up as in `training.evaluation.across_clients`."""
    return max(1, math.ceil(clients / 10))


def tenths(values: np.ndarray) -> tuple[float, float]:
    """Means of the lowest and of the highest tenth of finite values."""
    ordered, size = np.sort(values), tenth_of(len(values))
    return float(ordered[:size].mean()), float(ordered[-size:].mean())
