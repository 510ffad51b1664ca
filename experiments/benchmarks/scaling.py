"""How speed changes with the number of clients, the cohort, the parameters and the workers."""

from __future__ import annotations

from typing import Any

from experiments.benchmarks.engines import RAW, Engine, Options, Record, fedsim, take_turns
from experiments.benchmarks.machine import cores
from experiments.benchmarks.measure import Spread
from experiments.benchmarks.workloads import Workload

INPROCESS, PROCESSES = fedsim("inprocess", "inprocess"), fedsim("processes", "processes")
ENGINES = (RAW, INPROCESS, PROCESSES)
AXES = {
    "clients": (100, 1_000, 10_000, 100_000),
    "cohort": (8, 32, 128, 512),
    "width": (50, 200, 800, 1_600),
}
"""width: units of each of an MLP's two hidden layers; what is plotted is its parameters."""
QUICK_AXES = {"clients": (100, 200), "cohort": (2, 4), "width": (8, 16)}
FEATURES, CLASSES = 60, 10


def work(clients: int = 1_000, cohort: int = 64, width: int = 200, rounds: int = 3) -> Workload:
    """An MLP on 20 made-up examples each, batches of 10."""
    overrides = (
        *("dataset=synthetic", f"dataset.num_clients={clients}", "dataset.iid=true"),
        *("partition=natural", "population.num_clients=null", "model=mlp", f"model.hidden=[{width},{width}]"),
    )
    return Workload(f"{clients} clients, cohort {cohort}, width {width}", overrides, cohort, cohort, rounds)


def parameters(width: int) -> int:
    """Of the MLP."""
    return (FEATURES + 1) * width + (width + 1) * width + (width + 1) * CLASSES


def measure(options: Options, quick: bool) -> dict[str, list[dict[str, Any]]]:
    """Rows of each axis: the engine, the value on the axis, and client-rounds a second."""
    rounds = 1 if quick else 3
    found = {}
    for axis, values in (QUICK_AXES if quick else AXES).items():
        cases = [(engine, value, work(**{axis: value}, rounds=rounds)) for value in values for engine in ENGINES]
        shown = parameters if axis == "width" else int
        found[axis if axis != "width" else "parameters"] = _rows(cases, shown, options)
    most = 2 if quick else 2 * cores()
    workers = [2**power for power in range(most.bit_length()) if 2**power <= most]
    cases = [
        (fedsim("processes", "processes", f"grid.workers={number}"), number, work(width=800, rounds=rounds))
        for number in workers
    ]
    found["workers"] = _rows(cases, int, options)
    return found


def _rows(cases: list[tuple[Engine, int, Workload]], shown: Any, options: Options) -> list[dict[str, Any]]:
    records = take_turns([(engine, workload) for engine, _, workload in cases], options)
    return [_row(record, shown(value)) for (_, value, _), record in zip(cases, records, strict=True)]


def _row(record: Record, value: int) -> dict[str, Any]:
    row: dict[str, Any] = {"engine": record.engine, "value": value}
    if record.refused:
        return {**row, "refused": record.refused}
    return {**row, "client_rounds_per_second": list(Spread.of(record.speeds))}
