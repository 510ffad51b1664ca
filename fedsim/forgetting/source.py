"""A finished run that clients want out of: its configuration, its parts, and what these clients touched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from fedsim.build import build
from fedsim.checks import require_int
from fedsim.finished import read_finished
from fedsim.parts import Parts
from fedsim.types import FedsimError


@dataclass(frozen=True)
class Source:
    """folder, cfg, summary: the run's. parts: built from cfg again. cohort_sizes: (rounds,) clients that were sampled.

    touched: for each client that is to be forgotten what it took part in and held, ready for JSON.
    """

    folder: Path
    cfg: DictConfig
    summary: dict[str, Any]
    parts: Parts
    clients: tuple[int, ...]
    cohort_sizes: np.ndarray
    touched: list[dict[str, Any]]

    @property
    def rounds(self) -> int:
        """How many were run."""
        return int(self.summary["rounds"])

    @property
    def first_round(self) -> int:
        """The first in which one of the clients took part."""
        return min(one["rounds"][0] for one in self.touched if one["rounds"])

    @property
    def private(self) -> bool:
        """Whether a privacy mechanism protected the run."""
        return self.parts.server.protection.unit is not None


def open_run(folder: Path, clients: Sequence[int]) -> Source:
    """Read a finished run, and find what the clients touched. Raises FedsimError where there is nothing to forget."""
    cfg, summary = read_finished(folder)
    parts = build(cfg)
    if parts.algorithm.pools_data or not parts.algorithm.shares_model:
        raise FedsimError(
            f"{folder} has no federated model (strategy={summary['strategy']}); name a run in which clients trained one together"
        )
    if parts.server.field.modelled:
        raise FedsimError(
            f"{folder} ran on devices that take time, so who took part cannot be told again from its configuration; name a run "
            "with fleet=ideal"
        )
    found = parts.population.dataset.fingerprint
    if found != summary["dataset"]["fingerprint"]:
        raise FedsimError(
            f"{folder}: the data of dataset {summary['dataset']['name']} have changed since; restore them"
        )
    _check_clients(folder, parts, clients)
    sizes, rounds = _replay(parts, int(summary["rounds"]), clients)
    touched = [_touched(folder, parts, client, rounds[client]) for client in clients]
    if not any(rounds.values()):
        who = f"client {clients[0]}" if len(clients) == 1 else f"clients {', '.join(map(str, clients))}"
        raise FedsimError(
            f"{who} never took part in {folder}, so its model knows nothing of them; there is nothing to do"
        )
    return Source(folder, cfg, summary, parts, tuple(clients), sizes, touched)


def _check_clients(folder: Path, parts: Parts, clients: Sequence[int]) -> None:
    """Refuse clients that the run does not have, and a request that leaves nobody."""
    sizes = parts.population.partition.sizes
    for client in clients:
        require_int("client", client, low=0)
        if client >= len(sizes):
            raise FedsimError(
                f"client={client} is not in {folder}, whose clients are 0 to {len(sizes) - 1}; name one of them"
            )
        if sizes[client] == 0:
            raise FedsimError(f"client={client} holds nothing in {folder}, where it was forgotten before; name another")
    if set(np.flatnonzero(sizes).tolist()) <= set(clients):
        raise FedsimError(
            f"all {len(clients)} clients of {folder} are to be forgotten, which leaves no one to train; delete that folder"
        )


def _replay(parts: Parts, rounds: int, clients: Sequence[int]) -> tuple[np.ndarray, dict[int, list[int]]]:
    """Sizes of all cohorts (rounds,), and the rounds in which each of the clients was sampled."""
    sizes, found = [], {client: [] for client in clients}  # type: tuple[list[int], dict[int, list[int]]]
    for round, cohort in _cohorts(parts, rounds):
        sizes.append(len(cohort))
        for client in np.intersect1d(cohort, clients).tolist():
            found[client].append(round)
    return np.array(sizes, dtype=np.int64), found


def _cohorts(parts: Parts, rounds: int) -> Iterator[tuple[int, np.ndarray]]:
    """Who was sampled in each round, from 1: a pure function of the configuration, and of the limits on participation."""
    server = parts.server
    for round in range(1, rounds + 1):
        eligible = server.protection.eligible(round)
        cohort = server.sampler.cohort(server.seed, round, server.num_clients, eligible)
        server.protection.charge(round, cohort)
        yield round, cohort


def _touched(folder: Path, parts: Parts, client: int, rounds: list[int]) -> dict[str, Any]:
    """What one client left in the run, checked against what the run wrote down."""
    row, lineage = _row(folder / "clients.parquet", client), _row(folder / "lineage.parquet", client)
    trained, held = (rows.tolist() for rows in parts.population.rows(client))
    told = lineage["holdout_rows"] is not None  # of very many clients, only those that were asked had rows held out
    if told and (lineage["rows"] != trained or lineage["holdout_rows"] != held):
        raise FedsimError(
            f"{folder}: client {client} held other rows than its configuration gives it now; use the fedsim that made the run"
        )
    if not row["participations"] <= len(rounds) <= row["participations"] + row["failures"]:
        raise FedsimError(
            f"{folder}: client {client} took part in {row['participations']} rounds and its configuration gives {len(rounds)} "
            "now; use the fedsim that made the run"
        )
    return {
        "client": client,
        "user": row["user"],
        "rounds": rounds,
        "participations": row["participations"],
        "epsilon": row["epsilon"],
        "examples": len(trained),
        "rows": trained,
        "holdout_rows": held,
    }


def _row(path: Path, client: int) -> dict[str, Any]:
    import pyarrow.parquet as pq

    if not path.is_file():
        raise FedsimError(f"{path.parent} has no {path.name}, so it is not a finished run; name the folder of one")
    rows = pq.read_table(path, filters=[("client", "=", client)]).to_pylist()
    if len(rows) != 1:
        raise FedsimError(f"{path} has {len(rows)} rows of client {client}; restore that file")
    return rows[0]
