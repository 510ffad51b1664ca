"""Reading many runs into tables: fedsim's store beside pandas, a file at a time; `python -m experiments.benchmarks store`.

The folders are copies of one real run, each with 100 rounds and a configuration and numbers of its own. A reading is a process of
its own, whose seconds begin before it imports fedsim, pandas or DuckDB.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RUNS, QUICK_RUNS, ROUNDS = 2_000, 20, 100
REAL = (
    "dataset=digits",
    "model=linear",
    "population.num_clients=20",
    "sampler.cohort_size=2",
    "rounds=1",
    "grid=inprocess",
)
"""The run that all are made from."""
QUERY = """
SELECT runs."config.client.lr" AS lr, rounds.round, avg(rounds.accuracy) AS accuracy, stddev(rounds.accuracy) AS spread
FROM runs JOIN rounds USING (run) GROUP BY ALL ORDER BY ALL
"""


def measure(repeats: int, quick: bool) -> list[dict[str, Any]]:
    """A row of each way to read: runs, rounds (of each), way, seconds and ratio to fedsim's, both median, least and most."""
    from experiments.benchmarks.measure import Spread  # which imports torch: a reading does not

    runs = QUICK_RUNS if quick else RUNS
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as real:
        command = [sys.executable, "-m", "fedsim", *REAL, f"hydra.run.dir={real}"]
        subprocess.run(command, check=True, capture_output=True)
        write_runs(Path(name), Path(real), runs)
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(repeats):
            for way in WAYS:
                seconds[way].append(_seconds(way, name))
    first = seconds[next(iter(WAYS))]
    return [
        {
            "way": way,
            "runs": runs,
            "rounds": ROUNDS,
            "seconds": list(Spread.of(taken)),
            "ratio": list(Spread.of([own / base for own, base in zip(taken, first, strict=True)])),
        }
        for way, taken in seconds.items()
    ]


def write_runs(folder: Path, real: Path, runs: int) -> None:
    """So many run folders, by fedsim's own writers, from the folder of one that was really run."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from fedsim.results.files import read_json, write_json, write_table

    summary = read_json(real / "summary.json", "the benchmark")
    first, clients = (pq.read_table(real / f"{name}.parquet") for name in ("rounds", "clients"))
    columns = {name: pa.repeat(first[name][0], ROUNDS) for name in first.column_names}
    draw = np.random.default_rng(0)
    for number in range(runs):
        own = folder / f"client.lr={number % 10 / 100},seed={number // 10}"
        for empty in (".hydra", "checkpoints", "plots"):
            (own / empty).mkdir(parents=True)
        accuracy = draw.random(ROUNDS)
        write_table(own / "rounds.parquet", columns | {"round": np.arange(1, ROUNDS + 1), "accuracy": accuracy})
        write_table(own / "clients.parquet", {name: clients[name] for name in clients.column_names})
        config = summary["config"] | {"seed": number // 10, "rounds": ROUNDS}
        config["client"] = config["client"] | {"lr": number % 10 / 100}
        told = {"seed": number // 10, "rounds": ROUNDS, "accuracy": accuracy[-1], "config": config}
        write_json(own / "summary.json", summary | told)


def _seconds(way: str, folder: str) -> float:
    command = [sys.executable, "-m", __spec__.name, way, folder]
    said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return float(said["seconds"])


def tables(folder: str) -> list[int]:
    """Rows of the two tables."""
    from fedsim.results import read

    store = read(folder)
    return [len(store.runs), len(store.rounds)]


def query(folder: str) -> list[int]:
    """Rows of what the query finds."""
    from fedsim.results import read

    return [len(read(folder).sql(QUERY))]


def one_by_one(folder: str) -> list[int]:
    """As `tables`, as one writes it by hand."""
    import pandas as pd

    found = sorted(Path(folder).glob("*/summary.json"))
    runs = pd.json_normalize([json.loads(path.read_text()) for path in found])
    frames = [pd.read_parquet(path.with_name("rounds.parquet")).assign(run=str(path.parent)) for path in found]
    return [len(runs), len(pd.concat(frames))]


WAYS: dict[str, Callable[[str], list[int]]] = {
    "fedsim: read(folder).runs and .rounds": tables,
    "fedsim: read(folder).sql(...) over both": query,
    "pandas: json_normalize, read_parquet file by file": one_by_one,
}


def main(way: str, folder: str) -> None:
    """One reading."""
    start = time.perf_counter()
    rows = WAYS[way](folder)
    print(json.dumps({"seconds": time.perf_counter() - start, "rows": rows}))


if __name__ == "__main__":
    main(*sys.argv[1:])
