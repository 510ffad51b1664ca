"""Devices for the folders of `fake_run`: a small simulation whose times, losses and joules fit together."""

from __future__ import annotations

import heapq
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fake_run import make_run

from fedsim.rng import numpy_generator

KINDS = {"low-end phone": 0.3, "mid-range phone": 0.5, "high-end phone": 0.2}
SPEED = {"low-end phone": 0.4, "mid-range phone": 1.0, "high-end phone": 2.5}
COLUMNS = (
    *(
        "round",
        "client",
        "version",
        "sent",
        "received",
        "trained",
        "arrived",
        "ended",
        "outcome",
        "bytes_down",
        "bytes_up",
    ),
    *("joules_down", "joules_compute", "joules_up"),
)
SIZE = 318_000
GRAMS_A_JOULE = 475 / 3.6e6


def add_devices(folder: Path, asynchronous: bool = False, asked: int = 14, wanted: int = 10) -> Path:
    """Give a finished run of `make_run` devices: columns, dispatches, totals. asked: clients that a round sends the model,
    or that are at work at any time; wanted: updates that end a round."""
    people, table = pq.read_table(folder / "clients.parquet"), pq.read_table(folder / "rounds.parquet")
    random = numpy_generator(0, 0, people.num_rows, "fake devices")
    kind = random.choice(list(KINDS), people.num_rows, p=list(KINDS.values()))
    unfit = (kind == "low-end phone") & (random.uniform(size=len(kind)) < 0.4)
    examples = np.asarray(people["num_examples"])
    speed = np.array([SPEED[name] for name in kind]) * random.lognormal(0, 0.3, len(kind))
    simulate = _asynchronous if asynchronous else _synchronous
    rows, ends = simulate(random, np.flatnonzero(~unfit), examples, speed, table.num_rows, asked, wanted)
    _write_rounds(folder, table, rows, ends)
    _write_clients(folder, people, rows, kind, unfit)
    columns = {name: [row[name] for row in rows] for name in COLUMNS}
    pq.write_table(pa.table(columns), folder / "dispatches.parquet")
    _write_summary(folder, rows, ends, kind, unfit)
    return folder


def _dispatch(
    random: np.random.Generator, client: int, examples: int, speed: float, version: int, sent: float
) -> dict[str, Any]:
    """One client's work, lost at any time by chance."""
    down, up = random.uniform(4, 20), random.uniform(10, 60)
    times = np.cumsum([sent, down, examples / speed, up])
    cause = random.choice(["used", "network", "battery", "user"], p=[0.86, 0.08, 0.02, 0.04])
    ended = float(times[3]) if cause == "used" else float(random.uniform(times[0], times[3]))
    received, trained, arrived = (float(time) if time <= ended else None for time in times[1:])
    spans = np.clip(ended - times[:3], 0, np.diff(times))
    joules = spans * (1.2, 3.5, 1.8)
    keys = dict(zip(("joules_down", "joules_compute", "joules_up"), joules.tolist(), strict=True))
    sizes = {"bytes_down": SIZE, "bytes_up": int(SIZE * spans[2] / up)}
    times_told = {"sent": sent, "received": received, "trained": trained, "arrived": arrived, "ended": ended}
    return {"client": int(client), "version": version, "outcome": str(cause)} | times_told | sizes | keys


def _synchronous(
    random: np.random.Generator,
    able: np.ndarray,
    examples: np.ndarray,
    speed: np.ndarray,
    rounds: int,
    asked: int,
    wanted: int,
) -> tuple[list[dict[str, Any]], list[float]]:
    rows: list[dict[str, Any]] = []
    ends, now = [], 0.0
    for round in range(1, rounds + 1):
        cohort = random.choice(able, min(asked, len(able)), replace=False)
        sent = [_dispatch(random, one, examples[one], speed[one], round - 1, now) for one in cohort]
        arrived = sorted(row["ended"] for row in sent if row["outcome"] == "used")
        now = arrived[min(wanted, len(arrived)) - 1]
        for row in sent:
            late = row["outcome"] == "used" and row["ended"] > now
            rows.append({"round": round} | row | ({"outcome": "late"} if late else {}))
        ends.append(now)
    return rows, ends


def _asynchronous(
    random: np.random.Generator,
    able: np.ndarray,
    examples: np.ndarray,
    speed: np.ndarray,
    rounds: int,
    asked: int,
    wanted: int,
) -> tuple[list[dict[str, Any]], list[float]]:
    rows: list[dict[str, Any]] = []
    ends: list[float] = []
    flying: list[tuple[float, int, dict[str, Any]]] = []
    buffered = number = 0
    now = 0.0
    while len(ends) < rounds:
        while len(flying) < asked:
            one = int(random.choice(np.setdiff1d(able, [row["client"] for _, _, row in flying])))
            row = _dispatch(random, one, examples[one], speed[one], len(ends), now)
            heapq.heappush(flying, (row["ended"], number := number + 1, row))
        now, _, row = heapq.heappop(flying)
        rows.append({"round": len(ends) + 1} | row)
        buffered += row["outcome"] == "used"
        if buffered == wanted:
            ends.append(now)
            buffered = 0
    return rows, ends


