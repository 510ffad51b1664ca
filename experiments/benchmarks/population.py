"""What a round of 1,000 clients costs when the population grows: it should be the same."""

from __future__ import annotations

from typing import Any

from experiments.benchmarks.engines import AS_IT_COMES, Options, Record, take_turns
from experiments.benchmarks.measure import Spread
from experiments.benchmarks.workloads import Workload

SIZES = (10_000, 100_000, 1_000_000)
QUICK_SIZES = (1_000, 10_000)
ROUNDS = 10


def workload(clients: int, cohort: int, rounds: int) -> Workload:
    """Linear regression on 20 made-up examples each, which are made when the client is sampled."""
    overrides = (
        *("dataset=synthetic", f"dataset.num_clients={clients}", "dataset.iid=true"),
        *("partition=natural", "population.num_clients=null", "model=linear"),
    )
    return Workload(f"{clients:,} clients", overrides, cohort, cohort, rounds)


def measure(options: Options, quick: bool) -> list[dict[str, Any]]:
    """A row of each size: seconds of a round, start_up and the process tree's peak memory; ratio to the smallest population."""
    cohort, rounds = (50, 2) if quick else (1_000, ROUNDS)
    works = [workload(clients, cohort, rounds) for clients in (QUICK_SIZES if quick else SIZES)]
    records = take_turns([(AS_IT_COMES, work) for work in works], options)
    return [row(record, records[0]) for record in records]


def row(record: Record, base: Record) -> dict[str, Any]:
    """Of one size."""
    found: dict[str, Any] = {"population": record.workload, "cohort": record.cohort}
    if record.refused:
        return {**found, "refused": record.refused}
    return {
        **found,
        "seconds_a_round": list(Spread.of([Spread.of(rounds).median for rounds in record.seconds])),
        "ratio": list(Spread.of([1 / ratio for ratio in record.ratios(base)])),
        "start_up_seconds": Spread.of(record.start_up).median,
        "peak_mb": record.peak_mb,
    }