def _joules(row: dict[str, Any]) -> float:
    return float(row["joules_down"] + row["joules_compute"] + row["joules_up"])


def _write_rounds(folder: Path, table: pa.Table, rows: list[dict[str, Any]], ends: list[float]) -> None:
    of = [[row for row in rows if row["round"] == round] for round in range(1, len(ends) + 1)]
    joules = np.array([sum(map(_joules, mine)) for mine in of])
    used = [[row for row in mine if row["outcome"] == "used"] for mine in of]
    added = {
        "simulated_seconds": np.diff([0.0, *ends]),
        "joules": joules,
        "grams_co2": joules * GRAMS_A_JOULE,
        "num_dropped": np.array([len(mine) - len(some) for mine, some in zip(of, used, strict=True)]),
        "mean_staleness": np.array([np.mean([row["round"] - 1 - row["version"] for row in some]) for some in used]),
        "bytes_down": np.array([sum(row["bytes_down"] for row in mine) for mine in of]),
        "bytes_up": np.array([sum(row["bytes_up"] for row in mine) for mine in of]),
    }
    pq.write_table(with_columns(table, added), folder / "rounds.parquet")


def _write_clients(
    folder: Path, people: pa.Table, rows: list[dict[str, Any]], kind: np.ndarray, unfit: np.ndarray
) -> None:
    clients = len(kind)
    columns = {name: np.zeros(clients) for name in ("participations", "dropouts", "joules", "busy_seconds")}
    for row in rows:
        columns["participations" if row["outcome"] == "used" else "dropouts"][row["client"]] += 1
        columns["joules"][row["client"]] += _joules(row)
        columns["busy_seconds"][row["client"]] += row["ended"] - row["sent"]
    counts = {name: columns.pop(name).astype(np.int32) for name in ("participations", "dropouts")}
    facts = {"device": kind.tolist(), "can_train": ~unfit}
    pq.write_table(with_columns(people, counts | columns | facts), folder / "clients.parquet")


def with_columns(table: pa.Table, columns: dict[str, Any]) -> pa.Table:
    """The table with these columns added, or put in the place of its own."""
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        column = values if isinstance(values, pa.Array) else pa.array(values)
        table = table.append_column(name, column) if place < 0 else table.set_column(place, name, column)
    return table


def _write_summary(
    folder: Path, rows: list[dict[str, Any]], ends: list[float], kind: np.ndarray, unfit: np.ndarray
) -> None:
    path = folder / "summary.json"
    joules = sum(map(_joules, rows))
    totals = {"simulated_seconds": ends[-1], "joules": joules, "grams_co2": joules * GRAMS_A_JOULE}
    sent = {name: sum(row[name] for row in rows) for name in ("bytes_up", "bytes_down")}
    dropouts = {cause: sum(row["outcome"] == cause for row in rows) for cause in ("late", "network", "battery", "user")}
    kinds = {name: int((kind == name).sum()) for name in KINDS}
    fleet = {"kinds": kinds, "cannot_train": int(unfit.sum()), "dropouts": dropouts}
    path.write_text(json.dumps(json.loads(path.read_text()) | totals | sent | {"fleet": fleet}))


def make_small(path: Path) -> Path:
    """Four clients, three rounds, and every number that sentences tell."""
    make_run(path, clients=4, classes=("cat", "dog"), rounds=3)
    people = {
        "num_examples": [10, 20, 30, 40],
        "class_counts": [[10, 0], [10, 10], [15, 15], [5, 35]],
        "participations": [0, 1, 3, 0],
        "device": ["old", "old", "new", "new"],
        "can_train": [False, True, True, True],
        "dropouts": [0, 2, 1, 2],
        "joules": [0.0, 2000.0, 6000.0, 4000.0],
        "busy_seconds": [0.0, 120.0, 240.0, 0.0],
    }
    rounds = {"simulated_seconds": [10.0, 30.0, 20.0], "joules": [4000.0] * 3, "mean_staleness": [0.0] * 3}
    edit(path, "clients", people)
    edit(path, "rounds", rounds)
    dropouts = {"late": 2, "network": 1, "battery": 0, "user": 0, "failed": 1, "away": 1}
    summary = {"simulated_seconds": 11520.0, "joules": 41000.0, "grams_co2": 5.5, "bytes_up": 4e7, "bytes_down": 8e7}
    return told(path, **summary, fleet={"kinds": {"new": 2, "old": 2}, "cannot_train": 1, "dropouts": dropouts})


def edit(path: Path, file: str, columns: dict[str, Any]) -> None:
    table = pq.read_table(path / f"{file}.parquet")
    pq.write_table(with_columns(table, columns), path / f"{file}.parquet")


def told(path: Path, **summary: Any) -> Path:
    file = path / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | summary))
    return path


def dispatched(path: Path, rows: list[tuple[Any, ...]]) -> Path:
    """dispatches.parquet of (round, client, version, sent, received, trained, arrived, ended, outcome)."""
    columns = {name: [row[place] for row in rows] for place, name in enumerate(COLUMNS[:9])}
    costs = {name: [1000.0 * (place + 1) for place in range(len(rows))] for name in COLUMNS[9:]}
    pq.write_table(pa.table(columns | costs), path / "dispatches.parquet")
    return path
